"""Next-token prediction: the objective of pre-training, and of fine-tuning with a loss mask in the batch's weights.

Each row holds pairs (input, the token that follows it in its document), so the loss is one cross-entropy. Packed
documents share one plain causal row by default, which keeps the fused attention; `document_mask` cuts them apart.
Which targets count is `CausalObjective.weights`; what the loss is, core/objectives/cross_entropy.py.
"""

from typing import Any

import mlx.core as mx

from core.objectives.base import Loss
from core.objectives.cross_entropy import CrossEntropyConfig, CrossEntropyObjective
from data.batch import Batch
from utils.errors import ConfigError


class CausalConfig(CrossEntropyConfig):
    """Predict each next token."""

    type: str = "causal"
    """causal"""

    def build(self, num_tokens: int) -> "CausalObjective":
        """The objective; `num_tokens` is not needed."""
        return CausalObjective(self)


class CausalObjective(CrossEntropyObjective):
    """`Loss(sum of weights * -log p(target | inputs before it), sum of weights)`, and what the settings add."""

    def __call__(self, model: Any, batch: Batch) -> Loss:
        """Nats summed over the real pairs of `batch`."""
        return self._loss(model, batch, training=True)

    def evaluate(self, model: Any, batch: Batch) -> Loss:
        """Cross-entropy alone."""
        return self._loss(model, batch, training=False)

    def _loss(self, model: Any, batch: Batch, training: bool) -> Loss:
        weights_BL = self.weights(model, batch)
        mask = self.mask("causal", model, batch)
        sums = self.sums(model, batch.tokens, mask, batch.targets, weights_BL, training=training)
        return Loss(sums.total, mx.sum(weights_BL), self.metrics(sums) if training else {})

    def weights(self, model: Any, batch: Batch) -> mx.array:
        """The batch's weights [B, L], 0 where the model's attention sees the target (the prefix of a prefix-LM).

        Raises:
            ConfigError: no position is left.
        """
        num_lookahead, length = getattr(model, "num_lookahead", 0), batch.tokens.shape[1]
        if num_lookahead <= 1:
            return batch.weights
        if num_lookahead > length:
            raise ConfigError(
                f"the model's attention lets the first {num_lookahead} positions of a row see later ones, and rows "
                f"have {length}: no token is left to predict; lower it to {length} or less, or lengthen the rows"
            )
        return batch.weights * (mx.arange(length) >= num_lookahead - 1)
