"""`layout_of` against the mask itself, cut into blocks by brute force, for drawn masks and sizes."""

import mlx.core as mx
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from models.attention.blocks import FULL, PARTIAL, SKIP, block_row, layout_of
from models.attention.mask import Mask


@st.composite
def cases(draw):
    """(mask without segments, num_queries, num_keys, block size)."""
    num_queries = draw(st.integers(1, 40))
    num_keys = num_queries + draw(st.integers(0, 30))
    mask = Mask(draw(st.sampled_from(["causal", "bidirectional"])), draw(st.none() | st.integers(1, 50)))
    return mask, num_queries, num_keys, draw(st.integers(1, 48))


def by_brute_force(allowed, block_size):
    num_queries, num_keys = allowed.shape
    return np.array(
        [
            [
                FULL if block.all() else PARTIAL if block.any() else SKIP
                for j in range(0, num_keys, block_size)
                for block in [allowed[i : i + block_size, j : j + block_size]]
            ]
            for i in range(0, num_queries, block_size)
        ]
    )


def as_array(mask, num_queries, num_keys):
    allowed = mask.array(num_queries, num_keys)
    return np.ones((num_queries, num_keys), dtype=bool) if allowed is None else np.array(allowed)


@settings(max_examples=150, deadline=None)
@given(cases())
def test_a_layout_skips_exactly_the_empty_blocks(case):
    mask, num_queries, num_keys, block_size = case
    layout = layout_of(mask, num_queries, num_keys, block_size)
    expected = by_brute_force(as_array(mask, num_queries, num_keys), block_size)
    np.testing.assert_array_equal(layout.kinds, expected)
    assert layout.kinds.dtype == np.int8


@settings(max_examples=50, deadline=None)
@given(cases())
def test_the_band_is_the_mask(case):
    mask, num_queries, num_keys, block_size = case
    band = layout_of(mask, num_queries, num_keys, block_size).band
    assert band is not None
    distance = np.arange(num_queries)[:, None] + num_keys - num_queries - np.arange(num_keys)
    np.testing.assert_array_equal((distance >= band[0]) & (distance <= band[1]), as_array(mask, num_queries, num_keys))


def test_segments_leave_no_block_full_and_a_layout_is_remembered():
    segments = mx.zeros((1, 40), dtype=mx.int32)
    plain, segmented = layout_of(Mask(), 40, 40, 8), layout_of(Mask(segments=segments), 40, 40, 8)
    assert (plain.kinds == FULL).any()
    np.testing.assert_array_equal(segmented.kinds, np.minimum(plain.kinds, PARTIAL))
    assert layout_of(Mask(segments=segments + 1), 40, 40, 8) is segmented


def test_rows_name_the_stretches_and_the_masked_part():
    row = block_row(np.array([FULL, SKIP, SKIP, FULL, PARTIAL, FULL, PARTIAL, SKIP]))
    assert row.runs == ((0, 1), (3, 7))
    assert row.masked == (2, 5)
    assert block_row(np.array([FULL, FULL])).masked is None
    assert block_row(np.array([SKIP, SKIP])) == ((), None)
