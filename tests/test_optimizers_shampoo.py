"""Shampoo against float64 NumPy with eigenvalues, block by block; what happens before there are roots and when they
fail; and that resuming between two refreshes changes nothing."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from pydantic import ValidationError

from optimizers.base import Optimizer
from optimizers.shampoo import ShampooConfig
from tests.tiny_run import needs_compiler
from utils.errors import ConfigError

Numbers = dict[str, np.ndarray]

RATE, DECAY = 0.01, 0.1
SHAPES: dict[str, tuple[int, ...]] = {
    "layers.0.square.weight": (8, 8),
    "layers.0.tall.weight": (21, 5),
    "layers.0.wide.weight": (6, 16),
    "layers.0.column.weight": (9, 1),
    "layers.0.experts.weight": (3, 4, 7),
    "layers.0.convolution.weight": (5, 2, 3, 2),
}
MATRIX_OF = {(3, 4, 7): (12, 7), (5, 2, 3, 2): (10, 6)}
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


def root_of(matrix: np.ndarray, power: float, ridge: float = 1e-5) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return vectors * (np.maximum(values, 0) + ridge * np.linalg.norm(matrix)) ** -power @ vectors.T


def shampoo_block(weight: np.ndarray, gradients: list[np.ndarray], grafting: str, power: float) -> np.ndarray:
    """Weights of one block, from the papers: plain running means, corrected where they are used."""
    first_beta, second_beta, statistics_beta, eps = 0.9, 0.95, 0.8, 1e-8
    m, v, left, right = (np.zeros(()) for _ in range(4))
    roots = waiting = None
    for t, g in enumerate(gradients, 1):
        if t - 1 >= 2 and (t - 1) % 2 == 0:
            correction = 1 - statistics_beta ** (t - 1)
            waiting = root_of(left / correction, power), root_of(right / correction, power)
        left = statistics_beta * left + (1 - statistics_beta) * g @ g.T
        right = statistics_beta * right + (1 - statistics_beta) * g.T @ g
        m = first_beta * m + (1 - first_beta) * g
        v = second_beta * v + (1 - second_beta) * g**2
        mean = m / (1 - first_beta**t)
        velocity = sum(first_beta ** (t - 1 - index) * past for index, past in enumerate(gradients[:t]))
        adam = mean / (np.sqrt(v / (1 - second_beta**t)) + eps)
        step = {"adam": adam, "sgd": g, "momentum": velocity, "none": mean}[grafting]
        if roots:
            direction = roots[0] @ mean @ roots[1]
            length = np.linalg.norm(direction) if grafting == "none" else np.linalg.norm(step)
            step = direction * length / np.linalg.norm(direction)
        weight = weight * (1 - RATE * DECAY) - RATE * step
        roots = waiting
    return weight


def parts(length: int, size: int) -> list[slice]:
    """As few equal parts as there can be; the last one may be shorter."""
    part = -(-length // -(-length // size))
    return [slice(start, min(start + part, length)) for start in range(0, length, part)]


def shampoo_oracle(parameters: Numbers, gradients: list[Numbers], size: int, grafting: str, power: float) -> Numbers:
    result = {}
    for name, weight in parameters.items():
        shape = MATRIX_OF.get(weight.shape, weight.shape)
        found = np.empty(shape)
        for rows in parts(shape[0], size):
            for columns in parts(shape[1], size):
                block = [gradient[name].reshape(shape)[rows, columns] for gradient in gradients]
                found[rows, columns] = shampoo_block(weight.reshape(shape)[rows, columns], block, grafting, power)
        result[name] = found.reshape(weight.shape)
    return result


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
