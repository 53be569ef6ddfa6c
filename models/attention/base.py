"""The contract of an attention backend: a config that checks a model and builds one pure function.

The function is `attend(q_BHLK, k_BGSK, v_BGSK, mask, scale) -> out_BHLK`: H query heads share G key/value heads
(H % G == 0, none is repeated in memory), and the L queries are the last L of the S key positions. `mask` is a
`Mask`, a description rather than an array, so that a backend may use a kernel that knows "causal" by name.
Legend: B rows, H query heads, G key/value heads, L queries, S keys, K head size.
"""

from collections.abc import Callable
from typing import Any, Literal

import mlx.core as mx

from utils.schema import TypedSection

Attend = Callable[..., mx.array]
"""`attend(q_BHLK, k_BGSK, v_BGSK, mask, scale) -> out_BHLK`; `flash` also takes `sinks_H`, a logit for each head."""


class AttentionConfig(TypedSection):
    """How attention is computed. It changes speed and memory; the result only where `beyond_plain` says so."""

    @property
    def needs_segments(self) -> bool:
        """Whether it reads the segments of packed documents, which the objective then puts into the mask."""
        return False

    @property
    def num_lookahead(self) -> int:
        """Positions at the beginning of a row that see later ones: a causal objective must not score those."""
        return 0

    def beyond_plain(self, longest: int) -> list[str]:
        """What it computes that plain causal attention over one text of up to `longest` tokens does not."""
        return []

    def computed_blocks(self, num_heads: int, length: int) -> tuple[int, int] | None:
        """(computed, all) blocks of the scores of one row; None where nothing but the causal half is skipped."""
        return None

    def kernel_mask(self, sequence_length: int) -> Literal["plain", "array", "own"]:
        """What a fused kernel is told: nothing special, an array; "own": none is used."""
        return "plain"

    def warnings(self, sequence_length: int) -> list[str]:
        """What does nothing on rows of this length, one line each."""
        return []

    def check(self, model_config: Any) -> None:
        """Raise ValueError when this backend cannot do what the model asks for.

        Reads `attention_dropout`, and `attention_sinks`: only `flash` takes a sink for each head.
        """
        if getattr(model_config, "attention_sinks", False):
            raise ValueError(f"attention type '{self.type}' has no attention_sinks; use type 'flash'")

    def build(self, dropout: float = 0.0, training: bool = False) -> Attend:
        """The function; `dropout` is the probability of dropping an attention weight (0 in evaluation).

        `training`: gradients are wanted, so what counts is the backward pass. Either function has both.
        """
        raise NotImplementedError(f"{type(self).__name__} must define build")

    def explain(self, dropout: float = 0.0) -> str:
        """One line for the plan printed before training: which kernel runs on this machine, and why."""
        raise NotImplementedError(f"{type(self).__name__} must define explain")
