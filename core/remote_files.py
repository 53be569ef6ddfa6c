"""Files on a volume, from this side: prepared data and weights are brought there once, the state of runs is read there.

A volume is anything with the four methods of `modal.Volume` used here, so tests put a folder in its place. What a
folder of the data volume is called is a hash of what it holds: a folder that is whole is never sent again, and one that
a lost connection left half sent is filled up. The file that says "whole" goes last. How a run's folder travels stands
in `core/remote_transfer.py`. To send more at once, raise `GROUP_BYTES`.
"""

import difflib
import hashlib
import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from core.checkpoint import BEST, MANIFEST, checkpoint_step, sha256_of
from core.remote import ATTEMPT_FILE, LAUNCH, Attempt, numbered, read_attempt
from data.store import open_store
from models.weights import find_files
from utils.errors import CheckpointError, DataError
from utils.files import sync
from utils.memory import format_bytes

Say = Callable[[str], None]
"""Receives one line of news for a person."""
Pair = tuple[Path, str]
"""A file here and its name in the folder there."""

FILE = 1
"""What `listdir` calls a file."""
KEY_LENGTH = 32
GROUP_BYTES = 1_000_000_000
"""A batch is placed when all of it has arrived: an interrupted upload goes on behind its last whole one."""
WEIGHTS_SUFFIXES = (".json", ".model", ".txt", ".jinja")
NOT_WEIGHTS = ("state.json", MANIFEST)


class RemoteFolder:
    """A folder of a volume. Names are relative to it; what is not there, the volume included, is just empty."""

    def __init__(self, volume: Any, path: str) -> None:
        self.volume, self.path = volume, path.strip("/")

    def sizes(self) -> dict[str, int]:
        """Every file at any depth with its bytes, sorted by name."""
        try:
            entries = self.volume.listdir(self._place(), recursive=True)
        except missing_errors():
            return {}
        prefix = f"{self.path}/" if self.path else ""
        found = {entry.path.lstrip("/"): entry.size for entry in entries if entry.type == FILE}
        return {path.removeprefix(prefix): found[path] for path in sorted(found) if path.startswith(prefix)}

    def read(self, name: str) -> bytes | None:
        """A small file; None when it is not there."""
        try:
            return b"".join(self.volume.read_file(self._place(name)))
        except missing_errors():
            return None

    def download(self, name: str, file: Path) -> None:
        """Write a file here and flush it to the disk. Raises FileNotFoundError when it is not there."""
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("wb") as output:
            try:
                for block in self.volume.read_file(self._place(name)):
                    output.write(block)
            except missing_errors() as error:
                raise FileNotFoundError(f"{self._place(name)} is not on the volume") from error
        sync(file)

    def upload(self, pairs: Sequence[Pair]) -> None:
        """Send files as one batch; each is there whole or not at all, and replaces what had its name."""
        with self.volume.batch_upload(force=True) as batch:
            for file, name in pairs:
                batch.put_file(file, self._place(name))

    def write(self, name: str, content: bytes) -> None:
        """A small file, whole or not at all."""
        with self.volume.batch_upload(force=True) as batch:
            batch.put_file(io.BytesIO(content), self._place(name))

    def remove(self, name: str = "") -> None:
        """A file, or a folder with all it holds (by default this one); nothing when it is not there."""
        assert self.path, "this would empty the whole volume"
        try:
            self.volume.remove_file(self._place(name), recursive=True)
        except missing_errors():
            return

    def _place(self, name: str = "") -> str:
        return "/" + "/".join(part for part in (self.path, name) if part)


def missing_errors() -> tuple[type[Exception], ...]:
    """What a volume raises for what is not there. A real volume has imported the client; without one there is none."""
    client = sys.modules.get("modal.exception")
    return (FileNotFoundError,) if client is None else (FileNotFoundError, client.NotFoundError)


def send(remote: RemoteFolder, pairs: Sequence[Pair], say: Say) -> None:
    """Upload in groups of about `GROUP_BYTES`, with a line of news after each when there are several."""
    total, sent = sum(file.stat().st_size for file, _ in pairs), 0
    groups = list(in_groups(pairs))
    for group in groups:
        remote.upload(group)
        sent += sum(file.stat().st_size for file, _ in group)
        if len(groups) > 1:
            say(f"sent {format_bytes(sent)} of {format_bytes(total)}")


def in_groups(pairs: Sequence[Pair]) -> Iterator[list[Pair]]:
    """In order; a group ends with the file that fills it."""
    group: list[Pair] = []
    size = 0
    for pair in pairs:
        group.append(pair)
        size += pair[0].stat().st_size
        if size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def upload_data(volume: Any, folder: Path, say: Say) -> str:
    """Bring a folder of prepared data to the volume, as far as it is not there; the name it has there.

    The manifest lists the checksum of every file, so its hash stands for all of them; they are compared before
    anything is sent under that name.

    Raises:
        DataError: the folder holds no prepared data, or a file of it is damaged.
    """
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        raise DataError(f"{folder} holds no prepared data (there is no {manifest.name}); prepare it again")
    key = sha256_of(manifest)[:KEY_LENGTH]
    pairs = [(path, path.relative_to(folder).as_posix()) for path in sorted(folder.rglob("*")) if path.is_file()]
    pairs = [(path, name) for path, name in pairs if not name.startswith(".") and "/." not in name]
    _fill(RemoteFolder(volume, key), "prepared data", pairs, manifest.name, say, open_store(folder).verify)
    return key


def upload_weights(volume: Any, folder: Path, say: Say) -> str:
    """Bring the weights of a checkpoint or an mlx-lm folder to the volume, for `init_from`; the name they have there.

    What starting from them reads: config.json, the model's weights, the tokenizer; no optimizer state.

    Raises:
        CheckpointError: there are no weights in the folder.
    """
    weights = find_files(folder)
    others = [path for path in folder.iterdir() if path.suffix in WEIGHTS_SUFFIXES and path.name not in NOT_WEIGHTS]
    pairs = [(path, path.name) for path in sorted({*weights, *others}) if path.is_file()]
    listing = "".join(f"{sha256_of(path)}  {name}\n" for path, name in pairs)
    key = f"weights-{hashlib.sha256(listing.encode()).hexdigest()[:KEY_LENGTH]}"
    _fill(RemoteFolder(volume, key), "weights", pairs, "config.json", say)
    return key


def _fill(
    remote: RemoteFolder, what: str, pairs: list[Pair], last: str, say: Say, verify: Callable[[], None] | None = None
) -> None:
    """Send the files that are not there in full, `last` after all others; `verify` is called before any is."""
    there = remote.sizes()
    missing = [(path, name) for path, name in pairs if there.get(name) != path.stat().st_size]
    if not missing:
        say(f"{what}: already on the volume ({remote.path})")
        return
    if verify is not None:
        verify()
    size = format_bytes(sum(path.stat().st_size for path, _ in missing))
    say(f"{what}: sending {len(missing)} of {len(pairs)} files, {size} ({remote.path})")
    send(remote, [pair for pair in missing if pair[1] != last], say)
    send(remote, [pair for pair in pairs if pair[1] == last], say)


class RemoteState(NamedTuple):
    """What the volume knows about a run."""

    exists: bool
    newest_step: int | None
    """Of the newest checkpoint that is there; None: none yet."""
    best_step: int | None
    """Of the checkpoint that BEST names, when it is there."""
    launch: dict[str, Any] | None
    """Who was called with what; None for a run that was only pushed."""
    attempts: list[Attempt]


def remote_state(volume: Any, name: str) -> RemoteState:
    """The state of one run. Raises CheckpointError when what was written about it cannot be read."""
    remote = RemoteFolder(volume, name)
    sizes = remote.sizes()
    steps = steps_there(sizes)
    best = checkpoint_step((remote.read(f"checkpoints/{BEST}") or b"").decode().strip())
    launch = remote.read(LAUNCH) if LAUNCH in sizes else None
    attempts = {number: remote.read(file) for number, file in numbered(sizes, ATTEMPT_FILE).items()}
    try:
        return RemoteState(
            exists=bool(sizes),
            newest_step=max(steps, default=None),
            best_step=best if best in steps else None,
            launch=None if launch is None else json.loads(launch),
            attempts=[read_attempt(number, text) for number, text in attempts.items() if text is not None],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"what the volume says about the run {name} is unreadable ({error}); try again"
        ) from error


def steps_there(sizes: dict[str, int]) -> list[int]:
    """Steps of the checkpoints whose manifest, which is written last, is among these files of a run; oldest first."""
    parts = [file.split("/") for file in sizes]
    steps = [
        checkpoint_step(part[1]) for part in parts if len(part) == 3 and (part[0], part[2]) == ("checkpoints", MANIFEST)
    ]
    return sorted(step for step in steps if step is not None)


def list_runs(volume: Any) -> list[str]:
    """Names of all runs on the volume, sorted."""
    marks = {"config.yaml", LAUNCH}
    parts = [file.partition("/") for file in RemoteFolder(volume, "").sizes()]
    return sorted({name for name, _, file in parts if file in marks})


def missing_run(volume: Any, name: str) -> CheckpointError:
    """What to raise when there is no run of this name: it names those that are spelt much like it."""
    names = list_runs(volume)
    near = difflib.get_close_matches(name, names, n=3)
    count = f"{len(names) or 'no'} run{'s' * (len(names) != 1)}"
    hint = f"did you mean {' or '.join(near)}?" if near else f"it holds {count}"
    return CheckpointError(f"there is no run {name} on the volume; {hint}")


def remove_run(volume: Any, name: str) -> None:
    """Delete a run's folder with all its checkpoints. Raises CheckpointError when there is none."""
    if name not in list_runs(volume):
        raise missing_run(volume, name)
    RemoteFolder(volume, name).remove()
