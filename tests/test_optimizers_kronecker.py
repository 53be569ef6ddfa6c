"""Blocks against NumPy's slices, running means against their definition."""

import math

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizers.kronecker import (
    cut,
    first_counts,
    grid_of,
    join,
    left_statistic,
    matrix_shape,
    new_statistics,
    right_statistic,
    share_of_newest,
)

shapes = st.lists(st.integers(1, 9), min_size=2, max_size=4).map(tuple)


@settings(deadline=None, max_examples=40)
@given(shape=shapes, block_size=st.integers(1, 12))
def test_blocks_are_the_slices_and_join_again(shape: tuple[int, ...], block_size: int) -> None:
    array = np.arange(1, 1 + math.prod(shape), dtype=np.float32).reshape(shape)
    grid = grid_of(shape, block_size)
    rows, columns = grid.block
    blocks = cut(mx.array(array), grid)
    assert blocks.shape == (grid.num_blocks, rows, columns)
    assert max(rows, columns) <= block_size
    matrix = array.reshape(matrix_shape(shape))
    for index, block in enumerate(np.array(blocks)):
        top, left = rows * (index // grid.across), columns * (index % grid.across)
        expected = matrix[top : top + rows, left : left + columns]
        np.testing.assert_array_equal(block[: expected.shape[0], : expected.shape[1]], expected)
        assert block.sum() == pytest.approx(expected.sum())
    np.testing.assert_array_equal(np.array(join(blocks, grid, shape)), array)


def test_no_more_parts_than_needed() -> None:
    assert (grid_of((512, 1408), 512).across, grid_of((512, 1408), 512).block) == (3, (512, 470))
    assert grid_of((512, 1408), 2048).num_blocks == 1
    assert grid_of((8, 512, 512), 512).block == (512, 512)


@pytest.mark.parametrize(
    ("shape", "matrix"),
    [
        ((3, 5), (3, 5)),
        ((8, 512, 512), (4096, 512)),
        ((64, 3, 3, 32), (192, 96)),
        ((6, 4, 1), (6, 4)),
        ((1, 1), (1, 1)),
    ],
)
def test_more_dimensions_become_a_matrix(shape: tuple[int, ...], matrix: tuple[int, int]) -> None:
    assert matrix_shape(shape) == matrix


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.9999])
def test_running_means_are_unbiased_from_the_first_step(beta: float) -> None:
    gradients = np.random.default_rng(0).normal(size=(30, 2, 3, 4))
    left, right, mean, square = mx.zeros((2, 3, 3)), mx.zeros((2, 4, 4)), np.zeros((2, 3, 3)), np.zeros((2, 4, 4))
    for step, gradient in enumerate(gradients, 1):
        share = share_of_newest(mx.array(step, mx.uint64), beta)
        array = mx.array(gradient.astype(np.float32))
        left, right = left_statistic(left, array, share), right_statistic(right, array, share)
        mean = beta * mean + (1 - beta) * gradient @ gradient.swapaxes(1, 2)
        square = beta * square + (1 - beta) * gradient.swapaxes(1, 2) @ gradient
        np.testing.assert_allclose(np.array(left), mean / (1 - beta**step), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(np.array(right), square / (1 - beta**step), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_elements_that_are_not_finite_start_anew_and_their_blocks_are_counted(bad: float) -> None:
    generator = np.random.default_rng(1)
    gradient, left, right = (
        generator.normal(size=shape).astype(np.float32) for shape in ((3, 2, 4), (3, 2, 2), (3, 4, 4))
    )
    left[1, 0, 1], right[0, 2, 3], right[0, 1, 1], right[2, 0, 0] = bad, bad, -bad, bad
    old = {"left": mx.array(left), "right": mx.array(right)} | first_counts()
    new = new_statistics(old, mx.array(gradient), mx.array(0.25))
    assert new.keys() == {"left", "right", "num_mended"}
    assert new["num_mended"].item() == 3
    squares = {"left": gradient @ gradient.swapaxes(1, 2), "right": gradient.swapaxes(1, 2) @ gradient}
    for side, mean in (("left", left), ("right", right)):
        expected = 0.75 * np.where(np.isfinite(mean), mean, 0) + 0.25 * squares[side]
        np.testing.assert_allclose(np.array(new[side]), expected, rtol=1e-5, atol=1e-6)
    again = new_statistics(old | new, mx.array(gradient), mx.array(0.25))
    assert again["num_mended"].item() == 3


def test_sides_without_a_mean_stay_without_and_count_nothing() -> None:
    old = {"right": mx.ones((1, 3, 3))} | first_counts()
    new = new_statistics(old, mx.ones((1, 2, 3)), mx.array(1.0))
    assert new.keys() == {"right", "num_mended"}
    np.testing.assert_array_equal(np.array(new["right"]), np.full((1, 3, 3), 2.0))
    assert new_statistics(first_counts(), mx.ones((1, 2, 3)), mx.array(1.0))["num_mended"].item() == 0
