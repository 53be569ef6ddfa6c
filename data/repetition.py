"""Drops documents that say the same thing again and again: the repetition rules of Gopher (Rae et al. 2021, table A1).

A repeat is a line, paragraph or n-gram of words that stood before in the document; the first time is not one. Words get
numbers, and an n-gram is the number of the n-gram one word shorter beside a word: exact, sorted by NumPy, and only
positions whose shorter n-gram occurs twice are looked at again, so long n-grams cost next to nothing. Documents beyond
a million characters are measured in pieces of that size and the fractions averaged. To change what is measured, edit
`measure`.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from pydantic import Field

from data.filters import FilterConfig
from data.pieces import pieces

TOP = {n: f"top_{n}_gram" for n in range(2, 5)}
DUPLICATE = {n: f"duplicate_{n}_grams" for n in range(5, 11)}
NAMES = (
    *("duplicate_lines", "duplicate_paragraphs", "duplicate_line_characters", "duplicate_paragraph_characters"),
    *TOP.values(),
    *DUPLICATE.values(),
)
Limit = float | None


def _limit(default: float) -> Limit:
    return Field(default=default, ge=0, le=1)


class RepetitionFilterConfig(FilterConfig):
    """Drops documents of which too large a part is repeated. A field's name is the reason; null switches it off."""

    type: str = "repetition"
    """Row of data.FILTERS."""
    duplicate_lines: Limit = _limit(0.30)
    """Share of the lines that are repeats; blank lines are none, spaces around a line do not count."""
    duplicate_paragraphs: Limit = _limit(0.30)
    """Share of the paragraphs, lines between blank lines, that are repeats."""
    duplicate_line_characters: Limit = _limit(0.20)
    """Share of the characters that are in repeated lines."""
    duplicate_paragraph_characters: Limit = _limit(0.20)
    """Share of the characters that are in repeated paragraphs."""
    top_2_gram: Limit = _limit(0.20)
    """Share of the characters of words that are in the most frequent pair of words, if it occurs twice."""
    top_3_gram: Limit = _limit(0.18)
    """As top_2_gram, three words."""
    top_4_gram: Limit = _limit(0.16)
    """As top_2_gram, four words."""
    duplicate_5_grams: Limit = _limit(0.15)
    """Share of the characters of words that are in repeated runs of five words, each character counted once."""
    duplicate_6_grams: Limit = _limit(0.14)
    """As duplicate_5_grams, six words."""
    duplicate_7_grams: Limit = _limit(0.13)
    """As duplicate_5_grams, seven words."""
    duplicate_8_grams: Limit = _limit(0.12)
    """As duplicate_5_grams, eight words."""
    duplicate_9_grams: Limit = _limit(0.11)
    """As duplicate_5_grams, nine words."""
    duplicate_10_grams: Limit = _limit(0.10)
    """As duplicate_5_grams, ten words."""

    def reason(self, text: str) -> str | None:
        """See `FilterConfig.reason`: the first field whose limit is passed; later pieces cannot make up for it."""
        limits = {name: getattr(self, name) for name in NAMES}
        for fractions in repetition(text):
            for name, fraction in fractions.items():
                if limits[name] is not None and fraction > limits[name]:
                    return name
        return None


def repetition(text: str) -> Iterator[dict[str, float]]:
    """Every fraction by the name of its field, each from 0 to 1; 0 where nothing is repeated.

    One dict for each piece, of which the last is that of the document: they grow, what was not read counts as new.
    """
    total = dict.fromkeys(NAMES, 0.0)
    for piece in pieces(text):
        share = len(piece) / len(text)
        total = {name: total[name] + share * fraction for name, fraction in measure(piece).items()}
        yield total


def measure(text: str) -> dict[str, float]:
    """The fractions of one piece, in the order of table A1."""
    lines = [line.strip() for line in text.split("\n")]
    paragraphs = [part.strip("\n") for part in "\n".join(lines).split("\n\n")]
    by_lines = repeated_share([line for line in lines if line])
    by_paragraphs = repeated_share([part for part in paragraphs if part])
    fractions = dict.fromkeys(NAMES, 0.0)
    fractions["duplicate_lines"], fractions["duplicate_line_characters"] = by_lines
    fractions["duplicate_paragraphs"], fractions["duplicate_paragraph_characters"] = by_paragraphs
    words = Words.of(text)
    for grams in shared_grams(words, max(DUPLICATE)):
        if grams.length in TOP:
            fractions[TOP[grams.length]] = top_characters(words, grams) / int(words.ends[-1])
        if grams.length in DUPLICATE:
            fractions[DUPLICATE[grams.length]] = repeated_characters(words, grams) / int(words.ends[-1])
    return fractions


def repeated_share(parts: list[str]) -> tuple[float, float]:
    """Shares of the parts, and of their characters, that belong to parts seen before."""
    different = set(parts)
    num_characters = sum(map(len, parts))
    share = (len(parts) - len(different)) / max(len(parts), 1)
    return share, (num_characters - sum(map(len, different))) / max(num_characters, 1)


class Words(NamedTuple):
    """The W words of a text."""

    ids: np.ndarray
    """Int64 [W]: equal words have equal numbers, from 0."""
    ends: np.ndarray
    """Int64 [W + 1]: how many characters of words lie before each word; spaces are not counted."""

    @classmethod
    def of(cls, text: str) -> "Words":
        """The words of a text: what stands between spaces."""
        words = text.split()
        numbers: dict[str, int] = {}
        ids = np.array([numbers.setdefault(word, len(numbers)) for word in words], np.int64)
        ends = np.zeros(len(words) + 1, np.int64)
        np.cumsum(np.fromiter(map(len, words), np.int64, len(words)), out=ends[1:])
        return cls(ids, ends)


class Grams(NamedTuple):
    """The P places in a text whose run of `length` words occurs at least twice, by run and, within it, in order."""

    length: int
    starts: np.ndarray
    """Int64 [P]: number of the first word."""
    groups: np.ndarray
    """Int64 [P]: number of the run, from 0, ascending."""
    is_first: np.ndarray
    """Bool [P]: whether the run stands here for the first time."""


def shared_grams(words: Words, longest: int) -> Iterator[Grams]:
    """The runs of 2, 3, ... `longest` words that occur more than once; ends early when there are none.

    A run of n words can only occur twice where its first n - 1 words do.
    """
    starts, groups = np.arange(len(words.ids)), words.ids
    for length in range(2, longest + 1):
        inside = starts + length <= len(words.ids)
        starts, groups = starts[inside], groups[inside]
        # Below 2**63: both factors are below the number of words of a piece.
        keys = groups * len(words.ids) + words.ids[starts + length - 1]
        order = np.argsort(keys, kind="stable")  # Stable, so the starts of a run stay in order.
        grams = _in_groups(length, starts[order], keys[order])
        if not len(grams.starts):
            return
        starts, groups = grams.starts, grams.groups
        yield grams


def _in_groups(length: int, starts: np.ndarray, keys: np.ndarray) -> Grams:
    """The places of sorted keys that occur twice or more."""
    is_first = np.ones(len(keys), bool)
    np.not_equal(keys[1:], keys[:-1], out=is_first[1:])
    is_last = np.ones(len(keys), bool)
    is_last[:-1] = is_first[1:]
    shared = ~(is_first & is_last)
    is_first = is_first[shared]
    return Grams(length, starts[shared], np.cumsum(is_first) - 1, is_first)


def top_characters(words: Words, grams: Grams) -> int:
    """Characters in the run that occurs most often, each counted once; of several such runs, the most."""
    ends = words.ends[grams.starts + grams.length]
    begins = words.ends[grams.starts]
    same = ~grams.is_first[1:]
    begins[1:][same] = np.maximum(begins[1:], ends[:-1])[same]
    counts = np.bincount(grams.groups)
    characters = np.add.reduceat(ends - begins, np.flatnonzero(grams.is_first))
    return int(characters[counts == counts.max()].max())


def repeated_characters(words: Words, grams: Grams) -> int:
    """Characters in runs that stood before in the text, each counted once however many runs it lies in."""
    starts = np.sort(grams.starts[~grams.is_first])
    ends, begins = words.ends[starts + grams.length], words.ends[starts]
    begins[1:] = np.maximum(begins[1:], ends[:-1])
    return int((ends - begins).sum())
