"""What every objective shares: the `Loss` of sums, the config base, and next-token cross-entropy in float32.

Losses are `(total, weight)` pairs, never means: the one division happens just before the update, after the sums over
micro-batches and ranks. That is why 1x8, 4x2 and two processes give the same losses.

Shapes: B = rows, L = positions, V = vocabulary.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from data.batch import Batch
from models.elementary import has_slow_exp, logsumexp
from utils.schema import TypedSection


class Loss(NamedTuple):
    """Sums over a batch; `total / weight` is the loss a person reads, in nats."""

    total: mx.array
    """0-d float32: the sum of weighted losses."""
    weight: mx.array
    """0-d float32: the sum of weights."""
    metrics: dict[str, mx.array]
    """More 0-d sums, each divided by `weight` before it is logged as `train/<name>`."""


class Objective(ABC):
    """A callable `(model, batch) -> Loss`; `evaluate` is the same for validation."""

    @abstractmethod
    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        """The training loss of `batch`, differentiable in the model's parameters."""

    def evaluate(self, model: nn.Module, batch: Batch) -> Loss:
        """The validation loss of `batch`: deterministic. The training loss unless overridden."""
        return self(model, batch)


class ObjectiveConfig(TypedSection):
    """One row of the objectives table."""

    num_reserved_tokens: ClassVar[int] = 0
    """Ids the objective needs beyond the tokenizer's: they follow the last of these."""
    cannot_generate: ClassVar[str | None] = None
    """Why `core.generation` refuses a run trained so; None when it does not."""

    def build(self, num_tokens: int) -> Any:
        """The objective, for a tokenizer of `num_tokens` ids."""
        raise NotImplementedError


def cross_entropy(logits_BLV: mx.array, targets_BL: mx.array) -> mx.array:
    """-log softmax(logits)[target] for each position, [B, L] float32 nats, whatever the logits' dtype."""
    if mx.default_device().type == mx.DeviceType.gpu:
        return mx.fast.cross_entropy(logits_BLV, targets_BL)  # One kernel that sums in float32.
    logits_BLV = logits_BLV.astype(mx.float32)
    if not has_slow_exp(logits_BLV):
        return mx.fast.cross_entropy(logits_BLV, targets_BL)
    target_BL1 = mx.take_along_axis(logits_BLV, targets_BL[..., None], axis=-1)
    return logsumexp(logits_BLV) - target_BL1[..., 0]
