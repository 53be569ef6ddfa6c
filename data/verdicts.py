"""What becomes of each document that was read: trained on, held out, or dropped as a copy of another.

The held-out documents are judged first, so a training document that equals or nearly equals one of them is dropped as
leaked; then training documents in order, of which the first of several copies is kept. To add a reason for dropping
after reading, add a verdict and set it in `judge`.
"""

import contextlib
import json
import shutil
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.cache import Report
from data.chunks import NUM_SAMPLES, SAMPLE_CHARACTERS, Chunk, num_bytes_of, open_chunk, write_arrays
from data.deduplication import EXACT, KEEP, LEAKED, NEAR, DeduplicationConfig, Duplicates, Fingerprints
from data.progress import Progress
from data.split import Split
from utils.errors import DataError

HELD_OUT = 4
NAMES = {EXACT: "duplicate", NEAR: "near_duplicate", LEAKED: "in_held_out_text", HELD_OUT: "held_out"}
INDEX = "duplicates"


class Judged(NamedTuple):
    """The verdicts over a corpus."""

    verdicts: list[np.ndarray]
    """uint8 [D] for each chunk: KEEP or why not."""
    validation: list[str]
    """The held-out texts that are no copy of one another, in hash order."""
    samples: dict[str, list[str]]
    """The beginning of the first few dropped documents, by name of the verdict."""

    def kept(self, number: int) -> np.ndarray:
        """Indices of the documents of chunk `number` that are trained on."""
        return np.flatnonzero(self.verdicts[number] == KEEP)


def judge(
    chunks: Sequence[Path],
    validation_chunks: Sequence[Path],
    split: Split,
    config: DeduplicationConfig | None,
    folder: Path,
    report: Report,
    progress: Progress,
) -> Judged:
    """Judge every document of `chunks`; the index of duplicates lies in `folder` meanwhile."""
    samples: dict[str, list[str]] = {}
    with _index(config, folder, report) as duplicates:
        held_out = _held_out(chunks, validation_chunks, split)
        copies = _copies_within(held_out, split, duplicates) if duplicates else set()
        verdicts, done, total = [], 0, num_bytes_of(chunks)
        for path in chunks:
            chunk = open_chunk(path)
            verdicts.append(_judge_chunk(chunk, split, duplicates))
            _keep_samples(chunk, verdicts[-1], samples)
            done += path.stat().st_size
            progress("looking for copies" if duplicates else "splitting", done, total)
    validation = [text for text_hash, text in split.validation if text_hash not in copies]
    return Judged(verdicts, validation, samples)


@contextlib.contextmanager
def _index(config: DeduplicationConfig | None, folder: Path, report: Report) -> Iterator[Duplicates | None]:
    if config is None:
        yield None
        return
    place = folder / INDEX
    shutil.rmtree(place, ignore_errors=True)  # Of a preparation that was stopped: half an index is none.
    place.mkdir()
    with config.open(place, report) as duplicates:
        yield duplicates
    shutil.rmtree(place)


def _held_out(chunks: Sequence[Path], validation_chunks: Sequence[Path], split: Split) -> Iterable[Chunk]:
    """The chunks that hold the documents held out."""
    return map(open_chunk, validation_chunks or chunks if split.validation else [])


def _copies_within(chunks: Iterable[Chunk], split: Split, duplicates: Duplicates) -> set[int]:
    """Enter the held-out documents into the index; the hashes of those that nearly equal an earlier one."""
    seen: set[int] = set()
    copies: set[int] = set()
    for chunk in chunks:
        new = [i for i in np.flatnonzero(~split.is_training(chunk.hashes)) if int(chunk.hashes[i]) not in seen]
        new = [new[k] for k in np.sort(np.unique(chunk.hashes[new], return_index=True)[1])] if new else []
        seen.update(int(chunk.hashes[i]) for i in new)
        found = duplicates.judge(_take(chunk, np.array(new, np.int64)), held_out=True)
        copies.update(int(chunk.hashes[i]) for i, verdict in zip(new, found, strict=True) if verdict != KEEP)
    return copies


def _take(chunk: Chunk, chosen: np.ndarray) -> Fingerprints:
    return Fingerprints(*(array[chosen] for array in chunk.fingerprints))


def _judge_chunk(chunk: Chunk, split: Split, duplicates: Duplicates | None) -> np.ndarray:
    training = split.is_training(chunk.hashes)
    verdicts = np.where(training, KEEP, HELD_OUT).astype(np.uint8)
    if duplicates is not None:
        verdicts[training] = duplicates.judge(_take(chunk, np.flatnonzero(training)), held_out=False)
    return verdicts


def _keep_samples(chunk: Chunk, verdicts: np.ndarray, samples: dict[str, list[str]]) -> None:
    for code in (EXACT, NEAR, LEAKED):
        wanted = NUM_SAMPLES - len(samples.get(NAMES[code], []))
        if len(chosen := np.flatnonzero(verdicts == code)[:wanted]):
            samples.setdefault(NAMES[code], []).extend(text[:SAMPLE_CHARACTERS] for text in chunk.texts(chosen))


def save(judged: Judged, path: Path) -> None:
    """Write it, whole or not at all."""
    arrays = {f"chunk{number}": verdicts for number, verdicts in enumerate(judged.verdicts)}
    write_arrays(path, arrays | {"words": _pack(judged.validation, judged.samples)})


def load(path: Path) -> Judged:
    """Read it back. Raises DataError when it is damaged."""
    try:
        with open(path, "rb") as file, np.load(file) as arrays:
            validation, samples = _unpack(arrays["words"])
            verdicts = [arrays[f"chunk{number}"] for number in range(len(arrays.files) - 1)]
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: damaged ({error}); delete {path.parent} and prepare again") from error
    return Judged(verdicts, validation, samples)


def _pack(validation: list[str], samples: dict[str, list[str]]) -> np.ndarray:
    return np.frombuffer(json.dumps([validation, samples]).encode(), np.uint8)


def _unpack(words: np.ndarray) -> tuple[list[str], dict[str, list[str]]]:
    validation, samples = json.loads(words.tobytes())
    return validation, samples
