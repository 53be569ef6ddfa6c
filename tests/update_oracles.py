"""What tests of update rules share: parameters of every number of dimensions, runs of ours beside float64 NumPy.

An oracle is `rule(name) -> step`, where `step(parameter, gradient, state, number, rate, decay)` gives the new float64
parameter; `state` is a dict of its own for each parameter. To test on other shapes edit `SHAPES`.
"""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

from optimizers import OPTIMIZERS
from optimizers.base import Optimizer, OptimizerConfig
from utils.registry import look_up

Arrays = dict[str, np.ndarray]
Step = Callable[[np.ndarray, np.ndarray, dict[str, Any], int, float, float], np.ndarray]

SHAPES: dict[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (24, 8),
    "model.layers.0.self_attn.q_proj.weight": (8, 8),
    "model.layers.0.self_attn.q_proj.bias": (8,),
    "model.layers.0.mlp.up_proj.weight": (20, 8),
    "model.layers.0.mlp.down_proj.weight": (8, 20),
    "model.layers.1.mlp.up_proj.weight": (20, 8),
    "model.norm.weight": (8,),
    "lm_head.weight": (24, 8),
}
MORE_SHAPES = SHAPES | {
    "scale": (),
    "single": (1,),
    "row": (1, 9),
    "column": (9, 1),
    "experts": (3, 5, 7),
    "thin": (4, 1, 6),
    "convolution": (4, 3, 2, 5),
}
"""Every number of dimensions from 0 to 4, and sides of 1."""
MULTIPLIERS = [0.5, 1.0, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.3, 0.1]


def is_decayed(name: str) -> bool:
    """Whether the default globs let it decay."""
    return not any(word in name for word in ("norm", "bias", "embed"))


def draw(seed: int, shapes: dict[str, tuple[int, ...]] = SHAPES) -> Arrays:
    """Seed 0 gives parameters, as small as weights are: beside large ones an error would not show."""
    generator = np.random.default_rng(seed)
    scale = 1.0 if seed else 0.05
    return {name: np.asarray(scale * generator.normal(size=shape)) for name, shape in shapes.items()}


def rounded(arrays: Arrays) -> Arrays:
    """The float64 value of the nearest float32."""
    return {name: array.astype(np.float32).astype(np.float64) for name, array in arrays.items()}


def to_mlx(arrays: Arrays) -> dict[str, mx.array]:
    """Float32."""
    return {name: mx.array(array.astype(np.float32)) for name, array in arrays.items()}


def to_numpy(arrays: Any) -> Arrays:
    """As they are."""
    return {name: np.array(array) for name, array in arrays.items()}


def config_of(row: str, **settings: Any) -> OptimizerConfig:
    """The config of a row of the table."""
    return look_up(OPTIMIZERS, row, "optimizer")(**settings)


def run_steps(
    config: OptimizerConfig,
    gradients: list[Arrays],
    parameters: Arrays,
    see: Callable[[Optimizer, dict[str, mx.array]], None] = lambda optimizer, parameters: None,
) -> Arrays:
    """Ours after these gradients; `see` gets optimizer and parameters after every step."""
    ours = to_mlx(parameters)
    optimizer = config.build(ours)
    for step, gradient in enumerate(gradients):
        optimizer.set_schedule(MULTIPLIERS[step % len(MULTIPLIERS)])
        ours = optimizer.apply_gradients(to_mlx(gradient), ours)
        see(optimizer, ours)
    return to_numpy(ours)


def run_compiled(config: OptimizerConfig, gradients: list[Arrays], parameters: Arrays) -> tuple[Arrays, Optimizer]:
    """As `run_steps`, compiled, with an update of NaN held back before each; the optimizer too."""
    ours = to_mlx(parameters)
    optimizer = config.build(ours)
    step: Any = mx.compile(optimizer.apply_gradients, inputs=optimizer.state, outputs=optimizer.state)
    broken = {name: mx.full(array.shape, mx.nan) for name, array in ours.items()}
    for number, gradient in enumerate(gradients):
        optimizer.set_schedule(MULTIPLIERS[number % len(MULTIPLIERS)])
        ours = step(broken, ours, mx.array(False))
        ours = step(to_mlx(gradient), ours, mx.array(True))
    return to_numpy(ours), optimizer


def peak_of_update(optimizer: Optimizer, shapes: dict[str, tuple[int, ...]]) -> int:
    """Bytes on top of all that was held before, at the peak of a compiled update whose gradients nobody else holds."""
    held = {"weights": {name: mx.zeros(shape) for name, shape in shapes.items()}}
    state = [held, optimizer.state]

    def step(gradients: dict[str, mx.array], applies: mx.array) -> mx.array:
        held["weights"] = optimizer.apply_gradients(gradients, held["weights"], applies)
        return applies

    compiled: Any = mx.compile(step, inputs=state, outputs=state)
    before = 0
    for _ in range(2):
        gradients = {name: mx.random.normal(shape) for name, shape in shapes.items()}
        mx.eval(gradients, state)
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        done = compiled(gradients, mx.array(True))
        del gradients
        mx.eval(done, state)
    return mx.get_peak_memory() - before


def run_oracle_steps(
    step_of: Callable[[str], Step], gradients: list[Arrays], parameters: Arrays, rate: float, decay: float
) -> list[Arrays]:
    """The oracle's parameters after each of these gradients."""
    current, states = rounded(parameters), {name: {} for name in parameters}
    history: list[Arrays] = []
    for number, gradient in enumerate(map(rounded, gradients)):
        now = rate * MULTIPLIERS[number % len(MULTIPLIERS)]
        current = {
            name: step_of(name)(old, gradient[name], states[name], number + 1, now, decay if is_decayed(name) else 0.0)
            for name, old in current.items()
        }
        history.append(current)
    return history


def assert_close(ours: Arrays, oracle: Arrays, tolerance: float) -> None:
    """Largest error over the largest number, array by array."""
    assert ours.keys() == oracle.keys()
    for name, expected in oracle.items():
        error = np.abs(ours[name] - expected).max() / np.abs(expected).max()
        assert error < tolerance, (name, error)
