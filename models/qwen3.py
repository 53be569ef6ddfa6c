"""Qwen3: the decoder with queries and keys normalised per head, and no biases (Qwen team 2025).

Normalised queries and keys bound the attention scores, which keeps training stable at higher learning rates.
"""

from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from models.decoder_config import DecoderConfig
from utils.schema import Misfits


class Qwen3Config(DecoderConfig):
    """A qwen3."""

    qk_norm: ClassVar[bool] = True
    architecture: ClassVar[str] = "Qwen3ForCausalLM"
    hf_defaults: ClassVar[dict[str, Any]] = {
        "head_dim": 128,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
    }

    type: str = "qwen3"
    """Row of models.MODELS."""
    rms_norm_eps: float = Field(default=1e-6, gt=0)
    """Added to the mean square in every norm."""
    rope_theta: float = Field(default=1e6, gt=0)
    """Base of the rotary wavelengths."""

    @model_validator(mode="after")
    def _no_biases(self) -> Self:
        given = [key for key in ("attention_bias", "mlp_bias", "rope_traditional") if getattr(self, key)]
        if given:
            raise Misfits(*((key, "a qwen3 has none, and mlx-lm could not load it; use type llama") for key in given))
        return self
