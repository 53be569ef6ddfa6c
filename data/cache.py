"""Prepared things on disk: built once under a name that is a fingerprint of what they are made from.

Written into a temporary folder, synced and renamed, so a folder with its final name is always whole: a kill or a full
disk leaves only a temporary folder, which the next build removes or, where it can, goes on from. Two processes that
want the same thing take turns by a file lock; where a file system has no locks both build and the first rename wins.
To change where things lie, see `TextDataConfig.cache_dir`.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from utils.errors import DataError
from utils.files import sync

Report = Callable[[str], None]
"""Receives one line of news for a person."""
LEFT_OPEN = ".unfinished-"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def fingerprint(value: Any) -> str:
    """16 hexadecimal digits that identify a JSON value."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def build_once(folder: Path, write: Callable[[Path], None], report: Report, *, resume_key: str | None = None) -> None:
    """Make sure `folder` is there: if not, `write` fills a temporary folder that is then renamed.

    `resume_key`: 16 digits that identify what is built; `write` may find what an earlier call with the same key that
    was stopped had written, and goes on there. Raises DataError when the disk is full or cannot be written.
    """
    if folder.is_dir():
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder, report) as locked:
            left_open = f"{LEFT_OPEN}{resume_key}-{folder.name}" if resume_key and locked else None
            if locked:
                _remove_leftovers(folder, left_open)
            if not folder.is_dir():
                _build(folder, write, left_open)
    except OSError as error:
        raise DataError(_explain(error, folder)) from error


class InUse:
    """A built folder that nobody removes while it is held; built anew if somebody was quicker."""

    def __init__(self, folder: Path, build: Callable[[], None]) -> None:
        self.folder = folder
        while True:
            build()
            self._lock = os.open(_lock_file(folder), os.O_RDWR | os.O_CREAT)
            self._let_go = weakref.finalize(self, os.close, self._lock)
            _try_lock(self._lock, fcntl.LOCK_SH)
            if folder.is_dir():
                return
            self._let_go()

    def forget(self) -> None:
        """Let go of the folder, and remove it unless another process holds it."""
        if _try_lock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB):
            shutil.rmtree(self.folder, ignore_errors=True)
        self._let_go()


def _try_lock(file: int, kind: int) -> bool:
    """Whether the lock was had, or there are no locks here."""
    try:
        fcntl.flock(file, kind)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return True


def _lock_file(folder: Path) -> Path:
    return folder.parent / f".lock-{folder.name}"


def _remove_leftovers(folder: Path, kept: str | None) -> None:
    """Remove what killed builds of `folder` left behind; only safe while the lock keeps living ones out."""
    key = "[0-9a-f]" * 16
    for pattern in (f".building-{folder.name}-*", f"{LEFT_OPEN}{key}-{folder.name}"):
        for leftover in folder.parent.glob(pattern):
            if leftover.name != kept:
                shutil.rmtree(leftover, ignore_errors=True)


def _build(folder: Path, write: Callable[[Path], None], left_open: str | None) -> None:
    temporary = folder.parent / (left_open or f".building-{folder.name}-{os.getpid()}")
    try:
        temporary.mkdir(exist_ok=left_open is not None)
        write(temporary)
        for path in [*temporary.rglob("*"), temporary]:
            sync(path)
        _rename(temporary, folder)
        sync(folder.parent)
    finally:
        # What can be gone on from stays; a folder without a file is none of that.
        if left_open is None or not any(path.is_file() for path in temporary.rglob("*")):
            shutil.rmtree(temporary, ignore_errors=True)


def _rename(temporary: Path, folder: Path) -> None:
    """Give the finished folder its name, unless another process already has."""
    try:
        temporary.rename(folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


@contextlib.contextmanager
def _lock(folder: Path, report: Report) -> Iterator[bool]:
    """Hold the lock file beside `folder`; the system lets go of it when the process ends, however it ends.

    Yields False where the file system has no locks.
    """
    locked = True
    with open(_lock_file(folder), "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(f"waiting for another process that prepares {folder}")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            locked = False
        yield locked


def _explain(error: OSError, folder: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(folder.parent).free
        return (
            f"the disk is full: {folder.parent} has {free / 1e6:.0f} MB left; make room and start again, or set "
            "data.cache_dir to another disk"
        )
    place = error.filename or folder
    return f"cannot prepare data in {folder.parent}: {error.strerror}: {place}; check it or set data.cache_dir"
