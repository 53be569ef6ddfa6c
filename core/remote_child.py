"""A command in a process of its own, whose lines are passed on while they come.

Training and its self-tests run as children of the container's function: an import that fails, a segmentation fault or
the kernel's out-of-memory killer then ends the child, and what was saved can still be brought to the volume and told.
Values of secrets are blotted out of every line. To show progress in another way, edit `moving_bar`.
"""

import collections
import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TextIO

from utils.cli import SAVING

SECRETS = ("HF_TOKEN", "WANDB_API_KEY")
SHORTEST_SECRET = 8
NUM_LAST_LINES = 20
MOST_ERRORS = 200
ERROR = "error: "
"""How a line begins that tells a person what to mend (utils/errors.py)."""
BAR_WIDTH = 24
CLEAR_LINE = "\x1b[2K"
KILL_SECONDS = 5.0
SETTLE_SECONDS = 0.3
STEP_LINE = re.compile(r"step (\d+)/(\d+)  ")


class Child:
    """A running command, killed when its block is left. Its output goes to this process's output and to a file."""

    def __init__(self, command: Sequence[str], folder: Path, output: Path, *, bar_columns: int = 0) -> None:
        """`folder`: where it runs; `output`: file its lines are appended to; `bar_columns`: see `Order`."""
        self._bar_columns = bar_columns
        self._secrets = [value for name in SECRETS if len(value := os.environ.get(name, "")) >= SHORTEST_SECRET]
        self._output = output
        self._writing = threading.Lock()
        self.last_errors: collections.deque[str] = collections.deque(maxlen=NUM_LAST_LINES)
        """What it wrote to stderr last."""
        self.errors: list[str] = []
        """Its first lines that begin with `ERROR`, without that: many problems must not push out the first one."""
        self._has_spoken = self._is_over = False
        # A session of its own: an interrupt of the container is passed on by us alone, and once.
        self._process = subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": os.pathsep.join(module_folders())},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="backslashreplace",
            start_new_session=True,
        )
        streams = ((self._process.stdout, sys.stdout), (self._process.stderr, sys.stderr))
        self._readers = [threading.Thread(target=self._pass_on, args=pair, daemon=True) for pair in streams]
        for reader in self._readers:
            reader.start()

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def _pass_on(self, source: IO[str], destination: TextIO) -> None:
        with source:
            for raw in source:
                line = self._without_secrets(raw)
                self._has_spoken = True
                if destination is sys.stderr:
                    self._remember(line.rstrip("\n"))
                with self._writing:
                    with self._output.open("a", encoding="utf-8") as file:
                        file.write(line)
                    destination.write(moving_bar(line, self._bar_columns) if self._bar_columns else line)
                    destination.flush()

    def _remember(self, line: str) -> None:
        self.last_errors.append(line)
        if line.startswith(ERROR) and len(self.errors) < MOST_ERRORS:
            self.errors.append(line.removeprefix(ERROR))

    def _without_secrets(self, line: str) -> str:
        for secret in self._secrets:
            line = line.replace(secret, "***")
        return line

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def wait(self, seconds: float) -> int | None:
        """Its exit code, negative for a signal, once all its lines are passed on; None: it runs after `seconds`.

        What it started ends with it: a process that was left behind would hold the pipes open for ever.
        """
        try:
            code = self._process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return None
        if not self._is_over:
            self._is_over = True
            self._end_group()
            for reader in self._readers:
                reader.join(KILL_SECONDS)
        return code

    def interrupt(self, grace_seconds: float) -> int:
        """Ask it to save and end; kill it when it has not within `grace_seconds`. Its exit code.

        A signal that was meant for all of a container has reached it already, and a second one would end it at once.
        One that has not said a word is still loading its modules: it has nothing to save, and would leave a traceback.
        """
        if self.wait(SETTLE_SECONDS) is None and not any(SAVING in line for line in self.last_errors):
            if self._has_spoken:
                self._process.send_signal(signal.SIGINT)
            else:
                self.kill()
        code = self.wait(grace_seconds)
        if code is None:
            self.kill()
            code = self.wait(KILL_SECONDS)
        return -signal.SIGKILL if code is None else code

    def kill(self) -> None:
        """End it and all it started at once, if it still runs."""
        if not self._is_over:
            self._end_group()
        self.wait(KILL_SECONDS)

    def _end_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # Nothing is left of it; macOS: only zombies.
            os.killpg(self._process.pid, signal.SIGKILL)


def module_folders() -> list[str]:
    """Where the child finds this project and what was sent along with it."""
    here = str(Path(__file__).resolve().parents[1])
    return list(dict.fromkeys([here, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]))


def moving_bar(line: str, columns: int) -> str:
    """A line of progress as a bar that the next one overwrites, at most `columns` wide; any other line as it is.

    Modal's client puts the next line over one that ends in a carriage return, but leaves what stands behind it.
    """
    found = STEP_LINE.match(line)
    if found is None:
        return line
    step, total = int(found[1]), int(found[2])
    filled = BAR_WIDTH * step // max(1, total)
    bar = "#" * filled + "-" * (BAR_WIDTH - filled)
    text = f"{step}/{total} [{bar}] {line[found.end() :].rstrip()}"
    return CLEAR_LINE + text[: columns - 1] + ("\n" if step >= total else "\r")


def explain_exit(code: int) -> str:
    """What an exit code that is none of ours says."""
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    hint = ": the container's memory may have been used up, --memory asks for more" if -code == signal.SIGKILL else ""
    return f"killed by {name}{hint}"
