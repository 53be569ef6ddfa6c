"""Fill in the middle: some pieces of documents are told in the order prefix, suffix, middle, so that a model that
only ever looks back learns to write what stands between two given texts (Bavarian et al. 2022, arXiv 2207.14255).

At the level of the context, as the paper prefers: a piece is transformed after documents were cut, so it always fits
its row. Cuts lie between tokens. bos and eos stay where they are. Whether and where a piece is cut is a hash of the
seed and of where the piece comes from, so it does not depend on who reads it or when; every epoch cuts anew.
To change the two layouts, edit `rearrange`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from pydantic import Field

from data.order import FIM_BEGIN_STREAM, FIM_END_STREAM, FIM_STREAM, hash_words
from data.tokenizer import Tokenizer
from utils.schema import Section

NUM_SENTINELS = 3


class Sentinels(NamedTuple):
    """Token ids that stand before each part."""

    prefix: int
    suffix: int
    middle: int


class Cuts(NamedTuple):
    """What is done with each of P pieces."""

    transformed: np.ndarray
    """[P] bool."""
    suffix_first: np.ndarray
    """[P] bool: suffix, prefix, middle (SPM) instead of prefix, suffix, middle (PSM)."""
    points: np.ndarray
    """[P, 2] float64 in [0, 1), rising: where the middle begins and ends."""

    def at(self, places: np.ndarray) -> "Cuts":
        """Those of the pieces at `places`."""
        return Cuts(self.transformed[places], self.suffix_first[places], self.points[places])


class FillInTheMiddleConfig(Section):
    """Rearranges training pieces for infilling; the tokenizer needs tokens fim_prefix, fim_suffix and fim_middle."""

    rate: float = Field(default=0.5, ge=0, le=1)
    """Share of the pieces that are rearranged."""
    spm_rate: float = Field(default=0.5, ge=0, le=1)
    """Share of those that tell the suffix first."""

    def choose(self, seed: int, origins: Sequence[np.ndarray]) -> Cuts:
        """What to do with P pieces, told apart by int arrays [P]: source, document, epoch, first pair."""
        words = np.zeros(len(origins[0]), np.uint64)
        for values in origins:
            words = hash_words(seed, FIM_STREAM, words ^ hash_words(seed, FIM_STREAM, values))
        kinds = _uniform(words, seed, FIM_STREAM)
        points = np.stack([_uniform(words, seed, stream) for stream in (FIM_BEGIN_STREAM, FIM_END_STREAM)], axis=1)
        return Cuts(kinds < self.rate, kinds < self.rate * self.spm_rate, np.sort(points, axis=1))


def _uniform(words: np.ndarray, seed: int, stream: int) -> np.ndarray:
    return (hash_words(seed, stream, words) >> np.uint64(11)) * 2.0**-53


def sentinels_of(tokenizer: Tokenizer) -> Sentinels:
    """The three ids. Raises DataError when the tokenizer has none."""
    return Sentinels(*(tokenizer.special_id(f"fim_{part}") for part in Sentinels._fields))


def rearrange(
    tokens: np.ndarray, has_bos: bool, has_eos: bool, points: np.ndarray, suffix_first: bool, sentinels: Sentinels
) -> np.ndarray:
    """One piece [n] as it is told [n + 3], same type: with prefix P, middle M, suffix S and the sentinels p, m, s

    [bos] p P s S m M [eos], or with the suffix first [bos] p s S m P M [eos] (the paper's second variant, which
    shares its first token with the other). `points` are two rising numbers in [0, 1).
    """
    first, last = int(has_bos), len(tokens) - has_eos
    begin, end = (first + int(point * (last - first + 1)) for point in points)
    before, middle, after = tokens[first:begin], tokens[begin:end], tokens[end:last]
    p, s, m = (np.array([sentinel], tokens.dtype) for sentinel in sentinels)
    parts = [p, s, after, m, before, middle] if suffix_first else [p, before, s, after, m, middle]
    return np.concatenate([tokens[:first], *parts, tokens[last:]])
