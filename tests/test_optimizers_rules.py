"""Every element-wise update rule against a float64 NumPy oracle, written from the papers and not from our code, and
against mlx.optimizers where its definition is ours; every number of every row's config refuses what is no use."""

import math
from typing import Any, get_args, get_origin

import mlx.core as mx
import mlx.optimizers
import numpy as np
import pytest
from pydantic import ValidationError

from core.memory_plan import KERNELS_OF_UPDATE
from optimizers import OPTIMIZERS
from optimizers.base import OptimizerConfig
from optimizers.enhanced_optimizers import bias_correction, bytes_of
from tests.memory_peaks import highest_peak
from tests.tiny_run import needs_compiler
from tests.update_oracles import (
    MORE_SHAPES,
    SHAPES,
    Arrays,
    Step,
    assert_close,
    config_of,
    draw,
    run_oracle_steps,
    run_steps,
    to_mlx,
    to_numpy,
)
from utils.registry import look_up

TEN = range(1, 11)


def compare(
    row: str, step_of: Any, gradients: list[Arrays], tolerance: float = 1e-5, shapes: Any = MORE_SHAPES, **settings: Any
) -> None:
    """Ours and the oracle after these gradients."""
    config = config_of(row, **settings)
    ours = run_steps(config, gradients, draw(0, shapes))
    history = run_oracle_steps(step_of, gradients, draw(0, shapes), config.learning_rate, config.weight_decay)
    assert_close(ours, history[-1], tolerance)


def sgd_oracle(momentum: float, nesterov: bool) -> Step:
    def step(w: Any, g: Any, state: dict[str, Any], number: int, rate: float, decay: float) -> np.ndarray:
        state["v"] = momentum * state.get("v", 0.0) + g
        return w * (1 - rate * decay) - rate * (g + momentum * state["v"] if nesterov else state["v"])

    return step


def adamw_oracle(betas: tuple[float, float], eps: float, amsgrad: bool = False, share: float = 1.0) -> Step:
    """AMSGrad: the largest of the uncorrected second moments, corrected afterwards."""

    def step(w: Any, g: Any, state: dict[str, Any], number: int, rate: float, decay: float) -> np.ndarray:
        rate = share * rate
        state["m"] = betas[0] * state.get("m", 0.0) + (1 - betas[0]) * g
        state["v"] = betas[1] * state.get("v", 0.0) + (1 - betas[1]) * g**2
        state["largest"] = np.maximum(state.get("largest", 0.0), state["v"])
        square = state["largest"] if amsgrad else state["v"]
        root = np.sqrt(square / (1 - betas[1] ** number))
        return w * (1 - rate * decay) - rate * state["m"] / (1 - betas[0] ** number) / (root + eps)

    return step


def lion_oracle(betas: tuple[float, float]) -> Step:
    def step(w: Any, g: Any, state: dict[str, Any], number: int, rate: float, decay: float) -> np.ndarray:
        mixed = betas[0] * state.get("m", 0.0) + (1 - betas[0]) * g
        assert np.abs(mixed).min() > 1e-3, "an element is on a sign flip"
        state["m"] = betas[1] * state.get("m", 0.0) + (1 - betas[1]) * g
        return w * (1 - rate * decay) - rate * np.sign(mixed)

    return step


def muon_oracle(momentum: float, nesterov: bool, num_steps: int, original: bool) -> Step:
    def polynomial(matrix: np.ndarray) -> np.ndarray:
        left, values, right = np.linalg.svd(matrix, full_matrices=False)
        values = values / np.sqrt((values**2).sum())
        for _ in range(num_steps):
            values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
        return left @ np.diag(values) @ right

    def step(w: Any, g: Any, state: dict[str, Any], number: int, rate: float, decay: float) -> np.ndarray:
        state["v"] = momentum * state.get("v", 0.0) + g
        direction = g + momentum * state["v"] if nesterov else state["v"]
        rows, columns = g.shape
        scale = max(1.0, rows / columns) ** 0.5 if original else 0.2 * max(rows, columns) ** 0.5
        return w * (1 - rate * decay) - rate * scale * polynomial(direction)

    return step


def normal(shapes: Any = MORE_SHAPES) -> list[Arrays]:
    """Ten gradients."""
    return [draw(seed, shapes) for seed in TEN]


def fading() -> list[Arrays]:
    """Gradients that shrink, so that the largest second moment is an old one."""
    return [{name: gradient / 2.0**number for name, gradient in found.items()} for number, found in enumerate(normal())]


def far_from_sign_flips(betas: tuple[float, float]) -> list[Arrays]:
    """Gradients for Lion: where the mixture with the momentum comes near zero, they double until it does not."""
    momentum = {name: np.zeros(shape) for name, shape in MORE_SHAPES.items()}
    found: list[Arrays] = []
    for gradients in normal():
        for name, gradient in gradients.items():
            while (near := np.abs(betas[0] * momentum[name] + (1 - betas[0]) * gradient) < 2e-3).any():
                gradient = np.where(near, 2 * gradient + 0.01, gradient)
            momentum[name] = betas[1] * momentum[name] + (1 - betas[1]) * gradient
            gradients[name] = gradient
        found.append(gradients)
    return found


@pytest.mark.parametrize(("momentum", "nesterov", "decay"), [(0.0, False, 0.0), (0.9, False, 0.1), (0.9, True, 0.1)])
def test_sgd_equals_the_oracle(momentum: float, nesterov: bool, decay: float) -> None:
    settings = {"learning_rate": 0.05, "weight_decay": decay, "momentum": momentum, "nesterov": nesterov}
    compare("sgd", lambda name: sgd_oracle(momentum, nesterov), normal(), **settings)


@pytest.mark.parametrize("row", ["adam", "adamw"])
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize(("betas", "eps"), [((0.9, 0.95), 1e-8), ((0.9, 0.999), 1e-6), ((0.0, 0.9999), 1e-2)])
def test_adam_and_adamw_equal_the_oracle(row: str, amsgrad: bool, betas: tuple[float, float], eps: float) -> None:
    settings = {"learning_rate": 0.02, "weight_decay": 0.3, "betas": betas, "eps": eps, "amsgrad": amsgrad}
    compare(row, lambda name: adamw_oracle(betas, eps, amsgrad), fading(), **settings)


def test_amsgrad_keeps_the_largest_moment_and_only_when_asked() -> None:
    seen: list[Arrays] = []
    run_steps(
        config_of("adamw", amsgrad=True, betas=(0.9, 0.5)),
        fading(),
        draw(0, MORE_SHAPES),
        lambda optimizer, _: seen.append(to_numpy(optimizer.state["parameters"]["experts"])),
    )
    assert all((after["largest"] >= before["largest"]).all() for before, after in zip(seen, seen[1:], strict=False))
    assert (seen[-1]["largest"] > 10 * seen[-1]["second"]).mean() > 0.9
    plain = config_of("adamw").build(to_mlx(draw(0)))
    assert plain.state["parameters"]["model.norm.weight"].keys() == {"first", "second"}


def test_adam_decays_nothing_unless_asked_and_remembers_longer() -> None:
    config: Any = config_of("adam")
    assert (config.weight_decay, config.betas) == (0.0, (0.9, 0.999))
    assert [group.name for group in config.groups({"w": (2, 2)})] == ["adam"]
    assert [group.name for group in config_of("adamw").groups({"w": (2, 2)})] == ["adamw"]


@pytest.mark.parametrize("betas", [(0.9, 0.99), (0.95, 0.98)])
def test_lion_equals_the_oracle_away_from_sign_flips(betas: tuple[float, float]) -> None:
    settings = {"learning_rate": 0.01, "weight_decay": 0.3, "betas": betas}
    compare("lion", lambda name: lion_oracle(betas), far_from_sign_flips(betas), **settings)


def test_lion_says_that_it_needs_the_weights_once_more() -> None:
    assert config_of("lion").update_bytes({"a": (3, 5), "b": (), "c": (2, 3, 4)}) == 4 * (15 + 1 + 24)
    assert config_of("adamw").update_bytes({"a": (3, 5)}) == 0


@needs_compiler
@pytest.mark.parametrize("row", ["adafactor", "schedule_free_adamw"])
def test_an_update_takes_the_memory_that_its_row_says(row: str) -> None:
    """One embedding twice as large as all layers: what is alive beside weights, gradients and state."""
    shapes = {"embed_tokens.weight": (12288, 128)} | {f"layers.{index}.weight": (128, 192) for index in range(30)}
    held: dict[str, Any] = {"weights": {name: mx.full(shape, 0.1) for name, shape in shapes.items()}}
    config = config_of(row)
    optimizer = config.build(held["weights"])

    def step(gradients: dict[str, mx.array], applies: mx.array) -> mx.array:
        held["weights"] = optimizer.apply_gradients(gradients, held["weights"], applies)
        return applies

    state = [held, optimizer.state]
    compiled: Any = mx.compile(step, inputs=state, outputs=state)

    def peak_above() -> int:
        gradients = {name: mx.random.normal(shape) for name, shape in shapes.items()}
        mx.eval(gradients, state)
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        done = compiled(gradients, mx.array(True))
        del gradients
        mx.eval(done, state)
        return mx.get_peak_memory() - before

    peak_above()
    weights = sum(map(bytes_of, shapes.values()))
    always = 2 * weights + sum(array.nbytes for array in optimizer.state_dict().values())
    expected = KERNELS_OF_UPDATE * weights // len(shapes) + config.update_bytes(shapes)
    peak = highest_peak(peak_above, enough=(always + expected) / 1.15 - always)
    assert always + expected == pytest.approx(always + peak, rel=0.15)


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize(("update_scale", "ns_steps"), [("rms", 5), ("original", 3)])
def test_muon_equals_the_oracle_with_adamw_for_the_rest(nesterov: bool, update_scale: str, ns_steps: int) -> None:
    original = update_scale == "original"
    rest = adamw_oracle((0.9, 0.95), 1e-8, share=5 / 20**0.5 if original else 1.0)

    def step_of(name: str) -> Step:
        is_muons = ".layers." in name and len(SHAPES[name]) == 2
        return muon_oracle(0.95, nesterov, ns_steps, original) if is_muons else rest

    settings = {"learning_rate": 0.02, "weight_decay": 0.1, "nesterov": nesterov, "ns_steps": ns_steps}
    compare("muon", step_of, normal(SHAPES), 1e-3, SHAPES, update_scale=update_scale, **settings)


@pytest.mark.parametrize(
    ("row", "settings", "reference"),
    [
        ("sgd", {"momentum": 0.9, "nesterov": True}, mlx.optimizers.SGD(0.01, momentum=0.9, nesterov=True)),
        ("adam", {"betas": (0.9, 0.99)}, mlx.optimizers.Adam(0.01, [0.9, 0.99], bias_correction=True)),
        ("adamw", {}, mlx.optimizers.AdamW(0.01, [0.9, 0.95], weight_decay=0.1, bias_correction=True)),
        ("lion", {"weight_decay": 0.1}, mlx.optimizers.Lion(0.01, [0.9, 0.99], weight_decay=0.1)),
    ],
    ids=["sgd", "adam", "adamw", "lion"],
)
def test_a_rule_equals_that_of_mlx_where_the_definitions_agree(row: str, settings: Any, reference: Any) -> None:
    parameters = to_mlx(draw(0, MORE_SHAPES))
    ours = config_of(row, learning_rate=0.01, no_decay=(), **settings).build(parameters)
    theirs = parameters
    for gradients in map(to_mlx, far_from_sign_flips((0.9, 0.99))):
        parameters = ours.apply_gradients(gradients, parameters)
        theirs = reference.apply_gradients(gradients, theirs)
    assert_close(to_numpy(parameters), to_numpy(theirs), 1e-5)


def test_the_bias_correction_is_exact_to_float32_when_beta_is_close_to_one() -> None:
    for step in (1, 2, 10, 1000, 100000):
        for beta in (0.9, 0.999, 0.99999):
            ours = bias_correction(mx.array(step, mx.uint64), beta).item()
            assert ours == pytest.approx(1 - beta**step, rel=1e-6)


def number_fields() -> list[tuple[str, str, int]]:
    """Row, field and how many numbers it takes (0: one, not in a tuple), for every number of every row."""
    found = []
    for row in sorted(OPTIMIZERS):
        config: type[OptimizerConfig] = look_up(OPTIMIZERS, row, "optimizer")
        for name, info in config.model_fields.items():
            kinds = [kind for part in (info.annotation, *get_args(info.annotation)) for kind in (part, *get_args(part))]
            if float in kinds or (int in kinds and bool not in kinds):
                found.append((row, name, len(get_args(info.annotation)) * (get_origin(info.annotation) is tuple)))
    return found


@pytest.mark.parametrize("bad", [-1, math.nan, math.inf, "much"])
@pytest.mark.parametrize(("row", "name", "length"), number_fields())
def test_every_number_of_every_row_refuses_nonsense(row: str, name: str, length: int, bad: Any) -> None:
    given: list[Any] = [bad]
    if length:
        given = [tuple(bad if index == at else 0.5 for index in range(length)) for at in range(length)]
    for value in given:
        with pytest.raises(ValidationError, match=name):
            config_of(row, **{name: value})


def decays_of_means() -> list[tuple[str, str, int]]:
    """Those of `number_fields` that weigh what was before."""
    kinds = ("beta", "momentum")
    return [(row, name, n) for row, name, n in number_fields() if any(k in name for k in kinds) and "steps" not in name]


@pytest.mark.parametrize(("row", "name", "length"), decays_of_means())
def test_a_beta_or_momentum_of_one_is_refused(row: str, name: str, length: int) -> None:
    for at in range(max(length, 1)):
        value = tuple(1.0 if index == at else 0.5 for index in range(length)) if length else 1.0
        with pytest.raises(ValidationError, match=name):
            config_of(row, **{name: value})


def test_no_number_escapes_the_introspection() -> None:
    fields = {(row, name) for row, name, _ in number_fields()}
    wanted = {("adafactor", "beta1"), ("adafactor", "min_dim_size_to_factor"), ("adamw", "betas"), ("muon", "ns_steps")}
    assert wanted | {(row, key) for row in OPTIMIZERS for key in ("learning_rate", "weight_decay")} <= fields
    assert not {name for _, name in fields} & {"type", "nesterov", "amsgrad", "no_decay", "scale_parameter"}
