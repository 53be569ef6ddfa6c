"""Masked-token prediction: the absorbing-state diffusion objective on a bidirectional model without a time input.

Training masks each token of a row with probability t, t uniform, and weights the cross-entropy of the masked tokens
with 1/t: a bound on -log p(row) (Sahoo et al. 2024, MDLM, eq. 10; Shi et al. 2024, MD4). Validation uses the exact
equivalent without t, of lower variance: mask k of the n tokens of a row, k uniform in 1..n, and weight with n/k
(Nie et al. 2025, LLaDA, eq. 6). Noise is drawn from the row's own key, so it does not depend on micro-batches, ranks
or restarts. A uniform prediction scores exactly ln V in validation. To change the noise, edit `masked_probability`.

Shapes: B = rows, L = positions, V = vocabulary.
"""

from typing import Any, ClassVar

import mlx.core as mx

from core.objectives.base import Loss
from core.objectives.cross_entropy import CrossEntropyConfig, CrossEntropyObjective
from data.batch import Batch

SMALLEST_T = 1e-3


class DenoiseConfig(CrossEntropyConfig):
    """Predict masked tokens from both sides."""

    type: str = "denoise"
    """denoise"""

    num_reserved_tokens: ClassVar[int] = 1
    cannot_generate: ClassVar[str | None] = (
        "a 'denoise' run fills in masked tokens, in any order; text is generated left to right, from a 'causal' run"
    )

    def build(self, num_tokens: int) -> "DenoiseObjective":
        """The objective; the mask token is the id after the tokenizer's last."""
        return DenoiseObjective(num_tokens, self)


def masked_probability(uniform_B: mx.array) -> mx.array:
    """t for each row, in [1e-3, 1]: MDLM's truncation, which changes the bound by a thousandth."""
    return SMALLEST_T + (1.0 - SMALLEST_T) * uniform_B


def masked_count(uniform_B: mx.array, length_B: mx.array) -> mx.array:
    """k for each row, uniform in 1..length (0 for an empty row), float32."""
    return mx.minimum(mx.floor(uniform_B * length_B) + 1, length_B)


def row_noise(keys_B2: mx.array, length: int) -> tuple[mx.array, mx.array]:
    """One uniform number per row [B] and one per position [B, L], from each row's key."""
    uniform = mx.vmap(lambda key: mx.random.uniform(shape=(length + 1,), key=key))(keys_B2)
    return uniform[:, 0], uniform[:, 1:]


class DenoiseObjective(CrossEntropyObjective):
    """Cross-entropy on masked tokens, weighted so that the sum bounds -log p of the rows."""

    def __init__(self, mask_id: int, config: DenoiseConfig) -> None:
        super().__init__(config)
        self.mask_id = mask_id

    def __call__(self, model: Any, batch: Batch) -> Loss:
        """Each real token masked with its row's probability t, weighted 1/t."""
        row_B, position_BL = row_noise(batch.keys, batch.tokens.shape[1])
        t_B1 = masked_probability(row_B)[:, None]
        masked_BL = (position_BL < t_B1) * batch.weights
        return self._loss(model, batch, masked_BL, 1.0 / t_B1, training=True)

    def evaluate(self, model: Any, batch: Batch) -> Loss:
        """Exactly k of a row's n real tokens masked, weighted n/k; cross-entropy alone."""
        row_B, position_BL = row_noise(batch.keys, batch.tokens.shape[1])
        length_B = mx.sum(batch.weights, axis=1)
        count_B1 = masked_count(row_B, length_B)[:, None]
        order_BL = mx.argsort(mx.where(batch.weights > 0, position_BL, 2.0), axis=1)
        rank_BL = mx.argsort(order_BL, axis=1)
        masked_BL = (rank_BL < count_B1) * batch.weights
        return self._loss(model, batch, masked_BL, length_B[:, None] / mx.maximum(count_B1, 1), training=False)

    def _loss(self, model: Any, batch: Batch, masked_BL: mx.array, scale_B1: mx.array, training: bool) -> Loss:
        inputs_BL = mx.where(masked_BL > 0, self.mask_id, batch.targets)
        mask, weights_BL = self.mask("bidirectional", model, batch), masked_BL * scale_B1
        sums = self.sums(model, inputs_BL, mask, batch.targets, weights_BL, training=training, num_classes=self.mask_id)
        metrics = {"masked_fraction": mx.sum(masked_BL)} | (self.metrics(sums) if training else {})
        return Loss(sums.total, mx.sum(batch.weights), metrics)
