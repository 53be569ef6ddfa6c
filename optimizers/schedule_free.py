"""Schedule-free AdamW: an average of the iterates takes the place of a falling learning rate.

Gradients are taken at y, between the iterate z that steps as AdamW without momentum does and the running average x of
all z; x is what is evaluated and kept. So the run needs no known length: use `schedule: {type: constant}` with a
warm-up. The model holds y; z and x follow from it and one moment, `lead`, which starts at zero, so a parameter's start
need not be copied. To change how iterates are weighted edit `weights_after`.
"""

from collections.abc import Sequence
from functools import partial
from typing import Annotated

import mlx.core as mx
from pydantic import Field

from optimizers.base import Arrays, Group, OptimizerConfig, Shapes, Update, Updated, compute_once, zeros
from optimizers.enhanced_optimizers import Beta, bias_correction, bytes_of, second_moment

TINY = 1e-30
"""Keeps the share finite while every learning rate was 0."""


def weights_after(moments: Arrays, rate: mx.array) -> Arrays:
    """The largest rate so far and the sum of the weights, both 0-d: an iterate weighs the largest rate squared.

    Defazio et al. 2024, algorithm 1, in its reference implementation's form (`weight_lr_power` 2, `r` 0): equal weights
    once the warm-up is over, also under a schedule that falls.
    """
    largest = mx.maximum(moments["largest_rate"], rate)
    return {"largest_rate": largest, "weight_sum": moments["weight_sum"] + mx.square(largest)}


def share_of(moments: Arrays) -> mx.array:
    """c: the share of the last iterate in the average, 0-d; 1 after the first update, 0 before it."""
    return mx.square(moments["largest_rate"]) / mx.maximum(moments["weight_sum"], TINY)


def schedule_free_adamw(update: Update, betas: tuple[float, float], eps: float) -> Updated:
    """z' = z - rate * d; x' = (1 - c) x + c z'; y' = (1 - b1) z' + b1 x', where d = g / (sqrt(v) + eps) + decay * y.

    Defazio et al. 2024 (arXiv 2405.15682), algorithm 1, v bias-corrected, decay at y. Written in y and z - y = (1 - c)
    lead alone: with h = y - (1 - b1) rate d follow lead' = z' - h and y' = h + c' lead'. In this form y' needs the new
    lead and not the old one, whose memory is free.
    """
    before = next(iter(update.moments.values()))
    after = update.settled(next(iter(update.moments)), weights_after(before, update.rate))
    rate, own, kept, share, root_scale = compute_once(
        betas[0] * update.rate,
        (1 - betas[0]) * update.rate,
        1 - share_of(before),
        share_of(after),
        mx.rsqrt(bias_correction(update.step, betas[1])),
    )
    updated: Updated = {}
    for name, gradient in update.gradients.items():
        moments, parameter = update.moments[name], update.parameters[name]
        new = update.settled(name, {"second": second_moment(gradient, moments["second"], betas[1])})
        direction = gradient / (mx.sqrt(new["second"]) * root_scale + eps) + update.decay[name] * parameter
        new |= update.settled(name, {"lead": kept * moments["lead"] - rate * direction})
        updated[name] = (parameter - own * direction + share * new["lead"], new | after)
    return updated


def start(shape: Sequence[int]) -> Arrays:
    """Everything zero: y, z and x are the parameter."""
    scalars = {"largest_rate": mx.zeros(()), "weight_sum": mx.zeros(())}
    return zeros("second", "lead")(shape) | scalars


def average(parameter: mx.array, moments: Arrays, beta: float) -> mx.array:
    """x = (y - (1 - b1) z) / b1, float32: the weights to evaluate."""
    return parameter - (1 / beta - 1) * (1 - share_of(moments)) * moments["lead"]


class ScheduleFreeAdamWConfig(OptimizerConfig):
    """AdamW that averages its iterates instead of lowering the learning rate: pair it with a constant schedule."""

    type: str = "schedule_free_adamw"
    """The row of the table."""
    learning_rate: float = Field(default=2.5e-3, gt=0, allow_inf_nan=False)
    """Largest learning rate; the schedule multiplies it. 1 to 10 times AdamW's."""
    betas: tuple[Annotated[float, Field(gt=0, lt=1)], Beta] = (0.9, 0.95)
    """How far from the iterate towards the average gradients are taken (0.95 or 0.98 for very long runs), and decay of
    the running mean of the gradient's square.
    """
    eps: float = Field(default=1e-8, gt=0, allow_inf_nan=False)
    """Added to the root of the second moment."""

    def groups(self, shapes: Shapes) -> list[Group]:
        """One group of everything."""
        rule = partial(schedule_free_adamw, betas=self.betas, eps=self.eps)
        weights = partial(average, beta=self.betas[0])
        return [Group("schedule_free_adamw", self.learning_rate, self.decay_of(shapes), start, rule, average=weights)]

    def update_bytes(self, shapes: Shapes) -> int:
        """One largest parameter: the direction, which two results need (measured)."""
        return max(bytes_of(shape) for shape in shapes.values())
