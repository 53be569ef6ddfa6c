"""SGD, Adam, AdamW and Lion: element-wise rules with decoupled weight decay and float32 moments.

`mlx.optimizers` keeps moments in the parameter's dtype, adds decay to the gradient (SGD) and corrects no bias
unless asked, so the rules stand here in full, a few lines each. In Lion one sign decides the whole step; in
AdamW the second moment scales each element; SGD scales nothing. To change a rule edit its function; the configs
stand below.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Annotated

import mlx.core as mx
from pydantic import Field, model_validator

from optimizers.base import Arrays, Group, OptimizerConfig, Shapes, Update, Updated, compute_once, zeros

Beta = Annotated[float, Field(ge=0, lt=1)]


def sgd(update: Update, momentum: float, nesterov: bool) -> Updated:
    """v = momentum * v + g; w = w * (1 - rate * decay) - rate * v, or g + momentum * v instead of v (Nesterov).

    Sutskever et al. 2013, in PyTorch's form (no dampening). Without momentum there is no state.
    """
    (rate,) = compute_once(update.rate)
    updated: Updated = {}
    for name, gradient in update.gradients.items():
        direction, moments = gradient, {}
        if momentum:
            velocity = momentum * update.moments[name]["velocity"] + gradient
            moments = update.settled(name, {"velocity": velocity})
            direction = gradient + momentum * moments["velocity"] if nesterov else moments["velocity"]
        updated[name] = (decayed(update, name, rate) - rate * direction, moments)
    return updated


def bias_correction(step: mx.array, beta: float) -> mx.array:
    """1 - beta^step, 0-d float32. `expm1` keeps digits that a float32 power loses for beta close to 1."""
    return -mx.expm1(step.astype(mx.float32) * (math.log(beta) if beta else -math.inf))


def adamw_moments(gradient: mx.array, moments: Arrays, betas: tuple[float, float]) -> Arrays:
    """Running means of the gradient and of its square (Kingma & Ba 2014, algorithm 1)."""
    return {
        "first": betas[0] * moments["first"] + (1 - betas[0]) * gradient,
        "second": second_moment(gradient, moments["second"], betas[1]),
    }


def second_moment(gradient: mx.array, second: mx.array, beta: float) -> mx.array:
    """Running mean of the squared gradient, one step on."""
    return beta * second + (1 - beta) * mx.square(gradient)


def adamw(update: Update, betas: tuple[float, float], eps: float) -> Updated:
    """w = w * (1 - rate * decay) - rate * m / (sqrt(v) + eps), both moments bias-corrected.

    Loshchilov & Hutter 2017, algorithm 2 (decay times the learning rate, as PyTorch has it). Where a group keeps the
    `largest` second moment so far, that takes the place of v: AMSGrad (Reddi et al. 2018, algorithm 2), the largest
    taken before the correction, as PyTorch does.
    """
    rate, first_rate, root_scale = compute_once(
        update.rate,
        update.rate / bias_correction(update.step, betas[0]),
        mx.rsqrt(bias_correction(update.step, betas[1])),
    )
    updated: Updated = {}
    for name, gradient in update.gradients.items():
        old = update.moments[name]
        moments = update.settled(name, adamw_moments(gradient, old, betas))
        if "largest" in old:
            # Of the settled one, so that neither kernel has two results.
            moments |= update.settled(name, {"largest": mx.maximum(old["largest"], moments["second"])})
        square = moments.get("largest", moments["second"])
        change = first_rate * moments["first"] / (mx.sqrt(square) * root_scale + eps)
        updated[name] = (decayed(update, name, rate) - change, moments)
    return updated


def lion(update: Update, betas: tuple[float, float]) -> Updated:
    """w = w * (1 - rate * decay) - rate * sign(b1 * m + (1 - b1) * g); then m = b2 * m + (1 - b2) * g.

    Chen et al. 2023, program 1. The sign of zero is zero.
    """
    (rate,) = compute_once(update.rate)
    updated: Updated = {}
    for name, gradient in update.gradients.items():
        momentum = update.moments[name]["momentum"]
        direction = mx.sign(betas[0] * momentum + (1 - betas[0]) * gradient)
        momentum = betas[1] * momentum + (1 - betas[1]) * gradient
        updated[name] = (decayed(update, name, rate) - rate * direction, update.settled(name, {"momentum": momentum}))
    return updated


def decayed(update: Update, name: str, rate: mx.array) -> mx.array:
    """The parameter after decoupled weight decay."""
    decay = update.decay[name]
    return update.parameters[name] * (1 - rate * decay) if decay else update.parameters[name]


def bytes_of(shape: Sequence[int]) -> int:
    """Of a float32 array."""
    return math.prod(shape) * mx.float32.size


def adamw_group(
    learning_rate: float,
    decay: dict[str, float],
    betas: tuple[float, float],
    eps: float,
    amsgrad: bool = False,
    name: str = "adamw",
) -> Group:
    """AdamW on the parameters of `decay`; also what Muon leaves over."""
    start = zeros("first", "second", "largest") if amsgrad else zeros("first", "second")
    return Group(name, learning_rate, decay, start, partial(adamw, betas=betas, eps=eps))


class SGDConfig(OptimizerConfig):
    """Stochastic gradient descent."""

    type: str = "sgd"
    """The row of the table."""
    learning_rate: float = Field(default=0.1, gt=0, allow_inf_nan=False)
    """Largest learning rate; the schedule multiplies it."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """How much of the last step carries on; 0 keeps no state."""
    nesterov: bool = False
    """Look one step of momentum ahead."""
    weight_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Decoupled: every update multiplies the weights by 1 - learning rate * weight_decay."""

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> "SGDConfig":
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0, for example 0.9")
        return self

    def groups(self, shapes: Shapes) -> list[Group]:
        """One group of everything."""
        start = zeros("velocity") if self.momentum else zeros()
        rule = partial(sgd, momentum=self.momentum, nesterov=self.nesterov)
        return [Group("sgd", self.learning_rate, self.decay_of(shapes), start, rule)]


class AdamWConfig(OptimizerConfig):
    """Adam with decoupled weight decay: the usual first choice."""

    type: str = "adamw"
    """The row of the table."""
    learning_rate: float = Field(default=1e-3, gt=0, allow_inf_nan=False)
    """Largest learning rate; the schedule multiplies it. 1e-3 suits 1M-50M parameters, 3e-4 a billion."""
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    """Decay of the running means of the gradient and of its square."""
    eps: float = Field(default=1e-8, gt=0, allow_inf_nan=False)
    """Added to the root of the second moment."""
    amsgrad: bool = False
    """Divide by the largest second moment so far, which never lets a step grow back; a third array of state."""

    def groups(self, shapes: Shapes) -> list[Group]:
        """One group of everything."""
        decay = self.decay_of(shapes)
        return [adamw_group(self.learning_rate, decay, self.betas, self.eps, self.amsgrad, self.type)]


class AdamConfig(AdamWConfig):
    """Adam as published: AdamW's rule, no weight decay unless asked, and a longer memory of squares."""

    type: str = "adam"
    """The row of the table."""
    weight_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Decoupled as in every row, not added to the gradient: each update multiplies the weights by 1 - learning rate *
    weight_decay.
    """
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Decay of the running means of the gradient and of its square (Kingma & Ba 2014)."""


class LionConfig(OptimizerConfig):
    """Sign of a momentum: half of AdamW's state; learning rate 3-10 times smaller, decay as much larger."""

    type: str = "lion"
    """The row of the table."""
    learning_rate: float = Field(default=2e-4, gt=0, allow_inf_nan=False)
    """Largest learning rate; the schedule multiplies it. Every element moves by exactly this."""
    betas: tuple[Beta, Beta] = (0.9, 0.99)
    """Weight of the momentum in the step, and decay of the momentum."""
    weight_decay: float = Field(default=0.5, ge=0, allow_inf_nan=False)
    """Decoupled: every update multiplies the weights by 1 - learning rate * weight_decay."""

    def groups(self, shapes: Shapes) -> list[Group]:
        """One group of everything."""
        rule = partial(lion, betas=self.betas)
        return [Group("lion", self.learning_rate, self.decay_of(shapes), zeros("momentum"), rule)]

    def update_bytes(self, shapes: Shapes) -> int:
        """As many as the weights: the direction and the new momentum both need the old momentum."""
        return sum(bytes_of(shape) for shape in shapes.values())
