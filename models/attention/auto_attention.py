"""Choose the fastest backend that this machine has for what the model asks, and say which and why.

Weights to drop: `simple`, the only one that can. A Linux CPU: `simple` in causal blocks, because MLX has no fused
kernel there and its softmax is slow (models/elementary.py). Otherwise `flash`.
"""

import platform
from functools import partial

import mlx.core as mx

from models.attention import block_attention, flash_attention, simple_attention
from models.attention.base import Attend, AttentionConfig


def choose(dropout: float) -> tuple[Attend, str]:
    """The function for the default device, and what it is and why."""
    if dropout > 0:
        attend = partial(simple_attention.attend, dropout=dropout)
        return attend, "simple (auto): only simple attention can drop attention weights"
    if mx.default_device().type == mx.DeviceType.cpu and platform.system() != "Darwin":
        return block_attention.attend, "simple in causal blocks (auto): MLX has no fused kernel on this CPU"
    return flash_attention.attend, "flash (auto): the kernel that MLX fuses where the device can"


class AutoAttentionConfig(AttentionConfig):
    """The fastest backend this machine has; the plan says which."""

    type: str = "auto"
    """The row of the table."""

    def build(self, dropout: float = 0.0, training: bool = False) -> Attend:
        return choose(dropout)[0]

    def explain(self, dropout: float = 0.0) -> str:
        return choose(dropout)[1]
