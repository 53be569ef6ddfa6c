"""Stops code at its n-th file operation, as a kill, a full volume or another process would.

Python tells an audit hook of every open, rename, removal and new folder before it happens, whoever asks for it; so
code under test needs no seam, and nothing that it does to files goes unseen. To watch another kind of operation, add
its event to `EVENTS`.
"""

import contextlib
import errno
import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.utime", "os.listdir", "os.scandir"}
Action = Callable[[str, Any], None]


class KilledError(BaseException):
    """The process is gone: no `except Exception` sees it, and no clean-up succeeds."""


class Operations:
    """Counts the file operations of one thread, and acts before the n-th of them, from 0."""

    def __init__(self, at: int, action: Action, lives: int | None = None) -> None:
        """`lives`: how many operations may follow when the action raises; None: all."""
        self.has_acted = False
        self._count, self._at, self._action, self._lives = 0, at, action, lives
        self._left: int | None = None
        self._thread = threading.get_ident()

    def see(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Called before each operation."""
        if threading.get_ident() != self._thread or event not in EVENTS:
            return
        if self._left is not None:
            if self._left == 0:
                raise KilledError
            self._left -= 1
        self._count += 1
        if self._count - 1 == self._at:
            self.has_acted = True
            with watched(None):
                self._act(event, arguments)

    def _act(self, event: str, arguments: tuple[Any, ...]) -> None:
        try:
            self._action(event, arguments)
        except KilledError:
            self._left = 0
            raise
        except BaseException:
            self._left = self._lives
            raise


def kill(event: str, arguments: tuple[Any, ...]) -> None:
    """Nothing of the operation happens, or half of it: a file being written is cut short."""
    leave_half(event, arguments)
    raise KilledError


def interrupt(event: str, arguments: tuple[Any, ...]) -> None:
    """Ctrl-C, or the machine is wanted back."""
    raise KeyboardInterrupt


def fill_up(event: str, arguments: tuple[Any, ...]) -> None:
    """No room: a file being written is cut short; other operations succeed."""
    if leave_half(event, arguments):
        raise OSError(errno.ENOSPC, "No space left on device", arguments[0])


def leave_half(event: str, arguments: tuple[Any, ...]) -> bool:
    """Write the beginning of a file that is about to be written; whether it was one."""
    is_writing = event == "open" and isinstance(arguments[1], str) and "w" in arguments[1]
    if is_writing:
        with open(arguments[0], "wb") as file:
            file.write(b'{"cut')
    return is_writing


_active: list[Operations | None] = [None]


@functools.cache
def _install() -> None:
    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if _active[0] is not None:
            _active[0].see(event, arguments)

    sys.addaudithook(hook)


@contextlib.contextmanager
def watched(operations: Operations | None) -> Iterator[None]:
    """Within the block, operations are told to `operations`; None: to nobody."""
    _install()
    before, _active[0] = _active[0], operations
    try:
        yield
    finally:
        _active[0] = before


def act_at(number: int, action: Action, run: Callable[[], Any], lives: int | None = None) -> bool:
    """Run with `action` before operation `number`; False when there were fewer. What the action raises ends here."""
    operations = Operations(number, action, lives)
    with watched(operations), contextlib.suppress(KilledError, KeyboardInterrupt, OSError):
        run()
    return operations.has_acted


def open_files() -> int:
    """How many descriptors this process holds."""
    return len(os.listdir("/dev/fd"))
