"""Muon: momentum made orthogonal by Newton-Schulz, for the matrices of the layers; AdamW for the rest.

Orthogonal updates change all singular directions of a matrix alike, which took a 124M GPT-2 to the same loss
in two thirds of AdamW's steps. The iteration needs matrix products only. Everything is float32 (bfloat16
norms diverged elsewhere), matrices of one shape are iterated as one stack, tall ones as their transpose. To
change the coefficients edit `QUINTIC`; to change which parameters go to AdamW, the config's `matrices`.
"""

from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from typing import Literal

import mlx.core as mx
from pydantic import Field

from optimizers.base import (
    Arrays,
    Group,
    OptimizerConfig,
    Shapes,
    Update,
    Updated,
    check_globs,
    compute_once,
    matches,
    nearest_names,
    zeros,
)
from optimizers.enhanced_optimizers import Beta, adamw_group, decayed
from utils.errors import ConfigError

QUINTIC = (3.4445, -4.7750, 2.0315)
LAYERS = ("*layers.*",)
LARGEST_STACK = 2**22
TINY = 1e-12

UpdateScale = Literal["rms", "original"]


def newton_schulz(matrices_NRC: mx.array, num_steps: int) -> mx.array:
    """Nearly U V^T of each matrix of a stack [N, R, C] with R <= C, float32.

    Jordan et al. 2024 (kellerjordan.github.io/posts/muon): x -> a x + b x^3 + c x^5 on the singular values,
    which are first brought below 1 by the Frobenius norm. Five steps leave them within about [0.7, 1.2]; zero
    stays zero.
    """
    a, b, c = QUINTIC
    norm_N11 = mx.sqrt(mx.sum(mx.square(matrices_NRC), axis=(1, 2), keepdims=True))
    x_NRC = matrices_NRC / mx.maximum(norm_N11, TINY)
    for _ in range(num_steps):
        gram_NRR = x_NRC @ x_NRC.swapaxes(1, 2)
        x_NRC = a * x_NRC + (b * gram_NRR + c * (gram_NRR @ gram_NRR)) @ x_NRC
    return x_NRC


def orthogonalise(matrices: Arrays, num_steps: int) -> Arrays:
    """`newton_schulz` of matrices [rows, columns] of any shapes, by name."""
    result: Arrays = {}
    orthogonal_NRC = mx.zeros(())
    for names in stacks({name: matrix.shape for name, matrix in matrices.items()}):
        # One stack after the other: together their iterations hold many times the memory of the weights.
        waiting = mx.depends([matrices[name] for name in names], [orthogonal_NRC])
        wide_NRC = mx.stack([flipped_if_tall(matrix, matrix.shape) for matrix in waiting])
        orthogonal_NRC = newton_schulz(wide_NRC, num_steps)
        for index, name in enumerate(names):
            result[name] = flipped_if_tall(orthogonal_NRC[index], matrices[name].shape)
    return result


def stacks(shapes: Shapes) -> Iterator[list[str]]:
    """Names whose matrices have one shape up to transposition, at most `LARGEST_STACK` elements at once."""
    names_of: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for name, shape in shapes.items():
        names_of[tuple(sorted(shape))].append(name)
    for (rows, columns), names in names_of.items():
        at_once = max(1, LARGEST_STACK // (rows * columns))
        yield from (names[start : start + at_once] for start in range(0, len(names), at_once))


def flipped_if_tall(matrix: mx.array, shape: tuple[int, ...]) -> mx.array:
    """The transpose when `shape` has more rows than columns."""
    return matrix.T if shape[0] > shape[1] else matrix


def scale_of(rows: int, columns: int, update_scale: UpdateScale) -> float:
    """What multiplies an orthogonal update of a [rows, columns] matrix.

    `rms`: 0.2 * sqrt(max(rows, columns)), whose elements have AdamW's typical root mean square of 0.2 (Liu et
    al. 2025, Moonlight), so AdamW's learning rates carry over. `original`: sqrt(max(1, rows / columns)).
    """
    return 0.2 * max(rows, columns) ** 0.5 if update_scale == "rms" else max(1.0, rows / columns) ** 0.5


def adamw_rate_like(learning_rate: float, shapes: Shapes, update_scale: UpdateScale) -> float:
    """The AdamW learning rate that moves elements as far as Muon moves those of its slowest matrix.

    Under `rms` that is the learning rate itself; under `original` it is 5 / sqrt(columns) of it.
    """
    shares = (
        scale_of(rows, columns, update_scale) / scale_of(rows, columns, "rms") for rows, columns in shapes.values()
    )
    return learning_rate * min(shares)


def muon(update: Update, momentum: float, nesterov: bool, num_steps: int, update_scale: UpdateScale) -> Updated:
    """m = momentum * m + (1 - momentum) * g; w = w * (1 - rate * decay) - rate * scale * orthogonal(step).

    The step is m, or momentum * m + (1 - momentum) * g with Nesterov.
    """
    buffers, steps = {}, {}
    for name, gradient in update.gradients.items():
        buffer = momentum * update.moments[name]["momentum"] + (1 - momentum) * gradient
        buffers[name] = update.settled(name, {"momentum": buffer})["momentum"]
        steps[name] = momentum * buffers[name] + (1 - momentum) * gradient if nesterov else buffers[name]
    orthogonal = orthogonalise(steps, num_steps)
    (rate,) = compute_once(update.rate)
    updated: Updated = {}
    for name, direction in orthogonal.items():
        rows, columns = direction.shape
        change = rate * scale_of(rows, columns, update_scale) * direction
        updated[name] = (decayed(update, name, rate) - change, {"momentum": buffers[name]})
    return updated


class MuonConfig(OptimizerConfig):
    """Muon for the matrices of the layers, AdamW for embeddings, head, norms and biases."""

    type: str = "muon"
    """The row of the table."""
    learning_rate: float = Field(default=3e-3, gt=0, allow_inf_nan=False)
    """Largest learning rate; the schedule multiplies it. On the `rms` scale those of AdamW carry over."""
    momentum: float = Field(default=0.95, ge=0, lt=1)
    """Decay of the running mean of the gradient."""
    nesterov: bool = True
    """Mix the gradient in once more before orthogonalising."""
    ns_steps: int = Field(default=5, ge=3, le=6)
    """Newton-Schulz iterations; fewer are cheaper and less orthogonal."""
    update_scale: UpdateScale = "rms"
    """`rms`: 0.2 * sqrt(max(rows, columns)); `original`: sqrt(max(1, rows / columns)), rates near 0.02."""
    matrices: tuple[str, ...] = LAYERS
    """Globs of what Muon updates; of these, whatever is not a matrix goes to AdamW with the rest."""
    adamw_learning_rate: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Learning rate of the AdamW part; null: `learning_rate` on the `rms` scale, and on the `original` scale
    the one that moves elements as far, which is 5 / sqrt(columns of the widest matrix) of it.
    """
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    """Of the AdamW part: decay of the running means of the gradient and of its square."""
    eps: float = Field(default=1e-8, gt=0, allow_inf_nan=False)
    """Of the AdamW part: added to the root of the second moment."""

    def groups(self, shapes: Shapes) -> list[Group]:
        """`muon` for the matrices of the layers and, where anything is left, `adamw` for it."""
        decay = self.decay_of(shapes)
        matrices = self.matrix_shapes(shapes)
        rest = {name: decay[name] for name in shapes if name not in matrices}
        groups = [
            Group(
                "muon",
                self.learning_rate,
                {name: decay[name] for name in matrices},
                zeros("momentum"),
                partial(
                    muon,
                    momentum=self.momentum,
                    nesterov=self.nesterov,
                    num_steps=self.ns_steps,
                    update_scale=self.update_scale,
                ),
            )
        ]
        if rest:
            groups.append(adamw_group(self.adamw_rate(matrices), rest, self.betas, self.eps))
        return groups

    def adamw_rate(self, matrices: Shapes) -> float:
        """Learning rate of the AdamW part."""
        if self.adamw_learning_rate is not None:
            return self.adamw_learning_rate
        return adamw_rate_like(self.learning_rate, matrices, self.update_scale)

    def matrix_shapes(self, shapes: Shapes) -> dict[str, tuple[int, ...]]:
        """Names and shapes of what Muon updates. Raises ConfigError when that is nothing."""
        check_globs("matrices", [glob for glob in self.matrices if glob not in LAYERS], shapes)
        found = {
            name: tuple(shape) for name, shape in shapes.items() if len(shape) == 2 and matches(name, self.matrices)
        }
        if not found:
            near = ", ".join(nearest_names(self.matrices[0] if self.matrices else "*", shapes))
            globs = ", ".join(f"'{glob}'" for glob in self.matrices)
            raise ConfigError(f"optimizer.matrices: no matrix matches {globs or '[]'}; there are: {near}")
        return found
