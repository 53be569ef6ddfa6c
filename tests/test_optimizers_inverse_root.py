"""Inverse roots against eigenvalues in float64, for spectra of every kind; what is not positive definite is told."""

from fractions import Fraction

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizers import inverse_root as inverse_root_module
from optimizers.inverse_root import coefficients, inverse_root, inverse_roots, product_of

POWERS = [Fraction(1, 4), Fraction(1, 2), Fraction(3, 8), Fraction(1, 3), Fraction(5, 16)]


def symmetric(values: np.ndarray, seed: int) -> np.ndarray:
    """A float32 matrix with about these eigenvalues."""
    basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values), len(values))))[0]
    matrix = ((basis * values) @ basis.T).astype(np.float32)
    return (matrix + matrix.T) / 2


def oracle(matrix: np.ndarray, ridge: float, power: Fraction) -> np.ndarray:
    exact = matrix.astype(np.float64)
    values, vectors = np.linalg.eigh(exact)
    return vectors * (values + ridge * np.linalg.norm(exact)) ** -float(power) @ vectors.T


def error_of(matrix: np.ndarray, ridge: float, power: Fraction) -> float:
    found = inverse_root(mx.array(matrix)[None], mx.array([ridge]), power, ridge)
    assert found.converged_N.item()
    root, expected = np.array(found.root_NRR[0], np.float64), oracle(matrix, ridge, power)
    np.testing.assert_array_equal(root, root.T)
    return float(np.linalg.norm(root - expected) / np.linalg.norm(expected))


@settings(deadline=None, max_examples=60)
@given(
    exponents=st.lists(st.floats(-8, 0), min_size=1, max_size=20),
    num_zeros=st.integers(0, 10),
    scale=st.sampled_from([1e-18, 1e-6, 1.0, 1e12]),
    ridge=st.sampled_from([1e-5, 1e-4, 1e-2, 1.0]),
    power=st.sampled_from(POWERS),
    seed=st.integers(0, 9),
)
def test_roots_of_random_spectra(
    exponents: list[float], num_zeros: int, scale: float, ridge: float, power: Fraction, seed: int
) -> None:
    values = scale * np.append(10.0 ** np.array(exponents), np.zeros(num_zeros))
    # What one rounding of the matrix moves the root of its smallest eigenvalue by, and the rounding of the result.
    possible = float(power) * np.finfo(np.float32).eps / ridge + 5e-6
    assert error_of(symmetric(values, seed), ridge, power) < possible


@pytest.mark.parametrize("size", [8, 40])
@pytest.mark.parametrize("rank", [1, 4])
def test_fourth_roots_without_full_rank_are_right_to_a_thousandth(size: int, rank: int) -> None:
    for seed in range(20):
        values = np.append(np.linspace(1, 2, rank), np.zeros(size - rank))
        assert error_of(symmetric(values, seed), 1e-5, Fraction(1, 4)) < 1e-3


@pytest.mark.parametrize("size", [16, 200])
def test_condition_numbers_of_a_million(size: int) -> None:
    matrix = symmetric(np.logspace(0, -6, size), 1)
    assert error_of(matrix, 1e-6, Fraction(1, 4)) < 2e-3
    assert error_of(matrix, 1e-5, Fraction(1, 4)) < 2e-4


def plain_newton(low: float, degree: int) -> int:
    """Iterations of Newton's own polynomial until both ends of [low, 1] are 1."""
    values, count = np.array([low, 1.0]) * (degree + 1) / 2, 0
    while np.abs(values - 1).max() > 1e-7:
        values, count = values * (1 + (1 - values) / degree) ** degree, count + 1
    return count


@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("low", [1e-2, 1e-6, 1e-10])
def test_the_polynomials_bring_the_whole_interval_to_one_in_fewer_steps_than_newton(
    power: Fraction, low: float
) -> None:
    values = np.concatenate([np.geomspace(low, 1, 2000), np.linspace(low, 1, 2000)])
    for a, b in coefficients(power, low):
        values = values * (a - b * values) ** power.denominator
        assert 0 < values.min() <= values.max() < 1 + 1e-9
    assert np.abs(values - 1).max() < 1e-6
    assert len(coefficients(power, low)) < plain_newton(low, power.denominator)
    assert len(coefficients(Fraction(1, 4), 1e-6)) == 10
    assert plain_newton(1e-6, 4) == 19


def test_a_matrix_of_zeros_has_a_root_of_zeros() -> None:
    found = inverse_root(mx.zeros((2, 3, 3)), mx.full((2,), 1e-5), Fraction(1, 4), 1e-5)
    assert mx.all(found.root_NRR == 0).item()
    assert mx.all(found.converged_N).item()


def test_rows_of_zeros_do_not_touch_the_others() -> None:
    matrix = symmetric(np.array([3.0, 1.0, 0.1, 0.01]), 3)
    padded = np.pad(matrix, (0, 2))
    roots = [
        np.array(inverse_root(mx.array(array)[None], mx.array([1e-4]), Fraction(1, 4), 1e-4).root_NRR[0])
        for array in (matrix, padded)
    ]
    np.testing.assert_allclose(roots[1][:4, :4], roots[0], rtol=1e-4, atol=1e-5)
    assert np.abs(roots[1][:4, 4:]).max() == 0


@pytest.mark.parametrize(
    ("broken", "needed"), [(-1e-3, 1e-2), (-0.3, 1.0), (-1.0, 1.0), (float("nan"), None), (float("inf"), None)]
)
def test_what_has_no_root_is_told_and_does_no_harm_to_its_neighbours(broken: float, needed: float | None) -> None:
    values = np.append(np.linspace(0.5, 1, 30), broken if needed else 1.0)
    matrix = symmetric(values / np.linalg.norm(values), 4)
    if needed is None:
        matrix[2, 1] = broken
    good = symmetric(np.linspace(0.5, 1, 31), 5)
    stack, power = mx.array(np.stack([good, matrix, good])), Fraction(1, 4)
    found = inverse_root(stack, mx.full((3,), 1e-5), power, 1e-5)
    assert found.converged_N.tolist() == [True, False, True]
    expected = oracle(good, 1e-5, power)
    np.testing.assert_allclose(np.array(found.root_NRR[2]), expected, rtol=1e-4, atol=1e-4)
    for ridge in (1e-5, 1e-2, 1.0):
        converged = inverse_root(stack, mx.array([1e-5, ridge, 1e-5]), power, 1e-5).converged_N[1].item()
        assert converged == (needed is not None and ridge >= needed)


def test_one_lost_eigenvalue_of_many_is_noticed() -> None:
    # Its share of M - 1 is 1 / size in every element: only a norm of all of them sees it.
    # The ridge lifts it to zero, where it stays.
    values = np.append(np.ones(255), -0.01 * 255**0.5)
    found = inverse_root(mx.array(symmetric(values, 6))[None], mx.array([0.01]), Fraction(1, 4), 0.01)
    assert not found.converged_N.item()


@pytest.mark.parametrize("largest_stack", [1, 2 * 16, 2**20])
def test_stacks_of_any_size_give_the_same(monkeypatch: pytest.MonkeyPatch, largest_stack: int) -> None:
    monkeypatch.setattr(inverse_root_module, "LARGEST_STACK", largest_stack)
    sizes = {"a": (3, 4), "b": (2, 6), "c": (5, 4), "d": (1, 1)}
    matrices = {
        key: np.stack([symmetric(np.linspace(0.1, 1, size), index) for index in range(number)])
        for key, (number, size) in sizes.items()
    }
    ridges = {key: np.geomspace(1e-5, 1e-2, number) for key, (number, _) in sizes.items()}
    found = inverse_roots(
        {key: mx.array(array) for key, array in matrices.items()},
        {key: mx.array(array.astype(np.float32)) for key, array in ridges.items()},
        Fraction(1, 2),
        1e-5,
    )
    assert found.keys() == matrices.keys()
    for key, stack in matrices.items():
        assert found[key].converged_N.tolist() == [True] * len(stack)
        for index, matrix in enumerate(stack):
            expected = oracle(matrix, ridges[key][index], Fraction(1, 2))
            np.testing.assert_allclose(np.array(found[key].root_NRR[index]), expected, rtol=1e-3, atol=1e-4)


def test_products() -> None:
    matrix = symmetric(np.array([1.1, 0.9, 0.5]), 7)
    for exponent in range(1, 17):
        expected = np.linalg.matrix_power(matrix.astype(np.float64), exponent)
        np.testing.assert_allclose(np.array(product_of(mx.array(matrix), exponent)), expected, rtol=1e-4, atol=1e-5)
