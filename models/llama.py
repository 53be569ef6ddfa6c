"""Llama: the decoder as it is (Touvron et al. 2023), with everything mlx-lm's and transformers' llama can express."""

from typing import Any, ClassVar

from models.decoder_config import DecoderConfig


class LlamaConfig(DecoderConfig):
    """A llama."""

    architecture: ClassVar[str] = "LlamaForCausalLM"
    hf_defaults: ClassVar[dict[str, Any]] = {"rms_norm_eps": 1e-6, "tie_word_embeddings": False}

    type: str = "llama"
    """Row of models.MODELS."""
