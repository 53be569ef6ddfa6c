"""Attention whose memory grows with the length, not with its square: MLX's fused kernel, or our own blocks.

MLX fuses forward and backward only for some devices, dtypes, head sizes and masks. `choose_path` holds what its
versions 0.32.4 can do (Metal and CUDA: read from the sources and the wheel; CPU: measured), and everything else goes
through `blockwise.py`; `flash_warnings` says once what was missing. When a new MLX can do more, edit these two.
Legend: B rows, H query heads, G key/value heads, L queries, S keys, K head size.
"""

from functools import partial
from typing import Any, Literal, NamedTuple

import mlx.core as mx
from pydantic import Field

from models.attention.base import Attend, AttentionConfig
from models.attention.blocks import layout_of
from models.attention.blockwise import Allowed, attend_blockwise
from models.attention.mask import Mask
from models.attention.simple_attention import attend as attend_simple

CUDA_HEAD_DIM = 128
CUDA_LENGTH_MULTIPLE = 128
METAL_HEAD_DIMS = (64, 72, 80, 96, 128, 192, 256)
METAL_FEW_QUERIES = 8
LARGEST_ARRAY_MASK = 2**24
"""Bytes for one row of a batch: 4096 positions. A kernel that wants its mask as an array makes memory quadratic again:
only while that is small."""
FEW_QUERIES = 64
"""Not worth blocks: the scores of so few grow with the number of keys only."""
CPU_BLOCK_SIZES, GPU_BLOCK_SIZES = (64, 256), (128, 512)
MOST_BLOCKS = 256
SLOWER = "training goes through blocks, slower"

Path = Literal["fused", "blocks", "written out"]


class Call(NamedTuple):
    """What decides which way one call of attention goes."""

    device: Literal["cpu", "metal", "cuda"]
    dtype: mx.Dtype
    head_dim: int
    num_queries: int
    num_keys: int
    mask: Literal["none", "causal", "array"]
    training: bool
    mask_bytes: int = 0
    """Of one row's mask as an array."""
    sinks: bool = False


def choose_path(call: Call) -> Path:
    """MLX's kernel where nothing quadratic comes of it, forward and, in training, backward; blocks otherwise."""
    if call.device == "cpu":
        return "written out" if call.num_queries <= FEW_QUERIES else "blocks"
    if call.training:
        return "fused" if _has_fused_gradient(call) else "blocks"
    if call.num_queries <= METAL_FEW_QUERIES:
        return "fused"
    return "fused" if _has_kernel(call) and call.mask_bytes <= LARGEST_ARRAY_MASK else "blocks"


def _has_fused_gradient(call: Call) -> bool:
    if call.sinks or not _has_kernel(call):
        return False
    if call.device == "metal":
        return call.mask != "array" and call.num_queries > METAL_FEW_QUERIES
    return call.mask_bytes <= LARGEST_ARRAY_MASK


def _has_kernel(call: Call) -> bool:
    if call.device == "metal":
        return call.head_dim in METAL_HEAD_DIMS
    if call.dtype == mx.float32 or call.num_queries % CUDA_LENGTH_MULTIPLE:
        return False
    return call.head_dim % 8 == 0 and call.head_dim <= CUDA_HEAD_DIM


def attend(
    q_BHLK: mx.array,
    k_BGSK: mx.array,
    v_BGSK: mx.array,
    mask: Mask,
    scale: float,
    *,
    training: bool = True,
    block_size: int | None = None,
    sinks_H: mx.array | None = None,
) -> mx.array:
    """The same as `simple_attention.attend`, in memory O(L + S); keys longer than queries align at the end.

    `sinks_H` is one more logit for each head, which takes weight and gives nothing. The gradient exists on any path;
    `training` says that it will be asked for, so that the path is chosen by its memory.
    """
    call = describe(q_BHLK, k_BGSK, mask, training, sinks_H is not None)
    path = choose_path(call)
    if path == "fused":
        array = mask.array(call.num_queries, call.num_keys) if call.mask == "array" else None
        kernel_mask = {"none": None, "causal": "causal", "array": array}[call.mask]
        return mx.fast.scaled_dot_product_attention(
            q_BHLK, k_BGSK, v_BGSK, scale=scale, mask=kernel_mask, sinks=sinks_H
        )
    if path == "written out" and sinks_H is None and block_size is None:
        return attend_simple(q_BHLK, k_BGSK, v_BGSK, mask, scale)
    size = block_size or choose_block_size(call.num_queries, call.num_keys, mask.window, call.device)
    layout = layout_of(mask, call.num_queries, call.num_keys, size)
    return attend_blockwise(
        q_BHLK,
        k_BGSK,
        v_BGSK,
        scale,
        layout,
        allowed=same_segment(mask, call.num_keys - call.num_queries),
        sinks_H=sinks_H,
    )


def describe(q_BHLK: mx.array, k_BGSK: mx.array, mask: Mask, training: bool, sinks: bool) -> Call:
    """What `choose_path` wants to know."""
    _, _, L, K = q_BHLK.shape
    S = k_BGSK.shape[2]
    named = mask.named(L, S)
    return Call(device_kind(), q_BHLK.dtype, K, L, S, named, training, L * S if named == "array" else 0, sinks)


def device_kind() -> Literal["cpu", "metal", "cuda"]:
    """Where MLX computes by default."""
    if mx.default_device().type == mx.DeviceType.cpu:
        return "cpu"
    return "cuda" if mx.cuda.is_available() else "metal"


def choose_block_size(num_queries: int, num_keys: int, window: int | None, device: str) -> int:
    """A power of two near a sixteenth of the keys that a query sees: smaller ones compute less of what the mask hides,
    larger ones make better matrix products. No more than `MOST_BLOCKS` blocks, for the graph's sake."""
    smallest, largest = CPU_BLOCK_SIZES if device == "cpu" else GPU_BLOCK_SIZES
    reach = min(num_keys, window or num_keys)
    size = min(max(reach // 16, smallest), largest)
    size = max(size, -(-num_queries // MOST_BLOCKS))
    return 1 << (size - 1).bit_length()


def same_segment(mask: Mask, offset: int) -> Allowed | None:
    """Whether a query and a key are of one segment, for index arrays; None when the mask has no segments."""
    queries_BL = mask.segments
    if queries_BL is None:
        return None
    keys_BS = queries_BL if mask.key_segments is None else mask.key_segments
    return lambda b, h, q, k: queries_BL[b, q - offset] == keys_BS[b, k]


def flash_warnings(
    head_dim: int, sequence_length: int, precision: str, device: str, array_mask: bool = False
) -> list[str]:
    """Why no fused kernel trains on `device` ("cuda", "metal" or "cpu"), one line for each cause, with its remedy.

    `array_mask`: documents are masked or a window is narrower than the sequence.
    """
    if device == "metal":
        return _metal_warnings(head_dim, array_mask)
    return _cuda_warnings(head_dim, sequence_length, precision, array_mask) if device == "cuda" else []


def _metal_warnings(head_dim: int, array_mask: bool) -> list[str]:
    problems = []
    if head_dim not in METAL_HEAD_DIMS:
        near = min(METAL_HEAD_DIMS, key=lambda size: abs(size - head_dim))
        problems.append(f"head_dim {head_dim} has no fused attention on Metal, {SLOWER}: use {near}")
    if array_mask:
        problems.append(f"documents and windows have no fused attention on Metal, {SLOWER}: use plain causal attention")
    return problems


def _cuda_warnings(head_dim: int, sequence_length: int, precision: str, array_mask: bool) -> list[str]:
    problems = []
    if precision == "float32":
        problems.append(f"float32 has no fused attention on CUDA, {SLOWER}: use bfloat16")
    if head_dim > CUDA_HEAD_DIM or head_dim % 8:
        problems.append(
            f"head_dim {head_dim} has no fused attention on CUDA, {SLOWER}: use a multiple of 8 up to {CUDA_HEAD_DIM}"
        )
    if sequence_length % CUDA_LENGTH_MULTIPLE:
        below = sequence_length // CUDA_LENGTH_MULTIPLE * CUDA_LENGTH_MULTIPLE
        near = " or ".join(str(n) for n in (below, below + CUDA_LENGTH_MULTIPLE) if n > 0)
        problems.append(f"sequence length {sequence_length} has no fused attention on CUDA, {SLOWER}: use {near}")
    if array_mask and sequence_length**2 > LARGEST_ARRAY_MASK:
        longest = int(LARGEST_ARRAY_MASK**0.5)
        problems.append(
            f"documents and windows have no fused attention on CUDA beyond {longest} positions, {SLOWER}: "
            "use plain causal attention"
        )
    return problems


class FlashAttentionConfig(AttentionConfig):
    """Memory grows with the length, not with its square: MLX's fused kernel, or blocks where it has none."""

    type: str = "flash"
    """The row of the table."""
    block_size: int | None = Field(default=None, gt=0)
    """Queries, and keys, of one block where attention goes through blocks; null: chosen from the length."""

    def check(self, model_config: Any) -> None:
        dropout = model_config.attention_dropout
        if dropout > 0:
            raise ValueError(
                f"attention type 'flash' cannot drop attention weights (attention_dropout is {dropout}); "
                "use type 'auto' or 'simple', or attention_dropout 0"
            )

    def build(self, dropout: float = 0.0, training: bool = False) -> Attend:
        assert dropout == 0, dropout
        return partial(attend, training=training, block_size=self.block_size)

    def explain(self, dropout: float = 0.0) -> str:
        blocks = "blocks of a chosen size" if self.block_size is None else f"blocks of {self.block_size}"
        if device_kind() == "cpu":
            return f"flash, as asked: {blocks}, recomputed in the backward pass; a CPU has no fused kernel"
        return f"flash, as asked: MLX's fused kernel; {blocks} for what it cannot do"
