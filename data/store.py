"""A folder of prepared documents: which shard files there are, and the tokens of any document by its number.

Reading goes through a bounded number of memory maps, the least recently used closed first, so neither memory nor open
files grow with the corpus: what is kept is a few numbers per shard of about 16 MB. Opening compares the tokenizer and
the sizes of all files; a checksum is compared once, when tokens of the shard are first read (or soon after: a window of
many new shards must not wait for all of them), or with `verify`.
The format of one file stands in `data/shard_file.py`.
"""

import json
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from data.shard_file import Shard, check_file, check_size, damaged, map_shard
from utils.errors import DataError

FORMAT = 2
MAX_MAPPED_BYTES = 256_000_000
CHECKED_BYTES = 256_000_000
"""Compared with their checksums in one `read`; a window over hundreds of new shards leaves some to the next ones."""
NUM_CHECKERS = min(4, os.cpu_count() or 1)
SMALLEST_DOCUMENT = 2
"""Tokens: bos and eos."""
MANIFEST_KEYS = {"tokenizer_hash": str, "vocab_size": int, "sources": list, "shards": dict, "validation_text": dict}
FILE_KEYS = {"bytes": int, "crc32": str}
SHARD_KEYS = {"file": str, "source": int, "documents": int, "tokens": int, "text_bytes": int, **FILE_KEYS}
KIND_NAMES = {str: "text", int: "a whole number of 0 or more", list: "a list", dict: "a mapping"}


class StoredDocuments:
    """The documents of one split, numbered from 0 in each source. May be used from several threads."""

    def __init__(self, folder: Path, shards: list[dict[str, Any]], num_sources: int) -> None:
        """`shards`: the split's rows of the manifest."""
        self.folder = folder
        self.shards = sorted(shards, key=lambda facts: (facts["source"], len(facts["file"]), facts["file"]))
        by_source = [[i for i, facts in enumerate(self.shards) if facts["source"] == s] for s in range(num_sources)]
        self._first_shards = [numbers[0] if numbers else 0 for numbers in by_source]
        counts = [[self.shards[number]["documents"] for number in numbers] for numbers in by_source]
        self._first_documents = [np.cumsum([0, *each], dtype=np.int64) for each in counts]
        self.num_documents = [int(first[-1]) for first in self._first_documents]
        """Of each source."""
        self.num_tokens = [sum(self.shards[number]["tokens"] for number in numbers) for numbers in by_source]
        """Stored tokens of each source, bos and eos included."""
        self._open: OrderedDict[int, Shard] = OrderedDict()
        self._mapped_bytes = 0
        self._seen: set[int] = set()
        self._waiting: dict[int, None] = {}
        """Shards in use whose checksum is still to be compared, in order."""
        self._lock = threading.Lock()

    def locate(self, source: int, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The shard (its number in `shards`) and the place in it of each document of a source; two int64 arrays."""
        first = self._first_documents[source]
        if len(documents) and not 0 <= documents.min() <= documents.max() < first[-1]:
            raise IndexError(
                f"source {source} has {first[-1]} documents, asked for {documents.min()}-{documents.max()}"
            )
        within = np.searchsorted(first, documents, side="right") - 1
        return within + self._first_shards[source], documents - first[within]

    def lengths(self, source: int, documents: np.ndarray) -> np.ndarray:
        """[n] int64: the stored tokens of each of these documents (int64 [n]) of a source; at least 2.

        Raises DataError when the file is damaged; its checksum is not asked for yet.
        """
        shards, places = self.locate(source, documents)
        lengths = np.empty(len(documents), np.int64)
        for number, chosen in groups_of(shards):
            offsets = self.shard(number).offsets
            lengths[chosen] = offsets[places[chosen] + 1] - offsets[places[chosen]]
            if lengths[chosen].min() < SMALLEST_DOCUMENT or lengths[chosen].max() > offsets[-1]:
                raise damaged(self.folder / self.shards[number]["file"], "its offsets make no sense")
        return lengths

    def ordinals(self, source: int, documents: np.ndarray) -> np.ndarray:
        """[n] int64: the number each of these documents had in its source as it was read."""
        shards, places = self.locate(source, documents)
        ordinals = np.empty(len(documents), np.int64)
        for number, chosen in groups_of(shards):
            ordinals[chosen] = self.shard(number).ordinals[places[chosen]]
        return ordinals

    def document(self, source: int, document: int) -> np.ndarray:
        """The tokens of one document, bos and eos included: a view of the map."""
        shards, places = self.locate(source, np.array([document]))
        self._check(shards)
        shard = self.shard(int(shards[0]))
        return shard.tokens[slice(*shard.offsets[places[0] : places[0] + 2])]

    def read(self, sources: np.ndarray, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All tokens of these documents, one behind the other in the order of the disk, and where each begins.

        Returns tokens (the stored type) and int64 [n], where in them each of the n documents begins. Neighbours on disk
        are copied at once. Raises DataError when a file is damaged.
        """
        shards, places = np.empty(len(documents), np.int64), np.empty(len(documents), np.int64)
        for source, chosen in groups_of(sources):
            shards[chosen], places[chosen] = self.locate(source, documents[chosen])
        self._check(shards)
        firsts, parts, total = np.empty(len(documents), np.int64), [], 0
        for number, chosen in groups_of(shards):
            chosen = chosen[np.argsort(places[chosen], kind="stable")]
            shard, here = self.shard(number), places[chosen]
            starts, stops = shard.offsets[here], shard.offsets[here + 1]
            firsts[chosen] = total + np.cumsum(stops - starts) - (stops - starts)
            total += int((stops - starts).sum())
            breaks = np.flatnonzero(np.diff(here) != 1) + 1
            begins, ends = starts[np.r_[0, breaks]], stops[np.r_[breaks - 1, len(here) - 1]]
            parts += [shard.tokens[a:b] for a, b in zip(begins.tolist(), ends.tolist(), strict=True)]
        return (np.concatenate(parts) if parts else np.zeros(0, np.uint16)), firsts

    def shard(self, number: int) -> Shard:
        """The shard of this number in `shards`, mapped; its checksum may not have been compared."""
        with self._lock:
            found = self._open.pop(number, None)
            if found is None:
                found = map_shard(self.folder / self.shards[number]["file"], self.shards[number])
                self._mapped_bytes += self.shards[number]["bytes"]
            self._open[number] = found
            while self._mapped_bytes > MAX_MAPPED_BYTES and len(self._open) > 1:
                oldest, _ = self._open.popitem(last=False)
                self._mapped_bytes -= self.shards[oldest]["bytes"]
            return found

    def _check(self, numbers: np.ndarray) -> None:
        """Compare the checksums of these shards, once; `CHECKED_BYTES` of those that wait, at least one."""
        with self._lock:
            self._waiting |= dict.fromkeys(sorted(set(numbers.tolist()) - self._seen))
            self._seen |= self._waiting.keys()
            sizes = np.cumsum([self.shards[number]["bytes"] for number in self._waiting])
            now = list(self._waiting)[: max(1, int(np.searchsorted(sizes, CHECKED_BYTES, side="right")))]
            if now:
                with ThreadPoolExecutor(NUM_CHECKERS) as pool:
                    list(pool.map(self._check_one, now))
            for number in now:
                del self._waiting[number]

    def _check_one(self, number: int) -> None:
        check_file(self.folder / self.shards[number]["file"], self.shards[number])


def groups_of(values: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Each different value of the int array, rising, with the places at which it stands, rising."""
    if not len(values):
        return []
    order = np.argsort(values, kind="stable")
    breaks = np.flatnonzero(np.diff(values[order])) + 1
    return [(int(values[part[0]]), part) for part in np.split(order, breaks)]


class Store:
    """An open folder of prepared data."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder, self.manifest = folder, manifest
        self.source_names: list[str] = manifest["sources"]
        self.train = StoredDocuments(folder, manifest["shards"]["train"], len(self.source_names))
        self.validation = StoredDocuments(folder, manifest["shards"]["validation"], len(self.source_names))

    def validation_text(self) -> bytes:
        """The held-out text as it was, its documents one behind the other. Raises DataError when it is damaged."""
        path = self.folder / "validation.txt"
        check_file(path, self.manifest["validation_text"])
        return path.read_bytes()

    def text_bytes(self, split: str) -> list[int]:
        """UTF-8 bytes of the text of each source in `split` (train or validation)."""
        totals = [0] * len(self.source_names)
        for facts in self.manifest["shards"][split]:
            totals[facts["source"]] += facts["text_bytes"]
        return totals

    def verify(self, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Compare every checksum. Raises DataError with a line for each damaged file.

        `progress(done, total)` counts bytes, after each file.
        """
        files = self._files()
        done, total, problems = 0, sum(facts["bytes"] for _, facts in files), []
        for name, facts in files:
            try:
                check_file(self.folder / name, facts)
            except DataError as error:
                problems += error.problems
            done += facts["bytes"]
            progress(done, total)
        if problems:
            raise DataError(*problems)

    def check_sizes(self) -> None:
        """Compare the size of every file with the manifest; reads nothing. Raises DataError."""
        for name, facts in self._files():
            check_size(self.folder / name, facts)

    def _files(self) -> list[tuple[str, dict[str, Any]]]:
        shards = [
            (facts["file"], facts) for split in ("train", "validation") for facts in self.manifest["shards"][split]
        ]
        return [*shards, ("validation.txt", self.manifest["validation_text"])]


def open_store(folder: Path, tokenizer_hash: str | None = None) -> Store:
    """Open a folder of prepared data.

    Raises DataError when it is not one or its manifest was damaged, when it was made with another tokenizer than that
    of `tokenizer_hash`, or when a file is missing or cut short.
    """
    manifest = _read_manifest(folder)
    if tokenizer_hash is not None and manifest["tokenizer_hash"] != tokenizer_hash:
        raise DataError(
            f"{folder}: made with tokenizer {manifest['tokenizer_hash'][:12]}, not with the given one "
            f"{tokenizer_hash[:12]}; use the tokenizer the data was prepared with, or delete the folder to have it "
            "prepared again"
        )
    store = Store(folder, manifest)
    store.check_sizes()
    return store


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version = manifest["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: unreadable ({error}); prepare the data again") from error
    if version != FORMAT:
        raise DataError(f"{path}: format {version}, this program reads {FORMAT}; prepare the data again")
    if fault := next(_faults(manifest), None):
        raise DataError(f"{path}: {fault}; prepare the data again")
    return manifest


def _faults(manifest: dict[str, Any]) -> Iterator[str]:
    """What is missing or wrong in a manifest. Only the first is meaningful: what comes later relies on it."""
    yield from _misfits("", manifest, MANIFEST_KEYS)
    yield from _misfits("validation_text.", manifest["validation_text"], FILE_KEYS)
    yield from _misfits("shards.", manifest["shards"], {"train": list, "validation": list})
    names = manifest["sources"]
    yield from _misfits("sources.", dict(enumerate(names)), dict.fromkeys(range(len(names)), str))
    for split in ("train", "validation"):
        rows = manifest["shards"][split]
        yield from _misfits(f"shards.{split}.", dict(enumerate(rows)), dict.fromkeys(range(len(rows)), dict))
        for number, row in enumerate(rows):
            yield from _misfits(f"shards.{split}.{number}.", row, SHARD_KEYS)
            if row["source"] >= len(names):
                yield f"shards.{split}.{number}.source is {row['source']}, there are {len(names)} sources"


def _misfits(where: str, facts: dict[Any, Any], keys: Mapping[Any, type]) -> Iterator[str]:
    for key, kind in keys.items():
        if key not in facts:
            yield f"{where}{key} is missing"
        elif type(facts[key]) is not kind or (kind is int and facts[key] < 0):
            yield f"{where}{key} is {str(facts[key])[:80]!r}, expected {KIND_NAMES[kind]}"
