"""SOAP: Adam in the eigenbasis of Shampoo's two running means, for the matrices of the layers; AdamW for the rest. In
that basis the elements of a gradient are nearly uncorrelated, which Adam's division by the size of each one assumes.
The bases change slowly, so they are renewed every `precondition_frequency` updates, beside an update, on the CPU. Vyas
et al. 2024 (arXiv 2409.11321), algorithm 3. To change the direction edit `soap`; how bases are made stands in
`eigenbasis.py`.

The first updates here are Adam's, since the bases start as identities; the authors' code makes none until it has bases.
Both make the first ones by `eigh` from the first gradient. Shapes: R rows and C columns of a matrix.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import mlx.core as mx
from pydantic import Field

from optimizers.base import Arrays, Group, OptimizerConfig, Refresh, Shapes, Update, Updated, compute_once, zeros
from optimizers.eigenbasis import LARGEST_STACK, Basis, renewed_bases
from optimizers.enhanced_optimizers import Beta, adamw_group, bias_correction, decayed, second_moment
from optimizers.kronecker import SIDES, first_counts, matrix_shape, new_statistics, share_of_newest
from optimizers.selection import LAYERS, select_matrices

FLOAT32 = 4
ARRAYS_ALIVE, SHARE_ALIVE = 20, 1.6
"""Statistics of so many matrices are held by what MLX starts ahead, at most this share of all. Measured: 15 to 26, 1.3
to 1.6, with 7 to 56 matrices of widths 256 to 512."""
SHARE_OF_RENEWAL, STACKS_OF_RENEWAL = 3.4, 6
"""Beside the bases, measured on a CPU: 3.4 and 3.5 of them where they fit into a stack or two, 5 to 6.6 stacks else."""
ARRAYS_OF_RENEWAL = 6
"""Of the size of all bases: what QR gets, one by one and stacked, its copy by columns, R, Q, Q in the old order."""


def sides_of(shape: Sequence[int], max_dim: int) -> dict[str, int]:
    """The sides of a parameter that get a basis, with their lengths: neither longer than `max_dim` nor of length 1."""
    return {side: size for side, size in zip(SIDES, matrix_shape(shape), strict=True) if 1 < size <= max_dim}


def start(shape: Sequence[int], max_dim: int) -> Arrays:
    """Moments of a parameter before the first update; a mean and a basis [1, C, C] for each side that gets one."""
    moments = zeros("first", "second")(shape)
    for side, size in sides_of(shape, max_dim).items():
        moments |= {side: mx.zeros((1, size, size), mx.float32), f"{side}_basis": mx.eye(size, dtype=mx.float32)[None]}
    return moments | first_counts()


def soap(update: Update, betas: tuple[float, float], eps: float, shampoo_beta: float) -> Updated:
    """w = w * (1 - rate * decay) - rate * Q_L (m' / (sqrt(v) + eps)) Q_R^T, moments bias-corrected as in AdamW.

    m' = Q_L^T m Q_R is the mean gradient in the bases; v is the mean square of the gradients there, each in the bases
    of its time; Q_L and Q_R are what the last refresh made of the means of G G^T and G^T G (algorithm 3).
    """
    rate, first_rate, root_scale, share = compute_once(
        update.rate,
        update.rate / bias_correction(update.step, betas[0]),
        mx.rsqrt(bias_correction(update.step, betas[1])),
        share_of_newest(update.step, shampoo_beta),
    )
    updated: Updated = {}
    for name, gradient in update.gradients.items():
        old = update.moments[name]
        gradient_1RC = gradient.reshape(1, *matrix_shape(gradient.shape))
        square = second_moment(turned(gradient_1RC, old).reshape(gradient.shape), old["second"], betas[1])
        first = betas[0] * old["first"] + (1 - betas[0]) * gradient
        statistics = new_statistics(old, gradient_1RC, share)
        moments = update.settled(name, {"first": first, "second": square} | statistics)
        mean_1RC = turned(moments["first"].reshape(gradient_1RC.shape), old)
        scale_1RC = mx.sqrt(moments["second"].reshape(gradient_1RC.shape)) * root_scale + eps
        change = first_rate * turned_back(mean_1RC / scale_1RC, old).reshape(gradient.shape)
        updated[name] = (decayed(update, name, rate) - change, moments)
    return updated


def turned(matrix_1RC: mx.array, moments: Arrays) -> mx.array:
    """Q_L^T X Q_R; a side without a basis stays as it is."""
    if "left" in moments:
        matrix_1RC = moments["left_basis"].swapaxes(1, 2) @ matrix_1RC
    return matrix_1RC @ moments["right_basis"] if "right" in moments else matrix_1RC


def turned_back(matrix_1RC: mx.array, moments: Arrays) -> mx.array:
    """Q_L X Q_R^T: undoes `turned`."""
    if "left" in moments:
        matrix_1RC = moments["left_basis"] @ matrix_1RC
    return matrix_1RC @ moments["right_basis"].swapaxes(1, 2) if "right" in moments else matrix_1RC


def is_due(num_updates: int, frequency: int) -> bool:
    """Whether new bases are made after so many updates: after the first one, then every `frequency`."""
    return num_updates == 1 or num_updates % frequency == 0


def renewed(moments: Mapping[str, Arrays], num_updates: int, basis: Basis) -> dict[str, Arrays]:
    """New bases for all parameters of a group, the first by `eigh`, and the count of those that had to be damped.

    What was not finite and had been mended by an update before is in its `num_mended`.

    The second moment stays: each column of a new basis is in the place of the old column it takes after.
    """
    keys = [(name, side) for name, arrays in moments.items() for side in SIDES if side in arrays]
    means = {(name, side): moments[name][side] for name, side in keys}
    bases = {(name, side): moments[name][f"{side}_basis"] for name, side in keys}
    made: dict[str, Arrays] = {}
    for (name, side), found in renewed_bases(means, bases, "eigh" if num_updates == 1 else basis).items():
        new = made.setdefault(name, {"num_damped": moments[name]["num_damped"]})
        new[f"{side}_basis"] = found.basis_1CC
        new["num_damped"] = new["num_damped"] + found.damped_1[0]
    return made


class SOAPConfig(OptimizerConfig):
    """SOAP for the matrices of the layers, AdamW for embeddings, head, norms and biases."""

    type: str = "soap"
    """The row of the table."""
    learning_rate: float = Field(default=3e-3, gt=0, allow_inf_nan=False)
    """Largest learning rate; the schedule multiplies it. Those of AdamW carry over."""
    betas: tuple[Beta, Beta] = (0.95, 0.95)
    """Decay of the running means of the gradient and of its square, also in the AdamW part."""
    eps: float = Field(default=1e-8, gt=0, allow_inf_nan=False)
    """Added to the root of the second moment."""
    shampoo_beta: Beta | None = None
    """Decay of the running means of G G^T and G^T G, whose eigenvectors are the bases; null: the second of `betas`."""
    precondition_frequency: int = Field(default=10, ge=1)
    """Updates from one renewal of the bases to the next."""
    basis: Basis = "qr"
    """`qr`: one step of orthogonal iteration a renewal, after a first one by `eigh`; `eigh`: exact every time."""
    max_preconditioner_dim: int = Field(default=1024, ge=1)
    """Sides of a matrix longer than this keep the identity as their basis; one of n takes 2 n^2 numbers of state."""
    matrices: tuple[str, ...] = LAYERS
    """Globs of what SOAP updates; of these, what has less than two dimensions goes to AdamW with the rest. More than
    two are flattened into two.
    """
    adamw_learning_rate: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Learning rate of the AdamW part; null: `learning_rate`."""

    def groups(self, shapes: Shapes) -> list[Group]:
        """`soap` for the matrices of the layers and, where anything is left, `adamw` for it."""
        decay = self.decay_of(shapes)
        matrices = select_matrices(shapes, self.matrices)
        rest = {name: decay[name] for name in shapes if name not in matrices}
        shampoo_beta = self.betas[1] if self.shampoo_beta is None else self.shampoo_beta
        group = Group(
            "soap",
            self.learning_rate,
            {name: decay[name] for name in matrices},
            partial(start, max_dim=self.max_preconditioner_dim),
            partial(soap, betas=self.betas, eps=self.eps, shampoo_beta=shampoo_beta),
            Refresh(
                partial(is_due, frequency=self.precondition_frequency),
                partial(renewed, basis=self.basis),
                self.precondition_frequency,
            ),
        )
        rate = self.learning_rate if self.adamw_learning_rate is None else self.adamw_learning_rate
        return [group, adamw_group(rate, rest, self.betas, self.eps)] if rest else [group]

    def update_bytes(self, shapes: Shapes) -> int:
        """New means of G G^T and their products, as many as are under way at once."""
        sizes = self.statistic_bytes(shapes)
        return round(min(SHARE_ALIVE, ARRAYS_ALIVE / len(sizes)) * sum(sizes))

    def refresh_bytes(self, shapes: Shapes) -> int:
        """The new bases."""
        return sum(self.statistic_bytes(shapes))

    def renewal_bytes(self, shapes: Shapes, on_cpu: bool) -> int:
        """New bases and what they are made from: all of it beside a GPU, some stacks of it on a CPU alone."""
        bases = self.refresh_bytes(shapes)
        if not on_cpu:
            return ARRAYS_OF_RENEWAL * bases
        return bases + min(round(SHARE_OF_RENEWAL * bases), STACKS_OF_RENEWAL * FLOAT32 * LARGEST_STACK)

    def statistic_bytes(self, shapes: Shapes) -> list[int]:
        """For each matrix the bytes of its means of G G^T and G^T G; its bases take as many."""
        matrices = select_matrices(shapes, self.matrices).values()
        return [
            FLOAT32 * sum(size**2 for size in sides_of(shape, self.max_preconditioner_dim).values())
            for shape in matrices
        ]
