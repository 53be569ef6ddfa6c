"""New bases against NumPy: what they are, which column each vector takes, and matrices of every kind of brokenness."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizers import eigenbasis
from optimizers.eigenbasis import Basis, renewed_bases, stacks_of

METHODS = ("qr", "eigh")


def renew(matrix: np.ndarray, basis: np.ndarray, method: Basis) -> tuple[np.ndarray, float]:
    means = {"x": mx.array(matrix.astype(np.float32))[None]}
    found = renewed_bases(means, {"x": mx.array(basis.astype(np.float32))[None]}, method)["x"]
    return np.array(found.basis_1CC[0], np.float64), float(np.array(found.damped_1)[0])


def turn(size: int, seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]


def with_eigenvalues(values: np.ndarray, seed: int = 0) -> np.ndarray:
    vectors = turn(len(values), seed)
    return vectors * values @ vectors.T


def error_of(basis: np.ndarray) -> float:
    """How far the columns are from orthonormal."""
    return np.abs(basis.T @ basis - np.eye(len(basis))).max()


def off_diagonal(matrix: np.ndarray, basis: np.ndarray) -> float:
    """How far the matrix is from diagonal in the basis, beside its largest element there."""
    turned = basis.T @ matrix @ basis
    return np.abs(turned - np.diag(np.diag(turned))).max() / np.abs(turned).max()


def ranks(matrix: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """The place of each column by falling eigenvalue."""
    return np.argsort(np.argsort(-np.einsum("ij,ij->j", basis, matrix @ basis)))


@settings(deadline=None, max_examples=30)
@given(
    size=st.integers(2, 24),
    rank=st.integers(0, 24),
    exponent=st.integers(-30, 30),
    seed=st.integers(0, 999),
    method=st.sampled_from(METHODS),
)
def test_columns_are_orthonormal_whatever_rank_and_size_of_numbers(
    size: int, rank: int, exponent: int, seed: int, method: Basis
) -> None:
    half = np.random.default_rng(seed).normal(size=(size, min(rank, size)))
    basis, damped = renew(10.0**exponent * half @ half.T, turn(size, seed + 1), method)
    assert error_of(basis) < 1e-5
    assert damped == 0


@pytest.mark.parametrize("seed", range(3))
def test_eigh_gives_eigenvectors_in_the_places_of_the_old_columns(seed: int) -> None:
    matrix = with_eigenvalues(np.linspace(1, 5, 12), seed)
    old = turn(12, seed + 10)
    basis, _ = renew(matrix, old, "eigh")
    assert off_diagonal(matrix, basis) < 1e-5
    np.testing.assert_array_equal(ranks(matrix, basis), ranks(matrix, old))
    assert (ranks(matrix, old) != np.arange(12)).any()


@pytest.mark.parametrize("seed", range(3))
def test_qr_is_one_step_of_orthogonal_iteration_up_to_signs(seed: int) -> None:
    matrix = with_eigenvalues(np.linspace(1, 5, 12), seed)
    old = turn(12, seed + 10)
    basis, _ = renew(matrix, old, "qr")
    place = ranks(matrix, old)
    expected = np.linalg.qr(matrix @ old[:, np.argsort(place)])[0][:, place]
    np.testing.assert_allclose(np.abs(np.einsum("ij,ij->j", basis, expected)), 1, atol=1e-4)
    assert error_of(basis) < 1e-5


def test_steps_of_qr_come_closer_to_the_eigenvectors_and_stay_there() -> None:
    matrix = with_eigenvalues(2.0 ** np.arange(8))
    basis = turn(8, 5)
    errors = [off_diagonal(matrix, basis)]
    for _ in range(30):
        basis, _ = renew(matrix, basis, "qr")
        errors.append(off_diagonal(matrix, basis))
    assert errors[10] < errors[0] / 50
    assert errors[-1] < 1e-5
    kept, _ = renew(matrix, basis, "qr")
    np.testing.assert_allclose(np.abs(np.einsum("ij,ij->j", basis, kept)), 1, atol=1e-5)


def test_eigenvalues_that_change_places_take_their_columns_along() -> None:
    basis = turn(4, 1)
    for values in ([4.0, 3.0, 2.0, 1.0], [1.0, 4.0, 2.0, 3.0]):
        for method in METHODS:
            new, _ = renew(basis * np.array(values) @ basis.T, basis, method)
            np.testing.assert_allclose(np.abs(np.einsum("ij,ij->j", basis, new)), 1, atol=1e-4)


def test_directions_without_gradients_keep_their_columns() -> None:
    basis = turn(6, 2)
    new, damped = renew(basis * np.array([1.0, 1e-2, 0, 0, 0, 0]) @ basis.T, basis, "qr")
    np.testing.assert_allclose(np.abs(np.einsum("ij,ij->j", basis, new)), 1, atol=2e-2)
    kept, none = renew(np.zeros((6, 6)), basis, "qr")
    np.testing.assert_allclose(np.abs(np.einsum("ij,ij->j", basis, kept)), 1, atol=1e-5)
    assert damped == none == 0


def broken(kind: str) -> np.ndarray:
    matrix = with_eigenvalues(np.linspace(1, 5, 10))
    if kind == "indefinite":
        return with_eigenvalues(np.linspace(-2, 5, 10), 1)
    if kind == "negative":
        return -matrix
    if kind == "all nan":
        return np.full((10, 10), np.nan)
    matrix[3, 4] = {"one nan": np.nan, "infinity": -np.inf, "overflow": 3e38}[kind]
    return matrix


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["indefinite", "negative", "all nan", "one nan", "infinity"])
def test_what_is_broken_is_damped_and_counted(kind: str, method: Basis) -> None:
    basis, found = np.eye(10), []
    for _ in range(20):
        basis, damped = renew(broken(kind), basis, method)
        assert error_of(basis) < 1e-5
        found.append(damped)
    # QR has to come near a negative eigenvalue to see it, and each time goes back a little.
    assert found[0] == 1 or (kind, method) == ("indefinite", "qr")
    assert max(found) == 1


@pytest.mark.parametrize("method", METHODS)
def test_the_largest_numbers_there_are_overflow_nothing(method: Basis) -> None:
    assert error_of(renew(broken("overflow"), np.eye(10), method)[0]) < 1e-5
    assert error_of(renew(np.full((10, 10), 3e38), turn(10, 1), method)[0]) < 1e-5


def test_a_damped_qr_does_not_follow_a_negative_eigenvalue() -> None:
    old = turn(3, 1)
    matrix = old * np.array([1.0, 0.5, -8.0]) @ old.T
    tilted = np.linalg.qr(old + 0.05 * np.random.default_rng(0).normal(size=(3, 3)))[0]
    basis = tilted
    for _ in range(200):
        basis, damped = renew(matrix, basis, "qr")
        assert damped == 1
    np.testing.assert_array_equal(ranks(matrix, basis), ranks(matrix, tilted))
    assert off_diagonal(matrix, basis) < 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_many_at_once_equal_one_at_a_time(method: Basis) -> None:
    sizes = {"a": 5, "b": 9, "c": 5, "d": 5, "e": 9, "f": 2}
    means = {
        name: mx.array(with_eigenvalues(np.linspace(1, 3, size), size).astype(np.float32))[None]
        for name, size in sizes.items()
    }
    bases = {name: mx.array(turn(size, ord(name)).astype(np.float32))[None] for name, size in sizes.items()}
    means["c"] = -means["c"]
    together = renewed_bases(means, bases, method)
    assert together.keys() == sizes.keys()
    for name, size in sizes.items():
        alone = renewed_bases({name: means[name]}, {name: bases[name]}, method)[name]
        assert together[name].basis_1CC.shape == (1, size, size)
        np.testing.assert_array_equal(np.array(together[name].basis_1CC), np.array(alone.basis_1CC))
        assert together[name].damped_1.item() == alone.damped_1.item() == (name == "c")


@pytest.mark.parametrize("method", METHODS)
def test_matrices_of_one_size_are_decomposed_together(method: Basis, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []

    def spy(name: str) -> Any:
        real = getattr(mx.linalg, name)

        def decompose(matrices: mx.array) -> Any:
            seen.append(matrices.shape)
            return real(matrices)

        return decompose

    for name in METHODS:
        monkeypatch.setattr(mx.linalg, name, spy(name))
    means = {number: mx.eye(3 + number % 2)[None] for number in range(9)}
    renewed_bases(means, means, method)
    assert sorted(seen) == [(4, 4, 4), (5, 3, 3)]
    monkeypatch.setattr(eigenbasis, "LARGEST_STACK", 2 * 3 * 3)
    assert [len(keys) for keys in stacks_of(dict.fromkeys(range(5), 3))] == [2, 2, 1]
    assert [len(keys) for keys in stacks_of(dict.fromkeys(range(2), 5))] == [1, 1]
    # Beside a GPU all of them are on their way at once.
    monkeypatch.setattr(eigenbasis, "runs_alone", lambda: False)
    assert [len(keys) for keys in stacks_of(dict.fromkeys(range(5), 3))] == [5]
    monkeypatch.setattr(mx, "eval", None)
    renewed_bases(means, means, method)
    assert sorted(seen)[-2:] == [(5, 3, 3), (5, 3, 3)]
