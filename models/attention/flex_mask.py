"""What a mask and mods allow together: as one function of index arrays, and as a layout of blocks.

`fold` first lets the mask say what it can say by itself: its kind and window are a band, which the engine masks without
asking. `find_layout` asks the mods about every pair in the band, a block of queries at a time, so that no L x S array
is ever held, and once for each shape: the answers are constants, also while MLX traces. A layout is one for all rows
and heads: a block is skipped when none of them needs it. Segments are known only when the step runs, so with them no
block is taken for fully allowed.
Legend: B rows, H query heads, L queries, S keys.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Literal, NamedTuple

import mlx.core as mx
import numpy as np

from models.attention.blocks import FULL, PARTIAL, SKIP, BlockLayout, layout_of
from models.attention.mask import Mask
from models.attention.mods import MaskFunction, Mods, Setting, always, mask_of
from models.attention.named_mods import Causal, Document, PrefixLM, SlidingWindow

Segments = Callable[[mx.array, mx.array, mx.array], tuple[mx.array, mx.array]]


class Shape(NamedTuple):
    """What decides a layout besides the mask."""

    num_rows: int
    num_heads: int
    num_queries: int
    num_keys: int


def fold(mask: Mask, mods: Mods) -> tuple[Mask, Mods]:
    """The same with as much as possible said by the mask: what remains are mods that it cannot express.

    Mods that see ahead lift the causal rule of the objective for the first n keys of a row, n the largest of their
    `lookahead`, wherever in the tree they stand. So no query sees its target but those that the objective then
    leaves out, whatever the other mods allow.
    """
    lookahead = max((mod.lookahead for mod in mods), default=0)
    if mask.kind == "causal" and lookahead:
        ahead = PrefixLM(length=lookahead)
        mask, mods = mask._replace(kind="bidirectional"), (ahead, *(mod for mod in mods if mod != ahead))
    rest = []
    for mod in mods:
        if type(mod) is Causal:
            mask = mask._replace(kind="causal")
        elif type(mod) is SlidingWindow:
            mask = mask._replace(window=min(mod.window, mask.window or mod.window))
        elif type(mod) is not Document:
            rest.append(mod)
    # A document mod beside the others is the mask's own rule; inside another mod, that one decides what it means.
    return mask, tuple(rest)


def positions(shape: Shape, queries: range, keys: range, start: mx.array | None = None) -> tuple[mx.array, ...]:
    """(b, h, q, k) for all pairs of these: int32 [B, 1, 1, 1], [1, H, 1, 1], [1, 1, L, 1], [1, 1, 1, S].

    Queries and keys are positions among the keys; they count from `start` [B, 1, 1, 1] where that is given.
    """
    b = mx.arange(shape.num_rows).reshape(-1, 1, 1, 1)
    h = mx.arange(shape.num_heads).reshape(1, -1, 1, 1)
    q = mx.arange(queries.start, queries.stop).reshape(1, 1, -1, 1)
    k = mx.arange(keys.start, keys.stop).reshape(1, 1, 1, -1)
    return (b, h, q, k) if start is None else (b, h, q - start, k - start)


def first_position(mask: Mask) -> mx.array | None:
    """Where each row begins after padding on the left, [B, 1, 1, 1] int32; None where rows are never padded there.

    Only a cache gives the keys segments of their own, and only decoding pads on the left.
    """
    if mask.key_segments is None:
        return None
    return mx.argmax(mask.key_segments != 0, axis=1).astype(mx.int32)[:, None, None, None]


def segments_of(mask: Mask, num_queries: int, num_keys: int, start: mx.array | None = None) -> Segments | None:
    """Looks up the segments of queries and keys at positions that count from `start`; None for a mask without."""
    if mask.segments is None:
        return None
    segments_BL, offset = mask.segments, num_keys - num_queries
    keys_BS = segments_BL if mask.key_segments is None else mask.key_segments
    assert segments_BL.shape[1] == num_queries, (segments_BL.shape, num_queries)
    assert keys_BS.shape[1] == num_keys, (keys_BS.shape, num_keys)

    def look_up(b: mx.array, q: mx.array, k: mx.array) -> tuple[mx.array, mx.array]:
        if start is not None:
            q, k = q + start, k + start
        # Blocks may reach beyond the row, and MLX does not check indices.
        return segments_BL[b, mx.clip(q - offset, 0, num_queries - 1)], keys_BS[b, mx.clip(k, 0, num_keys - 1)]

    return look_up


def setting_of(num_heads: int, segments: Segments | None) -> Setting:
    """What mods may know: the heads, and who shares a document."""
    if segments is None:
        return Setting(num_heads, always)

    def same_segment(b: mx.array, q: mx.array, k: mx.array) -> mx.array:
        of_query, of_key = segments(b, q, k)
        return of_query == of_key

    return Setting(num_heads, same_segment)


def allowed_by(mask: Mask, mods: Mods, setting: Setting, segments: Segments | None) -> MaskFunction:
    """Everything that hides a key: the mask's kind and window, its segments, and the mods."""
    beside_band = allowed_beside_band(mods, setting, segments) or (lambda b, h, q, k: always(b, q, k))

    def allowed(b: mx.array, h: mx.array, q: mx.array, k: mx.array) -> mx.array:
        total = beside_band(b, h, q, k)
        if mask.kind == "causal":
            total = total & (k <= q)
        return total if mask.window is None else total & (mx.abs(q - k) < mask.window)

    return allowed


def allowed_beside_band(mods: Mods, setting: Setting, segments: Segments | None) -> MaskFunction | None:
    """What the mods and the segments hide; None when they hide nothing.

    With a document mod among the mods, segments are theirs to judge; what stays hidden then is padding (segment 0).
    """
    by_mods = mask_of(mods, setting)
    if segments is None:
        return by_mods
    asks_segments = any(mod.needs_segments for mod in mods)

    def allowed(b: mx.array, h: mx.array, q: mx.array, k: mx.array) -> mx.array:
        of_query, of_key = segments(b, q, k)
        by_segment = (of_key != 0) | (of_query == 0) if asks_segments else of_query == of_key
        return by_segment if by_mods is None else by_segment & by_mods(b, h, q, k)

    return allowed


def find_layout(mask: Mask, mods: Mods, shape: Shape, block_size: int) -> BlockLayout:
    """Which blocks a folded mask and its mods skip, mask, and leave whole."""
    if mask_of(mods, Setting(shape.num_heads)) is None:
        return layout_of(mask, shape.num_queries, shape.num_keys, block_size)
    return _find_layout(mask.kind, mask.window, mask.segments is not None, mods, shape, block_size)


@lru_cache(maxsize=64)
def _find_layout(
    kind: Literal["causal", "bidirectional"],
    window: int | None,
    has_segments: bool,
    mods: Mods,
    shape: Shape,
    block_size: int,
) -> BlockLayout:
    mask = Mask(kind, window)
    band = layout_of(mask, shape.num_queries, shape.num_keys, block_size)
    allowed = allowed_by(mask, mods, Setting(shape.num_heads), None)
    kinds = np.full_like(band.kinds, SKIP)
    offset, end = shape.num_keys - shape.num_queries, shape.num_keys
    for row, kept in enumerate(np.flatnonzero(kinds_of_row != SKIP) for kinds_of_row in band.kinds):
        if len(kept):
            first = offset + row * block_size
            queries = range(first, min(first + block_size, end))
            keys = range(kept[0] * block_size, min((kept[-1] + 1) * block_size, end))
            answer = np.array(allowed(*positions(shape, queries, keys)))
            kinds[row, kept[0] : kept[-1] + 1] = classify(answer, len(keys), block_size)
    found = BlockLayout(block_size, np.minimum(kinds, PARTIAL) if has_segments else kinds, band.band)
    # The engine masks a band by itself where every query's keys are one stretch; otherwise `allowed` says it too.
    return found if all(len(row.runs) <= 1 for row in found.rows) else replace(found, band=None)


def classify(allowed: np.ndarray, num_keys: int, block_size: int) -> np.ndarray:
    """SKIP, PARTIAL or FULL, int8, for each key block of one strip of queries, over all rows and heads.

    `allowed`: bool, [B or 1, H or 1, L or 1, S or 1].
    """
    starts = np.arange(0, num_keys, block_size)
    some, whole = (
        reduced.reduceat(np.broadcast_to(reduced.reduce(allowed, axis=(0, 1, 2)), num_keys), starts)
        for reduced in (np.logical_or, np.logical_and)
    )
    return np.where(whole, FULL, np.where(some, PARTIAL, SKIP)).astype(np.int8)
