"""Rows of one window: their order, and that planning loses nothing."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from data.mixture import Window
from data.packing import PackingConfig
from data.rows import RowSettings, WindowRows, reorder


def window_of(count: int) -> Window:
    return Window(np.arange(count) % 2, np.arange(count), np.zeros(count, np.int64))


def rows_as_pieces(rows: WindowRows) -> list[tuple]:
    """Each row as its (source, first pair, size)s."""
    pieces = list(zip(rows.sources.tolist(), rows.starts.tolist(), rows.sizes.tolist(), strict=True))
    return [tuple(pieces[a:b]) for a, b in zip(rows.row_starts[:-1], rows.row_starts[1:], strict=True)]


def test_each_window_has_an_order_of_its_own():
    lengths = np.arange(2, 40)
    orders = {}
    for seed, first_row in ((None, 0), (1, 0), (1, 10), (2, 0)):
        settings = RowSettings(40, PackingConfig(), seed)
        orders[seed, first_row] = rows_as_pieces(WindowRows(window_of(38), lengths, settings, first_row))
    assert len({tuple(order) for order in orders.values()}) == 4
    assert len({frozenset(order) for order in orders.values()}) == 1
    sizes = [row[0][2] for row in orders[None, 0]]
    assert sizes == sorted(sizes, reverse=True)


def test_pairs_are_counted_by_source():
    rows = WindowRows(window_of(5), np.array([3, 12, 4, 6, 2]), RowSettings(8, PackingConfig(), None), 0)
    counts = [rows.count(row, row + 1, 3).tolist() for row in range(rows.num_rows)]
    assert np.sum(counts, axis=0).tolist() == [2 + 3 + 1, 11 + 5, 0] == rows.count(0, rows.num_rows, 3).tolist()
    assert max(map(sum, counts)) <= 8


@settings(max_examples=60, deadline=None)
@given(counts=st.lists(st.integers(1, 4), min_size=1, max_size=8), data=st.data())
def test_reordering_rows_against_lists(counts, data):
    rows = data.draw(st.permutations(range(len(counts))))
    starts = np.cumsum([0, *counts])
    order = np.arange(100, 100 + starts[-1])
    expected = [order[starts[row] : starts[row + 1]].tolist() for row in rows]
    found, row_starts = reorder(order, starts, np.array(rows))
    assert [found[a:b].tolist() for a, b in zip(row_starts[:-1], row_starts[1:], strict=True)] == expected
