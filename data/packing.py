"""Packing: cut documents into pieces of at most L pairs and fill rows of L with them, best fit, largest first.

Best-fit decreasing, because it drops nothing, never joins two documents in a pair and leaves under 1 % of padding on
real text, where cutting a stream at multiples of L splits nearly every document and padding each one wastes half.
Which lengths share a row depends on the multiset of lengths only, so it is computed once (by counts: equal lengths
are placed together, about L^2 operations at worst); an epoch then only chooses which piece of a length goes where.
Everything here is pure. To change how rows are filled, edit `fill_bins`.

Sizes count (input, target) pairs: a document of n stored tokens has n - 1 of them.
"""

from typing import NamedTuple

import numpy as np


class Pieces(NamedTuple):
    """Consecutive cuts of documents; three int64 arrays of one entry per piece."""

    documents: np.ndarray
    """Which document a piece is cut from."""
    starts: np.ndarray
    """The pair of the document at which it starts."""
    lengths: np.ndarray
    """Its pairs, 1 to L."""


class Layout(NamedTuple):
    """Rows as lists of slots, row after row; `ranks[row_starts[r] : row_starts[r + 1]]` is row r."""

    ranks: np.ndarray
    """[P] int64: which piece fills the slot, counted in order of decreasing length."""
    row_starts: np.ndarray
    """[R + 1] int64: the first slot of each row, and the number of slots."""


def cut(num_pairs: np.ndarray, row_length: int) -> Pieces:
    """Cut documents of `num_pairs` pairs each into consecutive pieces of `row_length`, the last one shorter."""
    num_pieces = -(-num_pairs // row_length)
    documents = np.repeat(np.arange(len(num_pairs)), num_pieces)
    first_piece = np.cumsum(num_pieces) - num_pieces
    starts = (np.arange(len(documents)) - first_piece[documents]) * row_length
    return Pieces(documents, starts, np.minimum(num_pairs[documents] - starts, row_length))


def pack(lengths: np.ndarray, row_length: int) -> Layout:
    """Best-fit decreasing of `lengths` (each 1 to `row_length`) into rows of `row_length`."""
    assert lengths.size == 0 or (lengths.min() >= 1 and lengths.max() <= row_length)
    counts = np.bincount(lengths, minlength=row_length + 1)
    rows = fill_bins(counts, row_length)
    slots = np.argsort(rows, kind="stable")
    num_rows = int(rows.max()) + 1 if rows.size else 0
    row_starts = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=num_rows))]).astype(np.int64)
    return Layout(slots, row_starts)


def fill_bins(counts: np.ndarray, capacity: int) -> np.ndarray:
    """The bin of every item, items in decreasing order of size; `counts[s]` is how many have size s. int64.

    Best fit puts an item into the fullest bin that can take it. After an item of size s went into a bin with room c,
    that bin is again the fullest one with room for s, if it has any: so equal items fill one bin after the other and
    all bins of one room can be treated at once.
    """
    bins_by_room: list[list[np.ndarray]] = [[] for _ in range(capacity + 1)]
    result, num_bins = [], 0
    for size in range(capacity, 0, -1):
        remaining = int(counts[size])
        for room in range(size, capacity):
            if not remaining:
                break
            if bins_by_room[room]:
                placed = _put(bins_by_room, room, size, remaining)
                result.append(placed)
                remaining -= len(placed)
        if remaining:
            opened = -(-remaining // (capacity // size))
            bins_by_room[capacity] = [np.arange(num_bins, num_bins + opened)]
            num_bins += opened
            result.append(_put(bins_by_room, capacity, size, remaining))
    return np.concatenate(result) if result else np.zeros(0, np.int64)


def _put(bins_by_room: list[list[np.ndarray]], room: int, size: int, count: int) -> np.ndarray:
    """Put up to `count` items of `size` into the bins with `room`, moving the bins; the bin of each item put."""
    bins = np.concatenate(bins_by_room[room])
    each = room // size
    full, rest = divmod(min(count, len(bins) * each), each)
    untouched = bins[full + (rest > 0) :]
    bins_by_room[room] = [untouched] if untouched.size else []
    if full:
        bins_by_room[room - each * size].append(bins[:full])
    if rest:
        bins_by_room[room - rest * size].append(bins[full : full + 1])
    return np.concatenate([np.repeat(bins[:full], each), np.repeat(bins[full : full + 1], rest)])


def assign(lengths: np.ndarray, tie_break: np.ndarray) -> np.ndarray:
    """Pieces in decreasing order of length, equal ones in the order of the permutation `tie_break`. [P] int64."""
    return tie_break[np.argsort(-lengths[tie_break], kind="stable")]


def packed_fraction(num_pairs: int, num_rows: int, row_length: int) -> float:
    """The share of all positions that hold a real pair; 1.0 for no rows."""
    return num_pairs / (num_rows * row_length) if num_rows else 1.0
