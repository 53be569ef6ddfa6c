"""Shampoo: momentum multiplied from both sides by inverse roots of the running means of G G^T and G^T G, in blocks, for
the matrices of the layers; AdamW for the rest. The roots are dear and change slowly, so they are renewed every
`update_period` updates, beside an update; how far a block moves is another method's say (grafting), which also trains
alone until there are roots. Gupta et al. 2018 (arXiv 1802.09568); blocks, grafting and roots by Newton's iteration from
Anil et al. 2020 (2002.09018); running means and the order of things from Shi et al. 2023 (2309.06497). To change the
direction edit `shampoo`, its length `grafted`; how roots are made stands in `inverse_root.py`.

Shapes: N blocks of a matrix, R rows and C columns of a block.
"""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import partial
from typing import Literal

import mlx.core as mx
from pydantic import Field, field_validator

from optimizers.base import Arrays, Group, OptimizerConfig, Refresh, Shapes, Update, Updated, compute_once, zeros
from optimizers.enhanced_optimizers import Beta, adamw_group, adamw_moments, bias_correction, decayed
from optimizers.inverse_root import LARGEST_STACK, inverse_roots, sum_of_squares
from optimizers.kronecker import SIDES, cut, first_counts, grid_of, join, new_statistics, share_of_newest
from optimizers.selection import LAYERS, select_matrices

Grafting = Literal["adam", "sgd", "momentum", "none"]

LARGEST_DEGREE = 16
"""Of the roots: the power of a side is a fraction with at most this below its line."""
FLOAT32 = 4
UPDATE_ARRAYS, UPDATE_SHARE = 36, 12
"""Arrays of the largest matrix's size among the kernels of an update that are alive at once, if there are so many."""
ROOT_ARRAYS = 34
"""Arrays of a stack's size among the last kernels of a refresh. Measured: 32 to 48 for models of 5M to 26M, and 26."""
STRONGER, WEAKER = 100.0, 0.5
"""What multiplies the ridge of a block whose root failed, and of one whose root did not."""
TINY = 1e-30


def start(shape: Sequence[int], block_size: int, ridge: float, grafting: Grafting) -> Arrays:
    """Moments of a parameter before the first update. Roots of zeros say that there are none yet."""
    grid = grid_of(shape, block_size)
    moments = zeros("first", "second")(shape) if grafting == "adam" else zeros("first")(shape)
    for side, size in zip(SIDES, grid.block, strict=True):
        moments |= zeros(side, f"{side}_root")((grid.num_blocks, size, size))
        moments[f"{side}_ridge"] = mx.full((grid.num_blocks,), ridge, mx.float32)
    return moments | first_counts()


def shampoo(
    update: Update,
    block_size: int,
    betas: tuple[float, float],
    shampoo_beta: float,
    eps: float,
    grafting: Grafting,
) -> Updated:
    """w = w * (1 - rate * decay) - rate * s, s with the direction of L^-p m R^-p and the length that grafting says.

    m is the bias-corrected mean of the gradients; L and R are those of G G^T and G^T G, with the roots that the last
    refresh made (Shi et al. 2023, algorithm 2). Every block is treated as a parameter of its own.
    """
    rate, share, first_scale, root_scale = compute_once(
        update.rate,
        share_of_newest(update.step, shampoo_beta),
        1 / bias_correction(update.step, betas[0]),
        mx.rsqrt(bias_correction(update.step, betas[1])),
    )
    updated: Updated = {}
    for name, gradient in update.gradients.items():
        old = update.moments[name]
        grid = grid_of(gradient.shape, block_size)
        gradient_NRC = cut(gradient, grid)
        statistics = new_statistics(old, gradient_NRC, share)
        moments = update.settled(name, statistics | running_means(gradient, old, betas))
        momentum = first_scale * moments["first"]
        if grafting == "adam":
            step = momentum / (mx.sqrt(moments["second"]) * root_scale + eps)
        else:
            step = {"sgd": gradient, "momentum": moments["first"] / (1 - betas[0]), "none": momentum}[grafting]
        direction_NRC = old["left_root"] @ cut(momentum, grid) @ old["right_root"]
        step_NRC = grafted(direction_NRC, cut(step, grid), rescales=grafting != "none")
        updated[name] = (decayed(update, name, rate) - rate * join(step_NRC, grid, gradient.shape), moments)
    return updated


def running_means(gradient: mx.array, old: Arrays, betas: tuple[float, float]) -> Arrays:
    """Of the gradient and, where grafting keeps it, of its square."""
    if "second" in old:
        return adamw_moments(gradient, old, betas)
    return {"first": betas[0] * old["first"] + (1 - betas[0]) * gradient}


def grafted(direction_NRC: mx.array, step_NRC: mx.array, rescales: bool) -> mx.array:
    """The direction of each block, as long as the step where `rescales`; the step itself where there is no direction.

    There is none before the first roots, and for a block of zeros.
    """
    length_N11 = mx.sqrt(sum_of_squares(direction_NRC))
    if rescales:
        direction_NRC = direction_NRC * (mx.sqrt(sum_of_squares(step_NRC)) / mx.maximum(length_N11, TINY))
    return mx.where(length_N11 > 0, direction_NRC, step_NRC)


def renewed(moments: Mapping[str, Arrays], _: int, power: Fraction, ridge: float) -> dict[str, Arrays]:
    """The roots of all statistics of a group, and what became of the ridges.

    A root that did not converge stays as it was, is counted, and is tried again at the next refresh with a ridge a
    hundred times larger, up to the matrix's own norm, with which every finite matrix is positive definite; the next
    update mends what is not finite. Nobody waits to see whether it converged.
    """
    keys = [(name, side) for name in moments for side in SIDES]
    roots = inverse_roots(
        {(name, side): moments[name][side] for name, side in keys},
        {(name, side): moments[name][f"{side}_ridge"] for name, side in keys},
        power,
        ridge,
    )
    made: dict[str, Arrays] = {name: {"num_damped": old["num_damped"]} for name, old in moments.items()}
    for (name, side), found in roots.items():
        old, new, converged_N = moments[name], made[name], found.converged_N
        ridge_N = old[f"{side}_ridge"]
        new[f"{side}_root"] = mx.where(converged_N[:, None, None], found.root_NRR, old[f"{side}_root"])
        new[f"{side}_ridge"] = mx.clip(ridge_N * mx.where(converged_N, WEAKER, STRONGER), ridge, 1.0)
        new["num_damped"] = new["num_damped"] + mx.sum(mx.logical_not(converged_N))
    mx.async_eval(made)
    return made


class ShampooConfig(OptimizerConfig):
    """Shampoo for the matrices of the layers, AdamW for embeddings, head, norms and biases."""

    type: str = "shampoo"
    """The row of the table."""
    learning_rate: float = Field(default=1e-3, gt=0, allow_inf_nan=False)
    """Largest learning rate; the schedule multiplies it. With `grafting: adam` those of AdamW carry over."""
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    """Decay of the running means of the gradient, and of its square: for grafting by Adam and the AdamW part."""
    shampoo_beta: Beta | None = None
    """Decay of the running means of G G^T and G^T G; null: the second of `betas`."""
    eps: float = Field(default=1e-8, gt=0, allow_inf_nan=False)
    """Of grafting by Adam and the AdamW part: added to the root of the second moment."""
    update_period: int = Field(default=10, ge=1)
    """Updates from one renewal of the roots to the next."""
    start_preconditioning_step: int = Field(default=10, ge=0)
    """Updates after which roots are made first; the second update from then on uses them. Until then, and in blocks
    without a gradient so far, the grafting method trains alone (`none`: the mean of the gradients).
    """
    preconditioner_epsilon: float = Field(default=1e-5, ge=1e-12, le=1)
    """Ridge: this share of a block's Frobenius norm is added to all eigenvalues before the root. With 1e-5 fourth
    roots in float32 are right to 1e-3 whatever the rank, with 1e-6 to 5e-3. A block that needs a larger one gets it,
    counted in `num_damped`. (Means that are not finite start anew and count in `num_mended`.)
    """
    exponent_override: float | None = Field(default=None, gt=0, le=1)
    """The power e in L^(-e/2) m R^(-e/2); null: 0.5, which makes the fourth roots of Gupta et al., whose direction does
    not depend on the gradient's scale. Its half is a fraction with at most 16 below the line.
    """
    block_size: int = Field(default=256, ge=1)
    """Longest side of a block; a longer side is cut into equal parts. An update costs about 4 * block_size operations
    a parameter on top, a renewal 160 * block_size.
    """
    grafting: Grafting = "adam"
    """Whose step a block's step is as long as: `adam`, `sgd` (the gradient), `momentum` (its decaying sum); `none`: the
    length stays as the roots made it.
    """
    matrices: tuple[str, ...] = LAYERS
    """Globs of what Shampoo updates; of these, whatever has fewer than 2 or more than 4 dimensions goes to AdamW with
    the rest. More than 2 dimensions are taken as a matrix of the first ones by the others, as square as can be.
    """
    adamw_learning_rate: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Learning rate of the AdamW part; null: `learning_rate` with `grafting: adam`, else 1e-3."""

    @field_validator("exponent_override")
    @classmethod
    def _is_a_fraction(cls, exponent: float | None) -> float | None:
        if exponent is not None and abs(2 * power_of(exponent) - exponent) > 1e-6:
            nearest = float(2 * power_of(exponent))
            raise ValueError(
                f"half of {exponent} is no fraction with at most {LARGEST_DEGREE} below: try {nearest:.9g}"
            )
        return exponent

    def groups(self, shapes: Shapes) -> list[Group]:
        """`shampoo` for the matrices of the layers and, where anything is left, `adamw` for it."""
        decay = self.decay_of(shapes)
        matrices = select_matrices(shapes, self.matrices)
        rest = {name: decay[name] for name in shapes if name not in matrices}
        beta = self.betas[1] if self.shampoo_beta is None else self.shampoo_beta
        power = power_of(0.5 if self.exponent_override is None else self.exponent_override)
        blocks = {"block_size": self.block_size, "grafting": self.grafting}
        groups = [
            Group(
                "shampoo",
                self.learning_rate,
                {name: decay[name] for name in matrices},
                partial(start, ridge=self.preconditioner_epsilon, **blocks),
                partial(shampoo, betas=self.betas, shampoo_beta=beta, eps=self.eps, **blocks),
                Refresh(
                    self.is_due, partial(renewed, power=power, ridge=self.preconditioner_epsilon), self.update_period
                ),
            )
        ]
        if rest:
            rate = self.adamw_learning_rate or (self.learning_rate if self.grafting == "adam" else 1e-3)
            groups.append(adamw_group(rate, rest, self.betas, self.eps))
        return groups

    def update_bytes(self, shapes: Shapes) -> int:
        """What the kernels of the largest matrices hold, or those of all matrices."""
        sizes = [math.prod(shape) for shape in select_matrices(shapes, self.matrices).values()]
        return FLOAT32 * min(UPDATE_ARRAYS * max(sizes), UPDATE_SHARE * sum(sizes))

    def refresh_bytes(self, shapes: Shapes) -> int:
        """The new roots."""
        return FLOAT32 * self.num_statistics(shapes)

    def renewal_bytes(self, shapes: Shapes, on_cpu: bool) -> int:
        """New roots, what they are cut from, and the iterations of a stack."""
        numbers = self.num_statistics(shapes)
        return FLOAT32 * (2 * numbers + ROOT_ARRAYS * min(LARGEST_STACK, numbers))

    def num_statistics(self, shapes: Shapes) -> int:
        """Numbers in the means of G G^T and G^T G of all blocks; the roots have as many."""
        matrices = select_matrices(shapes, self.matrices).values()
        grids = [grid_of(shape, self.block_size) for shape in matrices]
        return sum(grid.num_blocks * side**2 for grid in grids for side in grid.block)

    def is_due(self, num_updates: int) -> bool:
        """Whether roots are made after so many updates."""
        since = num_updates - self.start_preconditioning_step
        return since >= 0 and since % self.update_period == 0


def power_of(exponent: float) -> Fraction:
    """What one side's share of an exponent is, as the nearest fraction that can be done; never 0."""
    return max(Fraction(exponent / 2).limit_denominator(LARGEST_DEGREE), Fraction(1, LARGEST_DEGREE))
