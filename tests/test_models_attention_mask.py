"""`Mask.array` against a loop over every query and key, for drawn masks."""

import mlx.core as mx
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from models.attention.mask import Mask


@st.composite
def cases(draw):
    """(mask, num_queries, num_keys, segments of the keys or None)."""
    num_queries = draw(st.integers(1, 7))
    num_keys = num_queries + draw(st.integers(0, 5))
    kind = draw(st.sampled_from(["causal", "bidirectional"]))
    window = draw(st.none() | st.integers(1, 8))
    keys = draw(st.none() | st.lists(st.integers(0, 3), min_size=num_keys * 2, max_size=num_keys * 2))
    if keys is None:
        return Mask(kind, window), num_queries, num_keys, None
    keys = np.array(keys, dtype=np.int32).reshape(2, num_keys)
    queries = mx.array(keys[:, num_keys - num_queries :])
    return Mask(kind, window, queries, mx.array(keys)), num_queries, num_keys, keys


def may_see(mask, keys, row, i, j):
    if mask.kind == "causal" and j > i:
        return False
    if mask.window is not None and abs(i - j) >= mask.window:
        return False
    return keys is None or keys[row, i] == keys[row, j]


@settings(max_examples=60, deadline=None)
@given(cases())
def test_array_is_the_loop(case):
    mask, num_queries, num_keys, keys = case
    offset = num_keys - num_queries
    expected = np.array(
        [
            [[may_see(mask, keys, row, i + offset, j) for j in range(num_keys)] for i in range(num_queries)]
            for row in range(2)
        ]
    )
    array = mask.array(num_queries, num_keys)
    if array is None:
        assert expected.all()
    else:
        shape = (2, 1, num_queries, num_keys)
        assert array.dtype == mx.bool_
        assert array.ndim == (4 if keys is not None else 2)
        np.testing.assert_array_equal(np.broadcast_to(np.array(array), shape)[:, 0], expected)
    # No row is ever empty: a query sees itself, padding too.
    assert expected.any(-1).all()


@settings(max_examples=60, deadline=None)
@given(cases())
def test_named_says_what_the_array_says(case):
    mask, num_queries, num_keys, _ = case
    named, array = mask.named(num_queries, num_keys), mask.array(num_queries, num_keys)
    if named == "none":
        assert array is None or np.array(array).all()
    elif named == "causal":
        assert array is not None
        offset = num_keys - num_queries
        np.testing.assert_array_equal(np.array(array), np.tri(num_queries, num_keys, offset, dtype=bool))
    else:
        assert array is not None


def test_key_segments_default_to_the_segments():
    segments = mx.array([[1, 1, 2, 0]])
    plain, named = Mask("bidirectional", segments=segments), Mask("bidirectional", None, segments, segments)
    np.testing.assert_array_equal(np.array(plain.array(4, 4)), np.array(named.array(4, 4)))


def test_an_offset_of_ones_own():
    array = np.array(Mask("causal").array(2, 6, offset=1))
    np.testing.assert_array_equal(array, np.tri(2, 6, 1, dtype=bool))
