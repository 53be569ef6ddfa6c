"""Packing against exact enumeration and a plain best-fit loop."""

import math
from functools import cache

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from data.packing import assign, cut, fill_bins, pack, packed_fraction

LENGTHS = st.lists(st.integers(1, 16), max_size=40)


def simple_best_fit(lengths: list[int], capacity: int) -> list[int]:
    """The bin of each item in decreasing order of size, by looking at every bin each time."""
    rooms: list[int] = []
    chosen = []
    for size in sorted(lengths, reverse=True):
        fitting = [index for index, room in enumerate(rooms) if room >= size]
        if not fitting:
            rooms.append(capacity)
            fitting = [len(rooms) - 1]
        best = min(fitting, key=lambda index: rooms[index])
        rooms[best] -= size
        chosen.append(best)
    return chosen


def fewest_rows(lengths: tuple[int, ...], capacity: int) -> int:
    @cache
    def place(rest: tuple[int, ...], rooms: tuple[int, ...]) -> int:
        if not rest:
            return len(rooms)
        options = [place(rest[1:], tuple(sorted([*rooms, capacity - rest[0]])))]
        for index, room in enumerate(rooms):
            if room >= rest[0]:
                options.append(place(rest[1:], tuple(sorted([*rooms[:index], room - rest[0], *rooms[index + 1 :]]))))
        return min(options)

    return place(tuple(sorted(lengths, reverse=True)), ())


@settings(max_examples=200, deadline=None)
@given(lengths=LENGTHS, extra=st.integers(0, 4))
def test_packing_is_best_fit_decreasing_and_never_overfills(lengths, extra):
    capacity = max(lengths, default=1) + extra
    counts = np.bincount(np.array(lengths, int), minlength=capacity + 1)
    bins = fill_bins(counts, capacity)
    descending, reference = sorted(lengths, reverse=True), simple_best_fit(lengths, capacity)
    # Bins of equal room are interchangeable, so the fills agree although the contents need not.
    fills, expected = (sorted(np.bincount(chosen, weights=descending)) for chosen in (bins, np.array(reference, int)))
    assert fills == expected
    assert max(fills, default=0) <= capacity


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, 10), min_size=1, max_size=7))
def test_number_of_rows_stays_within_the_bound_of_the_optimum(lengths):
    rows = len(pack(np.array(lengths), 10).row_starts) - 1
    best = fewest_rows(tuple(lengths), 10)
    assert best <= rows <= math.floor(11 / 9 * best + 6 / 9)


@settings(max_examples=100, deadline=None)
@given(num_pairs=st.lists(st.integers(1, 50), max_size=20), row_length=st.integers(1, 16), seed=st.integers(0, 9))
def test_every_pair_is_in_exactly_one_slot(num_pairs, row_length, seed):
    pieces = cut(np.array(num_pairs, int), row_length)
    layout = pack(pieces.lengths, row_length)
    order = assign(pieces.lengths, np.random.default_rng(seed).permutation(len(pieces.lengths)))
    assert list(pieces.lengths[order]) == sorted(pieces.lengths, reverse=True)
    seen = []
    for start, stop in zip(layout.row_starts[:-1], layout.row_starts[1:], strict=True):
        chosen = order[layout.ranks[start:stop]]
        assert 0 < pieces.lengths[chosen].sum() <= row_length
        for piece in chosen:
            first = pieces.starts[piece]
            seen += [(pieces.documents[piece], pair) for pair in range(first, first + pieces.lengths[piece])]
    assert sorted(seen) == [(document, pair) for document, count in enumerate(num_pairs) for pair in range(count)]


def test_a_long_document_is_cut_into_consecutive_pieces():
    pieces = cut(np.array([5, 8, 1]), 4)
    assert pieces.documents.tolist() == [0, 0, 1, 1, 2]
    assert pieces.starts.tolist() == [0, 4, 0, 4, 0]
    assert pieces.lengths.tolist() == [4, 1, 4, 4, 1]


def test_realistic_lengths_waste_next_to_nothing():
    lengths = np.random.default_rng(0).lognormal(6, 1.5, 20_000).astype(int) + 1
    pieces = cut(lengths, 1024)
    rows = len(pack(pieces.lengths, 1024).row_starts) - 1
    assert packed_fraction(int(lengths.sum()), rows, 1024) > 0.999
