"""Command lines: a parser whose mistakes look like every other mistake of a person, one `error:` line and exit code 2.

Commands build a `Parser`, hand their `main` to `run_command`, and need not think about exit codes: a `UserError` is 2,
Ctrl-C is 130 and SIGTERM 143, a closed pipe is quiet, everything else is a bug and keeps its traceback.
"""

import argparse
import io
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from utils.errors import exit_code_of

SAVING = "stopping after this step and saving"
"""What a training says that was asked to stop; whoever runs it as a child listens for it."""


class Parser(argparse.ArgumentParser):
    """An argument parser that guesses no abbreviations and says `error: ...` as the rest of the program does."""

    def __init__(self, description: str, **kwargs: object) -> None:
        super().__init__(description=description, allow_abbrev=False, **kwargs)  # pyright: ignore[reportArgumentType]

    def error(self, message: str) -> NoReturn:
        """Print `error: message` and where help is; exit with 2."""
        print(f"error: {message} (see --help)", file=sys.stderr)
        raise SystemExit(2)


def at_least(least: int) -> Callable[[str], int]:
    """The `type` of an argument that is a whole number, `least` or more."""

    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise ValueError(text)
        return value

    return number


def warn(message: str) -> None:
    """Say on stderr what a person should know although the program goes on."""
    print(f"warning: {message}", file=sys.stderr)


def _leave(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def run_command(main: Callable[[], int | None]) -> NoReturn:
    """Run `main` and leave with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Text of a model holds any character; a terminal that lacks one shows its code.
            stream.reconfigure(errors="backslashreplace")
    signal.signal(signal.SIGTERM, _leave)  # As Ctrl-C does: what is half written is cleared away.
    try:
        code = exit_code_of(main)
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        # Whoever read the output has gone; closing stdout again at exit would complain once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    raise SystemExit(code)
