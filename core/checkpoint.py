"""Checkpoints that survive a crash, a kill, a full disk and a flipped bit.

Order of a save: a temporary folder, every file written and synced, MANIFEST.json (sizes and SHA-256) last, renamed to
`step_00001000`, then LATEST moved, then the oldest deleted. A folder without a manifest that verifies is no
checkpoint: loading takes the newest that verifies and says loudly what it passed over. Files are written by a
background thread from NumPy views of arrays that no later step changes. To keep other checkpoints, edit `prune`.
"""

import errno
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import load_file, save_file

from utils.errors import CheckpointError
from utils.files import sync

FORMAT_VERSION = 1
MANIFEST = "MANIFEST.json"
LATEST = "LATEST"
BEST = "BEST"
TEMPORARY = ".tmp-"
ASIDE = ".tmp-old-"

Arrays = Mapping[str, np.ndarray]


class Snapshot(NamedTuple):
    """Everything of a run at one step, as host arrays and JSON."""

    step: int
    model: Arrays
    """Raw float32 weights by dotted name."""
    optimizer: Arrays
    """Optimizer state and the step's guard, by dotted name."""
    ema: Arrays | None
    """Averaged weights, when used."""
    state: dict[str, Any]
    """Counters, loader position, best loss: JSON."""
    hf_config: dict[str, Any]
    """`config.json`."""
    is_best: bool
    """Whether BEST shall point here."""


class Restored(NamedTuple):
    """What `read_checkpoint` gives back."""

    model: dict[str, np.ndarray]
    optimizer: dict[str, np.ndarray]
    ema: dict[str, np.ndarray] | None
    state: dict[str, Any]


def checkpoint_name(step: int) -> str:
    """`step_00001000`."""
    return f"step_{step:08d}"


def checkpoint_step(name: str) -> int | None:
    """1000 of `step_00001000`; None for any other name."""
    digits = name.removeprefix("step_")
    return int(digits) if digits != name and digits.isdecimal() else None


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders in `folder`, oldest first, verified or not."""
    return sorted(path for path in folder.glob("step_*") if path.is_dir())


def find_damage(checkpoint: Path) -> list[str]:
    """What is wrong with a checkpoint folder; empty when every file is as the manifest says."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text())
        version = manifest["format_version"]
        files = [(checkpoint / name, entry["bytes"], entry["sha256"]) for name, entry in manifest["files"].items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{checkpoint}: no readable {MANIFEST} ({type(error).__name__}: {error})"]
    if version != FORMAT_VERSION:
        return [f"{checkpoint}: format {version}, this version reads {FORMAT_VERSION}"]
    return [problem for path, size, checksum in files if (problem := _file_damage(path, size, checksum))]


def _file_damage(path: Path, written_bytes: int, checksum: str) -> str | None:
    if not path.is_file():
        return f"{path} is missing"
    size = path.stat().st_size
    if size != written_bytes:
        return f"{path} has {size} bytes, {written_bytes} were written"
    return None if sha256_of(path) == checksum else f"{path} has changed since it was written (checksum)"


def newest_valid(folder: Path, warn: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that verifies, each damaged newer one named through `warn`; None when there is none.

    Raises:
        CheckpointError: there are checkpoints, and none of them verifies.
    """
    damaged = []
    for checkpoint in reversed(list_checkpoints(folder)):
        damage = find_damage(checkpoint)
        if not damage:
            return checkpoint
        for line in damage:
            warn(f"damaged checkpoint passed over: {line}")
        damaged += damage
    if damaged:
        raise CheckpointError(f"no checkpoint in {folder} is whole: bring back a copy, or start anew with --overwrite")
    return None


def best_checkpoint(folder: Path) -> Path | None:
    """The checkpoint BEST points to, if it verifies."""
    return _pointed_to(folder, BEST)


def _pointed_to(folder: Path, pointer: str) -> Path | None:
    try:
        checkpoint = folder / (folder / pointer).read_text().strip()
    except OSError:
        return None
    return checkpoint if checkpoint.is_dir() and not find_damage(checkpoint) else None


def read_checkpoint(checkpoint: Path) -> Restored:
    """The arrays and counters of a verified checkpoint."""
    ema = checkpoint / "ema.safetensors"
    model: dict[str, np.ndarray] = {}
    for shard in sorted(checkpoint.glob("model*.safetensors")):
        model.update(load_file(shard))
    return Restored(
        model=model,
        optimizer=load_file(checkpoint / "optimizer.safetensors"),
        ema=load_file(ema) if ema.exists() else None,
        state=json.loads((checkpoint / "state.json").read_text()),
    )


def write_checkpoint(folder: Path, snapshot: Snapshot, tokenizer_folder: Path, keep_last: int) -> Path:
    """Write `snapshot` below `folder` atomically, move the pointers, delete what is not kept.

    Raises:
        CheckpointError: the disk is full or cannot be written; what was there before is untouched.
    """
    temporary = folder / f"{TEMPORARY}{checkpoint_name(snapshot.step)}-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        _write_files(temporary, snapshot, tokenizer_folder)
        final = publish(temporary, folder / checkpoint_name(snapshot.step))
        point_at(final, is_best=snapshot.is_best)
        prune(folder, keep_last, newest=final.name)
    except Exception as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise _explained(error, folder) from error
    return final


def _explained(error: Exception, folder: Path) -> Exception:
    text = str(error)
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "os error 28" in text:
        return CheckpointError(
            f"the disk is full: cannot save to {folder}; earlier checkpoints are whole: "
            "make room, then continue with --resume"
        )
    if isinstance(error, OSError) or "SafetensorError" in type(error).__name__:
        return CheckpointError(f"cannot save to {folder}: {text}; earlier checkpoints are whole")
    return error


def _write_files(temporary: Path, snapshot: Snapshot, tokenizer_folder: Path) -> None:
    from models.weights import save_weights  # It imports MLX, which who only moves checkpoints can do without.

    temporary.mkdir()
    save_weights(temporary, dict(snapshot.model))
    save_file(dict(snapshot.optimizer), temporary / "optimizer.safetensors")
    if snapshot.ema is not None:
        save_file(dict(snapshot.ema), temporary / "ema.safetensors")
    (temporary / "config.json").write_text(json.dumps(snapshot.hf_config, indent=2) + "\n")
    (temporary / "state.json").write_text(json.dumps(snapshot.state, indent=2) + "\n")
    for path in tokenizer_folder.iterdir():
        shutil.copyfile(path, temporary / path.name)
    files = {}
    for path in sorted(temporary.iterdir()):
        sync(path)
        files[path.name] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    manifest = {"format_version": FORMAT_VERSION, "step": snapshot.step, "files": files}
    (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2))
    sync(temporary / MANIFEST)
    sync(temporary)


def publish(temporary: Path, final: Path) -> Path:
    """Rename a whole checkpoint into place; one of the same step makes room first, and `put_back` undoes half of it."""
    aside = final.with_name(ASIDE + final.name)
    if final.exists():
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(final, aside)
    os.rename(temporary, final)
    shutil.rmtree(aside, ignore_errors=True)
    sync(final.parent)
    return final


def put_back(folder: Path) -> None:
    """Undo the half of a replacement that a kill has left: the old checkpoint aside, the new one not in its place."""
    for aside in folder.glob(f"{ASIDE}*"):
        final = folder / aside.name.removeprefix(ASIDE)
        if not final.exists():
            os.rename(aside, final)


def point_at(checkpoint: Path, *, is_best: bool) -> None:
    """Let LATEST, and BEST too when asked, name `checkpoint`; done again on resume, since a kill may come before it."""
    for pointer in (LATEST, BEST) if is_best else (LATEST,):
        _point(checkpoint.parent, pointer, checkpoint.name)


def _point(folder: Path, pointer: str, name: str) -> None:
    temporary = folder / f"{TEMPORARY}{pointer}-{os.getpid()}"
    temporary.write_text(name + "\n")
    sync(temporary)
    os.replace(temporary, folder / pointer)
    sync(folder)


def prune(folder: Path, keep_last: int, newest: str) -> None:
    """Delete all checkpoints but the newest `keep_last` up to `newest` and the one BEST names.

    Later ones are damaged, or the run would have gone on from them; they count for nothing, or they would push out
    the whole ones, and stay until the run reaches their step again.
    """
    best = (folder / BEST).read_text().strip() if (folder / BEST).exists() else None
    own = [checkpoint for checkpoint in list_checkpoints(folder) if checkpoint.name <= newest]
    for checkpoint in own[:-keep_last]:
        if checkpoint.name != best:
            shutil.rmtree(checkpoint)


def remove_leftovers(folder: Path) -> None:
    """Delete what an interrupted save left behind; the run's lock makes sure that no other process is saving."""
    put_back(folder)
    for path in folder.glob(f"{TEMPORARY}*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class BackgroundWriter:
    """Writes one checkpoint at a time in a thread; its error is raised by the next `submit` or `wait`."""

    def __init__(self, write: Callable[[Snapshot], Any]) -> None:
        self._write = write
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def submit(self, snapshot: Snapshot) -> None:
        """Start writing once the save before has ended."""
        self.wait()
        self._thread = threading.Thread(target=self._run, args=(snapshot,), name="checkpoint-writer")
        self._thread.start()

    def wait(self) -> None:
        """Return when nothing is being written; raise what the last save failed with."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _run(self, snapshot: Snapshot) -> None:
        try:
            self._write(snapshot)
        except BaseException as error:  # handed to the training thread
            self._error = error
