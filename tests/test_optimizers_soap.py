"""SOAP against float64 NumPy, with new bases on the way; that order and sign of a basis change nothing; what happens to
sides without a basis, broken statistics and zeros; resuming between two renewals; and memory."""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from core.memory_plan import KERNELS_OF_UPDATE
from optimizers import eigenbasis
from optimizers.base import Optimizer
from optimizers.soap import SOAPConfig, sides_of
from tests.memory_peaks import held_bytes, highest_peak, peak_of
from tests.soap_oracle import BETAS, EPS, MATRIX_OF, SHAMPOO_BETA, soap_oracle
from tests.tiny_run import needs_compiler
from tests.update_oracles import (
    MORE_SHAPES,
    MULTIPLIERS,
    Arrays,
    assert_close,
    config_of,
    draw,
    is_decayed,
    run_oracle_steps,
    to_mlx,
    to_numpy,
)
from utils.errors import ConfigError

RATE, DECAY = 0.02, 0.1
SHAPES: dict[str, tuple[int, ...]] = {
    "layers.0.square.weight": (8, 8),
    "layers.0.tall.weight": (13, 6),
    "layers.0.wide.weight": (5, 12),
    "layers.0.experts.weight": (2, 3, 7),
    "layers.0.convolution.weight": (3, 2, 4, 2),
}


def build(shapes: dict[str, tuple[int, ...]] = SHAPES, **changes: Any) -> Optimizer:
    config = {"learning_rate": RATE, "weight_decay": DECAY, "betas": BETAS, "shampoo_beta": SHAMPOO_BETA, "eps": EPS}
    return SOAPConfig(**config | changes).build({name: mx.zeros(shape) for name, shape in shapes.items()})


def train(optimizer: Optimizer, gradients: Sequence[Arrays], parameters: dict[str, mx.array], first: int = 0) -> Any:
    """What the training loop does with updates `first`, `first` + 1, ..."""
    for number, gradient in enumerate(gradients, first):
        optimizer.set_schedule(MULTIPLIERS[number % len(MULTIPLIERS)])
        refreshed = optimizer.refresh(number)
        parameters = optimizer.apply_gradients(to_mlx(gradient), parameters)
        optimizer.install(refreshed)
    return parameters


@pytest.mark.parametrize("method", ["qr", "eigh"])
@pytest.mark.parametrize("frequency", [1, 3])
def test_steps_from_the_start_equal_the_oracle(method: str, frequency: int) -> None:
    # No basis for the longer side of a matrix: what the first gradient leaves empty could be turned in any way.
    shapes = {"layers.0.square.weight": (8, 8), "layers.0.tall.weight": (13, 6), "layers.0.wide.weight": (5, 12)}
    gradients = [draw(seed, shapes) for seed in range(1, 13)]
    optimizer = build(shapes, basis=method, precondition_frequency=frequency, max_preconditioner_dim=8)
    ours = train(optimizer, gradients, to_mlx(draw(0, shapes)))
    oracle = run_oracle_steps(
        lambda name: soap_oracle(shapes[name], 8, frequency, method), gradients, draw(0, shapes), RATE, DECAY
    )
    assert_close(to_numpy(ours), oracle[-1], 1e-4)
    assert optimizer.counts()["num_damped"].item() == 0


def middle_of_a_run(started: int) -> tuple[dict[str, mx.array], dict[str, dict[str, np.ndarray]]]:
    """A state after so many updates, by our names and for the oracle: statistics of full rank, bases of any kind."""
    generator = np.random.default_rng(7)
    arrays = build().state_dict() | {"step": mx.array(started, mx.uint64)}
    states: dict[str, dict[str, np.ndarray]] = {}
    for name, shape in SHAPES.items():
        matrix = MATRIX_OF.get(shape, shape)
        state = {"m": 0.3 * generator.normal(size=matrix), "v": generator.uniform(0.2, 1.0, matrix)}
        for side, size in enumerate(matrix):
            samples = generator.normal(size=(size, 3 * size)) * np.linspace(1, 2, size)[:, None]
            state[f"L{side}"] = samples @ samples.T / 3
            state[f"Q{side}"] = np.linalg.qr(generator.normal(size=(size, size)))[0]
        states[name] = state
        keys = {"m": "first", "v": "second", "L0": "left", "L1": "right", "Q0": "left_basis", "Q1": "right_basis"}
        for key, moment in keys.items():
            target = f"parameters.{name}.{moment}"
            arrays[target] = mx.array(state[key].astype(np.float32)).reshape(arrays[target].shape)
        # Ours are means with the bias corrected, the oracle's are plain.
        state |= {key: state[key] * (1 - SHAMPOO_BETA**started) for key in ("L0", "L1")}
    return arrays, states


@pytest.mark.parametrize("method", ["qr", "eigh"])
@pytest.mark.parametrize("frequency", [1, 4])
def test_steps_from_the_middle_equal_the_oracle_on_both_sides_of_all_shapes(method: str, frequency: int) -> None:
    gradients = [draw(seed, SHAPES) for seed in range(1, 13)]
    arrays, states = middle_of_a_run(started=10)
    optimizer = build(basis=method, precondition_frequency=frequency)
    optimizer.load_state(arrays)
    parameters = train(optimizer, gradients, to_mlx(draw(0, SHAPES)), first=10)

    def step_of(name: str) -> Any:
        rule = soap_oracle(SHAPES[name], 100, frequency, method, started=10)
        return lambda old, gradient, state, *rest: rule(old, gradient, states[name], *rest)

    oracle = run_oracle_steps(step_of, gradients, draw(0, SHAPES), RATE, DECAY)
    assert_close(to_numpy(parameters), oracle[-1], 1e-4)


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 2**31))
def test_neither_sign_nor_order_of_the_columns_of_a_basis_matter(seed: int) -> None:
    generator = np.random.default_rng(seed)
    shapes = {"layers.0.weight": (6, 9)}
    optimizers, results = [build(shapes), build(shapes)], []
    for optimizer in optimizers:
        train(optimizer, [draw(seed, shapes) for seed in (1, 2, 3)], to_mlx(draw(0, shapes)))
    moments = optimizers[1].state["parameters"]["layers.0.weight"]
    for axis, side in enumerate(("left", "right")):
        order = generator.permutation(moments[f"{side}_basis"].shape[2])
        signs = generator.choice([-1.0, 1.0], order.size).astype(np.float32)
        moments[f"{side}_basis"] = moments[f"{side}_basis"][:, :, mx.array(order)] * mx.array(signs)
        moments["second"] = mx.take(moments["second"], mx.array(order), axis=axis)
    for optimizer in optimizers:
        new = optimizer.apply_gradients(to_mlx(draw(4, shapes)), to_mlx(draw(0, shapes)))
        results.append(to_numpy(new)["layers.0.weight"])
    np.testing.assert_allclose(results[1], results[0], atol=1e-6 * np.abs(results[0]).max())


@pytest.mark.parametrize("changes", [{"precondition_frequency": 10}, {"max_preconditioner_dim": 1}])
def test_with_identities_as_bases_it_is_adamw(changes: dict[str, int]) -> None:
    shapes = MORE_SHAPES | SHAPES
    parameters = to_mlx(draw(0, shapes))
    adamw = config_of("adamw", learning_rate=RATE, weight_decay=DECAY, betas=BETAS, eps=EPS).build(parameters)
    other = build(shapes, matrices=("*",), **changes)
    ours, theirs = parameters, parameters
    for seed in range(1, 9):
        if "max_preconditioner_dim" in changes:
            other.install(other.refresh(seed))
        ours = other.apply_gradients(to_mlx(draw(seed, shapes)), ours)
        theirs = adamw.apply_gradients(to_mlx(draw(seed, shapes)), theirs)
    assert_close(to_numpy(ours), to_numpy(theirs), 1e-6)


def test_the_statistics_decay_as_the_second_moment_unless_told_otherwise() -> None:
    gradients = [draw(seed, SHAPES) for seed in range(1, 7)]
    default, same, other = (
        to_numpy(train(build(precondition_frequency=2, shampoo_beta=beta), gradients, to_mlx(draw(0, SHAPES))))
        for beta in (None, BETAS[1], BETAS[0])
    )
    for name in SHAPES:
        np.testing.assert_array_equal(default[name], same[name])
        assert (default[name] != other[name]).any()


def test_the_first_two_updates_know_no_basis_and_the_third_does() -> None:
    shapes = {"layers.0.weight": (6, 6)}
    optimizer = build(shapes)
    seen = []
    parameters = to_mlx(draw(0, shapes))
    for number in range(4):
        seen.append(np.array(optimizer.state["parameters"]["layers.0.weight"]["left_basis"][0]))
        parameters = train(optimizer, [draw(number + 1, shapes)], parameters, first=number)
    np.testing.assert_array_equal(seen[0], np.eye(6))
    np.testing.assert_array_equal(seen[1], np.eye(6))
    gradient = draw(1, shapes)["layers.0.weight"]
    turned = seen[2].T @ gradient @ gradient.T @ seen[2]
    assert np.abs(turned - np.diag(np.diag(turned))).max() < 1e-5 * np.abs(turned).max()
    np.testing.assert_array_equal(seen[3], seen[2])


def test_sides_that_are_too_long_or_of_length_one_have_no_basis() -> None:
    assert sides_of((20, 8), 8) == {"right": 8}
    assert sides_of((20, 8), 20) == {"left": 20, "right": 8}
    assert sides_of((20, 8), 7) == {}
    assert sides_of((1, 9), 100) == {"right": 9}
    assert sides_of((2, 3, 7), 100) == {"left": 6, "right": 7}
    moments = build({"layers.0.weight": (20, 8)}, max_preconditioner_dim=10).state["parameters"]["layers.0.weight"]
    shapes = {key: array.shape for key, array in moments.items()}
    assert shapes == {
        "first": (20, 8),
        "second": (20, 8),
        "right": (1, 8, 8),
        "right_basis": (1, 8, 8),
        "num_mended": (),
        "num_damped": (),
    }


def test_every_number_of_dimensions_trains_and_decays() -> None:
    optimizer = build(MORE_SHAPES, matrices=("*",), precondition_frequency=2)
    parameters = to_mlx(draw(0, MORE_SHAPES))
    before = to_numpy(parameters)
    parameters = train(optimizer, [draw(seed, MORE_SHAPES) for seed in range(1, 9)], parameters)
    for name, array in to_numpy(parameters).items():
        assert np.isfinite(array).all(), name
        assert (array != before[name]).all(), name
    assert {name: group.name for group in optimizer.groups for name in group.decay} == {
        name: "soap" if len(shape) >= 2 else "adamw" for name, shape in MORE_SHAPES.items()
    }
    still = to_mlx({name: np.zeros(shape) for name, shape in MORE_SHAPES.items()})
    fresh = build(MORE_SHAPES, matrices=("*",))
    for name, array in to_numpy(fresh.apply_gradients(still, parameters)).items():
        shrunk = 1 - RATE * DECAY if is_decayed(name) else 1.0
        np.testing.assert_allclose(array, np.array(parameters[name]) * shrunk, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("method", ["qr", "eigh"])
@pytest.mark.parametrize("rank", [0, 1])
def test_gradients_of_rank_zero_and_one_leave_bases_orthonormal(method: str, rank: int) -> None:
    shapes = {"layers.0.weight": (12, 17)}
    optimizer = build(shapes, basis=method, precondition_frequency=1)
    generator = np.random.default_rng(3)
    parameters = to_mlx(draw(0, shapes))
    before = to_numpy(parameters)["layers.0.weight"]
    for number in range(8):
        gradient = rank * np.outer(generator.normal(size=12), generator.normal(size=17))
        parameters = train(optimizer, [{"layers.0.weight": gradient}], parameters, first=number)
        moments = optimizer.state["parameters"]["layers.0.weight"]
        for side in ("left", "right"):
            basis = np.array(moments[f"{side}_basis"][0], np.float64)
            assert np.abs(basis.T @ basis - np.eye(len(basis))).max() < 1e-5
    after = to_numpy(parameters)["layers.0.weight"]
    shrunk = np.prod([1 - RATE * DECAY * MULTIPLIERS[number] for number in range(8)])
    # Of root mean square about 1 at most, as Adam's.
    assert np.sqrt(np.mean((after - shrunk * before) ** 2)) < 1e-7 + rank * 1.5 * RATE * sum(MULTIPLIERS[:8])
    assert optimizer.counts()["num_damped"].item() == 0


def broken_statistic(kind: str, size: int) -> mx.array:
    if kind == "nan":
        return mx.full((1, size, size), float("nan"))
    if kind == "one infinity":
        return mx.eye(size)[None] + mx.where(mx.arange(size * size) == 1, float("inf"), 0.0).reshape(1, size, size)
    return mx.diag(mx.linspace(-1.0, 2.0, size))[None]


@pytest.mark.parametrize("method", ["qr", "eigh"])
@pytest.mark.parametrize("kind", ["nan", "one infinity", "indefinite"])
def test_a_broken_statistic_is_damped_counted_and_recovers(kind: str, method: str) -> None:
    shapes = {"layers.0.weight": (9, 6), "layers.1.weight": (9, 6)}
    gradients = [draw(seed, shapes) for seed in range(1, 31)]
    optimizer = build(shapes, basis=method, precondition_frequency=2)
    parameters = train(optimizer, gradients[:4], to_mlx(draw(0, shapes)))
    moments = optimizer.state["parameters"]["layers.0.weight"]
    moments["left"] = broken_statistic(kind, 9)
    parameters = train(optimizer, gradients[4:6], parameters, first=4)
    assert optimizer.counts()["num_damped"].item() == moments["num_damped"].item() == 1
    basis = np.array(moments["left_basis"][0], np.float64)
    assert np.abs(basis.T @ basis - np.eye(9)).max() < 1e-5
    parameters = train(optimizer, gradients[6:28], parameters, first=6)
    counted = moments["num_damped"].item()
    assert counted < (8 if kind == "indefinite" else 2)
    train(optimizer, gradients[28:], parameters, first=28)
    assert moments["num_damped"].item() == counted
    assert all(np.isfinite(array).all() for array in to_numpy(optimizer.state_dict()).values())
    values = np.linalg.eigvalsh(np.array(moments["left"][0], np.float64))
    assert values.min() > -1e-2 * values.max()


@pytest.mark.parametrize("method", ["qr", "eigh"])
def test_what_breaks_and_is_mended_between_two_renewals_is_counted_too(method: str) -> None:
    shapes = {"layers.0.weight": (9, 6), "layers.1.weight": (9, 6)}
    optimizer = build(shapes, basis=method, precondition_frequency=4)
    parameters = train(optimizer, [draw(seed, shapes) for seed in range(1, 6)], to_mlx(draw(0, shapes)))
    moments = optimizer.state["parameters"]["layers.0.weight"]
    moments["left"] = broken_statistic("nan", 9)
    train(optimizer, [draw(seed, shapes) for seed in range(6, 10)], parameters, first=5)
    assert {key: count.item() for key, count in optimizer.counts().items()} == {"num_mended": 1, "num_damped": 0}
    assert moments["num_mended"].item() == 1


@settings(deadline=None, max_examples=8)
@given(stop=st.integers(0, 9), method=st.sampled_from(["qr", "eigh"]))
def test_resuming_anywhere_between_two_renewals_is_bit_identical(stop: int, method: str) -> None:
    shapes = {"layers.0.weight": (7, 11), "layers.1.weight": (11, 7), "layers.2.weight": (7, 7), "norm.weight": (7,)}
    gradients = [draw(seed, shapes) for seed in range(1, 11)]
    straight = build(shapes, basis=method, precondition_frequency=3)
    expected = train(straight, gradients, to_mlx(draw(0, shapes)))

    first = build(shapes, basis=method, precondition_frequency=3)
    parameters = to_numpy(train(first, gradients[:stop], to_mlx(draw(0, shapes))))
    saved = {name: np.array(array) for name, array in first.state_dict().items()}
    second = build(shapes, basis=method, precondition_frequency=3)
    second.load_state({name: mx.array(array) for name, array in saved.items()})
    resumed = train(second, gradients[stop:], {name: mx.array(array) for name, array in parameters.items()}, stop)
    for name, array in to_numpy(expected).items():
        np.testing.assert_array_equal(np.array(resumed[name]), array)
    for name, array in straight.state_dict().items():
        np.testing.assert_array_equal(np.array(second.state_dict()[name]), np.array(array), err_msg=name)


@needs_compiler
def test_compiled_updates_see_new_bases() -> None:
    gradients = [draw(seed, SHAPES) for seed in range(1, 9)]
    eager = train(build(precondition_frequency=2), gradients, to_mlx(draw(0, SHAPES)))
    optimizer = build(precondition_frequency=2)
    step: Any = mx.compile(optimizer.apply_gradients, inputs=optimizer.state, outputs=optimizer.state)
    parameters = to_mlx(draw(0, SHAPES))
    for number, gradient in enumerate(gradients):
        optimizer.set_schedule(MULTIPLIERS[number])
        refreshed = optimizer.refresh(number)
        parameters = step(to_mlx(gradient), parameters)
        optimizer.install(refreshed)
    assert_close(to_numpy(parameters), to_numpy(eager), 1e-4)


def test_a_refresh_returns_nothing_that_an_update_changes() -> None:
    optimizer = build()
    assert not optimizer.refresh(0)
    train(optimizer, [draw(1, SHAPES)], to_mlx(draw(0, SHAPES)))
    for number in (1, 10, 20):
        refreshed = optimizer.refresh(number)
        assert refreshed.keys() == SHAPES.keys()
        assert all(arrays.keys() == {"left_basis", "right_basis", "num_damped"} for arrays in refreshed.values())
    assert not any(optimizer.refresh(number) for number in (2, 9, 11, 19))


def widths(num_layers: int, width: int, inner: int) -> dict[str, tuple[int, ...]]:
    shapes = {"gate": (inner, width), "up": (inner, width), "down": (width, inner)}
    shapes |= dict.fromkeys("qkvo", (width, width))
    return {f"layers.{layer}.{name}.weight": shape for layer in range(num_layers) for name, shape in shapes.items()}


@needs_compiler
@pytest.mark.parametrize(
    ("shapes", "max_dim"),
    [(widths(2, 256, 700), 1024), (widths(4, 192, 512), 256), (widths(6, 160, 320), 1024), (widths(1, 320, 640), 400)],
)
def test_an_update_and_a_refresh_hold_what_the_config_says(shapes: dict[str, tuple[int, ...]], max_dim: int) -> None:
    config = SOAPConfig(max_preconditioner_dim=max_dim)
    parameters = {name: mx.ones(shape) for name, shape in shapes.items()}
    gradients = {name: mx.random.normal(shape) for name, shape in shapes.items()}
    optimizer = config.build(parameters)
    step: Any = mx.compile(optimizer.apply_gradients, inputs=optimizer.state, outputs=optimizer.state)
    mx.eval(gradients)
    parameters = step(gradients, parameters)
    mx.eval(parameters, optimizer.state)
    held = held_bytes()

    def update() -> None:
        nonlocal parameters
        parameters = step(gradients, parameters)
        mx.eval(parameters, optimizer.state)

    weights = sum(array.nbytes for array in parameters.values())
    ahead = min(weights, KERNELS_OF_UPDATE * weights // len(shapes))
    planned = held + ahead + config.update_bytes(shapes)
    assert planned == pytest.approx(highest_peak(lambda: peak_of(update), enough=planned / 1.15), rel=0.15)
    held = held_bytes()
    refreshed = optimizer.refresh(10)
    mx.eval(refreshed)
    assert 0 <= held_bytes() - held - config.refresh_bytes(shapes) <= 20 * len(shapes) * 4


def test_a_refresh_beside_a_gpu_holds_all_it_is_made_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eigenbasis, "runs_alone", lambda: False)
    shapes: dict[str, tuple[int, ...]] = {f"layers.{number}.weight": (160, 160) for number in range(40)}
    optimizer = build(shapes)
    held, promised = held_bytes(), SOAPConfig().renewal_bytes(shapes, on_cpu=False)
    # Whether the matrices are still there when their stack is made is a matter of time.
    peak = highest_peak(lambda: peak_of(lambda: mx.eval(optimizer.refresh(10))) - held, enough=0.7 * promised)
    assert 0.7 < peak / promised < 1.05


def test_matrices_of_the_layers_by_default_and_globs_of_ones_own() -> None:
    shapes = SHAPES | {"embed_tokens.weight": (9, 8), "lm_head.weight": (9, 8), "layers.0.norm.weight": (8,)}
    owners = {group.name: set(group.decay) for group in build(shapes).groups}
    assert owners == {"soap": set(SHAPES), "adamw": shapes.keys() - SHAPES.keys()}
    assert {group.name: group.learning_rate for group in build(shapes, adamw_learning_rate=1e-4).groups} == {
        "soap": RATE,
        "adamw": 1e-4,
    }
    assert [group.name for group in build().groups] == ["soap"]
    with pytest.raises(ConfigError, match=r"matrices: '\*sqare\*' matches no parameter.*square"):
        build(matrices=("*sqare*",))
    with pytest.raises(ConfigError, match="no matrix matches"):
        build(shapes, matrices=("*norm*",))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("betas", betas) for betas in ((0.95, 1.0), (float("nan"), 0.9))),
        *(("shampoo_beta", beta) for beta in (1.0, float("nan"))),
        *(("eps", eps) for eps in (0.0, float("nan"))),
        *((name, 0) for name in ("precondition_frequency", "max_preconditioner_dim", "adamw_learning_rate")),
        ("basis", "svd"),
    ],
)
def test_bad_hyperparameters_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=name):
        SOAPConfig(**{name: value})
