"""This end of a remote run, once connected: upload, note the call, wait for its end, bring the run home.

Volumes are modal.Volume or anything with its methods (`core/remote_files.py`). A person's Ctrl-C ends the call, which
saves there first, unless the run was detached. To change what is refused before a GPU is asked for, edit `send`.
"""

import functools
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
from core.initial_weights import initial_folder
from core.remote import CLIENT, LAUNCH, Order
from core.remote_condition import first_line, judge, stop, trouble
from core.remote_files import RemoteFolder, RemoteState, remote_state, remove_run, upload_data, upload_weights
from core.remote_launch import Launch, attempt_seconds, function_timeout, image_key, own_modules
from core.remote_transfer import pull_run, push_run, refuse_another_life
from core.run import refuse_other_config, run_folder
from utils.cli import warn
from utils.errors import CheckpointError, ConfigError, UserError

Say = Callable[[str], None]
STOP_SECONDS = 600.0
POLL_SECONDS = 0.5


def send(launch: Launch, runs: Any, data: Any, say: Say) -> Order | None:
    """Upload what is missing there; the order to call with. None: the run is done, and nothing is left to train.

    Raises:
        UserError: the run there is not what this launch goes on with, or one that it may not replace.
    """
    options, config = launch.options, launch.config
    name, folder = config.name, run_folder(config)
    state = remote_state(runs, name)
    refuse_while_running(state, name)
    if options.resume:
        newest = go_on(launch, runs, state, say)
        if newest is not None and newest >= launch.total_steps:
            say(f"step {newest} of {launch.total_steps} is done: to go on, raise training.duration")
            return None
    elif options.overwrite and state.exists:
        remove_run(runs, name)
        state = remote_state(runs, name)
    elif RemoteFolder(runs, name).read("config.yaml") is not None:
        raise ConfigError(
            f"the run {name} is there already on Modal: continue it with --resume or start anew with --overwrite"
        )
    seconds = float(function_timeout(options))
    return Order(
        name=name,
        folder=str(folder),
        config=to_yaml(config),
        data=upload_data(data, launch.dataset.store.folder, say),
        init_from=initial_weights(launch, state, data, say),
        gpu=launch.gpu.name,
        image=image_key(options.cuda),
        attempts_before=len(state.attempts),
        max_seconds=None if options.max_hours is None else options.max_hours * 3600,
        attempt_seconds=attempt_seconds(seconds),
        sync_seconds=options.sync_seconds,
        bar_columns=shutil.get_terminal_size().columns if sys.stdout.isatty() else 0,
    )


def initial_weights(launch: Launch, state: RemoteState, data: Any, say: Say) -> str | None:
    """Upload what `init_from` names, unless a checkpoint, here or there, makes it needless; its name there."""
    config = launch.config
    if config.init_from is None:
        return None
    is_saved = state.newest_step is not None or newest_valid(run_folder(config) / "checkpoints", warn) is not None
    if launch.options.resume and is_saved:
        return None
    return upload_weights(data, initial_folder(Path(config.init_from)), say)


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


def go_on(launch: Launch, runs: Any, state: RemoteState, say: Say) -> int | None:
    """For --resume: bring what is only here to the volume; the newest step there then. None: none was saved yet.

    Raises:
        UserError: there is no such run, or what is here and what is there cannot be one run.
    """
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
    if here is None or (state.newest_step or 0) > here:
        if is_here and state.exists:
            refuse_another_life(runs, folder, say)
        if state.newest_step is not None:
            elsewhere = "" if here is None else f", at step {here} here"
            say(f"the run is at step {state.newest_step} on Modal{elsewhere}: going on there")
        return state.newest_step
    return push_run(runs, folder, "last", say)


def find_secret(name: str) -> Any:
    """A secret of the person's, by name. Raises ConfigError when there is none of that name."""
    import modal

    secret = modal.Secret.from_name(name)
    try:
        secret.hydrate()
    except modal.exception.NotFoundError as error:
        raise ConfigError(f"--secret: there is no secret '{name}' on Modal; to see them: modal secret list") from error
    return secret


def make_call(function: Any, runs: Any, launch: Launch, order: Order, app_id: str | None) -> Any:
    """Call the function with the order; the call, noted on the volume.

    It is noted before too: between the call and its number this program may be killed, and the run be forgotten.
    """
    note_call(runs, launch, order, None, app_id)
    try:
        call = function.spawn(order._asdict())
    except Exception:
        RemoteFolder(runs, order.name).remove(LAUNCH)  # Nobody was called.
        raise
    note_call(runs, launch, order, call.object_id, app_id)
    return call


def note_call(runs: Any, launch: Launch, order: Order, call_id: str | None, app_id: str | None) -> None:
    """Leave on the volume who was called, for `modal_client.py` and the next launch; `call_id` None: nobody yet."""
    noted = {
        "call_id": call_id,
        "app_id": app_id,
        "launched": time.time(),
        "gpu": order.gpu,
        "cuda": launch.options.cuda,
        "own_modules": own_modules(launch.config),
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
        code, line = result_of(call, runs, order)
    except KeyboardInterrupt:
        if launch.detached:
            say(f"the run goes on; bring it home with {CLIENT} pull --run {name}")
            return 130
        say("stopping: the run is saved there first (again: leave at once)")
        look = functools.partial(remote_state, runs, order.name)
        stop(call, look, patience_seconds=STOP_SECONDS, poll_seconds=POLL_SECONDS)
        code, line = 130, "stopped; continue with --resume"
    try:
        bring_home(launch, runs, say)
    except (UserError, OSError, *trouble()) as error:
        say(f"not brought home: {error}; what was saved is on Modal: {CLIENT} pull --run {name}")
        code = code or 2
    if line:
        print(f"error: {line}" if code not in (0, 130, 143) else line, file=sys.stderr)
    return code


def result_of(call: Any, runs: Any, order: Order) -> tuple[int, str]:
    """Exit code and a line for a person, from what the call returned or raised."""
    import modal

    try:
        outcome = call.get()
    except trouble() as error:
        client = f"{CLIENT} status --run {shlex.quote(order.name)}"
        return 2, f"lost the connection to Modal ({error}); the run may go on there: {client}"
    except Exception as error:  # Whatever ended the last attempt comes back as its own class.
        # A call that was cancelled says so at once, while its container still saves.
        is_cancelled = type(error) is modal.exception.RemoteError
        if is_cancelled and has_ended(runs, order, STOP_SECONDS) == "stopped":
            return 130, "stopped from elsewhere; continue with --resume"
        return 2, f"gave up: {first_line(error)}; checkpoints saved before are whole: continue with --resume"
    lines = [line for line in outcome["message"].splitlines() if line]
    more = "" if len(lines) < 2 else f" (and {len(lines) - 1} more lines, see above)"
    return outcome["exit_code"], lines[0] + more if lines else ""


def has_ended(runs: Any, order: Order, seconds: float) -> str | None:
    """The outcome of the last attempt of this call, once it is noted; None: not within `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        attempts = remote_state(runs, order.name).attempts[order.attempts_before :]
        if attempts and attempts[-1].ended is not None:
            return attempts[-1].outcome
        time.sleep(POLL_SECONDS)
    return None


def bring_home(launch: Launch, runs: Any, say: Say) -> None:
    """Config, metrics, samples, log and the checkpoints asked for."""
    folder = run_folder(launch.config)
    if RemoteFolder(runs, launch.config.name).read("config.yaml") is None:
        say("nothing was trained, so there is nothing to bring home")
        return
    step = pull_run(runs, folder, launch.options.pull, say, replace=launch.options.overwrite)
    say(f"{folder} is here" + ("" if step is None else f", at step {step}"))
