"""Which documents are held out: a hash of the text decides, never the position, so no text is ever on both sides.

Documents whose hash lies in the lowest `fraction` of all hashes are candidates; they are taken in hash order until
there is enough text, the rest go back to training. Adding, removing or reordering other documents hardly changes the
choice, and copies of a text, being equal, fall together. The same order gives the tokenizer a fair sample.
To change who is held out, edit `split_by_hash`.
"""

import hashlib
import heapq
from collections.abc import Iterable
from typing import NamedTuple

from utils.errors import DataError

NUM_HASHES = 1 << 64


class Split(NamedTuple):
    """The held-out texts, and how to know the training documents."""

    validation: list[str]
    """Texts in hash order, the last one cut to fit."""
    highest_held_out: int
    """Documents with a hash up to this are held out; -1: none by this rule."""
    excluded: frozenset[int]
    """Hashes that are held out besides."""

    def is_training(self, text_hash: int) -> bool:
        """Whether a document of this hash is trained on."""
        return text_hash > self.highest_held_out and text_hash not in self.excluded


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

    def add(self, text_hash: int, text: str) -> None:
        """Offer a text; one offered before changes nothing."""
        if text_hash in self._present or (self.num_bytes >= self.max_bytes and text_hash > -self._heap[0][0]):
            return
        heapq.heappush(self._heap, (-text_hash, text))
        self._present.add(text_hash)
        self.num_bytes += len(text.encode("utf-8"))
        while self.num_bytes - (last_size := len(self._heap[0][1].encode("utf-8"))) >= self.max_bytes:
            self._present.remove(-heapq.heappop(self._heap)[0])
            self.num_bytes -= last_size

    def sorted(self) -> list[tuple[int, str]]:
        """(hash, text) from the lowest hash up."""
        return sorted((-negative, text) for negative, text in self._heap)

    def texts(self) -> list[str]:
        """The texts in hash order, the last one cut on a character boundary so that all hold `max_bytes` at most."""
        texts = [text for _, text in self.sorted()]
        if texts and self.num_bytes > self.max_bytes:
            keep = len(texts[-1].encode("utf-8")) - (self.num_bytes - self.max_bytes)
            texts[-1] = texts[-1].encode("utf-8")[:keep].decode("utf-8", errors="ignore")
        return [text for text in texts if text]


def split_by_hash(documents: Iterable[str], fraction: float, max_bytes: int, sample: LowestHashes) -> Split:
    """Hold out up to `max_bytes` of the documents whose hash lies below `fraction`; offer the others to `sample`.

    Raises DataError when a fraction was asked for and the corpus is too small to give a document.
    """
    candidates, limit, num_documents = LowestHashes(max_bytes), round(fraction * NUM_HASHES), 0
    for text in documents:
        text_hash = hash_text(text)
        (candidates if text_hash < limit else sample).add(text_hash, text)
        num_documents += 1
    held_out = candidates.sorted()
    if fraction and not held_out:
        raise DataError(
            f"none of the {num_documents} documents falls into the validation fraction of {fraction}; "
            "raise data.validation_fraction, name data.validation_sources, cut large text files with "
            "data.sources.separator, or set the fraction to 0 to train without validation"
        )
    return Split(candidates.texts(), held_out[-1][0] if held_out else -1, frozenset())


def split_by_source(documents: Iterable[str], validation: Iterable[str], max_bytes: int, sample: LowestHashes) -> Split:
    """Hold out `validation`, its first `max_bytes` in hash order, and drop every training document it contains."""
    candidates, excluded = LowestHashes(max_bytes), set()
    for text in validation:
        text_hash = hash_text(text)
        candidates.add(text_hash, text)
        excluded.add(text_hash)
    for text in documents:
        if (text_hash := hash_text(text)) not in excluded:
            sample.add(text_hash, text)
    return Split(candidates.texts(), -1, frozenset(excluded))


def copies(text: str, weight: float) -> int:
    """How often a document of a source with this weight comes in an epoch: a fixed choice, `weight` on average."""
    whole = int(weight)
    return whole + (hash_text(text, b"weight") < (weight - whole) * NUM_HASHES)
