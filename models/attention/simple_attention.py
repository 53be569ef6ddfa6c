"""Attention written out, softmax in float32: the definition that every other backend must equal.

It is also the fastest one on a Linux CPU, where MLX has no fused kernel and `models/elementary.py` has the faster
softmax, and the only one that can drop attention weights. It holds the [B, H, L, S] weights in memory.
Source: Vaswani et al. 2017, equation 1; grouped heads: Ainslie et al. 2023 (GQA).
"""

from functools import partial
from typing import Literal

import mlx.core as mx

from models.attention.base import Attend, AttentionConfig
from models.attention.mask import Mask
from models.elementary import softmax
from models.noise import drop


def attend(
    q_BHLK: mx.array, k_BGSK: mx.array, v_BGSK: mx.array, mask: Mask, scale: float, dropout: float = 0.0
) -> mx.array:
    """softmax(q k^T * scale, masked) v, computed in float32 and returned in the dtype of q: [B, H, L, K]."""
    B, H, L, K = q_BHLK.shape
    G, S = k_BGSK.shape[1], k_BGSK.shape[2]
    # The H / G query heads of a group lie beside its queries: one matrix product a group, no key is repeated.
    q = (q_BHLK.astype(mx.float32) * scale).reshape(B, G, H // G * L, K)
    scores = (q @ k_BGSK.astype(mx.float32).swapaxes(-1, -2)).reshape(B, H, L, S)
    allowed = mask.array(L, S)
    if allowed is not None:
        scores = mx.where(allowed, scores, -mx.inf)
    weights = softmax(scores)
    out = drop(weights, dropout).reshape(B, G, H // G * L, S) @ v_BGSK.astype(mx.float32)
    return out.reshape(B, H, L, K).astype(q_BHLK.dtype)


class SimpleAttentionConfig(AttentionConfig):
    """Softmax written out in float32: the definition. Memory grows with the square of the length."""

    type: str = "simple"
    """The row of the table."""

    def kernel_mask(self, sequence_length: int) -> Literal["plain", "array", "own"]:
        return "own"

    def build(self, dropout: float = 0.0, training: bool = False) -> Attend:
        return partial(attend, dropout=dropout)

    def explain(self, dropout: float = 0.0) -> str:
        return "simple: softmax written out in float32, as asked"
