"""Choose the fastest backend that this machine has for what the model asks, and say which and why.

Weights to drop: `simple`, the only one that can. A Linux CPU, where MLX has no fused kernel: `simple` in causal blocks
up to `SHORT` positions, where the weights are few and computing them twice costs a fifth more time; from there `flash`,
which is as fast and holds a small part of the memory (figures: docs/log.md). Otherwise `flash`.
"""

import platform
from functools import partial

import mlx.core as mx

from models.attention import block_attention, flash_attention, simple_attention
from models.attention.base import Attend, AttentionConfig
from models.attention.mask import Mask

SHORT = 511


def choose(dropout: float, training: bool) -> tuple[Attend, str]:
    """The function for the default device, and what it is and why."""
    if dropout > 0:
        attend = partial(simple_attention.attend, dropout=dropout)
        return attend, "simple (auto): only simple attention can drop attention weights"
    if flash_attention.device_kind() == "cpu" and platform.system() != "Darwin":
        return attend_on_cpu, (
            f"simple in causal blocks up to {SHORT} positions, flash beyond (auto): no fused kernel on this CPU"
        )
    attend = partial(flash_attention.attend, training=training)
    return attend, "flash (auto): MLX's fused kernel where it has one, blocks where not"


def attend_on_cpu(q_BHLK: mx.array, k_BGSK: mx.array, v_BGSK: mx.array, mask: Mask, scale: float) -> mx.array:
    """`simple` in causal blocks or `flash`, by the number of scores."""
    short = q_BHLK.shape[2] * k_BGSK.shape[2] <= SHORT**2
    attend = block_attention.attend if short else flash_attention.attend
    return attend(q_BHLK, k_BGSK, v_BGSK, mask, scale)


class AutoAttentionConfig(AttentionConfig):
    """The fastest backend this machine has; the plan says which."""

    type: str = "auto"
    """The row of the table."""

    def build(self, dropout: float = 0.0, training: bool = False) -> Attend:
        return choose(dropout, training)[0]

    def explain(self, dropout: float = 0.0) -> str:
        return choose(dropout, training=True)[1]
