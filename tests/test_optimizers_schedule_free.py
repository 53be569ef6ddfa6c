"""Schedule-free AdamW against the paper's three sequences in float64 NumPy, x kept explicitly; what is evaluated; that
one number of state belongs to all parameters alike."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from optimizers.schedule_free import ScheduleFreeAdamWConfig
from tests.tiny_run import needs_compiler
from tests.update_oracles import (
    MORE_SHAPES,
    MULTIPLIERS,
    Arrays,
    assert_close,
    draw,
    is_decayed,
    rounded,
    run_compiled,
    run_steps,
    to_mlx,
    to_numpy,
)

FEW = {name: MORE_SHAPES[name] for name in ("scale", "model.norm.weight", "experts")}
"""Compiling takes a second for each kernel."""
TEN = [draw(seed, MORE_SHAPES) for seed in range(1, 11)]


def oracle(config: ScheduleFreeAdamWConfig, gradients: list[Arrays]) -> tuple[list[Arrays], list[Arrays]]:
    """All y and all x of algorithm 1 after each step: float64, weights gamma_max^2, gradients and decay at y."""
    beta1, beta2 = config.betas
    x, ys, xs = rounded(draw(0, MORE_SHAPES)), [], []
    z, y, v = dict(x), dict(x), {name: np.zeros(shape) for name, shape in MORE_SHAPES.items()}
    largest = total = 0.0
    for number, gradient in enumerate(map(rounded, gradients)):
        rate = config.learning_rate * MULTIPLIERS[number]
        largest = max(largest, rate)
        total += largest**2
        c = largest**2 / total if total else 0.0
        for name, g in gradient.items():
            v[name] = beta2 * v[name] + (1 - beta2) * g**2
            corrected = v[name] / (1 - beta2 ** (number + 1))
            decay = config.weight_decay if is_decayed(name) else 0.0
            z[name] = z[name] - rate * g / (np.sqrt(corrected) + config.eps) - rate * decay * y[name]
            x[name] = (1 - c) * x[name] + c * z[name]
            y[name] = (1 - beta1) * z[name] + beta1 * x[name]
        ys.append(dict(y))
        xs.append(dict(x))
    return ys, xs


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"learning_rate": 0.05, "weight_decay": 0.5},
        {"learning_rate": 0.01, "betas": (0.5, 0.999), "eps": 1e-2},
        {"learning_rate": 0.02, "betas": (0.98, 0.0), "weight_decay": 0.0},
    ],
)
def test_gradient_point_and_average_equal_the_oracle_after_each_step(options: dict[str, Any]) -> None:
    config = ScheduleFreeAdamWConfig(**options)
    ys, xs = oracle(config, TEN)
    seen: list[tuple[Arrays, Arrays]] = []
    run_steps(
        config,
        TEN,
        draw(0, MORE_SHAPES),
        lambda optimizer, ours: seen.append((to_numpy(ours), to_numpy(optimizer.averaged(ours)))),
    )
    assert len(seen) == 10
    for (ours, average), y, x in zip(seen, ys, xs, strict=True):
        assert_close(ours, y, 1e-5)
        assert_close(average, x, 1e-5)
    assert max(np.abs(xs[-1][name] - ys[-1][name]).max() for name in xs[-1]) > 1e-4


def test_before_the_first_update_the_average_is_the_parameter() -> None:
    parameters = to_mlx(draw(0, MORE_SHAPES))
    average = ScheduleFreeAdamWConfig().build(parameters).averaged(parameters)
    for name, array in to_numpy(average).items():
        np.testing.assert_array_equal(array, np.array(parameters[name]))


def test_the_average_is_of_all_iterates_alike_after_the_warm_up() -> None:
    """Constant rate: x is the plain mean of z, which moves by the rate against gradients of one sign."""
    parameters: Any = {"w": mx.zeros((3, 2))}
    optimizer = ScheduleFreeAdamWConfig(learning_rate=0.1, weight_decay=0.0).build(parameters)
    for _ in range(20):
        parameters = optimizer.apply_gradients({"w": mx.ones((3, 2))}, parameters)
    average: Any = optimizer.averaged(parameters)
    np.testing.assert_allclose(np.array(average["w"]), -0.1 * np.mean(range(1, 21)), rtol=1e-5)


def test_a_learning_rate_of_zero_at_first_moves_nothing_and_gives_no_nan() -> None:
    parameters: Any = {"w": mx.ones((2, 2))}
    optimizer = ScheduleFreeAdamWConfig().build(parameters)
    for multiplier in (0.0, 0.0, 1.0):
        optimizer.set_schedule(multiplier)
        before = np.array(parameters["w"])
        parameters = optimizer.apply_gradients({"w": mx.ones((2, 2))}, parameters)
        average: Any = optimizer.averaged(parameters)
        assert np.isfinite(np.array(average["w"])).all()
        assert np.array_equal(np.array(parameters["w"]), before) == (multiplier == 0)


def test_decay_of_a_zero_gradient_acts_through_the_iterate() -> None:
    """One update shrinks y by 1 - rate * decay as in every row; later ones reach y through the average."""
    parameters: Any = {"w": mx.ones((4,))}
    optimizer = ScheduleFreeAdamWConfig(learning_rate=0.1, weight_decay=0.5).build(parameters)
    sizes = []
    for _ in range(3):
        parameters = optimizer.apply_gradients({"w": mx.zeros((4,))}, parameters)
        sizes.append(parameters["w"][0].item())
    z = x = y = 1.0
    for number, size in enumerate(sizes):
        z = z - 0.05 * y
        x = x + (z - x) / (number + 1)
        y = 0.1 * z + 0.9 * x
        assert size == pytest.approx(y, rel=1e-6)
    assert sizes[0] == pytest.approx(0.95)


def test_a_beta_of_zero_is_refused_because_the_average_could_not_be_found() -> None:
    with pytest.raises(ValueError, match="betas"):
        ScheduleFreeAdamWConfig(betas=(0.0, 0.95))


@needs_compiler
def test_compiled_equals_eager_and_an_update_held_back_weighs_nothing() -> None:
    config = ScheduleFreeAdamWConfig(learning_rate=0.05)
    gradients = [draw(seed, FEW) for seed in range(1, 5)]
    eager = run_steps(config, gradients, draw(0, FEW))
    compiled, optimizer = run_compiled(config, gradients, draw(0, FEW))
    assert_close(compiled, eager, 1e-5)
    found = [moments["weight_sum"].item() for moments in optimizer.state["parameters"].values()]
    assert found == pytest.approx([0.05**2 * (0.25 + 1 + 1 + 1)] * len(FEW))


def test_a_run_stopped_between_updates_goes_on_bit_for_bit() -> None:
    config = ScheduleFreeAdamWConfig()
    straight = run_steps(config, TEN, draw(0, MORE_SHAPES))
    parameters = to_mlx(draw(0, MORE_SHAPES))
    optimizer = config.build(parameters)
    for number, gradient in enumerate(TEN):
        if number == 6:
            saved = optimizer.state_dict()
            optimizer = config.build(to_mlx(draw(99, MORE_SHAPES)))
            optimizer.load_state(saved)
        optimizer.set_schedule(MULTIPLIERS[number])
        parameters = optimizer.apply_gradients(to_mlx(gradient), parameters)
    for name, array in to_numpy(parameters).items():
        np.testing.assert_array_equal(array, straight[name])
