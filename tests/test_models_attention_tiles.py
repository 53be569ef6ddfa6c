"""Tiles: that they cover a layout once, and that what is cut and added up is what was there."""

import mlx.core as mx
import numpy as np
import pytest

from models.attention.blocks import FULL, PARTIAL, SKIP, BlockLayout
from models.attention.tiles import Sums, keys_of, tile_slices, tiles

KINDS = np.array([[FULL, SKIP, PARTIAL], [SKIP, SKIP, SKIP], [SKIP, FULL, FULL]], dtype=np.int8)


def test_tiles_cover_what_is_kept_once():
    layout = BlockLayout(4, KINDS)
    rows, heads = tile_slices(2, 3, 2)
    seen = np.zeros((2, 3, 10, 11), dtype=int)
    for tile in tiles(layout, 10, 11, rows, heads):
        for run in tile.runs:
            seen[tile.rows, tile.heads, tile.queries, run] += 1
        if tile.masked is not None:
            assert (tile.queries.start, tile.runs[1].start, tile.masked) == (0, 8, slice(4, 7))
    expected = np.repeat(np.repeat(KINDS != SKIP, 4, 0), 4, 1)[:10, :11]
    np.testing.assert_array_equal(seen, np.broadcast_to(expected, seen.shape))
    assert layout.num_kept == 4
    assert layout.most_kept == 2


def test_tile_slices():
    assert tile_slices(4, 3, 100) == ([slice(0, 4)], [slice(0, 3)])
    assert tile_slices(4, 3, 6) == ([slice(0, 2), slice(2, 4)], [slice(0, 3)])
    assert tile_slices(2, 3, 2) == ([slice(0, 1), slice(1, 2)], [slice(0, 2), slice(2, 3)])
    assert tile_slices(1, 8, 5) == ([slice(0, 1)], [slice(0, 4), slice(4, 8)])


@pytest.mark.parametrize("block_size", [1, 4, 7])
def test_sums_add_up_what_tiles_give_to_their_keys(block_size):
    random = np.random.default_rng(0)
    num_keys = 90
    num_blocks = -(-num_keys // block_size)
    kinds = random.choice([SKIP, FULL], size=(6, num_blocks), p=[0.7, 0.3]).astype(np.int8)
    kinds[:, -1] = SKIP
    kinds[0, 0] = FULL
    values = mx.array(random.normal(size=(2, 3, num_keys, 5)).astype(np.float32))
    sums, expected = Sums(values.shape, block_size), np.zeros(values.shape, dtype=np.float32)
    for tile in tiles(BlockLayout(block_size, kinds), 6 * block_size, num_keys, *tile_slices(2, 3, 2)):
        if tile.runs:
            sums.add(tile, keys_of(values, tile))
        for run in tile.runs:
            expected[tile.rows, tile.heads, run] += np.array(values[tile.rows, tile.heads, run])
    np.testing.assert_allclose(np.array(sums.joined()), expected, atol=1e-5)
