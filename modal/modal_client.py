"""`python modal/modal_client.py status | logs | pull | push | stop | ls | generate --run NAME`: remote runs from here.

A plain script beside `modal_deploy.py`, which starts them: it reads and writes the runs volume and talks to the call
that `modal_deploy.py` made, in whatever terminal it was. What the commands do lies in `core/remote_status.py` and
`core/remote_files.py`; a further command is a function here, a row in `COMMANDS` and its flags in `build_parser`.
Modal is contacted only once the flags are right.
"""

import argparse
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from core import remote_condition, remote_status
from core.progress import show_rows
from core.remote import RUNS_VOLUME
from core.remote_condition import Condition
from core.remote_connection import check_connection, require_modal
from core.remote_files import RemoteFolder, RemoteState, list_runs, missing_run, remote_state
from core.remote_launch import PULLS
from core.remote_transfer import folder_here, pull_run, push_run
from utils.cli import Parser, at_least, run_command
from utils.errors import BackendError, CheckpointError, ConfigError
from utils.gpus import find_gpu
from utils.metrics import Row
from utils.registry import suggestion

SAMPLING = {"max_tokens": int, "temp": float, "top_p": float, "min_p": float, "seed": int}
"""Flags of `core.generation` that travel as they are; its own defaults hold for what is not given."""


def build_parser() -> Parser:
    """The command line."""
    parser = Parser("Look after runs on Modal.", prog="python modal/modal_client.py")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    flags = {}
    for name, (_, text) in COMMANDS.items():
        flags[name] = commands.add_parser(name, help=text, description=text).add_argument
        if name != "ls":
            flags[name]("--run", required=True, help="its name, or its folder, as runs/NAME")
    flags["logs"]("--follow", action="store_true", help="go on until the run is over; Ctrl-C leaves the run alone")
    flags["logs"]("--lines", type=at_least(0), default=40, help="so many from the end; 0: all (%(default)s)")
    for name in ("pull", "push"):
        flags[name]("--checkpoints", choices=PULLS, default="last", help="which ones travel (%(default)s)")
        flags[name]("--out-dir", type=Path, help="where runs lie here (as --run or the run's config says)")
        flags[name]("--force", action="store_true", help="also over a later step or another config")
    flags["stop"]("--wait", type=at_least(0), default=600, help="seconds for it to save (%(default)s)")
    add = flags["generate"]
    add("--prompt", action="append", help="text to continue, - reads standard input; several times for several")
    for name, kind in SAMPLING.items():
        add(f"--{name.replace('_', '-')}", type=kind, help="as in python -m core.generation")
    add("--checkpoint", default="last", help="last, best or a step (%(default)s)")
    add("--gpu", default="L4", help="as Modal names it (%(default)s)")
    add("--cuda", choices=("12", "13"), help="CUDA version of MLX's wheel (the one the run was started with, or 12)")
    return parser


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The flags; `run` becomes the name, `folder` where the run lies here, if that is said. Raises ConfigError."""
    options = build_parser().parse_args(arguments)
    if options.command == "ls":
        return options
    given = Path(options.run)
    if not given.name or given.name == "..":
        raise ConfigError(f"--run is '{options.run}'; give the name of a run, or its folder, such as runs/NAME")
    parent = getattr(options, "out_dir", None) or (given.parent if len(given.parts) > 1 else None)
    options.run, options.folder = given.name, None if parent is None else parent / given.name
    return options


def find_folder(options: argparse.Namespace, volume: Any) -> Path:
    """Where the run lies here, or shall."""
    return options.folder or folder_here(options.run, RemoteFolder(volume, options.run).read("config.yaml"))


def open_runs(modal: Any, *, create: bool = False) -> Any:
    """The volume that remote runs are kept on."""
    return modal.Volume.from_name(RUNS_VOLUME, create_if_missing=create, version=2 if create else None)


def look(modal: Any, volume: Any, name: str) -> tuple[RemoteState, list[Row], Condition]:
    """State, figures and condition of a run."""
    state = remote_state(volume, name)
    rows = remote_status.read_rows(RemoteFolder(volume, name).read("metrics.jsonl"))
    found = remote_condition.judge(modal, state, time.time())
    return state, rows, found


def known_run(modal: Any, name: str) -> Any:
    """The runs volume, on which there is such a run. Raises CheckpointError with near names."""
    volume = open_runs(modal)
    if name not in list_runs(volume):
        raise missing_run(volume, name)
    return volume


def say_next_of(options: argparse.Namespace, volume: Any, found: Condition, launch: dict[str, Any] | None) -> None:
    """What to type next, by the run's state and by what of it is here."""
    config = find_folder(options, volume) / "config.yaml"
    say_next(remote_status.next_commands(options.run, found, launch, config if config.is_file() else None))


def say_next(commands: Sequence[str]) -> None:
    """What to type next."""
    print("\n  ".join(["try next:", *commands]))


def status(options: argparse.Namespace, modal: Any) -> None:
    """Print how a run is doing."""
    volume = known_run(modal, options.run)
    state, rows, found = look(modal, volume, options.run)
    print(show_rows(remote_status.describe(options.run, state, rows, found, time.time())))
    say_next_of(options, volume, found, state.launch)


def logs(options: argparse.Namespace, modal: Any) -> None:
    """Print what its containers have printed."""
    volume = known_run(modal, options.run)
    folder = RemoteFolder(volume, options.run)
    text = remote_status.read_output(folder)
    print(remote_status.last_lines(text, options.lines), end="", flush=True)
    state, _, found = look(modal, volume, options.run)
    launch = state.launch or {}
    if not text:
        print("nothing has been printed yet", file=sys.stderr)
    if "app_id" in launch and not found.is_over:
        every = launch.get("sync_seconds", remote_condition.SYNC_SECONDS)
        print(f"(up to {every:.0f} s old; live: modal app logs {launch['app_id']} --follow)", file=sys.stderr)
    if options.follow:
        remote_status.follow(
            lambda: remote_status.read_output(folder),
            lambda: look(modal, volume, options.run)[2].is_over,
            lambda piece: print(piece, end="", flush=True),
            seen=text,
        )


def pull(options: argparse.Namespace, modal: Any) -> None:
    """Bring a run home."""
    volume = known_run(modal, options.run)
    home = find_folder(options, volume)
    step = pull_run(volume, home, options.checkpoints, say, force=options.force)
    print(f"{home}: {'no checkpoint' if step is None else f'step {step:,}'}")
    folder, config = shlex.quote(str(home)), shlex.quote(str(home / "config.yaml"))
    use = [f'python -m core.generation --run {folder} --prompt "def"', f"python tools/plot-logs.py {folder}"]
    go_on = [f"python -m core.training --config {config} --resume"]
    say_next([*use, *go_on] if step is not None else use[1:])


def push(options: argparse.Namespace, modal: Any) -> None:
    """Bring a run from here to the volume, where `modal_deploy.py --resume` goes on with it."""
    home = find_folder(options, open_runs(modal))
    if not (home / "config.yaml").is_file():
        near = [path.parent.name for path in home.parent.glob("*/config.yaml")]
        raise CheckpointError(f"there is no run {home}{suggestion(options.run, near)}")
    volume = open_runs(modal, create=True)
    if options.run in list_runs(volume):
        found = look(modal, volume, options.run)[2]
        if not found.is_over:
            raise CheckpointError(
                f"the run {options.run} is {found.state} on Modal ({found.detail}): stop it first, two would write it"
            )
    step = push_run(volume, home, options.checkpoints, say, force=options.force)
    print(f"{options.run} on Modal: {'no checkpoint' if step is None else f'step {step:,}'}")
    config = shlex.quote(str(home / "config.yaml"))
    say_next([f"modal run modal/modal_deploy.py --config {config} --resume"])


def stop(options: argparse.Namespace, modal: Any) -> None:
    """End a run; it saves first."""
    volume = known_run(modal, options.run)
    state, _, found = look(modal, volume, options.run)
    call_id = (state.launch or {}).get("call_id")
    if call_id and not found.is_over:
        print(f"stopping {options.run}; it saves first", flush=True)
        call = modal.FunctionCall.from_id(call_id)
        remote_condition.stop(call, lambda: remote_state(volume, options.run), patience_seconds=options.wait)
        state, _, found = look(modal, volume, options.run)
    elif not found.is_over:
        app = (state.launch or {}).get("app_id")
        raise BackendError(f"the call of {options.run} is not known; to end it without waiting: modal app stop {app}")
    saved = "nothing is saved" if state.newest_step is None else f"step {state.newest_step:,} is saved"
    print(f"{options.run}: {found.state}; {saved}")
    say_next_of(options, volume, found, state.launch)


def ls(options: argparse.Namespace, modal: Any) -> None:
    """Print a line for every run."""
    volume = open_runs(modal)
    names = list_runs(volume)
    lines = [remote_status.cells(name, *look(modal, volume, name), time.time()) for name in names]
    if not lines:
        print("there are no runs on Modal yet; to start one: modal run modal/modal_deploy.py --config X.yaml")
        return
    console = Console(width=None if sys.stdout.isatty() else 180)
    console.print(remote_status.table_of(lines, console.width))


def generation_arguments(options: argparse.Namespace) -> list[str]:
    """The command line for `core.generation` there. Raises ConfigError here, where a mistake costs nothing."""
    from core.generation import read_prompts
    from core.sampling import SamplingOptions

    given = {name: value for name in SAMPLING if (value := getattr(options, name)) is not None}
    SamplingOptions(**{name: value for name, value in given.items() if name not in ("max_tokens", "seed")})
    if given.get("max_tokens", 1) < 1:
        raise ConfigError(f"max_tokens is {given['max_tokens']}; give at least 1")
    prompts = [f"--prompt={prompt}" for prompt in read_prompts(options.prompt)]
    sampling = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    return [*prompts, *sampling, f"--checkpoint={options.checkpoint}"]


def generate(options: argparse.Namespace, modal: Any) -> int:
    """Continue a prompt with a run's checkpoint, on a GPU there."""
    launch = remote_state(known_run(modal, options.run), options.run).launch
    os.environ["PIPPIN_IMAGE"] = remote_status.image_settings(launch, options.cuda)
    import modal_deploy  # A sibling: the folder of a script is on the path.

    with modal.enable_output(), modal_deploy.app.run():
        return modal_deploy.generate.with_options(gpu=options.gpu).remote(options.run, options.arguments)


def say(line: str) -> None:
    """News while files travel."""
    print(line, flush=True)


COMMANDS = {
    "status": (status, "say how a run is doing, what it has cost and what to type next"),
    "logs": (logs, "show what a run has printed"),
    "pull": (pull, "bring a run home"),
    "push": (push, "bring a run from here to Modal"),
    "stop": (stop, "end a run, which saves first"),
    "ls": (ls, "list all runs"),
    "generate": (generate, "continue text with a run's checkpoint, on a GPU there"),
}


def main(arguments: Sequence[str] | None = None) -> int | None:
    """Check everything that needs no network, then do what was asked."""
    options = parse_arguments(arguments)
    if options.command == "generate":
        options.gpu = find_gpu(options.gpu).name
        options.arguments = generation_arguments(options)
    modal = require_modal()
    check_connection()
    sys.path.append(os.getcwd())  # As `modal run` does: what a config names as a person's own is looked for here.
    with remote_condition.explained():
        return COMMANDS[options.command][0](options, modal)


if __name__ == "__main__":
    run_command(main)
