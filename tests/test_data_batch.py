"""Positions from segments, against a walk along each row."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from data.batch import positions_of


def walked(segments: np.ndarray) -> np.ndarray:
    positions = np.zeros(segments.shape, np.int32)
    for row in range(segments.shape[0]):
        for place in range(1, segments.shape[1]):
            if segments[row, place] and segments[row, place] == segments[row, place - 1]:
                positions[row, place] = positions[row, place - 1] + 1
    return positions


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.lists(st.integers(1, 5), max_size=5), min_size=1, max_size=4), padding=st.integers(0, 3))
def test_positions_begin_anew_with_each_piece(rows, padding):
    length = max(map(sum, rows)) + padding + 1
    segments = np.zeros((len(rows), length), np.int32)
    for number, pieces in enumerate(rows):
        filled = np.repeat(np.arange(1, len(pieces) + 1), pieces)
        segments[number, : len(filled)] = filled
    positions = positions_of(segments)
    assert positions.dtype == np.int32
    assert positions.tolist() == walked(segments).tolist()
