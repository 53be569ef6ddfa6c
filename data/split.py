"""Which documents are held out: a hash of the text decides, never the position, so no text is ever on both sides.

Documents whose hash lies in the lowest `fraction` of all hashes are candidates; they are taken in hash order until
there is enough text, the rest go back to training. Adding, removing or reordering other documents hardly changes the
choice, and copies of a text, being equal, fall together. The same order gives the tokenizer a fair sample.
To change who is held out, edit `hold_out_by_hash`.
"""

import hashlib
import heapq
from collections.abc import Iterable
from typing import NamedTuple, Protocol

import numpy as np

from utils.errors import DataError

NUM_HASHES = 1 << 64


class Hashed(Protocol):
    """Some documents, of which the hashes are at hand and the texts cost something."""

    @property
    def hashes(self) -> np.ndarray:
        """[D] uint64: `hash_text` of each."""
        ...

    def texts(self, chosen: np.ndarray) -> list[str]:
        """The texts of these indices."""
        ...


class Split(NamedTuple):
    """The held-out texts, and how to know the training documents."""

    validation: list[tuple[int, str]]
    """(hash, text) in hash order, the last text cut to fit."""
    highest_held_out: int
    """Documents with a hash up to this are held out; -1: none by this rule."""
    excluded: np.ndarray
    """uint64: hashes that are held out besides."""

    def is_training(self, hashes: np.ndarray) -> np.ndarray:
        """Whether documents of these hashes (uint64) are trained on."""
        training = ~np.isin(hashes, self.excluded)
        if self.highest_held_out >= 0:
            training &= hashes > np.uint64(self.highest_held_out)
        return training


def hash_text(text: str, purpose: bytes = b"split") -> int:
    """A uniform integer below 2**64, a function of the text and the purpose only (BLAKE2b)."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8, person=purpose).digest(), "big")


class LowestHashes:
    """The different texts of lowest hash: as few as hold `max_bytes` bytes, or all. Memory: those texts."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._heap: list[tuple[int, str]] = []
        self._present: set[int] = set()

    def wants(self, text_hash: int) -> bool:
        """Whether a text of this hash would change anything."""
        is_full = self.num_bytes >= self.max_bytes
        return text_hash not in self._present and not (is_full and text_hash > -self._heap[0][0])

    def add(self, text_hash: int, text: str) -> None:
        """Offer a text; one offered before changes nothing."""
        if not self.wants(text_hash):
            return
        heapq.heappush(self._heap, (-text_hash, text))
        self._present.add(text_hash)
        self.num_bytes += len(text.encode("utf-8"))
        while self.num_bytes - (last_size := len(self._heap[0][1].encode("utf-8"))) >= self.max_bytes:
            self._present.remove(-heapq.heappop(self._heap)[0])
            self.num_bytes -= last_size

    def offer(self, documents: Hashed, chosen: np.ndarray) -> None:
        """Offer the documents of these indices, reading only the texts that are wanted."""
        wanted = np.array([index for index in chosen if self.wants(int(documents.hashes[index]))], np.int64)
        for index, text in zip(wanted, documents.texts(wanted), strict=True):
            self.add(int(documents.hashes[index]), text)

    def sorted(self) -> list[tuple[int, str]]:
        """(hash, text) from the lowest hash up."""
        return sorted((-negative, text) for negative, text in self._heap)

    def cut(self) -> list[tuple[int, str]]:
        """`sorted`, the last text cut on a character boundary so that all hold `max_bytes` at most."""
        found = self.sorted()
        if found and self.num_bytes > self.max_bytes:
            text_hash, text = found[-1]
            keep = len(text.encode("utf-8")) - (self.num_bytes - self.max_bytes)
            found[-1] = text_hash, text.encode("utf-8")[:keep].decode("utf-8", errors="ignore")
        return [(text_hash, text) for text_hash, text in found if text]


def hold_out_by_hash(documents: Iterable[Hashed], fraction: float, max_bytes: int) -> Split:
    """Hold out up to `max_bytes` of the documents whose hash lies below `fraction`.

    Raises DataError when a fraction was asked for and the corpus is too small to give a document.
    """
    candidates, num_documents = LowestHashes(max_bytes), 0
    highest = round(fraction * NUM_HASHES) - 1
    for some in documents:
        num_documents += len(some.hashes)
        if highest >= 0:
            candidates.offer(some, np.flatnonzero(some.hashes <= np.uint64(min(highest, NUM_HASHES - 1))))
    held_out = candidates.sorted()
    if fraction and not held_out:
        raise DataError(
            f"none of the {num_documents} documents falls into the validation fraction of {fraction}; "
            "raise data.validation_fraction, name data.validation_sources, cut large text files with "
            "data.sources.separator, or set the fraction to 0 to train without validation"
        )
    return Split(candidates.cut(), held_out[-1][0] if held_out else -1, np.zeros(0, np.uint64))


def hold_out_sources(validation: Iterable[Hashed], max_bytes: int) -> Split:
    """Hold out a corpus, its first `max_bytes` in hash order; every training document it contains is dropped."""
    candidates, excluded = LowestHashes(max_bytes), [np.zeros(0, np.uint64)]
    for some in validation:
        candidates.offer(some, np.arange(len(some.hashes)))
        excluded.append(some.hashes)
    return Split(candidates.cut(), -1, np.unique(np.concatenate(excluded)))
