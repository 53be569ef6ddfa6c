"""Attention through `mx.fast.scaled_dot_product_attention`: one fused kernel where the device has one.

Metal: forward and backward are fused for no mask or "causal"; an array (segments, windows) takes the path that holds
the weights. CUDA: cuDNN, for bfloat16 and float16. CPU: never fused. The result is the same everywhere; what is slow
is said once by `flash_warnings`, which is where to record what a new MLX can do.
"""

from typing import Any

import mlx.core as mx

from models.attention.base import Attend, AttentionConfig
from models.attention.mask import Mask

CUDA_HEAD_DIM = 128
CUDA_LENGTH_MULTIPLE = 128


def attend(q_BHLK: mx.array, k_BGSK: mx.array, v_BGSK: mx.array, mask: Mask, scale: float) -> mx.array:
    """The same as `simple_attention.attend`, by MLX's kernel; keys longer than queries align at the end."""
    L, S = q_BHLK.shape[2], k_BGSK.shape[2]
    named = mask.named(L, S)
    kernel_mask = {"none": None, "causal": "causal"}[named] if named != "array" else mask.array(L, S)
    return mx.fast.scaled_dot_product_attention(q_BHLK, k_BGSK, v_BGSK, scale=scale, mask=kernel_mask)


def flash_warnings(head_dim: int, sequence_length: int, precision: str, device: str) -> list[str]:
    """Why the fused kernel will not run for training on `device` ("cuda", "metal" or "cpu"), one line each."""
    if device != "cuda":
        return []
    problems = []
    if precision == "float32":
        problems.append("float32 has no fused attention on CUDA, training will be slower: use bfloat16")
    if head_dim > CUDA_HEAD_DIM or head_dim % 8:
        problems.append(
            f"head_dim {head_dim} has no fused attention on CUDA, training will be slower: "
            f"use a multiple of 8 up to {CUDA_HEAD_DIM}"
        )
    if sequence_length % CUDA_LENGTH_MULTIPLE:
        below = sequence_length // CUDA_LENGTH_MULTIPLE * CUDA_LENGTH_MULTIPLE
        near = " or ".join(str(n) for n in (below, below + CUDA_LENGTH_MULTIPLE) if n > 0)
        problems.append(
            f"sequence length {sequence_length} has no fused attention on CUDA, training will be slower: use {near}"
        )
    return problems


class FlashAttentionConfig(AttentionConfig):
    """MLX's fused kernel: memory grows with the length, not with its square, where the device has the kernel."""

    type: str = "flash"
    """The row of the table."""

    def check(self, model_config: Any) -> None:
        dropout = model_config.attention_dropout
        if dropout > 0:
            raise ValueError(
                f"attention type 'flash' cannot drop attention weights (attention_dropout is {dropout}); "
                "use type 'auto' or 'simple', or attention_dropout 0"
            )

    def build(self, dropout: float = 0.0, training: bool = False) -> Attend:
        assert dropout == 0, dropout
        return attend

    def explain(self, dropout: float = 0.0) -> str:
        return "flash: MLX's fused kernel, as asked"
