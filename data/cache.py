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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from utils.errors import DataError
from utils.files import sync

Report = Callable[[str], None]
"""Receives one line of news for a person."""
LEFT_OPEN = ".unfinished-"


def fingerprint(value: Any) -> str:
    """16 hexadecimal digits that identify a JSON value."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def build_once(folder: Path, write: Callable[[Path], None], report: Report, *, resumable: bool = False) -> None:
    """Make sure `folder` is there: if not, `write` fills a temporary folder that is then renamed.

    `resumable`: `write` may find what an earlier call that was stopped had written, and goes on there. Raises
    DataError when the disk is full or cannot be written.
    """
    if folder.is_dir():
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder, report) as locked:
            if locked and not resumable:
                _remove_leftovers(folder)
            if not folder.is_dir():
                _build(folder, write, f"{LEFT_OPEN}{folder.name}" if resumable and locked else None)
    except OSError as error:
        raise DataError(_explain(error, folder)) from error


def forget(folder: Path) -> None:
    """Remove what was built and what a stopped build of it left."""
    for path in (folder, folder.parent / f"{LEFT_OPEN}{folder.name}"):
        shutil.rmtree(path, ignore_errors=True)


def _remove_leftovers(folder: Path) -> None:
    """Remove what killed builds of `folder` left behind; only safe while the lock keeps living ones out."""
    for leftover in folder.parent.glob(f".building-{folder.name}-*"):
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
    with open(folder.parent / f".lock-{folder.name}", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(f"waiting for another process that prepares {folder}")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
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
