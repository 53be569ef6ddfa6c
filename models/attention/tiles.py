"""Tiles, the pieces in which blockwise attention is computed: how a layout is cut into them and arrays put together.

A tile is one block of queries, of some rows and heads, against all the keys it may see. What tiles give to their
queries is joined; what they give to their keys is added up in segments, because MLX arrays do not change: a sum over
all keys would be copied for each tile. To change how much one tile holds edit `heads_of_a_tile` in `blockwise.py`.
Legend: B rows, G key/value heads, R query heads of each, L queries, S keys, K head size, X any; of a tile: b rows,
g key/value heads, Q queries, M = R * Q, N keys.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import mlx.core as mx

from models.attention.blocks import BlockLayout

MOST_SEGMENTS = 8


class Tile(NamedTuple):
    """One block of queries of some rows and key/value heads, and the keys that it may see."""

    rows: slice
    heads: slice
    queries: slice
    runs: tuple[slice, ...]
    """Of key positions, in order."""
    masked: slice | None
    """The columns that need a mask, counted along the keys of all runs."""


def tiles(
    layout: BlockLayout, num_queries: int, num_keys: int, rows: list[slice], heads: list[slice]
) -> Iterator[Tile]:
    """Every tile; the heads of one block of queries follow each other, because they may share a mask."""
    size = layout.block_size
    for row_slice in rows:
        for i, block in enumerate(layout.rows):
            queries = slice(i * size, min((i + 1) * size, num_queries))
            runs = tuple(slice(first * size, min(last * size, num_keys)) for first, last in block.runs)
            width = sum(run.stop - run.start for run in runs)
            masked = None if block.masked is None else slice(block.masked[0] * size, min(block.masked[1] * size, width))
            for head_slice in heads:
                yield Tile(row_slice, head_slice, queries, runs, masked)


def tile_slices(num_rows: int, num_heads: int, most: int) -> tuple[list[slice], list[slice]]:
    """Rows and key/value heads in parts of at most `most` row-heads: whole rows, or heads of one row."""
    if most >= num_heads:
        return _parts(num_rows, most // num_heads), [slice(0, num_heads)]
    return _parts(num_rows, 1), _parts(num_heads, most)


def _parts(length: int, most: int) -> list[slice]:
    num_parts = -(-length // max(1, most))
    size = -(-length // num_parts)
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def queries_of(x_BGRLX: mx.array, tile: Tile) -> mx.array:
    """The tile's part in float32, [b, g, M, X]."""
    x = x_BGRLX[tile.rows, tile.heads, :, tile.queries].astype(mx.float32)
    return x.reshape(*x.shape[:2], -1, x.shape[-1])


def keys_of(x_BGSK: mx.array, tile: Tile) -> mx.array:
    """The tile's part, [b, g, N, K]: one stretch of keys is a view."""
    parts = [x_BGSK[tile.rows, tile.heads, run] for run in tile.runs]
    return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=2)


class Parts:
    """Collects the tiles of [B, G, R, L, X] and joins them."""

    def __init__(self) -> None:
        self.parts: dict[int, dict[int, list[mx.array]]] = {}

    def add(self, tile: Tile, part_bgRQX: mx.array) -> None:
        """Take the next tile, in the order of `tiles`."""
        self.parts.setdefault(tile.rows.start, {}).setdefault(tile.heads.start, []).append(part_bgRQX)

    def joined(self) -> mx.array:
        """All of it."""
        rows = [concatenate([concatenate(heads, 3) for heads in row.values()], 1) for row in self.parts.values()]
        return concatenate(rows, 0)


class Sums:
    """Adds up what tiles give to their keys of [B, G, S, K], in segments: a tile touches only those of its keys."""

    def __init__(self, shape: Sequence[int], block_size: int) -> None:
        self.shape = tuple(shape)
        self.segment = block_size * -(-self.shape[2] // (block_size * MOST_SEGMENTS))
        self.sums: dict[int, dict[int, list[mx.array | None]]] = {}

    def add(self, tile: Tile, part_bgNK: mx.array) -> list[mx.array]:
        """Add to the tile's keys; returns the segments that changed."""
        b, g, _, K = part_bgNK.shape
        num_segments = -(-self.shape[2] // self.segment)
        sums = self.sums.setdefault(tile.rows.start, {}).setdefault(tile.heads.start, [None] * num_segments)
        changed, column = {}, 0
        for run in tile.runs:
            for i in range(run.start // self.segment, -(-run.stop // self.segment)):
                start, stop = i * self.segment, min((i + 1) * self.segment, self.shape[2])
                first, last = max(run.start, start), min(run.stop, stop)
                part, before = part_bgNK[:, :, column : column + last - first], sums[i]
                if last - first < stop - start:
                    before = mx.zeros((b, g, stop - start, K)) if before is None else before
                    part = before.at[:, :, first - start : last - start].add(part)
                elif before is not None:
                    part = before + part
                sums[i] = changed[i] = part
                column += last - first
        return list(changed.values())

    def joined(self) -> mx.array:
        """All of it; a key that nobody saw gets 0."""
        rows = [concatenate([self._filled(sums) for sums in heads.values()], 1) for heads in self.sums.values()]
        return concatenate(rows, 0) if rows else mx.zeros(self.shape)

    def _filled(self, sums: list[mx.array | None]) -> mx.array:
        b, g = next(part.shape[:2] for part in sums if part is not None)
        lengths = [min(self.segment, self.shape[2] - i * self.segment) for i in range(len(sums))]
        zeros = (mx.zeros((b, g, length, self.shape[3])) for length in lengths)
        return concatenate([zero if part is None else part for part, zero in zip(sums, zeros, strict=True)], 2)


def concatenate(parts: list[mx.array], axis: int) -> mx.array:
    """The parts along an axis; one part is not copied."""
    return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=axis)
