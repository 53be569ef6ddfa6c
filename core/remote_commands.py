"""What a container runs besides training: the smoke test on its own, and text from a run on the volume.

To run another of the project's commands there, write a function beside these and a Modal function that calls it.
"""

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from core.remote import RUNS_MOUNT, mounted
from core.remote_attempt import Volume
from core.remote_child import Child, explain_exit
from core.remote_mirror import restore
from utils.cli import warn
from utils.errors import UserError

SMOKE_SECONDS, GENERATION_SECONDS = 540.0, 3480.0
"""For all of it, a minute less than the timeouts in modal/modal_deploy.py: what takes too long is said, not cut off."""


def run_smoke() -> int:
    """`python -m core.smoke`; its exit code."""
    deadline = time.monotonic() + SMOKE_SECONDS
    return run([sys.executable, "-m", "core.smoke"], Path(tempfile.gettempdir()), deadline)


def run_generation(runs: Volume, name: str, arguments: Sequence[str]) -> int:
    """`python -m core.generation` on the newest checkpoint of run `name`; its exit code, 2 when there is none."""
    deadline = time.monotonic() + GENERATION_SECONDS
    runs.reload()
    root = Path(tempfile.mkdtemp())
    try:
        step = restore(mounted(RUNS_MOUNT) / name, root / name, warn)
    except UserError as error:
        print("\n".join(f"error: {line}" for line in error.problems), file=sys.stderr)
        return 2
    if step is None:
        print(f"error: run {name} has no checkpoint on Modal", file=sys.stderr)
        return 2
    return run(generation_command(root / name, arguments), root, deadline)


def generation_command(run_folder: Path, arguments: Sequence[str]) -> list[str]:
    """What writes the text."""
    return [sys.executable, "-m", "core.generation", "--run", run_folder.name, *arguments]


def run(command: list[str], folder: Path, deadline: float) -> int:
    """Run a command to its end, its lines passed on; its exit code, 1 when a signal or `deadline` ended it."""
    with Child(command, folder, folder / "output.txt") as child:
        code = child.wait(max(0.0, deadline - time.monotonic()))
    if code is None or code < 0:
        print("error: took too long" if code is None else f"error: {explain_exit(code)}", file=sys.stderr)
        return 1
    return code
