"""What a container runs besides training: the smoke test on its own, and text from a run on the volume.

To run another of the project's commands there, write a function beside these and a Modal function that calls it.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from core.remote import RUNS_MOUNT, mounted
from core.remote_attempt import Volume
from core.remote_child import Child, explain_exit
from core.remote_mirror import restore

LONGEST_SECONDS = 3600.0


def run_smoke() -> int:
    """`python -m core.smoke`; its exit code."""
    return run([sys.executable, "-m", "core.smoke"], Path(tempfile.gettempdir()))


def run_generation(runs: Volume, name: str, arguments: Sequence[str]) -> int:
    """`python -m core.generation` on the newest checkpoint of run `name`; its exit code, 2 when there is none."""
    runs.reload()
    kept = mounted(RUNS_MOUNT) / name
    root = Path(tempfile.mkdtemp())
    step = (
        restore(kept, root / name, warn=lambda line: print(f"warning: {line}", file=sys.stderr))
        if kept.is_dir()
        else None
    )
    if step is None:
        print(f"error: run {name} has no checkpoint on Modal", file=sys.stderr)
        return 2
    return run([sys.executable, "-m", "core.generation", "--run", str(root / name), *arguments], root)


def run(command: list[str], folder: Path) -> int:
    """Run a command to its end, its lines passed on; its exit code, 1 when a signal ended it."""
    with Child(command, folder, folder / "output.txt") as child:
        code = child.wait(LONGEST_SECONDS)
    if code is None or code < 0:
        print("error: took too long" if code is None else f"error: {explain_exit(code)}", file=sys.stderr)
        return 1
    return code
