"""The named mods: causal, windows, prefixes, documents, ALiBi, soft caps, and Longformer's few global tokens.

Each is the formula of its paper on index arrays; `models/attention/mods.py` says what such a function may assume.
To add one: a class here, a row in `models.attention.MODS`, its oracle in tests/test_models_attention_named_mods.py.
"""

from typing import Any

import mlx.core as mx
from pydantic import Field

from models.attention.mods import MaskFunction, Mod, ScoreFunction, Setting
from models.elementary import tanh


def alibi_slopes(num_heads: int) -> list[float]:
    """One slope a head: 2^(-8 i / n), i = 1..n, for n = num_heads a power of two.

    Otherwise those of the power of two below, and then every second one of the power above (Press et al. 2022, and
    their published code).
    """
    below = 1 << (num_heads.bit_length() - 1)
    slopes = [2.0 ** (-8 * i / below) for i in range(1, below + 1)]
    between = [2.0 ** (-4 * i / below) for i in range(1, 2 * below + 1, 2)]
    return slopes + between[: num_heads - below]


def refuse_beyond(mod: Mod, key: str, model_config: Any) -> None:
    """Raise ValueError when a length is longer than the longest row."""
    value, longest = getattr(mod, key), model_config.max_position_embeddings
    if value > longest:
        raise ValueError(
            f"mod '{mod.type}': {key} {value} is more than max_position_embeddings {longest}:"
            f" give at most {longest}, or leave the mod out"
        )


class Causal(Mod):
    """A query sees itself and what came before. A causal objective says so already; this is for the others."""

    type: str = "causal"
    """causal"""

    def is_plain(self, longest: int) -> bool:
        return True

    def allowed(self, b: mx.array, h: mx.array, q: mx.array, k: mx.array) -> mx.array:
        return k <= q


class SlidingWindow(Mod):
    """A query sees keys nearer than `window` positions (Beltagy et al. 2020; Jiang et al. 2023)."""

    type: str = "sliding_window"
    """sliding_window"""
    window: int = Field(gt=0)
    """|q - k| < window: the query itself and window - 1 keys before it."""

    def is_plain(self, longest: int) -> bool:
        return self.window >= longest

    def warning(self, sequence_length: int) -> str | None:
        if self.window < sequence_length:
            return None
        return (
            f"the attention window {self.window} hides nothing in rows of {sequence_length} tokens: it takes a shorter"
            " window or a longer data.sequence_length to make a difference"
        )

    def allowed(self, b: mx.array, h: mx.array, q: mx.array, k: mx.array) -> mx.array:
        return mx.abs(q - k) < self.window

    def check_sizes(self, model_config: Any) -> None:
        refuse_beyond(self, "window", model_config)


class PrefixLM(Mod):
    """The first `length` positions of a row see each other, later ones what came before (Raffel et al. 2020)."""

    type: str = "prefix_lm"
    """prefix_lm"""
    length: int = Field(gt=0)
    """Positions of the prefix. Their targets, which they see, are not scored."""

    @property
    def lookahead(self) -> int:
        return self.length

    def warning(self, sequence_length: int) -> str | None:
        if self.length < sequence_length:
            return None
        return (
            f"the prefix of {self.length} tokens fills rows of {sequence_length}, and the targets of a prefix are not"
            " scored: shorten it, or lengthen data.sequence_length"
        )

    def allowed(self, b: mx.array, h: mx.array, q: mx.array, k: mx.array) -> mx.array:
        return (k <= q) | (k < self.length)

    def check_sizes(self, model_config: Any) -> None:
        refuse_beyond(self, "length", model_config)


class Document(Mod):
    """A query sees the keys of its own document of a packed row."""

    type: str = "document"
    """document"""

    @property
    def needs_segments(self) -> bool:
        return True

    def is_plain(self, longest: int) -> bool:
        return True

    def mask_function(self, setting: Setting) -> MaskFunction:
        return lambda b, h, q, k: setting.same_segment(b, q, k)


class GlobalLocal(Mod):
    """Near keys, and the first few of a row, which see and are seen by all (Beltagy et al. 2020, Longformer)."""

    type: str = "global_local"
    """global_local"""
    window: int = Field(gt=0)
    """|q - k| < window is near."""
    num_global: int = Field(gt=0)
    """Positions at the beginning of a row that everybody sees, and that see everybody."""

    def allowed(self, b: mx.array, h: mx.array, q: mx.array, k: mx.array) -> mx.array:
        return (mx.abs(q - k) < self.window) | (k < self.num_global) | (q < self.num_global)

    def check_sizes(self, model_config: Any) -> None:
        refuse_beyond(self, "window", model_config)
        refuse_beyond(self, "num_global", model_config)


class ALiBi(Mod):
    """Scores fall with distance, by a slope of each head's own (Press et al. 2022): score - slope * |q - k|."""

    type: str = "alibi"
    """alibi"""

    def score_function(self, setting: Setting) -> ScoreFunction:
        slopes_H = mx.array(alibi_slopes(setting.num_heads))
        return lambda score, b, h, q, k: score - slopes_H[h] * mx.abs(q - k).astype(mx.float32)


class SoftCap(Mod):
    """No score beyond `cap`: cap * tanh(score / cap) (Gemma 2, Riviere et al. 2024)."""

    type: str = "soft_cap"
    """soft_cap"""
    cap: float = Field(gt=0)
    """The largest score; 50 in Gemma 2."""

    def score(self, score: mx.array, b: mx.array, h: mx.array, q: mx.array, k: mx.array) -> mx.array:
        return self.cap * tanh(score * (1.0 / self.cap))
