"""Next-token prediction: the objective of pre-training, and of fine-tuning with a loss mask in the batch's weights.

Each row holds pairs (input, the token that follows it in its document), so the loss is one cross-entropy. Packed
documents share one plain causal row by default, which keeps the fused attention; `document_mask` cuts them apart.
To change the loss (z-loss, label smoothing), edit `CausalObjective.__call__`.
"""

import mlx.core as mx
import mlx.nn as nn

from core.objectives.base import Loss, Objective, ObjectiveConfig, cross_entropy
from data.batch import Batch
from models.attention.mask import Mask


class CausalConfig(ObjectiveConfig):
    """Predict each next token."""

    type: str = "causal"
    """causal"""
    document_mask: bool = False
    """Hide the other documents of a packed row; costs the fused attention on Metal."""

    def build(self, num_tokens: int) -> "CausalObjective":
        """The objective; `num_tokens` is not needed."""
        return CausalObjective(self.document_mask)


class CausalObjective(Objective):
    """`Loss(sum of weights * -log p(target | inputs before it), sum of weights)`."""

    def __init__(self, document_mask: bool) -> None:
        self.document_mask = document_mask

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        """Nats summed over the real pairs of `batch`."""
        mask = Mask("causal", segments=batch.segments if self.document_mask else None)
        losses_BL = cross_entropy(model(batch.tokens, mask), batch.targets)
        return Loss(mx.sum(losses_BL * batch.weights), mx.sum(batch.weights), {})
