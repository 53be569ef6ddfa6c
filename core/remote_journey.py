"""This end of a remote run, once connected: upload, note the call, wait for its end, bring the run home.

Volumes are modal.Volume or anything with its methods (`core/remote_files.py`). A person's Ctrl-C ends the call, which
saves there first, unless the run was detached. To change what is refused before a GPU is asked for, edit `send`.
"""

import json
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.checkpoint import checkpoint_step, newest_valid
from core.config import to_yaml
from core.remote import LAUNCH, Order
from core.remote_files import RemoteFolder, RemoteState, remote_state, remove_run, upload_data, upload_weights
from core.remote_launch import Launch, attempt_seconds, function_timeout, image_key
from core.remote_status import judge, trouble
from core.remote_transfer import pull_run, push_run
from core.run import refuse_other_config, run_folder
from utils.cli import warn
from utils.errors import CheckpointError, ConfigError, UserError

Say = Callable[[str], None]
STOP_SECONDS = 60.0
POLL_SECONDS = 0.5
CLIENT = "python modal/modal_client.py"


def send(launch: Launch, runs: Any, data: Any, say: Say) -> Order:
    """Upload what is missing there; the order to call with.

    Raises:
        UserError: the run there is not what this launch goes on with, or one that it may not replace.
    """
    options, config = launch.options, launch.config
    name, folder = config.name, run_folder(config)
    state = remote_state(runs, name)
    refuse_while_running(state, name)
    has_started = RemoteFolder(runs, name).read("config.yaml") is not None
    if options.resume:
        go_on(launch, runs, state, say)
    elif options.overwrite and state.exists:
        remove_run(runs, name)
        state = remote_state(runs, name)
    elif has_started:
        raise ConfigError(
            f"the run {name} is there already on Modal: continue it with --resume or start anew with --overwrite"
        )
    seconds = float(function_timeout(options))
    weights = None
    if config.init_from is not None and not (options.resume and has_saved(folder, state)):
        from core.initial_weights import initial_folder

        weights = upload_weights(data, initial_folder(Path(config.init_from)), say)
    return Order(
        name=name,
        folder=str(folder),
        config=to_yaml(config),
        data=upload_data(data, launch.dataset.store.folder, say),
        init_from=weights,
        gpu=launch.gpu.name,
        image=image_key(options.cuda),
        attempts_before=len(state.attempts),
        max_seconds=None if options.max_hours is None else options.max_hours * 3600,
        attempt_seconds=attempt_seconds(seconds),
        sync_seconds=options.sync_seconds,
        bar_columns=shutil.get_terminal_size().columns if sys.stdout.isatty() else 0,
    )


def refuse_while_running(state: RemoteState, name: str) -> None:
    """Raise CheckpointError while a call is at work on the run: two would overwrite each other."""
    import modal

    found = judge(modal, state, time.time())
    if not found.is_over:
        quoted = shlex.quote(name)
        raise CheckpointError(
            f"run {name} is {found.state} on Modal ({found.detail}): look at it with {CLIENT} status --run {quoted}, "
            f"end it with {CLIENT} stop --run {quoted}"
        )


def go_on(launch: Launch, runs: Any, state: RemoteState, say: Say) -> None:
    """For --resume: bring what is only here to the volume, refuse what cannot be one run. Raises UserError."""
    config, folder = launch.config, run_folder(launch.config)
    is_here = (folder / "config.yaml").is_file()
    if not is_here and not state.exists:
        raise CheckpointError(f"there is no run to resume, neither at {folder} nor on Modal: start it without --resume")
    if state.exists and (text := RemoteFolder(runs, config.name).read("config.yaml")) is not None:
        with tempfile.TemporaryDirectory() as there:
            Path(there, "config.yaml").write_bytes(text)
            refuse_other_config(config, Path(there))
    newest = newest_valid(folder / "checkpoints", warn) if is_here else None
    here = checkpoint_step(newest.name) if newest else None
    if here is None and state.newest_step is None:
        return
    if here is None or (state.newest_step or 0) > here:
        elsewhere = "" if here is None else f", at step {here} here"
        say(f"the run is at step {state.newest_step} on Modal{elsewhere}: going on there")
    else:
        push_run(runs, folder, "last", say)


def has_saved(folder: Path, state: RemoteState) -> bool:
    """Whether there is a checkpoint, here or there, that makes the initial weights needless."""
    return state.newest_step is not None or newest_valid(folder / "checkpoints", warn) is not None


def find_secret(name: str) -> Any:
    """A secret of the person's, by name. Raises ConfigError when there is none of that name."""
    import modal

    secret = modal.Secret.from_name(name)
    try:
        secret.hydrate()
    except modal.exception.NotFoundError as error:
        raise ConfigError(f"--secret: there is no secret '{name}' on Modal; to see them: modal secret list") from error
    return secret


def note_call(runs: Any, launch: Launch, order: Order, call_id: str, app_id: str) -> None:
    """Leave on the volume who was called, for `modal_client.py`."""
    noted = {
        "call_id": call_id,
        "app_id": app_id,
        "launched": time.time(),
        "gpu": order.gpu,
        "data": order.data,
        "total_steps": launch.total_steps,
        "max_hours": launch.options.max_hours,
        "region": launch.options.region,
        "cpu": launch.options.cpu,
        "memory_gib": launch.options.memory,
        "attempts_before": order.attempts_before,
        "sync_seconds": order.sync_seconds,
    }
    RemoteFolder(runs, order.name).write(LAUNCH, json.dumps(noted, indent=1).encode())


def follow(call: Any, launch: Launch, runs: Any, order: Order, say: Say) -> int:
    """Wait for the end of the call and bring the run home; the exit code."""
    name = shlex.quote(order.name)
    say(f"call {call.object_id}; from another terminal: {CLIENT} status --run {name}")
    try:
        code, lines = result_of(call, runs, order)
    except KeyboardInterrupt:
        if launch.detached:
            say(f"the run goes on; bring it home with {CLIENT} pull --run {name}")
            raise
        say("stopping: the run is saved there first (again: leave at once)")
        call.cancel()
        has_ended(runs, order.name, STOP_SECONDS)
        code, lines = 130, ["stopped; continue with --resume"]
    try:
        bring_home(launch, runs, say)
    except (UserError, OSError) as error:
        say(f"not brought home: {error}; the run is whole on Modal: {CLIENT} pull --run {name}")
        code = code or 2
    for line in lines:
        print(line if code == 0 else f"error: {line}" if code not in (130, 143) else line, file=sys.stderr)
    return code


def result_of(call: Any, runs: Any, order: Order) -> tuple[int, list[str]]:
    """Exit code and lines for a person, from what the call returned or raised."""
    import modal

    try:
        outcome = call.get()
    except trouble() as error:
        client = f"{CLIENT} status --run {shlex.quote(order.name)}"
        return 2, [f"lost the connection to Modal ({error}); the run may go on there: {client}"]
    except Exception as error:  # Whatever ended the last attempt comes back as its own class.
        # A call that was cancelled says so at once, while its container still saves.
        is_cancelled = type(error) is modal.exception.RemoteError
        if is_cancelled and has_ended(runs, order.name, STOP_SECONDS) == "stopped":
            return 130, ["stopped from elsewhere; continue with --resume"]
        return 2, [f"gave up: {error}", "checkpoints saved before are whole: continue with --resume"]
    lines = [line for line in outcome["message"].splitlines() if line]
    return outcome["exit_code"], lines


def has_ended(runs: Any, name: str, seconds: float) -> str | None:
    """The outcome of the last attempt, once it is noted; None: not within `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        attempts = remote_state(runs, name).attempts
        if attempts and attempts[-1].ended is not None:
            return attempts[-1].outcome
        if time.monotonic() >= deadline:
            return None
        time.sleep(POLL_SECONDS)


def bring_home(launch: Launch, runs: Any, say: Say) -> None:
    """Config, metrics, samples, log and the checkpoints asked for."""
    folder = run_folder(launch.config)
    if not remote_state(runs, launch.config.name).exists:
        say("nothing was trained, so there is nothing to bring home")
        return
    step = pull_run(runs, folder, launch.options.pull, say, force=launch.options.overwrite)
    if step is not None:
        say(f"step {step} is in {folder}, where the commands above work")
