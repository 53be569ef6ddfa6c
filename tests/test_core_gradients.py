"""The norms against NumPy in float64, for large arrays too, and the factor that clips."""

import mlx.core as mx
import numpy as np
import pytest

from core.evaluation import number
from core.gradients import clip_factor, norms, square_sum


@pytest.mark.parametrize("largest", [0.5, 5.0, 1e9, None])
def test_clipping_is_numpys(largest: float | None) -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in ((3, 4), (5,))]
    tree = {"a": mx.array(arrays[0]), "b": [mx.array(arrays[1])]}
    norm = np.sqrt(sum((array.astype(np.float64) ** 2).sum() for array in arrays))
    total, each = norms(tree)
    np.testing.assert_allclose(number(total), norm, rtol=1e-6)
    np.testing.assert_allclose(
        np.array(each), [np.linalg.norm(array.astype(np.float64)) for array in arrays], rtol=1e-6
    )
    expected = 1.0 if largest is None else min(1.0, largest / norm)
    np.testing.assert_allclose(np.array(clip_factor(total, largest)), expected, rtol=1e-5)


@pytest.mark.parametrize("compiled", [False, True])
def test_many_squares_lose_nothing_to_rounding(compiled: bool) -> None:
    array = np.random.default_rng(0).normal(size=(8192, 384)).astype(np.float32) * 1e-3
    expected = (array.astype(np.float64) ** 2).sum()
    function = mx.compile(square_sum) if compiled else square_sum
    np.testing.assert_allclose(number(function(mx.array(array))), expected, rtol=1e-5)


def test_half_precision_is_summed_in_float32() -> None:
    array = mx.full((5000,), 300.0, dtype=mx.float16)
    assert number(square_sum(array)) == pytest.approx(5000 * 300.0**2, rel=1e-6)


def test_norms_hold_no_second_copy_of_the_gradients() -> None:
    gradients = {str(index): mx.random.normal((64, 1024)) for index in range(30)}
    mx.eval(gradients)
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(mx.compile(norms)(gradients))
    assert mx.get_peak_memory() - before < 3 * 64 * 1024 * 4
