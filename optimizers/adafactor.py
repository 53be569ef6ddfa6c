"""Adafactor: Adam's second moment kept as a row and a column for each matrix, and by default no first moment.

State grows with the sides of a matrix instead of its area, which is what makes a model fit where AdamW's two copies of
the weights do not. Two things stand in for what is lost: the second moment forgets ever more slowly, and a step whose
root mean square is above a threshold is scaled down to it. To change what is factored edit `is_factored`.
"""

from collections.abc import Sequence
from functools import partial

import mlx.core as mx
from pydantic import Field

from optimizers.base import Arrays, Group, OptimizerConfig, Shapes, Update, Updated, compute_once, zeros
from optimizers.enhanced_optimizers import Beta, bytes_of, decayed


def is_factored(shape: Sequence[int], smallest: int) -> bool:
    """Whether the last two axes are long enough for row and column to say what matters; else every element counts."""
    return len(shape) >= 2 and min(shape[-2:]) >= smallest


def start(shape: Sequence[int], smallest: int, has_first: bool) -> Arrays:
    """Zeros: `row` [..., R] and `column` [..., C] of a parameter [..., R, C], or `second`; `first` where it is kept."""
    first = zeros("first")(shape) if has_first else {}
    if is_factored(shape, smallest):
        return zeros("row")(shape[:-1]) | zeros("column")((*shape[:-2], shape[-1])) | first
    return zeros("second")(shape) | first


def square_moments(squared: mx.array, moments: Arrays, newness: mx.array) -> Arrays:
    """Running means of the squared gradient, or of its means over rows and columns; `newness` is 1 - beta2."""
    if "second" in moments:
        return {"second": (1 - newness) * moments["second"] + newness * squared}
    return {
        "row": (1 - newness) * moments["row"] + newness * mx.mean(squared, axis=-1),
        "column": (1 - newness) * moments["column"] + newness * mx.mean(squared, axis=-2),
    }


def normalised(gradient: mx.array, moments: Arrays) -> mx.array:
    """The gradient over the root of the second moment, which is row * column / mean(row) where it is factored.

    One factor after the other, the mean last: row * column and row / mean leave float32 where a row is near eps1 (no
    gradients yet) and others are large, and what comes of that is NaN.
    """
    if "second" in moments:
        return gradient * mx.rsqrt(moments["second"])
    size = mx.sqrt(mx.mean(moments["row"], axis=-1))[..., None, None]
    return gradient * mx.rsqrt(moments["row"])[..., None] * mx.rsqrt(moments["column"])[..., None, :] * size


def root_mean_square(array: mx.array) -> mx.array:
    """0-d. Means of rows first: a CPU adds one number after the other, and over millions of them loses digits."""
    return mx.sqrt(mx.mean(mx.mean(mx.square(array), axis=-1) if array.ndim else mx.square(array)))


def adafactor(update: Update, config: "AdafactorConfig") -> Updated:
    """w = w * (1 - rate * decay) - rate * scale * u / max(1, RMS(u) / d), where u = g / sqrt(v); scale is 1 or RMS(w).

    Shazeer & Stern 2018 (arXiv 1804.04235), algorithms 4 and 5, beta2 = 1 - t^-0.8 (section 7.2). A first moment is the
    running mean of the clipped u, without bias correction; rate and scale multiply it afterwards.
    """
    rate, newness = compute_once(
        rate_of(update, config),
        mx.power(update.step.astype(mx.float32), -config.decay_rate),
    )
    updated: Updated = {}
    for name, gradient in update.gradients.items():
        old, parameter = update.moments[name], update.parameters[name]
        moments = update.settled(name, square_moments(mx.square(gradient) + config.eps1, old, newness))
        direction = normalised(gradient, moments)
        scale = mx.maximum(config.eps2, root_mean_square(parameter)) if config.scale_parameter else 1.0
        shrink, step_size = compute_once(
            1 / mx.maximum(1.0, root_mean_square(direction) / config.clip_threshold), rate * scale
        )
        direction = shrink * direction
        if config.beta1 is not None:
            first = config.beta1 * old["first"] + (1 - config.beta1) * direction
            moments |= update.settled(name, {"first": first})
            direction = moments["first"]
        updated[name] = (decayed(update, name, rate) - step_size * direction, moments)
    return updated


def rate_of(update: Update, config: "AdafactorConfig") -> mx.array:
    """The learning rate, 0-d; with relative steps min(learning rate, 1 / sqrt(t)), times the schedule."""
    if not config.relative_step:
        return update.rate
    return update.rate * mx.minimum(1.0, mx.rsqrt(update.step.astype(mx.float32)) / config.learning_rate)


class AdafactorConfig(OptimizerConfig):
    """AdamW with almost no state: for models whose moments would not fit."""

    type: str = "adafactor"
    """The row of the table."""
    learning_rate: float = Field(default=1e-3, gt=0, allow_inf_nan=False)
    """Largest learning rate; the schedule multiplies it. AdamW's carry over; with `scale_parameter` 1e-2 to 1e-1."""
    scale_parameter: bool = False
    """Multiply the learning rate by the root mean square of each parameter, as published; decay does not see it."""
    relative_step: bool = False
    """Let the learning rate be at most 1 / sqrt(step), as published (with 1e-2, from step 10,000 on)."""
    beta1: Beta | None = None
    """Decay of a running mean of the steps; null keeps none, which is half of the point."""
    decay_rate: float = Field(default=0.8, gt=0, le=1)
    """The second moment's beta is 1 - step^-decay_rate."""
    clip_threshold: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Largest root mean square of a parameter's step before the learning rate multiplies it."""
    min_dim_size_to_factor: int = Field(default=128, ge=1)
    """Parameters whose last two sides are both at least this long are factored (128 in T5X and Optax)."""
    eps1: float = Field(default=1e-30, gt=0, allow_inf_nan=False)
    """Added to the squared gradient."""
    eps2: float = Field(default=1e-3, gt=0, allow_inf_nan=False)
    """Least size of a parameter that `scale_parameter` counts with, so that zeros can move."""

    def groups(self, shapes: Shapes) -> list[Group]:
        """One group of everything."""
        begin = partial(start, smallest=self.min_dim_size_to_factor, has_first=self.beta1 is not None)
        rule = partial(adafactor, config=self)
        return [Group("adafactor", self.learning_rate, self.decay_of(shapes), begin, rule)]

    def update_bytes(self, shapes: Shapes) -> int:
        """One largest parameter: its square, its step and the step's square are alive together (measured)."""
        return max(bytes_of(shape) for shape in shapes.values())
