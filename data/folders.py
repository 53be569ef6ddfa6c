"""Which files a path stands for: a file, a folder searched at any depth, or a glob; and what tells that they changed.

In a folder, what begins with a dot is left alone, links to folders are not followed, and a file that is reached twice
through links is read once: documentation that links its parts together would otherwise count several times. A folder
that cannot be listed is an error, because leaving it out would make the corpus shorter without a word. Order is by
name, part by part, the same on every machine. To search otherwise, edit `search`.
"""

import glob
import hashlib
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from utils.errors import DataError


def find_files(given: Path, suffixes: Sequence[str], kinds: str) -> list[Path]:
    """The files, sorted by name. `kinds` is what the message calls them. Raises DataError when there are none."""
    if os.path.isfile(given):
        return [given]
    is_folder = os.path.isdir(given)
    found = search(given, suffixes) if is_folder else [Path(name) for name in glob.glob(str(given), recursive=True)]
    found = distinct([path for path in found if os.path.isfile(path)])
    if found:
        return found
    if is_folder:
        raise DataError(f"{given}: no {kinds} file in this folder; data.sources.path can be a glob")
    raise DataError(f"{given}: no such file or folder; check data.sources.path (seen from {Path.cwd()})")


def search(root: Path, suffixes: Sequence[str], ignored: Collection[str] = ()) -> list[Path]:
    """Paths below a folder that end in one of the suffixes, folders of the `ignored` names left alone.

    Capitals do not matter in suffixes. Raises DataError when a folder cannot be listed.
    """
    endings, found = tuple(suffix.lower() for suffix in suffixes), []
    for folder, subfolders, names in os.walk(root, onerror=_refuse):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith(".") and name not in ignored)
        found += [Path(folder, name) for name in names if name.lower().endswith(endings) and not name.startswith(".")]
    return found


def _refuse(error: OSError) -> None:
    raise DataError(f"{error.filename}: this folder cannot be listed: {error.strerror}") from error


def distinct(paths: list[Path]) -> list[Path]:
    """Sorted by name; of several names for one file the first."""
    first: dict[str, Path] = {}
    for path in sorted(paths, key=lambda path: path.parts):
        first.setdefault(os.path.realpath(path), path)
    return list(first.values())


def stamps(paths: list[Path]) -> dict[str, Any]:
    """Number of files, bytes, and a digest of path, size and time of change of each: it tells that one is not the one
    it was. Raises DataError when one is gone."""
    digest, num_bytes = hashlib.sha256(), 0
    for path in paths:
        try:
            stat = path.stat()
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from error
        digest.update(f"{path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode("utf-8", "surrogateescape"))
        num_bytes += stat.st_size
    return {"num_files": len(paths), "num_bytes": num_bytes, "digest": digest.hexdigest()}
