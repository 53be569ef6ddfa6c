"""Summing a tree of arrays over ranks in few large messages.

Arrays are laid end to end in buckets, because every message pays the ring's latency once; a bucket stays
below the 2 GiB that one ring message may hold. Buckets depend on each other, so that every rank sends them in
the same order whatever the scheduler prefers. To change the size edit `BUCKET_BYTES`; to change the
arithmetic, `wire_dtype`.
"""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map_with_path

BUCKET_BYTES = 256 * 2**20
WIRE_BYTES = 4

Piece = tuple[str, mx.array]


def sum_in_buckets(tree: Any, all_sum: Callable[[mx.array], mx.array], bucket_bytes: int) -> Any:
    """`tree` with every array replaced by its sum over ranks, shape and dtype kept.

    `all_sum` takes and returns a 1-d array of at most `bucket_bytes`. Trees must have equal structure on
    every rank.
    """
    arrays: dict[str, mx.array] = dict(tree_flatten(tree))
    summed: dict[str, list[mx.array]] = {name: [] for name in arrays}
    before: mx.array | None = None
    for bucket in buckets(arrays, bucket_bytes // WIRE_BYTES):
        message = mx.concatenate([values for _, values in bucket])
        if before is not None:
            message = mx.depends(message, before)
        before = all_sum(message)
        start = 0
        for name, values in bucket:
            summed[name].append(before[start : start + values.size])
            start += values.size
    # A tree may be one array; its path is None here and '' in `tree_flatten`.
    return tree_map_with_path(lambda name, array: joined(summed[name or ""], array), tree)


def buckets(arrays: dict[str, mx.array], capacity: int) -> list[list[Piece]]:
    """Flat named pieces in wire dtype, in order: buckets of one dtype with at most `capacity` elements."""
    result: list[list[Piece]] = []
    for dtype in (mx.float32, mx.int32):
        room = 0
        for name, array in arrays.items():
            if wire_dtype(array) != dtype:
                continue
            values = array.reshape(-1).astype(dtype)
            while values.size:
                if room == 0:
                    result.append([])
                    room = capacity
                result[-1].append((name, values[:room]))
                values, room = values[room:], room - min(room, values.size)
    return result


def wire_dtype(array: mx.array) -> mx.Dtype:
    """float32 for every float (16-bit gradients would lose digits in the sum), int32 for the rest."""
    return mx.float32 if mx.issubdtype(array.dtype, mx.floating) else mx.int32


def joined(pieces: list[mx.array], like: mx.array) -> mx.array:
    """One array from its flat pieces, in the shape and dtype of `like`; no pieces: `like` is empty."""
    if not pieces:
        return like
    flat = pieces[0] if len(pieces) == 1 else mx.concatenate(pieces)
    return flat.reshape(like.shape).astype(like.dtype)
