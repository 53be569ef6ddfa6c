"""The layers a decoder is made of: RMSNorm, Linear and Embedding that start at zero, rotary positions, SwiGLU.

Linear and Embedding draw no random number when built: the model sets every weight by its name (models/initialise.py),
so that a new layer does not reshuffle the others and no other random stream is touched. They are subclasses of
`mlx.nn`'s, which keeps `mlx.nn` tools such as quantisation working on them.
Legend: B rows, L positions, D hidden size, F intermediate size, H heads, K head size.
"""

import math
from typing import Any, Literal

import mlx.core as mx
import mlx.nn as nn
from pydantic import Field, model_validator

from models.elementary import sigmoid
from utils.schema import Section


class RopeScalingConfig(Section):
    """Stretch the rotary positions so that a model reads longer text than it was trained on. The keys are
    Hugging Face's."""

    rope_type: Literal["linear", "llama3"]
    """linear: divide every position by `factor`. llama3: divide the slow frequencies only."""
    factor: float = Field(gt=0)
    """How many times longer."""
    low_freq_factor: float | None = Field(default=None, gt=0)
    """llama3: wavelengths above original_max_position_embeddings / low_freq_factor are divided in full."""
    high_freq_factor: float | None = Field(default=None, gt=0)
    """llama3: wavelengths below original_max_position_embeddings / high_freq_factor stay as they are."""
    original_max_position_embeddings: int | None = Field(default=None, gt=0)
    """llama3: the length the model was trained on."""

    @model_validator(mode="after")
    def _llama3_keys(self) -> "RopeScalingConfig":
        keys = ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        given = [key for key in keys if getattr(self, key) is not None]
        if self.rope_type == "linear" and given:
            raise ValueError(f"rope_type linear has no {', '.join(given)}; leave it out or use rope_type llama3")
        if self.rope_type == "llama3" and len(given) < len(keys):
            missing = ", ".join(key for key in keys if key not in given)
            raise ValueError(f"rope_type llama3 also needs {missing} (Llama 3.1 has 1, 4 and 8192)")
        if self.low_freq_factor and self.high_freq_factor and self.low_freq_factor >= self.high_freq_factor:
            raise ValueError(
                f"low_freq_factor {self.low_freq_factor} must be below high_freq_factor {self.high_freq_factor}"
            )
        return self


def rotary_wavelengths(head_dim: int, theta: float, scaling: RopeScalingConfig | None) -> list[float]:
    """Positions per radian of each pair of coordinates: head_dim / 2 numbers, in float64.

    Source: Su et al. 2021, section 3.2.2; the llama3 rule: Llama 3.1's reference code, as in transformers.
    """
    plain = [theta ** (i / head_dim) for i in range(0, head_dim, 2)]
    if scaling is None:
        return plain
    if scaling.rope_type == "linear":
        return [scaling.factor * positions for positions in plain]
    return [_stretch_llama3(positions, scaling) for positions in plain]


def _stretch_llama3(positions: float, scaling: RopeScalingConfig) -> float:
    low, high, original = scaling.low_freq_factor, scaling.high_freq_factor, scaling.original_max_position_embeddings
    assert low is not None
    assert high is not None
    assert original is not None
    turns = original / (2 * math.pi * positions)
    if turns > high:
        return positions
    if turns < low:
        return positions * scaling.factor
    smooth = (turns - low) / (high - low)
    return positions / ((1 - smooth) / scaling.factor + smooth)


class Rotary:
    """Turn each pair of coordinates of [B, H, L, K] by an angle that grows with the position."""

    def __init__(self, head_dim: int, theta: float, traditional: bool, scaling: RopeScalingConfig | None) -> None:
        self.head_dim = head_dim
        self.traditional = traditional
        self.theta: float | None = theta
        self.scale = 1.0
        self.wavelengths: mx.array | None = None
        if scaling is not None and scaling.rope_type == "linear":
            self.scale = 1 / scaling.factor
        elif scaling is not None:
            self.theta = None
            self.wavelengths = mx.array(rotary_wavelengths(head_dim, theta, scaling))

    def __call__(self, x_BHLK: mx.array, offset: int = 0) -> mx.array:
        """The first of the L positions is `offset`."""
        return mx.fast.rope(
            x_BHLK,
            self.head_dim,
            traditional=self.traditional,
            base=self.theta,
            scale=self.scale,
            offset=offset,
            freqs=self.wavelengths,
        )


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis. Source: Zhang and Sennrich 2019, equation 4."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = mx.ones((size,))
        self.eps = eps

    def __call__(self, x: mx.array) -> mx.array:
        # A float32 weight would turn a bfloat16 stream into float32; the sum inside is float32 either way.
        return mx.fast.rms_norm(x, self.weight.astype(x.dtype), self.eps)


class Linear(nn.Linear):
    """x W^T + b, zero until the model is initialised."""

    def __init__(self, num_inputs: int, num_outputs: int, bias: bool) -> None:
        nn.Module.__init__(self)
        self.weight = mx.zeros((num_outputs, num_inputs))
        if bias:
            self.bias = mx.zeros((num_outputs,))


class Embedding(nn.Embedding):
    """One row for each token, zero until the model is initialised."""

    def __init__(self, num_tokens: int, size: int) -> None:
        nn.Module.__init__(self)
        self.weight = mx.zeros((num_tokens, size))


def swiglu(gate_BLF: mx.array, up_BLF: mx.array) -> mx.array:
    """silu(gate) * up. Source: Shazeer 2020, "GLU Variants Improve Transformer", equation 6.

    Only the two inputs are kept for the backward pass; what MLX would keep of the sigmoid and the products doubles the
    activations of a feed-forward layer, and is cheap to compute again.
    """
    return _swiglu(gate_BLF, up_BLF)


def _swiglu_forward(gate_BLF: mx.array, up_BLF: mx.array) -> mx.array:
    return gate_BLF * sigmoid(gate_BLF) * up_BLF


def _swiglu_backward(inputs: tuple[mx.array, mx.array], cotangent: mx.array, _output: mx.array) -> tuple[mx.array, ...]:
    gate_BLF, up_BLF = inputs
    share_BLF = sigmoid(gate_BLF)
    silu_BLF = gate_BLF * share_BLF
    return cotangent * up_BLF * (share_BLF + silu_BLF * (1 - share_BLF)), cotangent * silu_BLF


_swiglu: Any = mx.custom_function(_swiglu_forward)
_swiglu.vjp(_swiglu_backward)
