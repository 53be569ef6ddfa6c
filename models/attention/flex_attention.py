"""Attention with mods: masks and scores that a person composes from named ones or writes as a function of indices.

What the mask describes already (causal, a window, documents) is folded into it and goes to plain attention, with its
faster kernels. The rest runs through the blockwise engine, which computes only the blocks that `flex_mask.py` finds
and asks the mods only about those that need it. A few queries, as in decoding, are written out: `attend_dense`, which
is also the definition. To change what a mask and mods mean together, edit `flex_mask.py`; a new mod: `mods.py`.
Legend: B rows, H query heads, G key/value heads, L queries, S keys, K head size.
"""

from functools import partial
from typing import Annotated, Any, Literal

import mlx.core as mx
from pydantic import Field

from models.attention.base import Attend, AttentionConfig
from models.attention.blockwise import attend_blockwise
from models.attention.flash_attention import FlashAttentionConfig, choose_block_size, device_kind
from models.attention.flex_mask import (
    Shape,
    allowed_beside_band,
    allowed_by,
    find_layout,
    first_position,
    fold,
    positions,
    segments_of,
    setting_of,
)
from models.attention.mask import Mask
from models.attention.mod_checks import mod_problems
from models.attention.mods import Mod, Mods, score_of
from models.elementary import softmax
from utils.schema import Misfits, OneOf

FEW_QUERIES = 32
"""Fewer queries than this are written out: their scores are small, and blocks would be mostly empty."""


def attend(
    q_BHLK: mx.array,
    k_BGSK: mx.array,
    v_BGSK: mx.array,
    mask: Mask,
    scale: float,
    *,
    mods: Mods,
    plain: Attend,
    block_size: int | None,
) -> mx.array:
    """`attend_dense`, by the fastest way: plain attention, blocks, or, for few queries or padded rows, as it is."""
    shape = shape_of(q_BHLK, k_BGSK)
    mask, mods = fold(mask, mods)
    if not mods:
        return plain(q_BHLK, k_BGSK, v_BGSK, mask, scale)
    # Keys with segments of their own come from a cache, whose rows may be padded on the left: no layout fits them all.
    if shape.num_queries < FEW_QUERIES or mask.key_segments is not None:
        return write_out(q_BHLK, k_BGSK, v_BGSK, mask, mods, scale)
    layout = find_layout(mask, mods, shape, block_size or fitting_block_size(mask, mods, shape))
    segments = segments_of(mask, shape.num_queries, shape.num_keys)
    setting = setting_of(shape.num_heads, segments)
    has_band = layout.band is not None
    allowed = allowed_beside_band(mods, setting, segments) if has_band else allowed_by(mask, mods, setting, segments)
    score = score_of(mods, setting)
    return attend_blockwise(q_BHLK, k_BGSK, v_BGSK, scale, layout, allowed=allowed, score=score)


def attend_dense(
    q_BHLK: mx.array, k_BGSK: mx.array, v_BGSK: mx.array, mask: Mask, scale: float, mods: Mods
) -> mx.array:
    """softmax(score(q k^T * scale), where allowed) v in float32, in the dtype of q: [B, H, L, K].

    A query that no key is allowed to gives 0. When the keys have segments of their own (a cache, whose rows are
    padded on the left), positions count from the first key of a row that is no padding.
    """
    return write_out(q_BHLK, k_BGSK, v_BGSK, *fold(mask, mods), scale)


def write_out(q_BHLK: mx.array, k_BGSK: mx.array, v_BGSK: mx.array, mask: Mask, mods: Mods, scale: float) -> mx.array:
    """`attend_dense`, of what `fold` gives."""
    shape = shape_of(q_BHLK, k_BGSK)
    (B, H, L, S), G = shape, k_BGSK.shape[1]
    q = (q_BHLK.astype(mx.float32) * scale).reshape(B, G, H // G * L, -1)
    scores = (q @ k_BGSK.astype(mx.float32).swapaxes(-1, -2)).reshape(B, H, L, S)
    start = first_position(mask)
    segments = segments_of(mask, L, S, start)
    setting, indices = setting_of(H, segments), positions(shape, range(S - L, S), range(S), start)
    if (score := score_of(mods, setting)) is not None:
        scores = score(scores, *indices)
    allowed = allowed_by(mask, mods, setting, segments)(*indices)
    has_key = mx.any(allowed, axis=-1, keepdims=True)
    weights = softmax(mx.where(allowed | ~has_key, scores, -mx.inf))
    out = weights.reshape(B, G, H // G * L, S) @ v_BGSK.astype(mx.float32)
    return mx.where(has_key, out.reshape(q_BHLK.shape), 0.0).astype(q_BHLK.dtype)


def fitting_block_size(mask: Mask, mods: Mods, shape: Shape) -> int:
    """What suits the narrowest window there is, of the mask or of a mod that has one."""
    windows = [window for mod in mods if isinstance(window := getattr(mod, "window", None), int) and window > 0]
    narrowest = min([*windows, mask.window or shape.num_keys])
    return choose_block_size(shape.num_queries, shape.num_keys, narrowest, device_kind())


def shape_of(q_BHLK: mx.array, k_BGSK: mx.array) -> Shape:
    """(B, H, L, S)."""
    B, H, L, _ = q_BHLK.shape
    return Shape(B, H, L, k_BGSK.shape[2])


class FlexAttentionConfig(AttentionConfig):
    """Attention with masks and scores of one's own. Unlike the other types, its mods make another model."""

    type: str = "flex"
    """The row of the table."""
    mods: tuple[Annotated[Mod, OneOf("models.attention:MODS", "attention mod")], ...] = ()
    """What changes attention: every mask mod must allow a pair, score mods apply in order. None: plain attention."""
    block_size: int | None = Field(default=None, gt=0)
    """Queries, and keys, of one block; null: chosen from the length and the narrowest window."""

    @property
    def needs_segments(self) -> bool:
        return any(mod.needs_segments for mod in self.mods)

    @property
    def num_lookahead(self) -> int:
        return max((mod.lookahead for mod in self.mods), default=0)

    def beyond_plain(self, longest: int) -> list[str]:
        return [f"attention mod {mod.name}" for mod in self.mods if not mod.is_plain(longest)]

    def kernel_mask(self, sequence_length: int) -> Literal["plain", "array", "own"]:
        mask, mods = fold(Mask(), self.mods)
        if mods:
            return "own"
        named = mask.named(sequence_length, sequence_length)
        return "array" if self.needs_segments or named == "array" else "plain"

    def warnings(self, sequence_length: int) -> list[str]:
        return [warning for mod in self.mods if (warning := mod.warning(sequence_length)) is not None]

    def check(self, model_config: Any) -> None:
        super().check(model_config)
        if model_config.attention_dropout > 0:
            raise ValueError(
                f"attention type 'flex' cannot drop attention weights (attention_dropout is"
                f" {model_config.attention_dropout}); use attention_dropout 0, or type 'simple' without mods"
            )
        problems = [("mods", problem) for mod in self.mods for problem in mod_problems(mod, model_config)]
        if problems:
            raise Misfits(*problems)

    def plain(self) -> FlashAttentionConfig:
        """What computes attention when no mod is left to apply."""
        return FlashAttentionConfig(block_size=self.block_size)

    def build(self, dropout: float = 0.0, training: bool = False) -> Attend:
        plain = self.plain().build(dropout, training)
        return partial(attend, mods=self.mods, plain=plain, block_size=self.block_size)

    def explain(self, dropout: float = 0.0) -> str:
        plain = self.plain().explain()
        if not self.mods:
            return f"flex without mods: {plain}"
        names = ", ".join(mod.name for mod in self.mods)
        if not fold(Mask(), self.mods)[1]:
            return f"flex: {names}, as the mask of {plain}"
        return f"flex: {names}, block by block, without those that the mods empty"

    def computed_blocks(self, num_heads: int, length: int) -> tuple[int, int]:
        mask, mods = fold(Mask(), self.mods)
        shape = Shape(1, num_heads, length, length)
        layout = find_layout(mask, mods, shape, self.block_size or fitting_block_size(mask, mods, shape))
        return layout.num_kept, layout.kinds.size
