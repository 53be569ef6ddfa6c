"""Newton-Schulz against NumPy in float64 and against the SVD, on both paths; how matrices are stacked and counted."""

import re

import mlx.core as mx
import mlx.optimizers
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten

from optimizers import newton_schulz as module
from optimizers.muon import MuonConfig
from optimizers.newton_schulz import COEFFICIENTS, iterates_gram, joined, newton_schulz, numbers_held, parted, stacks

QUINTIC = [(3.4445, -4.7750, 2.0315)] * 6
PRINTED = [(8.1566, -22.4833, 15.8788), (4.0429, -2.8089, 0.5000), (3.8917, -2.7725, 0.5061)]
PRINTED += [(3.2858, -2.3681, 0.4645), (2.3465, -1.7098, 0.4232), (15 / 8, -10 / 8, 3 / 8)]
"""Polar Express to four decimals, and its limit."""


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def matrix_with(values: np.ndarray, rows: int, columns: int, seed: int) -> np.ndarray:
    left = np.linalg.qr(drawn(rows, len(values), seed=seed))[0]
    right = np.linalg.qr(drawn(columns, len(values), seed=seed + 1000))[0]
    return left @ np.diag(values) @ right.T


def oracle(matrix: np.ndarray, steps: list[tuple[float, float, float]]) -> np.ndarray:
    """Jordan et al. 2024: the iteration on the matrix itself, in float64."""
    x = matrix.astype(np.float64)
    x = x / np.linalg.norm(x)
    for a, b, c in steps:
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def ours(matrix: np.ndarray, num_steps: int = 5, coefficients: str = "quintic") -> np.ndarray:
    stack = mx.array(matrix.astype(np.float32))[None]
    return np.array(newton_schulz(stack, COEFFICIENTS[coefficients][:num_steps])[0], dtype=np.float64)  # type: ignore[index]


CASES = {
    "random square": drawn(48, 48, seed=1),
    "random wide": drawn(24, 96, seed=2),
    "random tall": drawn(96, 24, seed=3),
    "a little tall": drawn(48, 40, seed=4),
    "low rank": matrix_with(np.array([3.0, 2.0, 1.0, 0.5]), 40, 60, 4),
    "low rank, long": matrix_with(np.array([3.0, 2.0, 1.0, 0.5]), 64, 256, 5),
    "one direction, tall": matrix_with(np.array([2.0]), 192, 48, 6),
    "ones": np.ones((64, 192)),
    "ones, square": np.ones((64, 64)),
    "one row": np.eye(1, 32, 5).T @ drawn(1, 80),
    "ill-conditioned": matrix_with(np.logspace(0, -8, 32), 32, 48, 7),
    "ill-conditioned, long": matrix_with(np.logspace(0, -8, 64), 64, 256, 8),
    "few large, many small": matrix_with(np.r_[np.ones(6), np.full(58, 1e-3)], 64, 192, 9),
    "a power law, tall": matrix_with(1 / np.arange(1.0, 65), 256, 64, 10),
    "tiny": 1e-10 * drawn(32, 96, seed=11),
    "tiny square": 1e-10 * drawn(32, 32, seed=11),
    "huge": 1e7 * drawn(48, 32, seed=12),
    "a row": drawn(1, 40),
    "a column": drawn(40, 1),
    "a number": -np.ones((1, 1)),
}


def check_bar(matrix: np.ndarray) -> None:
    """The result has the input's singular vectors, and values near 1 wherever the input's are not small."""
    result = ours(matrix)
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    large = values > 0.01 * np.linalg.norm(matrix)
    projected = left.T @ result @ right.T
    mapped = np.diag(projected)
    assert mapped[large].min() > 0.65
    assert mapped[large].max() < 1.25
    assert np.linalg.svd(result, compute_uv=False).max() < 1.25
    assert np.abs((projected - np.diag(mapped))[large]).max() < 1e-3


@pytest.mark.parametrize("case", CASES)
def test_singular_values_come_close_to_one_and_the_directions_stay(case: str) -> None:
    check_bar(CASES[case])


@settings(deadline=None, max_examples=25)
@given(
    shape=st.sampled_from([(12, 12), (16, 20), (20, 16), (12, 40), (40, 12), (24, 64)]),
    exponents=st.lists(st.floats(-6, 0), min_size=1, max_size=12),
    size=st.floats(-6, 6),
    seed=st.integers(0, 99),
)
def test_any_spectrum_meets_the_bar(shape: tuple[int, int], exponents: list[float], size: float, seed: int) -> None:
    check_bar(10**size * matrix_with(10.0 ** np.array(exponents), *shape, seed))


@pytest.mark.parametrize("num_steps", [3, 4, 5, 6])
@pytest.mark.parametrize("name", ["quintic", "polar_express"])
def test_both_paths_equal_the_oracle(name: str, num_steps: int) -> None:
    # Not the printed ones: four decimals alone are 1e-3 off after four steps.
    steps = QUINTIC if name == "quintic" else list(COEFFICIENTS["polar_express"])
    for case in ("random square", "a little tall", "random wide", "random tall", "tiny", "one row"):
        expected = oracle(CASES[case], steps[:num_steps])
        error = np.linalg.norm(ours(CASES[case], num_steps, name) - expected) / np.linalg.norm(expected)
        assert error < 1e-3, (case, error)


@pytest.mark.parametrize("case", [name for name in CASES if name != "ones"])
def test_the_default_equals_the_oracle_on_every_matrix_but_ones(case: str) -> None:
    """Of ones, all roundings go one way; the error of the Gram path is then 1e-3 at 192 columns, 5e-3 at 2048."""
    expected = oracle(CASES[case], QUINTIC[:5])
    assert np.linalg.norm(ours(CASES[case]) - expected) < 1e-3 * np.linalg.norm(expected)


def test_the_coefficients_are_the_published_ones() -> None:
    np.testing.assert_allclose(COEFFICIENTS["polar_express"], PRINTED, rtol=0, atol=5.1e-5)
    assert list(COEFFICIENTS["quintic"]) == QUINTIC


def test_polar_express_comes_closer_to_orthogonal_with_every_step_from_five_on() -> None:
    values = np.logspace(-2, 0, 40)
    matrix = matrix_with(values / np.linalg.norm(values), 40, 120, 1)
    spreads = {}
    for num_steps in (5, 6):
        found = np.linalg.svd(ours(matrix, num_steps, "polar_express"), compute_uv=False)
        spreads[num_steps] = np.abs(found[found > 0.5] - 1).max()
    assert spreads[5] < 0.15
    assert spreads[6] < 0.02


def test_the_gram_path_equals_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    for case in ("random wide", "random tall", "a power law, tall", "few large, many small"):
        assert iterates_gram(CASES[case].shape)
        gram = ours(CASES[case])
        with monkeypatch.context() as patch:
            patch.setattr(module, "GRAM_FROM", 1e9)
            direct = ours(CASES[case])
        assert np.abs(gram - direct).max() > 0
        np.testing.assert_allclose(gram, direct, atol=1e-3 * np.abs(direct).max())


@settings(deadline=None, max_examples=10)
@given(shape=st.sampled_from([(16, 16), (16, 20), (12, 36), (36, 12)]), seed=st.integers(0, 99))
def test_signs_transposes_and_rotations_pass_through(shape: tuple[int, int], seed: int) -> None:
    matrix = drawn(*shape, seed=seed)
    left = np.linalg.qr(drawn(shape[0], shape[0], seed=seed + 1))[0]
    right = np.linalg.qr(drawn(shape[1], shape[1], seed=seed + 2))[0]
    result = ours(matrix)
    np.testing.assert_array_equal(ours(-matrix), -result)
    np.testing.assert_allclose(ours(matrix.T), result.T, atol=1e-4)
    np.testing.assert_allclose(ours(left @ matrix @ right), left @ result @ right, atol=1e-3)
    np.testing.assert_allclose(ours(1e3 * matrix), result, atol=1e-3)


def test_a_stack_equals_one_at_a_time_and_zero_stays_zero_in_it() -> None:
    for shape in ((5, 12, 16), (5, 12, 40), (5, 40, 12)):
        stack = drawn(*shape).astype(np.float32)
        stack[2] = 0
        together = np.array(newton_schulz(mx.array(stack), QUINTIC[:5]))
        assert (together[2] == 0).all()
        for index in (0, 1, 3, 4):
            np.testing.assert_allclose(together[index], ours(stack[index]), atol=1e-5)


def test_long_matrices_are_iterated_on_their_gram_matrix() -> None:
    shapes = [(768, 768), (768, 1024), (768, 2048), (2048, 768), (3072, 768), (1, 1)]
    assert [iterates_gram(shape) for shape in shapes] == [False, False, True, True, True, False]


def products(shape: tuple[int, int], num_steps: int) -> float:
    """Multiplications of the iteration over the short side cubed, counted in MLX's graph."""
    counted = 0.0
    short, long = sorted(shape)

    def count(original: object) -> object:
        def counting(*arrays: mx.array, **options: float) -> mx.array:
            nonlocal counted
            one, other = arrays[-2:]
            counted += one.shape[-2] * one.shape[-1] * other.shape[-1] / short**3
            return original(*arrays, **options)  # type: ignore[operator]

        return counting

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mx, "addmm", count(mx.addmm))
        patch.setattr(mx.array, "__matmul__", count(mx.array.__matmul__))
        newton_schulz(mx.zeros((1, *shape)), QUINTIC[:num_steps])
    return counted


@pytest.mark.parametrize("num_steps", [3, 5])
def test_the_gram_path_is_taken_where_it_takes_fewer_products(num_steps: int) -> None:
    short = 32
    for long in (32, 40, 64, 88, 128):
        ratio = long / short
        direct, gram = num_steps * (2 * ratio + 1), 4 * num_steps - 3 + 2 * ratio
        assert products((short, long), num_steps) == products((long, short), num_steps) == min(direct, gram)


def test_stacks_hold_matrices_of_one_shape_and_stay_small(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = {f"square.{index}": (16, 16) for index in range(5)} | {"wide.0": (16, 40), "tall.0": (40, 16)}
    assert sorted(map(len, stacks(shapes, 5))) == [1, 1, 5]
    monkeypatch.setattr(module, "LARGEST_STACK", 2 * numbers_held((16, 16), 5))
    assert sorted(map(len, stacks(shapes, 5))) == [1, 1, 1, 2, 2]
    monkeypatch.setattr(module, "LARGEST_STACK", 1)
    assert [name for names in stacks(shapes, 5) for name in names] == list(shapes)


def test_parts_come_apart_and_together_again() -> None:
    arrays = {"fused": mx.array(drawn(10, 3)), "plain": mx.array(drawn(4, 5)), "experts": mx.array(drawn(3, 4, 2))}
    rows = {"fused": (4, 3, 3), "plain": (4,), "experts": (4, 4, 4)}
    parts = parted(arrays, rows)
    assert {name: part.shape for name, part in parts.items()} == {
        **{"fused/0": (4, 3), "fused/1": (3, 3), "fused/2": (3, 3), "plain": (4, 5)},
        **{f"experts/{index}": (4, 2) for index in range(3)},
    }
    np.testing.assert_array_equal(np.array(parts["experts/1"]), np.array(arrays["experts"][1]))
    np.testing.assert_array_equal(np.array(parts["fused/1"]), np.array(arrays["fused"][4:7]))
    whole = joined(parts, rows, {name: array.shape for name, array in arrays.items()})
    for name, array in arrays.items():
        np.testing.assert_array_equal(np.array(whole[name]), np.array(array))


def num_nodes(optimizer: mlx.optimizers.Optimizer, shapes: dict[str, tuple[int, int]], path: str) -> int:
    """Nodes of the graph of one compiled update."""
    arrays = {name: mx.ones(shape) for name, shape in shapes.items()}
    mx.eval(arrays)
    optimizer.init(arrays)
    mx.eval(optimizer.state)
    step = mx.compile(optimizer.apply_gradients, inputs=[optimizer.state], outputs=[optimizer.state])
    new = step(arrays, arrays)
    made: list[tuple[str, mx.array]] = tree_flatten((new, optimizer.state))  # type: ignore[assignment]
    mx.export_to_dot(path, *(array for _, array in made))
    with open(path, encoding="utf-8") as file:
        return len(re.findall("shape=rectangle", file.read()))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_an_update_of_twelve_layers_is_a_fifth_of_the_nodes_of_mlx(
    kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    """The set of width 768, every side and so what fits into a stack made smaller by 8."""
    width, inner = 96, 256 if kind == "llama" else 384
    mlp = {"gate": (inner, width), "up": (inner, width), "down": (width, inner)}
    if kind == "gpt2":
        del mlp["gate"]
    layer = dict.fromkeys("qkvo", (width, width)) | mlp
    shapes = {f"layers.{index}.{name}": shape for index in range(12) for name, shape in layer.items()}
    monkeypatch.setattr(module, "LARGEST_STACK", module.LARGEST_STACK // 64)
    theirs = num_nodes(mlx.optimizers.Muon(1e-3), shapes, f"{tmp_path}/theirs.dot")
    optimizer = MuonConfig().build({name: mx.ones(shape) for name, shape in shapes.items()})
    assert 5 * num_nodes(optimizer, shapes, f"{tmp_path}/ours.dot") <= theirs
