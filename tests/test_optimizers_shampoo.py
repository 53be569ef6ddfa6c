"""Shampoo against float64 NumPy with eigenvalues, block by block; what happens before there are roots and when they
fail; and that resuming between two refreshes changes nothing."""

import math
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from pydantic import ValidationError

from optimizers import inverse_root as inverse_root_module
from optimizers import shampoo as shampoo_module
from optimizers.base import Optimizer
from optimizers.enhanced_optimizers import AdamWConfig
from optimizers.inverse_root import LARGEST_STACK
from optimizers.shampoo import ShampooConfig
from tests.memory_peaks import held_bytes, highest_peak, peak_of
from tests.shampoo_oracle import DECAY, RATE, Numbers, shampoo_oracle
from tests.tiny_run import needs_compiler
from utils.errors import ConfigError

SHAPES: dict[str, tuple[int, ...]] = {
    "layers.0.square.weight": (8, 8),
    "layers.0.tall.weight": (21, 5),
    "layers.0.wide.weight": (6, 16),
    "layers.0.column.weight": (9, 1),
    "layers.0.experts.weight": (3, 4, 7),
    "layers.0.convolution.weight": (5, 2, 3, 2),
}
REST: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (7, 8), "layers.0.norm.weight": (8,), "layers.0.scale": ()}


def draw(seed: int, shapes: dict[str, tuple[int, ...]] = SHAPES) -> Numbers:
    """Float32 values in float64; gradients of few directions, as those of small batches are."""
    generator = np.random.default_rng(seed)
    drawn = {name: generator.normal(size=shape) for name, shape in shapes.items()}
    return {name: np.asarray(array, np.float32).astype(np.float64) for name, array in drawn.items()}


def to_mlx(arrays: Numbers) -> dict[str, mx.array]:
    return {name: mx.array(array.astype(np.float32)) for name, array in arrays.items()}


def train(optimizer: Optimizer, gradients: list[Numbers], parameters: dict[str, mx.array], first: int = 0) -> Any:
    """What the training loop does with updates `first`, `first` + 1, ..."""
    for number, gradient in enumerate(gradients, first):
        refreshed = optimizer.refresh(number)
        parameters = optimizer.apply_gradients(to_mlx(gradient), parameters)
        optimizer.install(refreshed)
    return parameters


def build(shapes: dict[str, tuple[int, ...]] = SHAPES, **settings: Any) -> Optimizer:
    settings = {
        "learning_rate": RATE,
        "weight_decay": DECAY,
        "update_period": 2,
        "start_preconditioning_step": 2,
    } | settings
    return ShampooConfig(**settings).build({name: mx.zeros(shape) for name, shape in shapes.items()})


def assert_changes_agree(ours: Any, oracle: Numbers, before: Numbers, tolerance: float = 1e-3) -> None:
    for name, expected in oracle.items():
        error = np.linalg.norm(np.array(ours[name], np.float64) - expected) / np.linalg.norm(expected - before[name])
        assert error < tolerance, (name, error)


@pytest.mark.parametrize(
    ("grafting", "size", "exponent"),
    [
        ("adam", 100, None),
        ("adam", 4, None),
        ("sgd", 4, 0.75),
        ("momentum", 5, 1.0),
        ("none", 8, None),
        ("none", 5, 0.75),
    ],
)
def test_ten_steps_agree_with_float64(grafting: str, size: int, exponent: float | None) -> None:
    before, gradients = draw(0), [draw(seed) for seed in range(1, 11)]
    optimizer = build(grafting=grafting, block_size=size, exponent_override=exponent, shampoo_beta=0.8)
    ours = train(optimizer, gradients, to_mlx(before))
    oracle = shampoo_oracle(before, gradients, size, grafting, (0.5 if exponent is None else exponent) / 2)
    assert_changes_agree(ours, oracle, before)
    assert optimizer.counts()["num_damped"].item() == 0


def test_until_there_are_roots_it_is_adamw() -> None:
    before, gradients = draw(0), [draw(seed) for seed in range(1, 5)]
    adamw = AdamWConfig(learning_rate=RATE, weight_decay=DECAY).build(to_mlx(before))
    expected = train(adamw, gradients, to_mlx(before))
    for first in (3, 100):
        ours = train(build(start_preconditioning_step=first), gradients, to_mlx(before))
        for name in before:
            np.testing.assert_allclose(np.array(ours[name]), np.array(expected[name]), rtol=1e-6, err_msg=name)
    earlier = train(build(start_preconditioning_step=2), gradients, to_mlx(before))
    assert not np.allclose(np.array(earlier["layers.0.square.weight"]), np.array(expected["layers.0.square.weight"]))


@pytest.mark.parametrize(
    ("first", "period", "expected"), [(0, 4, [4, 8]), (1, 1, list(range(1, 10))), (3, 4, [3, 7]), (5, 50, [5])]
)
def test_when_roots_are_due(first: int, period: int, expected: list[int]) -> None:
    config = ShampooConfig(start_preconditioning_step=first, update_period=period)
    assert [number for number in range(1, 10) if config.is_due(number)] == expected


def test_blocks_as_large_as_the_matrix_change_nothing() -> None:
    shapes = {"layers.0.weight": (6, 9)}
    before, gradients = draw(0, shapes), [draw(seed, shapes) for seed in range(1, 8)]
    exact, large = (train(build(shapes, block_size=size), gradients, to_mlx(before)) for size in (9, 1000))
    np.testing.assert_array_equal(np.array(exact["layers.0.weight"]), np.array(large["layers.0.weight"]))


@needs_compiler
def test_compiled_equals_eager_with_its_refreshes() -> None:
    results = []
    for compiled in (False, True):
        parameters, optimizer = to_mlx(draw(0)), build(block_size=5)
        update: Any = optimizer.apply_gradients
        if compiled:
            update = mx.compile(update, inputs=optimizer.state, outputs=optimizer.state)
        for number in range(8):
            refreshed = optimizer.refresh(number)
            parameters = update(to_mlx(draw(number + 1)), parameters)
            optimizer.install(refreshed)
        results.append(parameters)
    for name, expected in results[0].items():
        np.testing.assert_allclose(np.array(results[1][name]), np.array(expected), rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("stop", range(1, 8))
def test_resuming_anywhere_is_bit_identical(stop: int) -> None:
    gradients = [draw(seed) for seed in range(1, 9)]
    straight, early, resumed = (build(update_period=3, block_size=5) for _ in range(3))
    expected = train(straight, gradients, to_mlx(draw(0)))
    half = train(early, gradients[:stop], to_mlx(draw(0)))
    resumed.load_state(early.state_dict())
    ours = train(resumed, gradients[stop:], half, stop)
    for name, array in {**expected, **straight.state_dict()}.items():
        assert mx.array_equal({**ours, **resumed.state_dict()}[name], array).item(), name


def test_zero_gradients_give_no_nan_and_no_step_with_and_without_roots() -> None:
    shapes = SHAPES | REST
    parameters, nothing = to_mlx(draw(0, shapes)), {name: np.zeros(shape) for name, shape in shapes.items()}
    still = train(build(shapes), [nothing] * 6, parameters)
    for name, old in parameters.items():
        kept = 1.0 if name in ("embed_tokens.weight", "layers.0.norm.weight") else (1 - RATE * DECAY) ** 6
        np.testing.assert_allclose(np.array(still[name]), kept * np.array(old), rtol=1e-5, err_msg=name)
    moved = train(build(shapes), [nothing] * 4 + [draw(1, shapes)] * 2 + [nothing] * 4, parameters)
    assert all(
        mx.all(mx.isfinite(array)).item() and mx.any(array != still[name]).item() for name, array in moved.items()
    )


def test_without_grafting_the_step_does_not_depend_on_the_gradients_scale() -> None:
    changes = []
    for scale in (1e-6, 1e3):
        optimizer = build(grafting="none", start_preconditioning_step=1, weight_decay=0.0)
        gradients = [{name: scale * array for name, array in draw(seed).items()} for seed in range(1, 7)]
        nothing = {name: mx.zeros(shape) for name, shape in SHAPES.items()}
        train(optimizer, gradients[:2], nothing)  # Until the roots are used.
        changes.append(train(optimizer, gradients[2:], nothing, 2))
    for name in SHAPES:
        np.testing.assert_allclose(*(np.array(change[name]) for change in changes), rtol=1e-2, atol=1e-4, err_msg=name)


NAME = "layers.0.square.weight"


def with_statistic(optimizer: Optimizer, matrix: np.ndarray) -> dict[str, mx.array]:
    """Puts it in the place of a statistic, as damaged state would be; the moments of that parameter."""
    moments = optimizer.state["parameters"][NAME]
    moments["left"] = mx.array(matrix.astype(np.float32))[None]
    return moments


@pytest.mark.parametrize(("lowest", "num_failures", "ridge"), [(-1e-4, 1, 1e-3), (-0.05, 2, 1e-1), (-0.5, 3, 1.0)])
def test_a_statistic_that_is_not_positive_definite_recovers_by_damping(
    lowest: float, num_failures: int, ridge: float
) -> None:
    optimizer, gradients = build(), [draw(seed) for seed in range(1, 4)]
    parameters = train(optimizer, gradients, to_mlx(draw(0)))
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))[0]
    values = np.array([lowest, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 1.0])
    moments = with_statistic(optimizer, basis * values @ basis.T)
    old_root = moments["left_root"]
    assert mx.any(old_root != 0).item()
    for count in range(1, num_failures + 1):
        optimizer.install(optimizer.refresh(2))
        assert moments["num_damped"].item() == count
        assert mx.array_equal(moments["left_root"], old_root).item()
    optimizer.install(optimizer.refresh(2))
    assert optimizer.counts()["num_damped"].item() == num_failures
    expected = basis * (values + ridge * np.linalg.norm(values)) ** -0.25 @ basis.T
    np.testing.assert_allclose(np.array(moments["left_root"][0]), expected, rtol=1e-3, atol=1e-3)
    parameters = train(optimizer, gradients, parameters, 3)
    assert all(mx.all(mx.isfinite(array)).item() for array in parameters.values())


def test_a_ridge_comes_down_again() -> None:
    optimizer = build(update_period=1)
    moments = optimizer.state["parameters"][NAME]
    moments["left_ridge"] = mx.array([1e-4])
    train(optimizer, [draw(seed) for seed in range(1, 11)], to_mlx(draw(0)))
    assert moments["left_ridge"].item() == pytest.approx(1e-5)
    assert moments["num_damped"].item() == 0


def test_a_statistic_of_nan_leaves_the_root_of_before() -> None:
    optimizer = build()
    train(optimizer, [draw(seed) for seed in range(1, 4)], to_mlx(draw(0)))
    moments = with_statistic(optimizer, np.full((8, 8), np.nan))
    old_left, old_right = moments["left_root"], moments["right_root"]
    moments["right"] = 2 * moments["right"]
    for count in (1, 2, 3, 4):
        optimizer.install(optimizer.refresh(2))
        assert mx.array_equal(moments["left_root"], old_left).item()
        assert moments["num_damped"].item() == count
        assert np.array(moments["left_ridge"]) <= 1
    assert not mx.array_equal(moments["right_root"], old_right).item()
    assert {key for key in moments if key.startswith("num_")} == {"num_damped", "num_mended"}


def largest_gradient(moments: dict[str, mx.array], gradient: Numbers) -> Numbers:
    """Whose square float32 cannot hold."""
    return gradient | {NAME: 1e25 * gradient[NAME]}


def broken_state(moments: dict[str, mx.array], gradient: Numbers) -> Numbers:
    """NaN in one of the four blocks, on one side."""
    moments["left"] = moments["left"] * mx.array([1.0, math.nan, 1.0, 1.0])[:, None, None]
    return gradient


@pytest.mark.parametrize(("accident", "count"), [(largest_gradient, 8), (broken_state, 1)])
def test_statistics_that_are_not_finite_start_anew_and_roots_follow(accident: Any, count: int) -> None:
    optimizer = build(block_size=4, grafting="none")
    moments = optimizer.state["parameters"][NAME]
    gradients = [draw(seed) for seed in range(1, 41)]
    parameters = train(optimizer, gradients[:6], to_mlx(draw(0)))
    frozen = moments["left_root"]
    parameters = train(optimizer, [accident(moments, gradients[6])], parameters, 6)
    parameters = train(optimizer, gradients[7:20], parameters, 7)
    assert moments["num_mended"].item() == optimizer.counts()["num_mended"].item() == count
    damped = moments["num_damped"].item()
    parameters = train(optimizer, gradients[20:], parameters, 20)
    assert (moments["num_mended"].item(), moments["num_damped"].item()) == (count, damped)
    np.testing.assert_allclose(np.array(moments["left_ridge"]), 1e-5, rtol=1e-5)
    assert mx.all(mx.any(moments["left_root"] != frozen, axis=(1, 2))).item()
    assert all(mx.all(mx.isfinite(array)).item() for array in parameters.values())


def test_every_block_that_failed_counts() -> None:
    optimizer = build(block_size=4)
    train(optimizer, [draw(seed) for seed in range(1, 4)], to_mlx(draw(0)))
    moments = optimizer.state["parameters"][NAME]
    old_root = moments["left_root"]
    moments["left"] = moments["left"] * mx.array([1.0, -1.0, 2.0, -1.0])[:, None, None]
    optimizer.install(optimizer.refresh(2))
    assert moments["num_damped"].item() == 2
    changed = mx.any(moments["left_root"] != old_root, axis=(1, 2))
    assert changed.tolist() == [True, False, True, False]
    np.testing.assert_allclose(np.array(moments["left_ridge"]), [1e-5, 1e-3, 1e-5, 1e-3], rtol=1e-5)


def owners(**settings: Any) -> dict[str, str]:
    optimizer = build(SHAPES | REST, **settings)
    return {name: group.name for group in optimizer.groups for name in group.decay}


def test_matrices_of_the_layers_go_to_shampoo_and_the_rest_to_adamw() -> None:
    assert {name for name, owner in owners().items() if owner == "shampoo"} == set(SHAPES)
    chosen = owners(matrices=("embed*", "*.square.*"))
    assert {name for name, owner in chosen.items() if owner == "shampoo"} == {"embed_tokens.weight", NAME}
    with pytest.raises(ConfigError, match=r"matrices: '\*qkv\*' matches no parameter"):
        build(matrices=("*qkv*",))
    with pytest.raises(ConfigError, match="no matrix matches"):
        build({"layers.0.norm.weight": (8,)})


def test_the_adamw_part_has_a_rate_that_suits_it() -> None:
    def rates(**settings: Any) -> dict[str, float]:
        return {group.name: group.learning_rate for group in build(SHAPES | REST, **settings).groups}

    assert rates(learning_rate=0.02) == {"shampoo": 0.02, "adamw": 0.02}
    assert rates(learning_rate=0.5, grafting="sgd") == {"shampoo": 0.5, "adamw": 1e-3}
    assert rates(adamw_learning_rate=3e-4)["adamw"] == 3e-4


@pytest.mark.parametrize(
    "settings",
    [
        {"betas": (0.9, 1.0)},
        {"shampoo_beta": 1.0},
        {"shampoo_beta": float("nan")},
        {"eps": -1e-8},
        {"update_period": 0},
        {"start_preconditioning_step": -1},
        {"preconditioner_epsilon": 0.0},
        {"preconditioner_epsilon": float("nan")},
        {"exponent_override": 0.0},
        {"exponent_override": 1.5},
        {"exponent_override": float("nan")},
        {"block_size": 0},
        {"grafting": "rmsprop"},
        {"adamw_learning_rate": 0.0},
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(settings))):
        ShampooConfig(**settings)


def test_an_exponent_must_be_a_fraction_and_the_nearest_is_named() -> None:
    with pytest.raises(ValidationError, match=r"half of 0\.7 .* try 0\.714285714"):
        ShampooConfig(exponent_override=0.7)
    for exponent in (0.714285714, 0.5, 0.75, 1.0, 0.125, 2 / 3):
        ShampooConfig(exponent_override=exponent)


@needs_compiler
@pytest.mark.parametrize(
    ("shapes", "size", "stack"),
    [
        ({"layers.0.up": (1408, 256), "layers.0.down": (256, 1408), "layers.0.o": (256, 256)}, 128, LARGEST_STACK),
        ({f"layers.{index}.o": (512, 512) for index in range(6)}, 128, 2**16),
        ({"layers.0.o": (1024, 1024)}, 128, LARGEST_STACK),
    ],
)
def test_the_memory_that_is_planned_for(
    shapes: dict[str, tuple[int, ...]], size: int, stack: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inverse_root_module, "LARGEST_STACK", stack)
    monkeypatch.setattr(shampoo_module, "LARGEST_STACK", stack)
    config = ShampooConfig(block_size=size)
    others = held_bytes()
    parameters = {name: mx.ones(shape) for name, shape in shapes.items()}
    gradients = {name: mx.random.normal(shape) for name, shape in shapes.items()}
    optimizer = config.build(parameters)
    update = mx.compile(optimizer.apply_gradients, inputs=optimizer.state, outputs=optimizer.state)
    mx.eval(parameters, gradients)
    held = sum(array.nbytes for array in (*parameters.values(), *gradients.values(), *optimizer.state_dict().values()))
    # What the plan adds for any optimizer: 21 arrays of a usual parameter, at most all of them.
    ahead = sum(array.nbytes for array in gradients.values()) * min(1.0, 21 / len(shapes))
    roots = sum(array.nbytes for name, array in optimizer.state_dict().items() if name.endswith("_root"))
    assert config.refresh_bytes(shapes) == roots

    def advance(num_updates: int) -> None:
        nonlocal parameters
        refreshed = optimizer.refresh(num_updates)
        parameters = update(gradients, parameters)
        optimizer.install(refreshed)
        del refreshed
        mx.eval(parameters, optimizer.state)

    for updates in (0, 0, config.start_preconditioning_step):
        beside, alone = (config.refresh_bytes(shapes), config.renewal_bytes(shapes, on_cpu=True)) if updates else (0, 0)
        planned = held + max(ahead + config.update_bytes(shapes) + beside, alone)
        # How many iterations are under way at once is a matter of time.
        peak = highest_peak(lambda now=updates: peak_of(lambda: advance(now)) - others, enough=planned / 1.15)
        assert peak == pytest.approx(planned, rel=0.15), updates
