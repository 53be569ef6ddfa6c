"""The same run on one of Modal's GPUs: `modal run [--detach] modal/modal_deploy.py --config X.yaml --gpu A100-80GB`.

Only what Modal must see stands here: image, volumes, functions and the one entry point. Options, plan and refusals are
in core/remote_launch.py, uploads and the way home in core/remote_journey.py, the container's side in
core/remote_attempt.py. Modal imports this file before it connects, and that is when the command line is checked, so a
mistake costs nothing. In a container the file lies alone beside the packages added below. See docs/modal.md.
"""

import json
import os
import sys
from collections.abc import Callable

import modal

from core import remote

LAUNCH = None
if modal.is_local():
    from core import remote_launch
    from utils.errors import UserError, exit_code_of

    def check() -> int:
        """Everything that needs no connection, when this file is what `modal run` was given."""
        global LAUNCH
        found = remote_launch.own_arguments(sys.argv, __file__)
        if found is not None:
            LAUNCH = remote_launch.prepare(found[0], detached=found[1])
        return 0

    def leave(main: Callable[[], int]) -> None:
        """Run `main` and leave with its exit code; a success is left to Modal, which would count it as a failure."""
        try:
            code = exit_code_of(main)
        except KeyboardInterrupt:
            code = 130
        if code:
            raise SystemExit(code)

    leave(check)


def make_image() -> modal.Image:
    """Python, MLX for CUDA and our dependencies at the versions of the lock file; our code on top."""
    if not modal.is_local():
        return modal.Image.debian_slim()
    if LAUNCH is None:  # Another program uses the app: modal_client.py says for which run.
        contents = json.loads(os.environ.get("PIPPIN_IMAGE", "{}"))
    else:
        own = [] if LAUNCH.config is None else remote_launch.own_modules(LAUNCH.config)
        contents = {"cuda": LAUNCH.options.cuda, "own_modules": own}
    return (
        modal.Image.debian_slim(python_version=remote_launch.PYTHON_VERSION)
        .add_local_file(remote_launch.REPOSITORY / "requirements-lock.txt", remote_launch.LOCK_THERE, copy=True)
        .uv_pip_install(
            *remote_launch.image_packages(contents.get("cuda", remote_launch.DEFAULT_CUDA)),
            extra_options=f"--constraint {remote_launch.LOCK_THERE}",
            uv_version=remote_launch.UV_VERSION,
        )
        .add_local_python_source(*remote_launch.PACKAGES, *contents.get("own_modules", []))
    )


app = modal.App("pippin", image=make_image())
runs = modal.Volume.from_name(remote.RUNS_VOLUME, create_if_missing=True, version=2)
data = modal.Volume.from_name(remote.DATA_VOLUME, create_if_missing=True, version=2)
# Docs: mount paths of volumes, seconds of an attempt. The rest is decided by the command line, through with_options.
MOUNTS = {remote.RUNS_MOUNT: runs, remote.DATA_MOUNT: data.with_mount_options(read_only=True)}


@app.function(volumes=MOUNTS, timeout=24 * 3600, single_use_containers=True)
def train(order: dict) -> dict:
    """One attempt at a run: see core/remote_attempt.py for what is returned, what raised."""
    from core.remote_attempt import attempt

    return attempt(remote.Order(**order), runs, modal.exception.InputCancellation)._asdict()


@app.function(timeout=600, single_use_containers=True)
def smoke() -> int:
    """Whether MLX works in this image on this GPU; the exit code of core.smoke."""
    from core.remote_commands import run_smoke

    return run_smoke()


@app.function(
    volumes={remote.RUNS_MOUNT: runs.with_mount_options(read_only=True)}, timeout=3600, single_use_containers=True
)
def generate(name: str, arguments: list[str]) -> int:
    """Text from a run on the volume; the exit code of core.generation."""
    from core.remote_commands import run_generation

    return run_generation(runs, name, arguments)


@app.local_entrypoint()
def main(*arguments: str) -> None:
    """Send what was checked on import, wait, bring the run home. `arguments` were read then."""
    del arguments
    leave(launch)


def launch() -> int:
    """Upload, call, wait, bring home; the exit code."""
    from core import remote_journey
    from core.remote_condition import explained

    if LAUNCH is None:
        raise UserError("start it by its path: modal run modal/modal_deploy.py --config X.yaml")
    options = LAUNCH.options
    hardware = {
        "gpu": LAUNCH.gpu.name,
        "cpu": options.cpu,
        "memory": round((options.memory or remote.GIB) * 1024),
        "region": options.region,
    }
    with explained():
        if options.smoke:
            return smoke.with_options(**hardware).remote()
        secrets = [remote_journey.find_secret(name) for name in options.secret]
        order = remote_journey.send(LAUNCH, runs, data, print)
        if order is None:
            remote_journey.bring_home(LAUNCH, runs, print)
            return 0
        function = train.with_options(
            **hardware,
            secrets=secrets,
            timeout=remote_launch.function_timeout(options),
            retries=modal.Retries(
                max_retries=options.retries, initial_delay=1.0, backoff_coefficient=2.0, max_delay=60.0
            ),
        )
        call = remote_journey.make_call(function, runs, LAUNCH, order, app.app_id)
        return remote_journey.follow(call, LAUNCH, runs, order, print)
