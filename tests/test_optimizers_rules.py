"""Every update rule against a float64 NumPy oracle, written from the papers and not from our code."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from optimizers import OPTIMIZERS
from optimizers.base import OptimizerConfig
from utils.registry import look_up

SHAPES = {
    "model.embed_tokens.weight": (24, 8),
    "model.layers.0.self_attn.q_proj.weight": (8, 8),
    "model.layers.0.self_attn.q_proj.bias": (8,),
    "model.layers.0.mlp.up_proj.weight": (20, 8),
    "model.layers.0.mlp.down_proj.weight": (8, 20),
    "model.layers.1.mlp.up_proj.weight": (20, 8),
    "model.norm.weight": (8,),
    "lm_head.weight": (24, 8),
}
DECAYED = {name for name in SHAPES if "norm" not in name and "bias" not in name and "embed" not in name}
MULTIPLIERS = [0.5, 1.0, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.3, 0.1]


def draw(seed: int) -> dict[str, np.ndarray]:
    """Seed 0 gives parameters, as small as weights are: beside large ones an error would not show."""
    generator = np.random.default_rng(seed)
    scale = 1.0 if seed else 0.05
    return {name: scale * generator.normal(size=shape) for name, shape in SHAPES.items()}


def to_mlx(arrays: dict[str, np.ndarray]) -> dict[str, mx.array]:
    return {name: mx.array(array.astype(np.float32)) for name, array in arrays.items()}


def run_ours(type_name: str, num_steps: int = 10, **settings: Any) -> dict[str, np.ndarray]:
    config: OptimizerConfig = look_up(OPTIMIZERS, type_name, "optimizer")(**settings)
    parameters = to_mlx(draw(0))
    optimizer = config.build(parameters)
    for step in range(num_steps):
        optimizer.set_schedule(MULTIPLIERS[step])
        parameters = optimizer.apply_gradients(to_mlx(draw(step + 1)), parameters)
    return {name: np.array(array) for name, array in parameters.items()}


def run_oracle(rule_of: Any, decay: float, num_steps: int = 10) -> dict[str, np.ndarray]:
    parameters = draw(0)
    states: dict[str, dict[str, Any]] = {name: {} for name in SHAPES}
    for step in range(num_steps):
        gradients = draw(step + 1)
        for name in SHAPES:
            rate, change = rule_of(name)(gradients[name], states[name], step + 1)
            rate *= MULTIPLIERS[step]
            shrink = 1 - rate * decay if name in DECAYED else 1.0
            parameters[name] = parameters[name] * shrink - rate * change
    return parameters


def assert_close(ours: dict[str, np.ndarray], oracle: dict[str, np.ndarray], tolerance: float) -> None:
    for name, expected in oracle.items():
        error = np.abs(ours[name] - expected).max() / np.abs(expected).max()
        assert error < tolerance, (name, error)


def sgd_oracle(rate: float, momentum: float, nesterov: bool) -> Any:
    def rule(gradient: np.ndarray, state: dict[str, Any], step: int) -> tuple[float, np.ndarray]:
        state["v"] = momentum * state.get("v", 0.0) + gradient
        return rate, gradient + momentum * state["v"] if nesterov else state["v"]

    return rule


def adamw_oracle(rate: float, betas: tuple[float, float], eps: float) -> Any:
    def rule(gradient: np.ndarray, state: dict[str, Any], step: int) -> tuple[float, np.ndarray]:
        state["m"] = betas[0] * state.get("m", 0.0) + (1 - betas[0]) * gradient
        state["v"] = betas[1] * state.get("v", 0.0) + (1 - betas[1]) * gradient**2
        mean, square = state["m"] / (1 - betas[0] ** step), state["v"] / (1 - betas[1] ** step)
        return rate, mean / (np.sqrt(square) + eps)

    return rule


def muon_oracle(rate: float, momentum: float, nesterov: bool, num_steps: int, original: bool) -> Any:
    def polynomial(matrix: np.ndarray) -> np.ndarray:
        left, values, right = np.linalg.svd(matrix, full_matrices=False)
        values = values / np.sqrt((values**2).sum())
        for _ in range(num_steps):
            values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
        return left @ np.diag(values) @ right

    def rule(gradient: np.ndarray, state: dict[str, Any], step: int) -> tuple[float, np.ndarray]:
        state["v"] = momentum * state.get("v", 0.0) + gradient
        direction = gradient + momentum * state["v"] if nesterov else state["v"]
        rows, columns = gradient.shape
        scale = max(1.0, rows / columns) ** 0.5 if original else 0.2 * max(rows, columns) ** 0.5
        return rate, scale * polynomial(direction)

    return rule


@pytest.mark.parametrize(("momentum", "nesterov", "decay"), [(0.0, False, 0.0), (0.9, False, 0.1), (0.9, True, 0.1)])
def test_sgd_equals_the_oracle(momentum: float, nesterov: bool, decay: float) -> None:
    ours = run_ours("sgd", learning_rate=0.05, momentum=momentum, nesterov=nesterov, weight_decay=decay)
    oracle = run_oracle(lambda name: sgd_oracle(0.05, momentum, nesterov), decay)
    assert_close(ours, oracle, 1e-5)


@pytest.mark.parametrize(("betas", "eps"), [((0.9, 0.95), 1e-8), ((0.9, 0.999), 1e-6), ((0.0, 0.9999), 1e-8)])
def test_adamw_equals_the_oracle(betas: tuple[float, float], eps: float) -> None:
    ours = run_ours("adamw", learning_rate=0.02, betas=betas, eps=eps, weight_decay=0.3)
    assert_close(ours, run_oracle(lambda name: adamw_oracle(0.02, betas, eps), 0.3), 1e-5)


def test_lion_equals_the_oracle_away_from_sign_flips() -> None:
    def rule(gradient: np.ndarray, state: dict[str, Any], step: int) -> tuple[float, np.ndarray]:
        mixed = 0.9 * state.get("m", 0.0) + (1 - 0.9) * gradient
        assert np.abs(mixed).min() > 1e-6, "the seed puts an element on a sign flip"
        state["m"] = 0.99 * state.get("m", 0.0) + (1 - 0.99) * gradient
        return 0.01, np.sign(mixed)

    ours = run_ours("lion", learning_rate=0.01, betas=(0.9, 0.99), weight_decay=0.3)
    assert_close(ours, run_oracle(lambda name: rule, 0.3), 1e-5)


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize(("update_scale", "ns_steps"), [("rms", 5), ("original", 3)])
def test_muon_equals_the_oracle_with_adamw_for_the_rest(nesterov: bool, update_scale: str, ns_steps: int) -> None:
    settings = {"learning_rate": 0.02, "weight_decay": 0.1, "nesterov": nesterov, "ns_steps": ns_steps}
    ours = run_ours("muon", update_scale=update_scale, **settings)
    original = update_scale == "original"
    adamw_rate = 0.02 * 5 / 20**0.5 if original else 0.02

    def rule_of(name: str) -> Any:
        if ".layers." in name and len(SHAPES[name]) == 2:
            return muon_oracle(0.02, 0.95, nesterov, ns_steps, original)
        return adamw_oracle(adamw_rate, (0.9, 0.95), 1e-8)

    assert_close(ours, run_oracle(rule_of, 0.1), 1e-3)


def test_the_bias_correction_is_exact_to_float32_when_beta_is_close_to_one() -> None:
    from optimizers.enhanced_optimizers import bias_correction

    for step in (1, 2, 10, 1000, 100000):
        for beta in (0.9, 0.999, 0.99999):
            ours = bias_correction(mx.array(step, mx.uint64), beta).item()
            assert ours == pytest.approx(1 - beta**step, rel=1e-6)
