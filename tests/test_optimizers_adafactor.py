"""Adafactor against float64 NumPy written from the paper's sums, factored and not, and against mlx.optimizers; what it
keeps, what it clips, and that nothing turns into NaN."""

import math
from typing import Any

import mlx.core as mx
import mlx.optimizers
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from optimizers.adafactor import AdafactorConfig, normalised, root_mean_square
from optimizers.base import OptimizerConfig
from tests.tiny_run import needs_compiler
from tests.update_oracles import (
    MORE_SHAPES,
    Step,
    assert_close,
    config_of,
    draw,
    run_compiled,
    run_oracle_steps,
    run_steps,
    to_mlx,
    to_numpy,
)

FEW = {name: MORE_SHAPES[name] for name in ("scale", "model.norm.weight", "experts")}
"""Compiling takes a second for each kernel."""


def root_of_mean_square(array: np.ndarray) -> float:
    return math.sqrt((array**2).mean())


def adafactor_oracle(config: AdafactorConfig) -> Step:
    """Algorithms 4 and 5 with sums over rows and columns, as the paper has them, and its beta2 of section 7.2."""

    def second_moment(g: np.ndarray, state: dict[str, Any], beta: float) -> np.ndarray:
        squared = g**2 + config.eps1
        if g.ndim < 2 or min(g.shape[-2:]) < config.min_dim_size_to_factor:
            state["v"] = beta * state.get("v", 0.0) + (1 - beta) * squared
            return state["v"]
        state["r"] = beta * state.get("r", 0.0) + (1 - beta) * squared.sum(-1)
        state["c"] = beta * state.get("c", 0.0) + (1 - beta) * squared.sum(-2)
        return np.einsum("...r,...c->...rc", state["r"], state["c"]) / state["r"].sum(-1)[..., None, None]

    def step(w: Any, g: Any, state: dict[str, Any], number: int, rate: float, decay: float) -> np.ndarray:
        if config.relative_step:
            rate *= min(1.0, 1 / math.sqrt(number) / config.learning_rate)
        u = g / np.sqrt(second_moment(g, state, 1 - number**-config.decay_rate))
        u = u / max(1.0, root_of_mean_square(u) / config.clip_threshold)
        if config.beta1 is not None:
            state["m"] = config.beta1 * state.get("m", 0.0) + (1 - config.beta1) * u
            u = state["m"]
        scale = max(config.eps2, root_of_mean_square(w)) if config.scale_parameter else 1.0
        return w * (1 - rate * decay) - rate * scale * u

    return step


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"min_dim_size_to_factor": 1},
        {"min_dim_size_to_factor": 6, "beta1": 0.9, "weight_decay": 0.5},
        {"min_dim_size_to_factor": 1, "scale_parameter": True, "learning_rate": 0.1},
        {"min_dim_size_to_factor": 1, "scale_parameter": True, "eps2": 0.3, "beta1": 0.0},
        {"min_dim_size_to_factor": 1, "relative_step": True, "learning_rate": 0.5, "clip_threshold": 0.5},
        {"min_dim_size_to_factor": 1, "decay_rate": 0.5, "eps1": 1e-2, "clip_threshold": 3.0},
    ],
    ids=lambda options: "-".join(options) or "defaults",
)
def test_it_equals_the_oracle(options: dict[str, Any]) -> None:
    config = AdafactorConfig(**options)
    gradients = [draw(seed, MORE_SHAPES) for seed in range(1, 11)]
    ours = run_steps(config, gradients, draw(0, MORE_SHAPES))
    step = adafactor_oracle(config)
    parameters = draw(0, MORE_SHAPES)
    oracle = run_oracle_steps(lambda name: step, gradients, parameters, config.learning_rate, config.weight_decay)
    assert_close(ours, oracle[-1], 1e-5)


@pytest.mark.parametrize(("beta1", "scale"), [(None, False), (0.9, False), (None, True)])
def test_it_equals_that_of_mlx_where_the_definitions_agree(beta1: float | None, scale: bool) -> None:
    options: dict[str, Any] = {"beta1": beta1, "scale_parameter": scale, "min_dim_size_to_factor": 1}
    config = AdafactorConfig(learning_rate=0.01, weight_decay=0.0, **options)
    theirs = mlx.optimizers.Adafactor(0.01, beta_1=beta1, scale_parameter=scale, relative_step=False)
    parameters = other = to_mlx(draw(0, MORE_SHAPES))
    ours = config.build(parameters)
    for seed in range(1, 11):
        gradients = to_mlx(draw(seed, MORE_SHAPES))
        parameters = ours.apply_gradients(gradients, parameters)
        other = theirs.apply_gradients(gradients, other)
    assert_close(to_numpy(parameters), to_numpy(other), 1e-5)


def test_the_state_of_a_matrix_is_a_row_and_a_column() -> None:
    shapes = {"wide": (128, 300), "narrow": (127, 300), "experts": (3, 128, 130), "bias": (400,), "scale": ()}
    state = AdafactorConfig().build({name: mx.zeros(shape) for name, shape in shapes.items()}).state["parameters"]
    kept = {name: {key: array.shape for key, array in moments.items()} for name, moments in state.items()}
    assert kept == {
        "wide": {"row": (128,), "column": (300,)},
        "narrow": {"second": (127, 300)},
        "experts": {"row": (3, 128), "column": (3, 130)},
        "bias": {"second": (400,)},
        "scale": {"second": ()},
    }
    with_first = AdafactorConfig(beta1=0.9).build({"wide": mx.zeros((128, 300))}).state["parameters"]["wide"]
    assert {key: array.shape for key, array in with_first.items()} == {
        "row": (128,),
        "column": (300,),
        "first": (128, 300),
    }


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e6])
def test_a_step_has_the_same_size_whatever_the_gradients(scale: float) -> None:
    parameters = to_mlx(draw(0, MORE_SHAPES))
    gradients = {name: scale * gradient for name, gradient in to_mlx(draw(1, MORE_SHAPES)).items()}
    config = AdafactorConfig(learning_rate=0.1, weight_decay=0.0, min_dim_size_to_factor=1)
    moved = config.build(parameters).apply_gradients(gradients, parameters)
    for name, old in parameters.items():
        size = root_of_mean_square(np.array(moved[name] - old, np.float64))
        assert size <= 0.1 * (1 + 1e-4), name
        assert size > 0.05, name


@given(
    rows=st.integers(1, 6),
    columns=st.integers(1, 6),
    exponents=st.tuples(st.integers(-20, 8), st.integers(-20, 8)),
    num_zeros=st.integers(0, 6),
    seed=st.integers(0, 99),
)
@example(rows=2, columns=2, exponents=(8, 0), num_zeros=2, seed=0)
@settings(deadline=None, max_examples=60)
def test_nothing_turns_into_nan(rows: int, columns: int, exponents: tuple[int, int], num_zeros: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    parameters: Any = {"w": mx.array(generator.normal(size=(rows, columns)), mx.float32)}
    optimizer = AdafactorConfig(min_dim_size_to_factor=1, scale_parameter=True, learning_rate=0.1).build(parameters)
    for exponent in exponents:
        gradient = generator.normal(size=(rows, columns)) * 10.0**exponent
        gradient.flat[:num_zeros] = 0
        gradient[0] *= 1e-6
        parameters = optimizer.apply_gradients({"w": mx.array(gradient, mx.float32)}, parameters)
        assert np.isfinite(np.array(parameters["w"])).all()
        assert all(np.isfinite(array).all() for array in to_numpy(optimizer.state["parameters"]["w"]).values())


def test_tiny_rows_and_columns_stay_within_float32() -> None:
    moments = {"row": mx.array([1e-30, 1.0]), "column": mx.array([1e-30, 1.0])}
    u = np.array(normalised(mx.array([[0.0, 1e-15], [1e-15, 1.0]]), moments), np.float64)
    expected = np.array([[0.0, 0.5**0.5], [0.5**0.5, 0.5**0.5]])
    np.testing.assert_allclose(u, expected, rtol=1e-5)


def test_the_root_mean_square_is_exact_for_millions() -> None:
    array = np.random.default_rng(0).normal(size=(20000, 300)).astype(np.float32)
    expected = root_of_mean_square(array.astype(np.float64))
    assert root_mean_square(mx.array(array)).item() == pytest.approx(expected, rel=1e-5)
    assert root_mean_square(mx.array(-3.0)).item() == 3.0


@needs_compiler
def test_factored_and_compiled_equals_eager_and_holds_back() -> None:
    config = AdafactorConfig(min_dim_size_to_factor=1, beta1=0.9, scale_parameter=True, learning_rate=0.1)
    gradients = [draw(seed, FEW) for seed in range(1, 5)]
    eager = run_steps(config, gradients, draw(0, FEW))
    compiled, _ = run_compiled(config, gradients, draw(0, FEW))
    assert_close(compiled, eager, 1e-5)


def loss_after(config: OptimizerConfig, num_steps: int) -> float:
    """Of a two-layer network of 128 x 128 matrices that learns another, under a falling schedule."""
    generator = np.random.default_rng(0)
    x = mx.array(generator.normal(size=(256, 128)), mx.float32)
    target = mx.tanh(x @ mx.array(generator.normal(size=(128, 128)) / 12, mx.float32))
    start = {"inner.weight": (128, 128), "outer.weight": (128, 128), "outer.bias": (128,)}
    parameters: Any = {name: mx.array(generator.normal(size=shape) * 0.02, mx.float32) for name, shape in start.items()}

    def loss_of(parameters: Any) -> mx.array:
        hidden = mx.tanh(x @ parameters["inner.weight"])
        return mx.mean(mx.square(hidden @ parameters["outer.weight"] + parameters["outer.bias"] - target))

    optimizer = config.build(parameters)
    for number in range(num_steps):
        optimizer.set_schedule(1 - number / num_steps)
        parameters = optimizer.apply_gradients(mx.grad(loss_of)(parameters), parameters)
        mx.eval(parameters, optimizer.state)
    return float(np.array(loss_of(parameters)))


def test_plain_adafactor_learns_no_worse_than_plain_adamw() -> None:
    """Factored, with a hundredth of the state: the default learning rates are the same, so AdamW's carry over."""
    config = AdafactorConfig()
    assert config.learning_rate == config_of("adamw").learning_rate
    assert loss_after(config, 100) < loss_after(config_of("adamw"), 100)
