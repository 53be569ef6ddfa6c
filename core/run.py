"""The run folder: who may write to it, what lies in it, and how a person stops a run.

`runs/<name>/` holds config.yaml (resolved), environment.json, metrics.jsonl, log.txt, samples.jsonl, plots/,
tokenizer/ and checkpoints/. One process at a time: a kernel lock, which a dead process cannot hold. Starting an
existing run is refused unless it is resumed or overwritten. To add a file to the folder, add a property to `Run`.
"""

import contextlib
import errno
import fcntl
import json
import os
import platform
import shutil
import signal
import sys
import time
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

import mlx.core as mx

from core.config import Config, dump, load, to_yaml
from data.tokenizer import Tokenizer
from utils.chips import this_chip
from utils.cli import SAVING
from utils.errors import CheckpointError, ConfigError

MAY_DIFFER = (
    "training.duration",
    "training.early_stopping",
    "training.max_skipped_updates",
    "training.micro_batch_size",
    "training.activation_checkpointing",
    "training.memory_limit",
    "training.compile",
    "objective.chunk_size",
    "model.attention.type",
    "model.attention.block_size",
    "data.cache_dir",
    "logging.",
    "evaluation.",
    "checkpoint.",
    "distributed.",
    "out_dir",
)
"""What may change when a run is resumed: how long it is, what is kept, and how the same numbers are computed."""

OWN_FILES = {"config.yaml", "environment.json", "lock", "log.txt", "metrics.jsonl", "samples.jsonl"}
OWN_FILES |= {"checkpoints", "plots", "tokenizer"}
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO}


class Run:
    """An open run folder. Only the main process writes; the others hold a run that writes nothing."""

    def __init__(self, folder: Path, lock: TextIO | None) -> None:
        self.folder = folder
        self.is_main = lock is not None
        self._lock = lock
        self._log: TextIO | None = None

    def start(self, config: Config, *, overwrite: bool, precision: str) -> None:
        """Write the config, once everything that can be refused has been; only now is an earlier run cleared away."""
        if not self.is_main:
            return
        if overwrite or not (self.folder / "config.yaml").exists():
            clear(self.folder)
        write_config(config, self.folder, precision)
        self._log = (self.folder / "log.txt").open("a", encoding="utf-8")

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints lie."""
        return self.folder / "checkpoints"

    @property
    def tokenizer(self) -> Path:
        """The tokenizer the run was started with."""
        return self.folder / "tokenizer"

    @property
    def metrics(self) -> Path:
        """One JSON object a line: the only source for plots, monitors and trackers."""
        return self.folder / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        """Text generated while training, one JSON object a line."""
        return self.folder / "samples.jsonl"

    def keep_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Save the tokenizer of a new run; half a tokenizer, after a kill, would end the run for good."""
        temporary = self.folder / ".tokenizer.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        tokenizer.save(temporary)
        shutil.rmtree(self.tokenizer, ignore_errors=True)
        os.replace(temporary, self.tokenizer)

    def log(self, line: str) -> None:
        """Append a dated line to log.txt."""
        if self._log is not None:
            self._log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
            self._log.flush()

    def add_sample(self, row: dict[str, Any]) -> None:
        """Append a row to samples.jsonl."""
        with self.samples.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def close(self) -> None:
        """Release the lock; a run that was never started leaves no folder behind."""
        if self._log is not None:
            self._log.close()
        if self._lock is not None:
            if not (self.folder / "config.yaml").exists():
                (self.folder / "lock").unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    self.folder.rmdir()
            self._lock.close()


def run_folder(config: Config) -> Path:
    """`out_dir/name`."""
    return Path(config.out_dir) / config.name


def open_run(config: Config, *, resume: bool, overwrite: bool, is_main: bool = True) -> Run:
    """Refuse the run folder, or lock it; nothing else is written before `Run.start`.

    Raises:
        ConfigError: the folder is there and neither flag was given, its config differs where it may not, or what
            should be overwritten is no run.
        CheckpointError: nothing to resume, another process holds the run, or the folder cannot be written.
    """
    folder = run_folder(config)
    if not is_main:
        return Run(folder, None)
    exists = (folder / "config.yaml").exists()
    if overwrite and config.init_from is not None and Path(config.init_from).resolve().is_relative_to(folder.resolve()):
        raise ConfigError(f"init_from: --overwrite would delete {config.init_from} before reading it: use another name")
    if resume and not exists:
        raise CheckpointError(f"there is no run to resume at {folder}: start it without --resume")
    if exists and resume:
        refuse_other_config(config, folder)
    elif exists and not overwrite:
        raise ConfigError(*_refusal(config, folder))
    if overwrite and not exists:
        refuse_other_files(folder)
    return Run(folder, acquire_lock(folder))


def _refusal(config: Config, folder: Path) -> list[str]:
    lines = [f"the run {folder} is there already: continue it with --resume or start anew with --overwrite"]
    differing = differing_keys(config, load(folder / "config.yaml"))
    return lines + ([f"its config differs in {line}" for line in differing])


def refuse_other_files(folder: Path) -> None:
    """Raise ConfigError when a folder that is no run holds files that --overwrite would delete."""
    found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    foreign = [name for name in found if name not in OWN_FILES]
    if foreign:
        raise ConfigError(
            f"{folder} is no run, so --overwrite does not delete what it holds ({', '.join(foreign[:5])}): "
            "choose another name or out_dir"
        )


def refuse_other_config(config: Config, folder: Path) -> None:
    """Raise ConfigError that lists every key in which the run's own config differs and may not."""
    differing = differing_keys(config, load(folder / "config.yaml"))
    lines = [line for line in differing if not line.startswith(MAY_DIFFER)]
    if lines:
        raise ConfigError(
            f"the run {folder} was started with another config: put the values back, use another name, or --overwrite",
            *[f"its config differs in {line}" for line in lines],
        )


def differing_keys(new: Config, old: Config) -> list[str]:
    """`dotted.path: old -> new` for every leaf that is not equal."""
    new_leaves, old_leaves = flatten(dump(new)), flatten(dump(old))
    paths = sorted(new_leaves.keys() | old_leaves.keys())
    absent = "(absent)"
    return [
        f"{path}: {old_leaves.get(path, absent)} there, {new_leaves.get(path, absent)} here"
        for path in paths
        if old_leaves.get(path, absent) != new_leaves.get(path, absent)
    ]


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves of nested mappings by dotted path; a list is a leaf."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves.update(flatten(value, f"{prefix}.{key}" if prefix else str(key)))
    return leaves


def acquire_lock(folder: Path) -> TextIO:
    """Lock `folder` for this process until it ends, however it ends.

    Raises:
        CheckpointError: another process holds it, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"cannot write to {folder}: {error.strerror}; choose another out_dir") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        owner = lock.read().strip() or "another process"
        lock.close()
        raise CheckpointError(f"{folder} is in use by {owner}: wait for it, or give this run another name") from None
    with contextlib.suppress(OSError):  # The name is for people; a full disk is told by what needs the room.
        lock.truncate(0)
        os.write(lock.fileno(), f"process {os.getpid()} on {platform.node()}\n".encode())
    return lock


def clear(folder: Path) -> None:
    """Remove what an earlier run left, but not the lock that this process holds, nor what a person put there.

    The config goes first: without it the rest is no run, and the next start clears away what a kill left of it.
    """
    for name in ("config.yaml", *sorted(OWN_FILES - {"config.yaml", "lock"})):
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def write_config(config: Config, folder: Path, precision: str) -> None:
    """The resolved config, and the environment it runs in, with those it ran in before."""
    file = folder / "environment.json"
    found = travelled(file, environment() | {"precision": precision})
    _replace_text(folder / "config.yaml", to_yaml(config))
    _replace_text(file, json.dumps(found, indent=2) + "\n")


def travelled(file: Path, now: dict[str, Any]) -> dict[str, Any]:
    """`now`, with `earlier`: the environments that `file` tells of, oldest first; equal ones in a row once."""
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
        earlier = [*before.pop("earlier", []), before]
    except (OSError, ValueError, AttributeError):
        return now
    same = {**earlier[-1], "command": now["command"]} == now
    earlier = earlier[:-1] if same else earlier
    return now | {"earlier": earlier} if earlier else now


def explain_disk(error: OSError, folder: Path) -> CheckpointError | None:
    """What to tell a person about a disk that refuses; None when the error is none of the disk's."""
    if error.errno not in DISK_ERRORS:
        return None
    place = error.filename or folder
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        remedy = "continue with --resume" if (folder / "config.yaml").exists() else "start again"
        return CheckpointError(f"the disk is full: cannot write {place}; make room, then {remedy}")
    return CheckpointError(f"cannot write {place}: {error.strerror}; checkpoints saved before are whole")


def _replace_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def environment() -> dict[str, Any]:
    """Versions and device of this process; no environment variables, so no secrets."""
    packages = ("mlx", "mlx-lm", "numpy", "pydantic", "tokenizers", "safetensors")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": str(mx.default_device()),
        "chip": this_chip().name,
        "packages": {name: metadata.version(name) for name in packages},
        "command": sys.argv,
    }


class StopSignal:
    """SIGINT and SIGTERM ask for a save and an end; a second one leaves at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.received is not None:
            os._exit(128 + number)
        self.received = number
        with contextlib.suppress(OSError):
            # Not print: the signal may have come in the middle of one.
            os.write(2, f"\n{SAVING} (again: leave at once)\n".encode())

    def requested(self) -> bool:
        """Whether a signal came."""
        return self.received is not None

    def settle(self, group: Any) -> None:
        """All ranks act on the signal that any of them got."""
        if group.any(self.received == signal.SIGTERM):
            self.received = signal.SIGTERM
        elif group.any(self.received is not None):
            self.received = signal.SIGINT

    def restore(self) -> None:
        """Put the earlier handlers back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
