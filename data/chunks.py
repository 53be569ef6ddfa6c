"""Chunks: the cleaned text of a corpus on disk between reading and tokenising, some 16 MB at a time.

Every source is read once, in order, and cut into chunks; a chunk file holds the documents that were kept, what
identifies each, what was dropped and why, and the source's state behind it. It is written under another name and
renamed, so a kill loses at most the chunks at work, and reading goes on behind the last one. A file is one `.npz`,
whose zip container checks every array it gives out. To store more of a document, add an array to `Chunk`.
"""

import json
import os
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.cleaning import CleaningConfig
from data.deduplication import DeduplicationConfig, Fingerprints
from data.filters import FilterConfig
from data.sources import SourceConfig, State
from data.split import hash_text
from utils.errors import DataError, UserError
from utils.files import sync

CHUNK_BYTES = 16_000_000
NUM_SAMPLES = 5
SAMPLE_CHARACTERS = 500


class RawChunk(NamedTuple):
    """Documents as a source gave them, on their way to a worker."""

    path: Path
    """Where the finished chunk goes."""
    first: int
    """Number in its source of the first document."""
    texts: list[str]
    num_bytes: int
    """UTF-8 bytes of the texts."""
    state: State
    """The source's state behind the last document, and the chunk's number."""


class Treatment(NamedTuple):
    """What is done to every document. Pickled to the workers."""

    clean: CleaningConfig | None
    filters: tuple[FilterConfig, ...]
    deduplicate: DeduplicationConfig | None

    def is_work(self) -> bool:
        """Whether other processes are worth their start."""
        near = self.deduplicate is not None and self.deduplicate.near is not None
        return self.clean is not None or bool(self.filters) or near


class Chunk(NamedTuple):
    """An open chunk; texts are read when asked for."""

    path: Path
    facts: dict[str, Any]
    """`state`, `read` (documents and bytes), `cleaned`, `dropped` by reason and `samples` of what was dropped."""
    ordinals: np.ndarray
    """[D] int64: the number of each kept document in its source as read."""
    hashes: np.ndarray
    """[D] uint64: `hash_text` of each, which decides the split."""
    offsets: np.ndarray
    """[D + 1] int64: where its UTF-8 begins in the text."""
    fingerprints: Fingerprints
    """What deduplication compares."""

    def texts(self, chosen: np.ndarray) -> list[str]:
        """The documents of these indices."""
        if not len(chosen):
            return []
        text = _load(self.path, "text")["text"].data
        return [str(text[self.offsets[index] : self.offsets[index + 1]], "utf-8") for index in chosen]


def cut_into_chunks(
    source: SourceConfig, name: str, folder: Path, state: State | None, report: Any, max_bytes: int = CHUNK_BYTES
) -> Iterator[RawChunk]:
    """The documents behind `state`, cut where `max_bytes` of text are reached: the same cuts wherever reading began."""
    number, behind = (state["chunk"] + 1, state) if state else (0, {"documents": 0})
    first, texts, size = behind["documents"], [], 0
    for text, behind in source.documents(_without_chunk(state), report):
        texts.append(text)
        size += len(text.encode("utf-8"))
        if size >= max_bytes:
            yield RawChunk(chunk_path(folder, name, number), first, texts, size, behind | {"chunk": number})
            number, first, texts, size = number + 1, behind["documents"], [], 0
    if texts:
        yield RawChunk(chunk_path(folder, name, number), first, texts, size, behind | {"chunk": number})


def _without_chunk(state: State | None) -> State | None:
    return None if state is None else {key: value for key, value in state.items() if key != "chunk"}


def chunk_path(folder: Path, name: str, number: int) -> Path:
    """The file of one chunk."""
    return folder / f"{name}-{number:05}.npz"


def treat(raw: RawChunk, treatment: Treatment) -> Path:
    """Clean, filter, fingerprint and write one chunk; its path. Runs in a worker process."""
    facts: dict[str, Any] = {"state": raw.state, "cleaned": {}, "dropped": {}, "samples": {}}
    facts["read"] = {"documents": len(raw.texts), "bytes": raw.num_bytes}
    texts, ordinals = [], []
    for ordinal, text in enumerate(raw.texts, start=raw.first):
        kept, reason = treat_one(text, treatment, facts["cleaned"])
        if reason:
            count_drop(facts, reason, text)
        else:
            texts.append(kept)
            ordinals.append(ordinal)
    write_chunk(raw.path, texts, ordinals, facts, treatment.deduplicate or DeduplicationConfig(exact=False))
    return raw.path


def treat_one(text: str, treatment: Treatment, cleaned: dict[str, int]) -> tuple[str, str | None]:
    """The cleaned text, and why it is dropped (None: it is kept). Adds to the counts of what was cleaned."""
    if treatment.clean is not None:
        text, counts = treatment.clean.clean(text)
        for name, count in counts.items():
            cleaned[name] = cleaned.get(name, 0) + count
    if not text:
        return "", "empty"
    return text, next((reason for each in treatment.filters if (reason := reason_of(each, text))), None)


def reason_of(each: FilterConfig, text: str) -> str | None:
    """`each.reason(text)`. Raises DataError when a filter of one's own fails, or answers no name and not None."""
    try:
        reason = each.reason(text)
    except Exception as error:
        if ":" not in each.type or isinstance(error, UserError):
            raise
        problem = f"failed ({type(error).__name__}: {error}) on the document that begins {text[:60]!r}"
        raise DataError(f"data.filters: {each.type} {problem}") from error
    if reason is not None and not isinstance(reason, str):
        raise DataError(f"data.filters: {each.type} gave {reason!r}, expected a name or None")
    return reason


def count_drop(facts: dict[str, Any], reason: str, text: str) -> None:
    """Count a dropped document; the first few of each reason are kept to be looked at."""
    facts["dropped"][reason] = facts["dropped"].get(reason, 0) + 1
    samples = facts["samples"].setdefault(reason, [])
    if len(samples) < NUM_SAMPLES:
        samples.append(text[:SAMPLE_CHARACTERS])


def write_chunk(
    path: Path, texts: list[str], ordinals: list[int], facts: dict[str, Any], deduplicate: DeduplicationConfig
) -> None:
    """Write a chunk so that its name is there only when all of it is."""
    encoded = [text.encode("utf-8") for text in texts]
    fingerprints = deduplicate.fingerprint(texts)
    arrays = {
        "facts": np.frombuffer(json.dumps(facts).encode(), np.uint8),
        "ordinals": np.array(ordinals, np.int64),
        "hashes": np.array([hash_text(text) for text in texts], np.uint64),
        "offsets": np.cumsum([0, *map(len, encoded)], dtype=np.int64),
        "text": np.frombuffer(b"".join(encoded), np.uint8),
        **{f"fingerprints_{name}": array for name, array in fingerprints._asdict().items()},
    }
    write_arrays(path, arrays)


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """An `.npz` that is whole whenever it has its name."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
        sync(temporary)
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)


def open_chunk(path: Path) -> Chunk:
    """Everything of a chunk but its texts. Raises DataError when it is damaged."""
    names = ["facts", "ordinals", "hashes", "offsets", *(f"fingerprints_{name}" for name in Fingerprints._fields)]
    arrays = _load(path, *names)
    facts = json.loads(arrays.pop("facts").tobytes())
    fingerprints = Fingerprints(*(arrays.pop(f"fingerprints_{name}") for name in Fingerprints._fields))
    return Chunk(path, facts, arrays["ordinals"], arrays["hashes"], arrays["offsets"], fingerprints)


def read_facts(path: Path) -> dict[str, Any]:
    """`Chunk.facts` alone. Raises DataError when the file is damaged."""
    return json.loads(_load(path, "facts")["facts"].tobytes())


def _load(path: Path, *names: str) -> dict[str, np.ndarray]:
    try:
        # Opened here, because NumPy leaves the file of a broken archive open.
        with open(path, "rb") as file, np.load(file) as arrays:
            return {name: arrays[name] for name in names}
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: damaged ({error}); delete {path.parent} and prepare again") from error


def num_bytes_of(paths: Iterable[Path]) -> int:
    """Bytes of these files: what progress through chunks is counted in."""
    return sum(path.stat().st_size for path in paths)


def list_chunks(folder: Path, name: str) -> list[Path]:
    """The finished chunks of a source up to the first gap."""
    found: list[Path] = []
    while (path := chunk_path(folder, name, len(found))).is_file():
        found.append(path)
    return found
