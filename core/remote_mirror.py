"""The run folder in a container and its copy on a mounted volume: out while training writes, back for the next attempt.

A volume is not a disk: it cannot be committed while one of its files is open, and a commit may come between any two
writes. So a file is written whole under a temporary name, closed, then renamed; no folder is ever renamed, nothing is
locked, nothing stays open. A checkpoint counts once its MANIFEST.json stands. Replacing one of the same step keeps
the old one whole until all of the new one is staged beside it, its manifest last: from there every later attempt
can finish the renames. To send another file along, add it to `WHOLE`, `LINES` or `FOLDERS`.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from core.checkpoint import BEST, LATEST, MANIFEST, TEMPORARY, find_damage, list_checkpoints
from utils.errors import CheckpointError

WHOLE = ("config.yaml", "environment.json")
LINES = ("metrics.jsonl", "log.txt", "samples.jsonl")
"""Appended to while they are read: only whole lines are taken."""
FOLDERS = ("tokenizer", "plots")
CHECKPOINTS = "checkpoints"
STAGED = f"{TEMPORARY}{MANIFEST}"
"""Once it is whole, so is everything staged beside it."""
CHUNK_BYTES = 8 * 2**20


class Manifest(NamedTuple):
    """What a checkpoint consists of."""

    content: bytes
    """The file: equal bytes mean equal checkpoints."""
    files: dict[str, str]
    """SHA-256 by name."""


def mirror(local: Path, mount: Path) -> bool:
    """Bring a run folder that may be in use to its place on a volume, and delete there what was deleted here.

    Returns whether anything changed. What training takes away meanwhile is left for the next time.

    Raises:
        OSError: the volume is full or cannot be written; what was there before is whole.
    """
    if not local.is_dir():
        return False
    # Listed before the metrics are read, brought after them: no checkpoint arrives before the rows that led to it.
    found = _manifests(local / CHECKPOINTS)
    checkpoints = mount / CHECKPOINTS
    checkpoints.mkdir(parents=True, exist_ok=True)
    changed = _finish_interrupted(mount)
    changed |= _copy_run_files(local, mount)
    for name in sorted(found, reverse=True):  # The newest counts most, and it is the last to be pruned.
        changed |= _bring(local / CHECKPOINTS / name, checkpoints / name, found[name])
    changed |= _move_pointers(local / CHECKPOINTS, checkpoints)
    changed |= _delete(checkpoints, found)
    return changed


def restore(mount: Path, local: Path, warn: Callable[[str], None]) -> int | None:
    """Make a new run folder of what lies on a volume: the two newest checkpoints that verify, BEST's, all other files.

    Two, because the first mirror deletes on the volume what is not here, and the newest may be damaged after that.
    Damaged ones are told through `warn` and lose their manifest, so that the run writes them again. Returns the step of
    the newest, or None when the volume holds no complete checkpoint: nothing is made then, the run starts.

    Raises:
        CheckpointError: there are complete checkpoints, and none of them verifies.
        FileExistsError: `local` is not empty.
        OSError: the volume cannot be read or the disk is full.
    """
    if local.exists() and any(local.iterdir()):
        raise FileExistsError(f"{local} is not empty: a run is restored into a new folder")
    target = local / CHECKPOINTS
    damaged: list[Path] = []
    newest = _fetch_newest(mount / CHECKPOINTS, target, warn, damaged)
    if newest is None and damaged:
        shutil.rmtree(target)
        raise CheckpointError(
            f"no checkpoint of {mount.name} on the volume is whole: push a copy of the run, or start under another name"
        )
    if newest is None:
        return None
    _fetch_newest(mount / CHECKPOINTS, target, warn, damaged, before=newest.name)
    for pointer, checkpoint in ((LATEST, newest), (BEST, _pointed_to(mount / CHECKPOINTS, BEST))):
        if checkpoint is None or checkpoint in damaged:
            continue
        if (target / checkpoint.name).is_dir() or _fetch(checkpoint, target, warn, damaged):
            _put(target / pointer, f"{checkpoint.name}\n".encode())
    _copy_run_files(mount, local)
    for checkpoint in damaged:
        with contextlib.suppress(OSError):  # A volume that is only read is written by nobody who could be misled.
            _retire(checkpoint)
    return _step(newest)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step_"))


def _read(path: Path) -> bytes | None:
    """None: it is not there, or no longer."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _manifest(path: Path) -> Manifest | None:
    """None: it is missing or cut short."""
    content = _read(path)
    try:
        entries = json.loads(content or b"")["files"]
        return Manifest(content or b"", {name: entry["sha256"] for name, entry in entries.items()})
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _manifests(folder: Path) -> dict[str, Manifest]:
    found = {path.name: _manifest(path / MANIFEST) for path in list_checkpoints(folder)}
    return {name: manifest for name, manifest in found.items() if manifest is not None}


def _pointed_to(folder: Path, pointer: str) -> Path | None:
    """The complete checkpoint that LATEST or BEST names."""
    name = _name_in(folder / pointer)
    return folder / name if name and (folder / name / MANIFEST).is_file() else None


def _name_in(pointer: Path) -> str:
    return (_read(pointer) or b"").decode(errors="replace").strip()


def _copy_run_files(source: Path, target: Path) -> bool:
    """All but the checkpoints, from one run folder to another."""
    changed = False
    for path in _run_files(source):
        changed |= _copy_if_changed(path, target / path.relative_to(source), whole_lines=path.name in LINES)
    return changed


def _run_files(source: Path) -> Iterator[Path]:
    yield from (source / name for name in WHOLE)
    for folder in FOLDERS:
        # tokenizer.json last: a run whose tokenizer lacks it writes the tokenizer anew, half of one would end it.
        paths = (source / folder).glob("[!.]*")
        yield from sorted(paths, key=lambda path: (path.name == "tokenizer.json", path.name))
    yield from (source / name for name in LINES)


def _copy_if_changed(source: Path, target: Path, *, whole_lines: bool) -> bool:
    try:
        modified = source.stat().st_mtime_ns  # Before reading: what is appended meanwhile shows the next time.
        content = source.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return False
    if whole_lines:
        content = content[: content.rfind(b"\n") + 1]
    with contextlib.suppress(FileNotFoundError):
        there = target.stat()
        if (there.st_size, there.st_mtime_ns) == (len(content), modified):
            return False
    target.parent.mkdir(parents=True, exist_ok=True)
    _put(target, content, modified)
    return True


def _put(target: Path, content: bytes, modified: int | None = None) -> None:
    temporary = target.with_name(f"{TEMPORARY}{target.name}")
    try:
        temporary.write_bytes(content)
        if modified is not None:
            with contextlib.suppress(OSError):  # On a volume without such times it is copied each time, that is all.
                os.utime(temporary, ns=(modified, modified))
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _bring(source: Path, target: Path, manifest: Manifest) -> bool:
    """Copy a checkpoint unless an equal one is there; False also when training took it away in the middle."""
    there = _manifest(target / MANIFEST)
    if there is not None and there.content == manifest.content:
        return False
    is_staged = False
    try:
        is_staged = _stage(source, target, manifest, there)
    finally:
        if not is_staged:
            _clear(target)
    if is_staged:
        _publish(target, manifest)
    return is_staged


def _stage(source: Path, target: Path, manifest: Manifest, there: Manifest | None) -> bool:
    """Write the new files beside the old ones, the manifest last; False when `source` is no longer what it was."""
    target.mkdir(exist_ok=True)
    for name, checksum in manifest.files.items():
        if there is not None and there.files.get(name) == checksum and (target / name).is_file():
            continue
        if _copy(source / name, target / f"{TEMPORARY}{name}") != checksum:
            return False
    (target / STAGED).write_bytes(manifest.content)
    return True


def _copy(source: Path, target: Path) -> str | None:
    """The SHA-256 of what was copied; None when there is nothing to copy."""
    try:
        reading = source.open("rb")
    except (FileNotFoundError, NotADirectoryError):
        return None
    digest = hashlib.sha256()
    with reading, target.open("wb") as writing:
        while chunk := reading.read(CHUNK_BYTES):
            digest.update(chunk)
            writing.write(chunk)
    return digest.hexdigest()


def _publish(target: Path, manifest: Manifest) -> None:
    """Rename what is staged, the manifest last. Done again after a crash, it finishes."""
    for name in manifest.files:
        with contextlib.suppress(FileNotFoundError):  # It is in place already, or the old one was equal.
            os.replace(target / f"{TEMPORARY}{name}", target / name)
    for path in target.iterdir():
        if path.name not in manifest.files and path.name not in (MANIFEST, STAGED):
            path.unlink()
    os.replace(target / STAGED, target / MANIFEST)


def _clear(target: Path) -> None:
    """Remove what was staged, and all of it when there was nothing before."""
    (target / STAGED).unlink(missing_ok=True)  # First: without the rest it would promise what is gone.
    if not (target / MANIFEST).is_file():
        shutil.rmtree(target, ignore_errors=True)
        return
    for path in target.glob(f"{TEMPORARY}*"):
        path.unlink()


def _finish_interrupted(mount: Path) -> bool:
    """Put in order what an earlier mirror that was killed has left."""
    leftovers = [
        path
        for folder in (mount, mount / CHECKPOINTS, *(mount / name for name in FOLDERS))
        for path in folder.glob(f"{TEMPORARY}*")
    ]
    for path in leftovers:
        path.unlink()
    finished = [_finish(checkpoint) for checkpoint in list_checkpoints(mount / CHECKPOINTS)]
    return bool(leftovers) or any(finished)


def _finish(checkpoint: Path) -> bool:
    """Publish what was staged to the end, drop what was not; whether there was anything."""
    if not any(checkpoint.glob(f"{TEMPORARY}*")):
        return False
    staged = _manifest(checkpoint / STAGED)
    if staged is None:
        _clear(checkpoint)
    else:
        _publish(checkpoint, staged)
    return True


def _move_pointers(local: Path, mount: Path) -> bool:
    """LATEST and BEST as they are here, as far as what they name has arrived."""
    changed = False
    for pointer in (LATEST, BEST):
        name = _name_in(local / pointer)
        has_arrived = bool(name) and (mount / name / MANIFEST).is_file()
        if has_arrived and _name_in(mount / pointer) != name:
            _put(mount / pointer, f"{name}\n".encode())
            changed = True
    return changed


def _delete(mount: Path, found: dict[str, Manifest]) -> bool:
    """Delete half copies, and whole ones that are kept here no longer once a newer one has arrived."""
    there = _manifests(mount)
    newest = max((name for name, manifest in found.items() if there.get(name) == manifest), default="")
    pointed = {_pointed_to(mount, pointer) for pointer in (LATEST, BEST)}
    changed = False
    for checkpoint in list_checkpoints(mount):
        is_needed = checkpoint.name >= newest or checkpoint in pointed
        if checkpoint.name not in found and (checkpoint.name not in there or not is_needed):
            _retire(checkpoint)  # First, so that half a deletion does not look like damage.
            shutil.rmtree(checkpoint)
            changed = True
    return changed


def _retire(checkpoint: Path) -> None:
    """Let it be no complete checkpoint any more."""
    for name in (STAGED, MANIFEST):
        (checkpoint / name).unlink(missing_ok=True)


def _fetch_newest(
    mount: Path, local: Path, warn: Callable[[str], None], damaged: list[Path], before: str | None = None
) -> Path | None:
    """The newest checkpoint that verified once copied; `before`: only those older than the one of that name."""
    for checkpoint in reversed(list_checkpoints(mount)):
        if before is not None and checkpoint.name >= before:
            continue
        is_complete = (checkpoint / MANIFEST).is_file() or _manifest(checkpoint / STAGED) is not None
        if is_complete and _fetch(checkpoint, local, warn, damaged):
            return checkpoint
    return None


def _fetch(checkpoint: Path, folder: Path, warn: Callable[[str], None], damaged: list[Path]) -> bool:
    """Copy a checkpoint, finish there what an interrupted mirror left half renamed, and verify the copy.

    One that does not verify is added to `damaged`.
    """
    copy = folder / checkpoint.name
    copy.mkdir(parents=True)
    for path in checkpoint.iterdir():
        _copy(path, copy / path.name)
    _finish(copy)
    problems = find_damage(copy)
    for line in problems:
        warn(f"damaged checkpoint passed over: {line}")
    if problems:
        shutil.rmtree(copy)
        damaged.append(checkpoint)
    return not problems
