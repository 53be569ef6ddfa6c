"""Command lines called in this process: what a child that runs `main` would leave, without its second of imports.

A test whose subject is the process (signals, exit codes, what imports print) uses `tests/processes.py`.
"""

import contextlib
import io
import sys
from collections.abc import Callable
from typing import NamedTuple
from unittest import mock

from utils.errors import exit_code_of


class Done(NamedTuple):
    """As `subprocess.CompletedProcess` has it."""

    returncode: int
    stdout: str
    stderr: str


def call(main: Callable[[], int | None], *arguments: object) -> Done:
    """Run `main` with this command line; errors of a person and of the parser become an exit code."""
    output, errors = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["command", *map(str, arguments)]),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(errors),
    ):
        try:
            code = exit_code_of(main)
        except SystemExit as stop:
            code = int(stop.code or 0)
    return Done(code, output.getvalue(), errors.getvalue())
