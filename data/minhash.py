"""Sketches of texts by MinHash: how many minima two sketches share estimates the Jaccard similarity of two texts.

A text is the set of its runs of `ngram` words (shingles), lower case, cut at white space; punctuation belongs to its
word. A text of fewer words is one shingle. Text without spaces (Chinese, Japanese, Thai) is thus a few long words, and
only what differs in case or white space is found near. The minima are those of `datasketch.MinHash`, bit for bit, and
`datasketch.MinHashLSH` chooses the bands; but datasketch calls a function for each shingle, here NumPy hashes them: a
word once, then five word hashes at a time. A sketch stores the key of each band and 16 bits of each minimum, 0.6 kB in
all: more bits would only rule out chance, which is 1 in 65536 already. To change what is alike, edit `segments`.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain
from typing import NamedTuple

import numpy as np
from pydantic import Field

from utils.optional import optional
from utils.schema import Section

SPACE = re.compile(r"\s")
PIECE = 1 << 20
"""Characters of a long text that are cut into words at once."""
GROUP_WORDS = 1 << 15
BLOCK = 256
"""Shingles times permutations held at once: in the second-level cache for 256 permutations."""
NUM_CACHED, LONGEST_CACHED = 100_000, 64
"""Words whose hashes are kept, and how long one of them may be."""
MISSED_WEIGHT, HIGHEST_BAND_THRESHOLD = 0.98, 0.95
ROLL = np.uint64(0x9E3779B97F4A7C15)
MIX_32 = (np.uint32(16), np.uint32(0x85EBCA6B), np.uint32(13), np.uint32(0xC2B2AE35), np.uint32(16))
MIX_64 = (np.uint64(33), np.uint64(0xFF51AFD7ED558CCD), np.uint64(33), np.uint64(0xC4CEB9FE1A85EC53), np.uint64(33))


class Plan(NamedTuple):
    """What datasketch gives for a config; the same in every process."""

    factors: np.ndarray
    """uint32 [P]: permutation p of a hash h is factors[p] * h + offsets[p] modulo 2^32."""
    offsets: np.ndarray
    num_bands: int
    num_rows: int
    """Minima in a band."""


class NearConfig(Section):
    """Near-duplicates: texts that share most of their runs of words."""

    jaccard: float = Field(default=0.8, ge=0.5, le=1.0)
    """Runs of words in both texts over runs in either, from which on the later text is dropped. It is estimated, with a
    standard deviation of 0.025 at 0.8 and 256 permutations. The line is drawn one such deviation lower, so that of the
    texts at exactly this similarity five of six are found."""
    num_perm: int = Field(default=256, ge=64, le=512, multiple_of=2)
    """Minima per text. Four times as many halve the error of the estimate and cost four times the time and disk."""
    ngram: int = Field(default=5, ge=1, le=100)
    """Words in a run. Shorter runs find looser copies."""

    def plan(self) -> Plan:
        """Permutations and bands. Raises BackendError without datasketch."""
        return _plan(self.jaccard, self.num_perm)

    def least_equal(self) -> int:
        """How many of the minima must be equal in two near-duplicates."""
        deviation = (self.jaccard * (1 - self.jaccard) / self.num_perm) ** 0.5
        return max(1, round((self.jaccard - deviation) * self.num_perm))

    def sketch(self, texts: Sequence[str]) -> np.ndarray:
        """uint32 [D, num_bands + num_perm / 2]: keys of bands, then the minima, two to a number (`unpack`)."""
        plan = self.plan()
        minima = minima_of(texts, self.ngram, plan)
        return np.concatenate([band_keys(minima, plan), minima.astype(np.uint16).view(np.uint32)], axis=1)


@lru_cache
def _plan(jaccard: float, num_perm: int) -> Plan:
    datasketch = optional("datasketch", extra="data")
    factors, offsets = datasketch.MinHash(num_perm).permutations
    # A pair missed by all bands is never looked at; one found in vain costs a comparison: hence the weights.
    weights = (1 - MISSED_WEIGHT, MISSED_WEIGHT)
    bands = datasketch.MinHashLSH(min(jaccard, HIGHEST_BAND_THRESHOLD), num_perm, weights)
    return Plan(factors, offsets, bands.b, bands.r)


def unpack(packed: np.ndarray) -> np.ndarray:
    """uint16 [D, P] of the last P / 2 columns of sketches."""
    return packed.view(np.uint16)


def minima_of(texts: Sequence[str], ngram: int, plan: Plan) -> np.ndarray:
    """uint32 [D, P]: for each text and permutation the smallest permuted hash of its shingles (Broder, 1997)."""
    minima = np.full((len(texts), len(plan.factors)), 0xFFFFFFFF, np.uint32)
    memory, known = np.empty((BLOCK, len(plan.factors)), np.uint32), WordHashes()
    for group in groups(segments(texts, ngram)):
        hashes, start = shingle_hashes([words for _, words in group], ngram, known), 0
        for document, words in group:
            lower(minima[document], hashes[start : start + len(words) - ngram + 1], plan, memory)
            start += len(words)
    return minima


def lower(minima: np.ndarray, hashes: np.ndarray, plan: Plan, memory: np.ndarray) -> None:
    """Take hashes uint32 [S] into the minima [P] of a text; `memory` [BLOCK, P] is overwritten."""
    for start in range(0, len(hashes), BLOCK):
        block = hashes[start : start + BLOCK, None]
        permuted = np.multiply(block, plan.factors, out=memory[: len(block)])
        permuted += plan.offsets
        np.minimum(minima, permuted.min(axis=0), out=minima)


def band_keys(minima: np.ndarray, plan: Plan) -> np.ndarray:
    """uint32 [D, num_bands]: a hash of the minima of each band."""
    rows = minima[:, : plan.num_bands * plan.num_rows].reshape(len(minima), plan.num_bands, plan.num_rows)
    keys = np.zeros(rows.shape[:2], np.uint64)
    for row in range(plan.num_rows):
        keys = keys * ROLL + rows[:, :, row]
    return (mix(keys, MIX_64) >> np.uint64(32)).astype(np.uint32)


def segments(texts: Sequence[str], ngram: int) -> Iterator[tuple[int, list[str]]]:
    """(number of the text, at least `ngram` words): all of a text, or the next part of a long one.

    Parts overlap by `ngram` - 1 words, so they hold each run once. Too few words are filled up with empty ones.
    """
    for document, text in enumerate(texts):
        words: list[str] = []
        is_given = False
        for piece in pieces(text):
            words += piece.lower().split()
            if len(words) >= ngram:
                yield document, words
                words, is_given = words[len(words) - ngram + 1 :], True
        if not is_given:
            yield document, words + [""] * (ngram - len(words))


def pieces(text: str) -> Iterator[str]:
    """The text in parts of about `PIECE` characters that end before white space: no word is cut."""
    start = 0
    while start + PIECE < len(text):
        space = SPACE.search(text, start + PIECE)
        end = space.start() if space else len(text)
        yield text[start:end]
        start = end
    yield text[start:]


def groups(found: Iterable[tuple[int, list[str]]]) -> Iterator[list[tuple[int, list[str]]]]:
    """Segments in groups of at least `GROUP_WORDS` words, so that NumPy is called for many short texts at once."""
    group, num_words = [], 0
    for segment in found:
        group.append(segment)
        num_words += len(segment[1])
        if num_words >= GROUP_WORDS:
            yield group
            group, num_words = [], 0
    if group:
        yield group


class WordHashes(dict[str, int]):
    """The 64-bit hash of each word (BLAKE2b); forgets all when it is full."""

    def __missing__(self, word: str) -> int:
        digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        value = int.from_bytes(digest, "little")
        if len(word) <= LONGEST_CACHED:
            if len(self) >= NUM_CACHED:
                self.clear()
            self[word] = value
        return value


def shingle_hashes(parts: Sequence[list[str]], ngram: int, known: WordHashes) -> np.ndarray:
    """uint32 [W]: hash of the `ngram` words from each word on, all parts one behind the other.

    The last `ngram` - 1 of a part run into the next one, or stop short: they are of no use.
    """
    num_words = sum(map(len, parts))
    hashes = np.fromiter(map(known.__getitem__, chain.from_iterable(parts)), np.uint64, num_words)
    rolled = hashes.copy()
    for distance in range(1, ngram):
        rolled *= ROLL
        rolled[:-distance] += hashes[distance:]
    # Mixed twice: the second one is datasketch's own, before its permutations.
    return mix((mix(rolled, MIX_64) >> np.uint64(32)).astype(np.uint32), MIX_32)


def mix(values: np.ndarray, constants: tuple[np.generic, ...]) -> np.ndarray:
    """MurmurHash3's finalizer: a bijection after which every bit depends on every bit. A new array."""
    first, factor, second, other_factor, third = constants
    values = values ^ (values >> first)
    values *= factor
    values ^= values >> second
    values *= other_factor
    values ^= values >> third
    return values
