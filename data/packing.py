"""Packing: which pieces of documents share a row. Everything here is pure, and works on the documents of one window.

`best_fit`: documents are cut into pieces of at most L pairs and put, largest first, into the fullest row that takes
them (best-fit decreasing; Ding et al. 2024, arXiv 2404.10830). A row begins where a piece does, hardly any document is
cut that fits a row, and next to nothing is padding. The look-ahead is the window. `concat`: documents one behind
the other, cut where a row ends: no padding, but most rows begin inside a document. `padded`: one piece a row.
No pair is lost or doubled by any of them. To add a way, write a function and a row of `METHODS`.

Sizes count (input, target) pairs: a document of n stored tokens has n - 1 of them.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

from utils.schema import Section


class Pieces(NamedTuple):
    """Consecutive cuts of documents; three int64 arrays of one entry per piece."""

    documents: np.ndarray
    """Which document a piece is cut from."""
    starts: np.ndarray
    """The pair of the document at which it starts."""
    lengths: np.ndarray
    """Its pairs, at least 1."""


class Layout(NamedTuple):
    """Rows as lists of pieces, row after row; `order[row_starts[r] : row_starts[r + 1]]` are the pieces of row r."""

    order: np.ndarray
    """[P] int64: the number of each piece."""
    row_starts: np.ndarray
    """[R + 1] int64: the first place of each row in `order`, and P."""


class PackingConfig(Section):
    """How documents share rows."""

    method: Literal["best_fit", "concat", "padded"] = "best_fit"
    """best_fit: whole documents beside each other, hardly any padding | concat: one behind the other, cut where a row
    ends | padded: one document (or piece of it) a row."""

    def pack(self, sizes: np.ndarray, row_length: int) -> Layout:
        """Rows of pieces of `sizes` (int64 [P], each 1 to `row_length`)."""
        return METHODS[self.method](sizes, row_length)

    def cut(self, num_pairs: np.ndarray, row_length: int, longest: int) -> Pieces:
        """Pieces of at most `longest` <= `row_length` pairs of documents of `num_pairs` pairs each."""
        if self.method == "concat":
            assert longest == row_length
            return cut_at_rows(num_pairs, row_length)
        return cut(num_pairs, longest)


def cut(num_pairs: np.ndarray, row_length: int) -> Pieces:
    """Cut documents of `num_pairs` pairs each into consecutive pieces of `row_length`, the last one shorter."""
    num_pieces = -(-num_pairs // row_length)
    documents = np.repeat(np.arange(len(num_pairs)), num_pieces)
    first_piece = np.cumsum(num_pieces) - num_pieces
    starts = (np.arange(len(documents)) - first_piece[documents]) * row_length
    return Pieces(documents, starts, np.minimum(num_pairs[documents] - starts, row_length))


def cut_at_rows(num_pairs: np.ndarray, row_length: int) -> Pieces:
    """Cut documents, laid one behind the other, wherever one ends or a row does."""
    ends = np.cumsum(num_pairs)
    total = int(ends[-1]) if len(ends) else 0
    edges = np.union1d(ends, np.arange(row_length, total, row_length))
    begins = np.concatenate([[0], edges])[: len(edges)]
    documents = np.searchsorted(ends, begins, side="right")
    return Pieces(documents, begins - (ends - num_pairs)[documents], edges - begins)


def best_fit(sizes: np.ndarray, row_length: int) -> Layout:
    """Best-fit decreasing; among equal sizes the first piece comes first."""
    assert sizes.size == 0 or (sizes.min() >= 1 and sizes.max() <= row_length)
    descending = np.argsort(-sizes, kind="stable")
    rows = fill_bins(np.bincount(sizes, minlength=row_length + 1), row_length)
    slots = np.argsort(rows, kind="stable")
    return Layout(descending[slots], _starts(rows[slots]))


def concat(sizes: np.ndarray, row_length: int) -> Layout:
    """Pieces of `cut_at_rows` in their order: a row is full where a multiple of its length is."""
    return Layout(np.arange(len(sizes)), _starts((np.cumsum(sizes) - sizes) // row_length))


def padded(sizes: np.ndarray, row_length: int) -> Layout:
    """One piece a row."""
    return Layout(np.arange(len(sizes)), np.arange(len(sizes) + 1))


METHODS: dict[str, Callable[[np.ndarray, int], Layout]] = {"best_fit": best_fit, "concat": concat, "padded": padded}


def _starts(rows: np.ndarray) -> np.ndarray:
    """The first place of each row in the rising row numbers of all places, and the number of places."""
    return np.concatenate([[0], np.cumsum(np.bincount(rows))]).astype(np.int64)


def fill_bins(counts: np.ndarray, capacity: int) -> np.ndarray:
    """The bin of every item, items in decreasing order of size; `counts[s]` is how many have size s. int64.

    Best fit puts an item into the fullest bin that can take it. After an item of size s went into a bin with room c,
    that bin is again the fullest one with room for s, if it has any: so equal items fill one bin after the other and
    all bins of one room are treated at once. `rooms` has bit c set when a bin with room c is open: its lowest bit from
    s on is the best fit, without looking at any bin.
    """
    bins_by_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    rooms, num_bins = 0, 0
    chosen: list[int] = []
    repeats: list[int] = []
    for size in np.flatnonzero(counts)[::-1].tolist():
        remaining = int(counts[size])
        while remaining:
            fitting = rooms >> size
            if not fitting:
                opened = -(-remaining // (capacity // size))
                bins_by_room[capacity] = list(range(num_bins, num_bins + opened))
                num_bins += opened
                fitting, rooms = 1 << (capacity - size), rooms | 1 << capacity
            room = size + (fitting & -fitting).bit_length() - 1
            bins, each = bins_by_room[room], room // size
            full = min(remaining // each, len(bins))
            rest = remaining - full * each if full < len(bins) else 0
            rooms ^= 1 << room
            for first, last, count in ((0, full, each), (full, full + (rest > 0), rest)):
                if first < last:
                    chosen += bins[first:last]
                    repeats += [count] * (last - first)
                    left = room - count * size
                    bins_by_room[left] += bins[first:last]
                    rooms |= (left > 0) << left
            bins_by_room[room] = bins[full + (rest > 0) :]
            rooms |= bool(bins_by_room[room]) << room
            remaining -= full * each + rest
    return np.repeat(np.array(chosen, np.int64), np.array(repeats, np.int64))


def packed_fraction(num_pairs: int, num_rows: int, row_length: int) -> float:
    """The share of all positions that hold a real pair; 1.0 for no rows."""
    return num_pairs / (num_rows * row_length) if num_rows else 1.0
