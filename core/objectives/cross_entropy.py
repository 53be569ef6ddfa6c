"""What causal and denoise share: the settings of cross-entropy over the vocabulary, and its way through the model.

A model that shows its `backbone` and its `head_weight` gets the loss of core/objectives/linear_cross_entropy.py, which
never holds all logits; one of a person's own may have `__call__` alone and gets the plain one. Both are the same loss.
Validation is cross-entropy alone, whatever training adds to it, so that runs compare.
To add a term to the loss, add a field here and the term to `LossOptions`.

Shapes: B = rows, L = positions, T = B * L tokens, V = vocabulary, D = hidden size.
"""

from typing import Annotated, Any, Literal

import mlx.core as mx
from pydantic import Field, field_validator

from core.objectives.base import Objective, ObjectiveConfig
from core.objectives.linear_cross_entropy import (
    LossOptions,
    LossSums,
    auto_chunk_size,
    linear_cross_entropy,
    weighted_sums,
)
from data.batch import Batch
from models.attention.mask import Mask
from utils.errors import ConfigError


class CrossEntropyConfig(ObjectiveConfig):
    """Cross-entropy over the vocabulary."""

    document_mask: bool = False
    """Hide the other documents of a packed row; costs the fused attention on Metal."""
    chunk_size: Annotated[int, Field(gt=0)] | Literal["auto"] | None = "auto"
    """Tokens whose logits are alive at a time; null: all; auto: chosen for the device, all when they are small."""
    z_loss: float = Field(default=0.0, ge=0)
    """Adds this times logsumexp(logits)^2 to the training loss, against drifting logits; PaLM trained with 1e-4."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """The share of the training target that is spread over the whole vocabulary; 0.1 where it is used."""

    @field_validator("chunk_size", mode="before")
    @classmethod
    def _some_tokens(cls, value: Any) -> Any:
        if isinstance(value, int) and value < 1:
            raise ValueError(f"chunk_size is {value}; give some tokens (128 or more), auto, or null for all at once")
        return value


class CrossEntropyObjective(Objective):
    """Holds the settings; a subclass says what is predicted from what."""

    def __init__(self, config: CrossEntropyConfig) -> None:
        self.config = config

    def mask(self, kind: Literal["causal", "bidirectional"], model: Any, batch: Batch) -> Mask:
        """The mask of `batch`, with segments where the settings or the model's attention ask for them."""
        has_segments = self.config.document_mask or getattr(model, "needs_segments", False)
        return Mask(kind, segments=batch.segments if has_segments else None)

    def sums(
        self,
        model: Any,
        inputs_BL: mx.array,
        mask: Mask,
        targets_BL: mx.array,
        weights_BL: mx.array,
        *,
        training: bool,
        num_classes: int | None = None,
    ) -> LossSums:
        """The loss of `model(inputs_BL, mask)` on targets below `num_classes` (None: below V).

        Raises:
            ConfigError: `chunk_size` is a number, and the model shows no backbone and head.
        """
        options = LossOptions(self.config.z_loss, self.config.label_smoothing) if training else LossOptions()
        chunk_size = self.chunk_size(model, targets_BL.size)
        if chunk_size is None:
            # The model's own head caps its logits.
            return weighted_sums(model(inputs_BL, mask)[..., :num_classes], targets_BL, weights_BL, options)
        hidden_BLD = model.backbone(inputs_BL, mask)
        return linear_cross_entropy(
            hidden_BLD.reshape(-1, hidden_BLD.shape[-1]),
            model.head_weight[:num_classes],
            targets_BL.reshape(-1),
            weights_BL.reshape(-1),
            chunk_size=chunk_size,
            z_loss=options.z_loss,
            label_smoothing=options.label_smoothing,
            soft_cap=getattr(model, "logit_soft_cap", None),
            differentiable=training,
        )

    def chunk_size(self, model: Any, num_tokens: int) -> int | None:
        """Tokens of a chunk for this model; None: the plain path."""
        asked = self.config.chunk_size
        can = hasattr(model, "backbone") and hasattr(model, "head_weight")
        if asked == "auto" and can:
            on_gpu = mx.default_device().type == mx.DeviceType.gpu
            return auto_chunk_size(num_tokens, model.head_weight.shape[0], on_gpu)
        if isinstance(asked, int) and not can:
            raise ConfigError(
                f"objective.chunk_size is {asked}, and {type(model).__name__} lacks what a loss in chunks needs: "
                "set chunk_size to auto or null, or give the model `backbone(tokens, mask)` and `head_weight`"
            )
        return asked if isinstance(asked, int) else None

    def metrics(self, sums: LossSums) -> dict[str, mx.array]:
        """What training adds to cross-entropy, and cross-entropy without it; nothing when nothing is added."""
        found = {"z_loss": sums.z_loss} if self.config.z_loss else {}
        return found | ({"cross_entropy": sums.cross_entropy} if found or self.config.label_smoothing else {})
