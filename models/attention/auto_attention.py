"""Choose the fastest backend that this machine has for what the model asks, and say which and why.

Weights to drop: `simple`, the only one that can. A Linux CPU: `simple`, because MLX has no fused kernel there and its
softmax is 4 times slower than ours (a training step took 1.7 times as long, docs/log.md). Otherwise `flash`.
"""

import platform

import mlx.core as mx

from models.attention.base import Attend, AttentionConfig
from models.attention.flash_attention import FlashAttentionConfig
from models.attention.simple_attention import SimpleAttentionConfig


def choose(dropout: float) -> tuple[AttentionConfig, str]:
    """The backend for the default device, and the reason."""
    if dropout > 0:
        return SimpleAttentionConfig(), "only simple attention can drop attention weights"
    if mx.default_device().type == mx.DeviceType.cpu and platform.system() != "Darwin":
        return SimpleAttentionConfig(), "the CPU has no fused kernel, and the written-out form is faster"
    return FlashAttentionConfig(), "the fused kernel"


class AutoAttentionConfig(AttentionConfig):
    """The fastest backend this machine has; the plan says which."""

    type: str = "auto"
    """The row of the table."""

    def build(self, dropout: float = 0.0) -> Attend:
        return choose(dropout)[0].build(dropout)

    def explain(self, dropout: float = 0.0) -> str:
        chosen, reason = choose(dropout)
        return f"{chosen.type} (auto): {reason}"
