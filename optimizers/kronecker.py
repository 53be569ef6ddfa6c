"""What Shampoo and SOAP share: parameters as matrices, matrices as stacks of equal blocks, and the running means of
G G^T and G^T G. A side is cut into as few parts as `block_size` allows, all of one length, the last filled up with
zeros: so that a parameter is one array [N, R, C] and each of its moments is too. Zeros change nothing: their rows and
columns of G G^T are zero, so no power of it mixes them with the others. To cut differently edit `grid_of`; to change
what is kept of the gradients, `new_statistics`.

Shapes: N blocks of a matrix, R rows and C columns of a block.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx

from optimizers.base import Arrays, zeros
from optimizers.enhanced_optimizers import bias_correction

SIDES = ("left", "right")


class Grid(NamedTuple):
    """A matrix and the parts its sides are cut into."""

    rows: int
    columns: int
    down: int
    """Parts of the rows."""
    across: int
    """Parts of the columns."""

    @property
    def block(self) -> tuple[int, int]:
        """Rows and columns of every block."""
        return -(-self.rows // self.down), -(-self.columns // self.across)

    @property
    def num_blocks(self) -> int:
        """N."""
        return self.down * self.across


def matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    """Rows and columns a parameter of two or more dimensions is reshaped to: the first dimensions, and the others.

    They are parted where the longer side is shortest, so that a stack of experts [8, 512, 512] is [4096, 512], of which
    blocks of 512 rows are one expert each.
    """
    parts = [(math.prod(shape[:index]), math.prod(shape[index:])) for index in range(1, len(shape))]
    return min(parts, key=max)


def grid_of(shape: Sequence[int], block_size: int) -> Grid:
    """How a parameter of two or more dimensions is cut into blocks of at most `block_size` rows and columns."""
    rows, columns = matrix_shape(shape)
    return Grid(rows, columns, max(1, -(-rows // block_size)), max(1, -(-columns // block_size)))


def cut(array: mx.array, grid: Grid) -> mx.array:
    """The blocks [N, R, C] of a parameter, one row of them after the other, zeros where the last ones reach beyond."""
    rows, columns = grid.block
    matrix = array.reshape(grid.rows, grid.columns)
    beyond = (grid.down * rows - grid.rows, grid.across * columns - grid.columns)
    if any(beyond):
        matrix = mx.pad(matrix, [(0, beyond[0]), (0, beyond[1])])
    return matrix.reshape(grid.down, rows, grid.across, columns).swapaxes(1, 2).reshape(-1, rows, columns)


def join(blocks_NRC: mx.array, grid: Grid, shape: Sequence[int]) -> mx.array:
    """The parameter that `cut` made the blocks of."""
    rows, columns = grid.block
    parted = blocks_NRC.reshape(grid.down, grid.across, rows, columns).swapaxes(1, 2)
    matrix = parted.reshape(grid.down * rows, grid.across * columns)
    return matrix[: grid.rows, : grid.columns].reshape(tuple(shape))


def share_of_newest(step: mx.array, beta: float) -> mx.array:
    """(1 - beta) / (1 - beta^step), 0-d float32: what update `step` counts in a running mean without a bias.

    mean += share * (new - mean) is the bias-corrected mean itself, so that whoever reads it needs no step; the first
    share is 1. Pass it through `compute_once`.
    """
    return (1 - beta) / bias_correction(step, beta)


def left_statistic(mean_NRR: mx.array, gradient_NRC: mx.array, share: mx.array) -> mx.array:
    """The running mean of G G^T with one gradient more (Gupta et al. 2018, algorithm 1; Shi et al. 2023, a mean).

    Elements that are not finite start anew: nothing else would ever leave a running mean.
    """
    # A fourth of what `isfinite` takes on a CPU; NaN compares as false.
    mended_NRR = mx.where(mx.abs(mean_NRR) < mx.inf, mean_NRR, 0.0)
    return mended_NRR + share * (gradient_NRC @ gradient_NRC.swapaxes(1, 2) - mended_NRR)


def right_statistic(mean_NCC: mx.array, gradient_NRC: mx.array, share: mx.array) -> mx.array:
    """The running mean of G^T G, likewise."""
    return left_statistic(mean_NCC, gradient_NRC.swapaxes(1, 2), share)


def first_counts() -> Arrays:
    """Both counts of a parameter, 0-d float32: `num_mended` is the updates', `num_damped` the refreshes'."""
    return zeros("num_mended", "num_damped")(())


def new_statistics(old: Arrays, gradient_NRC: mx.array, share: mx.array) -> Arrays:
    """`left` and `right`, where they are kept, with one gradient more, and `num_mended`.

    That counts, over all updates, the blocks' means that were not finite when an update began: from broken state, or a
    gradient whose square is too large for float32.
    """
    rules = {"left": left_statistic, "right": right_statistic}
    means = {side: rules[side](old[side], gradient_NRC, share) for side in SIDES if side in old}
    broken = [mx.sum(mx.logical_not(mx.isfinite(old[side].sum(axis=2).sum(axis=1)))) for side in means]
    return means | {"num_mended": sum(broken, old["num_mended"])}
