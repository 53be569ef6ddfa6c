"""`ModelConfig`: what every architecture's config can do for the rest of the program.

The config is the one description of a model: it builds the module, counts parameters and work without building, and
converts to and from `config.json`. An architecture is a subclass with its own fields, named as Hugging Face names
them, and one row in `models.MODELS`.
"""

from typing import Any, Self

import mlx.nn as nn
from pydantic import Field

from utils.errors import ConfigError
from utils.schema import TypedSection


class ModelConfig(TypedSection):
    """An architecture and its sizes."""

    vocab_size: int | None = Field(default=None, gt=0)
    """Rows of the embedding; null: as many as the tokenizer has tokens."""

    def build(self, seed: int) -> nn.Module:
        """The module, `model(tokens_BL, mask, cache=None) -> logits_BLV`, in float32; a function of the seed."""
        raise NotImplementedError(f"{type(self).__name__} must define build")

    def num_params(self) -> int:
        """Exact number of parameters; builds and allocates nothing."""
        raise NotImplementedError(f"{type(self).__name__} must define num_params")

    def flops_per_token(self, sequence_length: int) -> int:
        """Floating-point operations that one token of a training step costs, forward and backward."""
        raise NotImplementedError(f"{type(self).__name__} must define flops_per_token")

    def explain_kernels(self, sequence_length: int) -> str | None:
        """One line for the plan: which attention runs on this machine, and why; None when there is nothing to say."""
        return None

    def warnings(self, sequence_length: int, precision: str, document_mask: bool = False) -> list[str]:
        """What will be slower than it need be on this machine, one line each. `document_mask`: the objective's."""
        return []

    def beyond_mlx_lm(self) -> list[str]:
        """What it computes that mlx-lm's model does not, a few words each; its config.json then has a type of ours."""
        return []

    def to_hf(self) -> dict[str, Any]:
        """`config.json` as mlx-lm and transformers read it."""
        raise NotImplementedError(f"{type(self).__name__} must define to_hf")

    @classmethod
    def from_hf(cls, hf: dict[str, Any]) -> Self:
        """The config of a `config.json`. Raises ValueError naming each thing that cannot be represented."""
        raise NotImplementedError(f"{cls.__name__} must define from_hf")

    def known_vocab_size(self) -> int:
        """`vocab_size`. Raises ConfigError while it is not known."""
        if self.vocab_size is None:
            raise ConfigError("model.vocab_size is not known yet: give it, or a tokenizer that exists")
        return self.vocab_size
