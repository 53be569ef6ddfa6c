"""Muon: momentum made orthogonal by Newton-Schulz, for the matrices of the layers; AdamW for the rest.

Orthogonal updates change all singular directions of a matrix alike, which took a 124M GPT-2 to the same loss in two
thirds of AdamW's steps. Matrices of one shape go through momentum and iteration as one stack, one stack after the
other: a fifth of the kernels of one matrix at a time, and memory for one stack. What is fused (q, k and v) or stacked
(experts) falls into its matrices first. To change the iteration edit `newton_schulz.py`; to change which parameters
go to AdamW, the config's `matrices`; to add a variant of the rule, `stack_update`.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import Annotated, Literal

import mlx.core as mx
from pydantic import Field, model_validator

from optimizers.base import Arrays, Group, OptimizerConfig, Shapes, Update, Updated, check_globs, compute_once
from optimizers.enhanced_optimizers import Beta, adamw_group, decayed
from optimizers.newton_schulz import (
    COEFFICIENTS,
    TINY,
    Coefficients,
    Rows,
    joined,
    newton_schulz,
    numbers_held,
    part_shapes,
    parted,
    stacks,
)
from optimizers.selection import LAYERS, select_matrices
from utils.errors import ConfigError

NORMUON_EPS = 1e-8
FLOAT32 = 4
STACK, GRADIENT, DIRECTION = "stack", "gradient", "direction"

UpdateScale = Literal["rms", "original"]


def is_stack(shape: Sequence[int]) -> bool:
    """Whether it is a matrix [R, C], or a stack [N, R, C] of matrices and not of vectors."""
    return len(shape) == 2 or len(shape) == 3 and min(shape[1:]) > 1


def scale_of(rows: int, columns: int, update_scale: UpdateScale) -> float:
    """What multiplies an orthogonal update of a [rows, columns] matrix.

    `rms`: 0.2 * sqrt(max(rows, columns)), whose elements have AdamW's typical root mean square of 0.2 (Liu et
    al. 2025, Moonlight), so AdamW's learning rates carry over. `original`: sqrt(max(1, rows / columns)).
    """
    return 0.2 * max(rows, columns) ** 0.5 if update_scale == "rms" else max(1.0, rows / columns) ** 0.5


def scaled_up(direction: mx.array, update_scale: UpdateScale) -> mx.array:
    """An orthogonal update [R, C] on its scale."""
    rows, columns = direction.shape
    return scale_of(rows, columns, update_scale) * direction


def adamw_rate_like(learning_rate: float, shapes: Shapes, update_scale: UpdateScale) -> float:
    """The AdamW learning rate that moves elements as far as Muon moves those of its slowest matrix.

    Under `rms` that is the learning rate itself; under `original` it is 5 / sqrt(columns) of it.
    """
    shares = (
        scale_of(rows, columns, update_scale) / scale_of(rows, columns, "rms") for rows, columns in shapes.values()
    )
    return learning_rate * min(shares)


def stacked(kinds: Mapping[str, Arrays], names: Sequence[str], after: mx.array) -> Arrays:
    """Of every kind (gradient, moments) the matrices `names` [R, C] as one [N R, C], begun when `after` is there."""
    waiting = iter(mx.depends([arrays[name] for arrays in kinds.values() for name in names], [after]))
    return {kind: mx.concatenate([next(waiting) for _ in names]) for kind in kinds}


def row_normalised(matrices_NRC: mx.array, second_NR1: mx.array) -> mx.array:
    """NorMuon's rescaled rows, with the Frobenius norm of an orthogonal matrix, sqrt(min(R, C)).

    Li et al. 2025 (arXiv 2510.05491), algorithm 1: O / (sqrt(v) + eps), then 0.2 sqrt(R C) / |O| of it, which is what
    `scale_of` makes of that norm. v needs no bias correction, as the norm takes it out.
    """
    rows, columns = matrices_NRC.shape[1:]
    scaled_NRC = matrices_NRC / (mx.sqrt(second_NR1) + NORMUON_EPS)
    square_norm_N11 = mx.square(scaled_NRC).sum(axis=2, keepdims=True).sum(axis=1, keepdims=True)
    return scaled_NRC * (min(rows, columns) ** 0.5 / mx.maximum(mx.sqrt(square_norm_N11), TINY))


class MuonConfig(OptimizerConfig):
    """Muon for the matrices of the layers, AdamW for embeddings, head, norms and biases."""

    type: str = "muon"
    """The row of the table."""
    learning_rate: float = Field(default=3e-3, gt=0, allow_inf_nan=False)
    """Largest learning rate; the schedule multiplies it. On the `rms` scale those of AdamW carry over."""
    momentum: float = Field(default=0.95, ge=0, lt=1)
    """Decay of the running mean of the gradient."""
    momentum_start: Beta | None = None
    """Where a warm-up of the momentum begins (nanochat: 0.85); null: there is none."""
    momentum_warmup_steps: int = Field(default=0, ge=0)
    """Updates in which the momentum goes in a line from `momentum_start` to `momentum` (nanochat: 300). Always updates,
    whatever the length of the run: one with fewer never gets to `momentum`.
    """
    nesterov: bool = True
    """Mix the gradient in once more before orthogonalising."""
    ns_steps: int = Field(default=5, ge=3, le=6)
    """Newton-Schulz iterations; fewer are cheaper and less orthogonal."""
    coefficients: Coefficients = "quintic"
    """Polynomials of the iteration: `quintic` is good at any number of steps, `polar_express` closer to orthogonal at
    5 and 6 and worse at 3 and 4.
    """
    update_scale: UpdateScale = "rms"
    """`rms`: 0.2 * sqrt(max(rows, columns)); `original`: sqrt(max(1, rows / columns)), rates near 0.02."""
    cautious_decay: bool = False
    """Matrices decay only where the update also makes the weight smaller (Chen et al. 2025, arXiv 2510.12402)."""
    normuon: bool = False
    """Rescale the rows of an update by a running mean of their squares (Li et al. 2025, arXiv 2510.05491)."""
    normuon_beta: Beta = 0.95
    """Decay of that running mean."""
    splits: dict[str, Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)]] = {}
    """Glob over names -> rows of the parts of a fused matrix, for example `{"*.qkv_proj.weight": [512, 128, 128]}`:
    each part is orthogonalised by itself, on the scale of its own shape. The first match counts.
    """
    matrices: tuple[str, ...] = LAYERS
    """Globs of what Muon updates: matrices, and stacks [experts, rows, columns] of them, each by itself. What else
    they match (vectors, convolutions with 4 dimensions, stacks of vectors) goes to AdamW with the rest.
    """
    adamw_learning_rate: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Learning rate of the AdamW part; null: `learning_rate` on the `rms` scale, and on the `original` scale
    the one that moves elements as far, which is 5 / sqrt(columns of the widest matrix) of it.
    """
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    """Of the AdamW part: decay of the running means of the gradient and of its square."""
    eps: float = Field(default=1e-8, gt=0, allow_inf_nan=False)
    """Of the AdamW part: added to the root of the second moment."""

    @model_validator(mode="after")
    def _warmup_has_start_and_length(self) -> "MuonConfig":
        if (self.momentum_start is None) != (self.momentum_warmup_steps == 0):
            raise ValueError("momentum_start and momentum_warmup_steps go together, for example 0.85 and 300")
        return self

    def groups(self, shapes: Shapes) -> list[Group]:
        """`muon` for the matrices of the layers and, where anything is left, `adamw` for it."""
        decay = self.decay_of(shapes)
        matrices = select_matrices(shapes, self.matrices, is_stack)
        rows = self.rows_of(matrices)
        own = {name: decay[name] for name in matrices}
        groups = [Group("muon", self.learning_rate, own, self.start, partial(muon, config=self, rows=rows))]
        rest = {name: decay[name] for name in shapes if name not in matrices}
        if rest:
            rate = self.adamw_rate(part_shapes(matrices, rows))
            groups.append(adamw_group(rate, rest, self.betas, self.eps))
        return groups

    def start(self, shape: Sequence[int]) -> Arrays:
        """Zeros: `momentum` like the parameter and, for NorMuon, `second` [..., rows, 1]."""
        moments = {"momentum": mx.zeros(tuple(shape), mx.float32)}
        return moments | ({"second": mx.zeros((*shape[:-1], 1), mx.float32)} if self.normuon else {})

    def momentum_of(self, step: mx.array) -> mx.array | float:
        """The momentum of update `step` (from 1): in a line from `momentum_start` on, where that is given."""
        if self.momentum_start is None:
            return self.momentum
        progress = mx.minimum((step.astype(mx.float32) - 1) / self.momentum_warmup_steps, 1.0)
        return compute_once(self.momentum_start + (self.momentum - self.momentum_start) * progress)[0]

    def adamw_rate(self, matrices: Shapes) -> float:
        """Learning rate of the AdamW part."""
        if self.adamw_learning_rate is not None:
            return self.adamw_learning_rate
        return adamw_rate_like(self.learning_rate, matrices, self.update_scale)

    def rows_of(self, matrices: Shapes) -> dict[str, tuple[int, ...]]:
        """Rows of the matrices of each parameter. Raises ConfigError for a glob of `splits` that does not fit."""
        check_globs("splits", self.splits, matrices)
        found, problems = {}, []
        for name, shape in matrices.items():
            glob = next((glob for glob in self.splits if fnmatchcase(name, glob)), None)
            rows = (shape[-2],) if glob is None else self.splits[glob]
            if sum(rows) != shape[-2]:
                problems.append(f"optimizer.splits: '{glob}' has {sum(rows)} rows in all, {name} has {shape[-2]}")
            found[name] = rows * (shape[0] if len(shape) == 3 else 1)
        if problems:
            raise ConfigError(*problems)
        return found

    def update_bytes(self, shapes: Shapes) -> int:
        """What the largest stack leaves behind, and half of those of its shape before and after it."""
        matrices = select_matrices(shapes, self.matrices, is_stack)
        parts = part_shapes(matrices, self.rows_of(matrices))
        held: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for names in stacks(parts, self.ns_steps):
            shape = parts[names[0]]
            rows_divided = math.prod(shape) if self.normuon else 0
            held[tuple(shape)].append(len(names) * (numbers_held(shape, self.ns_steps) + rows_divided))
        return FLOAT32 * max(of[0] + sum(of[1:3]) // 2 for of in held.values())


def muon(update: Update, config: MuonConfig, rows: Rows) -> Updated:
    """w = w * (1 - rate * decay) - rate * scale * direction, with the directions of `stack_update`."""
    shapes = {name: gradient.shape for name, gradient in update.gradients.items()}
    (rate,) = compute_once(update.rate)
    made = parts_update(update, config, rows)
    scaled = {part: scaled_up(array, config.update_scale) for part, array in made.pop(DIRECTION).items()}
    moments = {key: joined(parts, rows, shapes) for key, parts in made.items()}
    updated: Updated = {}
    for name, direction in joined(scaled, rows, shapes).items():
        is_cautious = config.cautious_decay and update.decay[name]
        shrunk = cautiously_decayed(update, name, rate, direction) if is_cautious else decayed(update, name, rate)
        updated[name] = (shrunk - rate * direction, {key: arrays[name] for key, arrays in moments.items()})
    return updated


def cautiously_decayed(update: Update, name: str, rate: mx.array, direction: mx.array) -> mx.array:
    """The parameter, decayed only where its update does not move it away from zero.

    Chen et al. 2025 (arXiv 2510.12402), algorithm 1: w - rate * decay * [direction * w >= 0] * w.
    """
    parameter = update.parameters[name]
    return mx.where(direction * parameter >= 0, decayed(update, name, rate), parameter)


def parts_update(update: Update, config: MuonConfig, rows: Rows) -> dict[str, Arrays]:
    """`stack_update` of all matrices, stack by stack: {`DIRECTION` or moment: {part name: [R, C]}}."""
    kinds = {GRADIENT: parted(update.gradients, rows)}
    for key in next(iter(update.moments.values())):
        kinds[key] = parted({name: moments[key] for name, moments in update.moments.items()}, rows)
    momentum = config.momentum_of(update.step)
    made: dict[str, Arrays] = defaultdict(dict)
    last = mx.zeros(())
    for names in stacks({part: gradient.shape for part, gradient in kinds[GRADIENT].items()}, config.ns_steps):
        # One stack after the other: together their iterations hold many times the memory of the weights.
        stack = stack_update(update, stacked(kinds, names, last), len(names), config, momentum)
        last = stack[DIRECTION]
        for kind, array in stack.items():
            made[kind].update(zip(names, mx.split(array, len(names)), strict=True))
    return made


def stack_update(
    update: Update, stack: Arrays, num_matrices: int, config: MuonConfig, momentum: mx.array | float
) -> Arrays:
    """Direction and new moments [N R, C] of one stack of N matrices, from its gradients and old moments.

    m = momentum * m + (1 - momentum) * g; what is made orthogonal is m, or with Nesterov
    momentum * m + (1 - momentum) * g. NorMuon keeps v = beta * v + (1 - beta) * mean of a row's squares as well.
    """
    held = update._replace(moments={STACK: stack})
    buffer = momentum * stack["momentum"] + (1 - momentum) * stack[GRADIENT]
    made = held.settled(STACK, {"momentum": buffer})
    step = made["momentum"]
    if config.nesterov:
        step = momentum * step + (1 - momentum) * stack[GRADIENT]
    step_NRC = step.reshape(num_matrices, -1, step.shape[1])
    direction_NRC = newton_schulz(step_NRC, COEFFICIENTS[config.coefficients][: config.ns_steps])
    if config.normuon:
        squares = mx.square(direction_NRC).mean(axis=2).reshape(-1, 1)
        second = config.normuon_beta * stack["second"] + (1 - config.normuon_beta) * squares
        made |= held.settled(STACK, {"second": second})
        direction_NRC = row_normalised(direction_NRC, made["second"].reshape(num_matrices, -1, 1))
    return {DIRECTION: direction_NRC.reshape(step.shape), **made}
