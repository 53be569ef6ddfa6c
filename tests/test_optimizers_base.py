"""The contract of every row of the table: groups, state, compiling, saving, restoring, bad input."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map, tree_unflatten
from pydantic import ValidationError

from optimizers import OPTIMIZERS
from optimizers.base import Group, Optimizer, OptimizerConfig, check_globs, zeros
from tests.tiny_run import needs_compiler
from utils.errors import CheckpointError, ConfigError
from utils.registry import look_up

every_row = pytest.mark.parametrize("row", sorted(OPTIMIZERS))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(6)
        self.up_proj = nn.Linear(6, 10)
        self.down_proj = nn.Linear(10, 6, bias=False)


class Toy(nn.Module):
    """Named as our models are; the forward pass touches every parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(12, 6)
        self.layers = [Block(), Block()]
        self.norm = nn.RMSNorm(6)
        self.lm_head = nn.Linear(6, 12, bias=False)

    def __call__(self, tokens: mx.array) -> mx.array:
        x = self.embed_tokens(tokens)
        for block in self.layers:
            x = x + block.down_proj(mx.tanh(block.up_proj(block.input_layernorm(x))))
        return self.lm_head(self.norm(x))


def make_toy(seed: int = 0) -> Toy:
    mx.random.seed(seed)
    toy = Toy()
    mx.eval(toy.parameters())
    return toy


def config_of(row: str, **settings: Any) -> OptimizerConfig:
    return look_up(OPTIMIZERS, row, "optimizer")(**settings)


def draw(parameters: Any, seed: int) -> Any:
    key = mx.random.key(seed)
    return tree_map(lambda p: mx.random.normal(p.shape, key=key).astype(p.dtype), parameters)


def flat(tree: Any) -> dict[str, np.ndarray]:
    return {name: np.array(array) for name, array in tree_flatten(tree)}


def assert_equal(one: Any, other: Any) -> None:
    one, other = flat(one), flat(other)
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def train_step(model: Toy, optimizer: Optimizer) -> Any:
    def step(tokens: mx.array, targets: mx.array) -> mx.array:
        def loss_of(model: Toy) -> mx.array:
            return nn.losses.cross_entropy(model(tokens), targets).mean()

        loss, gradients = nn.value_and_grad(model, loss_of)(model)
        optimizer.update(model, gradients)
        return loss

    return step


def batch(step: int) -> tuple[mx.array, mx.array]:
    tokens = mx.random.randint(0, 12, (4, 8), key=mx.random.key(step))
    return tokens, (tokens * 5 + 1) % 12


@needs_compiler
@every_row
def test_compiled_equals_eager_and_traces_once(row: str) -> None:
    results = []
    for compiled in (False, True):
        model, traces = make_toy(), []
        optimizer = config_of(row).build(model.trainable_parameters())
        inner = train_step(model, optimizer)

        def counted(tokens: mx.array, targets: mx.array, inner: Any = inner, traces: Any = traces) -> mx.array:
            traces.append(1)
            return inner(tokens, targets)

        state = [model.state, optimizer.state]
        step = mx.compile(counted, inputs=state, outputs=state) if compiled else counted
        losses = []
        for number in range(6):
            optimizer.set_schedule((6 - number) / 6)
            losses.append(step(*batch(number)))
            mx.eval(losses, state)
        assert len(traces) == (1 if compiled else 6)
        assert optimizer.step.item() == 6
        results.append((flat(model.parameters()), [loss.item() for loss in losses]))
    (eager, eager_losses), (fused, fused_losses) = results
    assert eager_losses == pytest.approx(fused_losses, rel=1e-6)
    for name in eager:
        np.testing.assert_allclose(fused[name], eager[name], rtol=1e-5, atol=1e-6, err_msg=name)


@every_row
def test_training_lowers_the_loss_and_moves_every_parameter(row: str) -> None:
    model = make_toy()
    before = flat(model.parameters())
    optimizer = config_of(row).build(model.trainable_parameters())
    step = train_step(model, optimizer)
    losses = [step(*batch(number)).item() for number in range(30)]
    assert np.mean(losses[-5:]) < losses[0] - 0.01
    after = flat(model.parameters())
    still = [name for name in before if np.array_equal(before[name], after[name])]
    assert not still


@every_row
def test_restoring_from_safetensors_continues_bit_for_bit(row: str, tmp_path: Path) -> None:
    parameters = dict(tree_flatten(make_toy().trainable_parameters()))
    straight = config_of(row).build(parameters)
    straight.set_schedule(0.25)
    for number in range(3):
        parameters = straight.apply_gradients(draw(parameters, number), parameters)
    mx.save_safetensors(str(tmp_path / "optimizer.safetensors"), straight.state_dict())

    resumed = config_of(row).build(tree_map(mx.ones_like, parameters))
    captured = resumed.state
    loaded = mx.load(str(tmp_path / "optimizer.safetensors"))
    assert isinstance(loaded, dict)
    resumed.load_state(loaded)
    assert resumed.state is captured
    assert_equal(resumed.state, straight.state)
    copied = parameters
    for number in range(3, 6):
        parameters = straight.apply_gradients(draw(parameters, number), parameters)
        copied = resumed.apply_gradients(draw(copied, number), copied)
    assert_equal(parameters, copied)
    assert_equal(resumed.state, straight.state)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=needs_compiler)])
@pytest.mark.parametrize(
    ("row", "settings"), [*((row, {}) for row in sorted(OPTIMIZERS)), ("sgd", {"momentum": 0.9, "nesterov": True})]
)
def test_an_update_that_is_held_back_leaves_no_trace(row: str, settings: dict[str, Any], compiled: bool) -> None:
    parameters = dict(tree_flatten(make_toy().trainable_parameters()))
    optimizer = config_of(row, **settings).build(parameters)

    def update(gradients: Any, parameters: Any, applies: mx.array) -> Any:
        return optimizer.apply_gradients(gradients, parameters, applies)

    step: Any = mx.compile(update, inputs=optimizer.state, outputs=optimizer.state) if compiled else update
    parameters = step(draw(parameters, 0), parameters, mx.array(True))
    before = flat(parameters), flat(optimizer.state)
    broken = tree_map(lambda parameter: mx.full(parameter.shape, float("nan")), parameters)
    kept = step(broken, parameters, mx.array(False))
    assert_equal(kept, before[0])
    assert_equal(optimizer.state, before[1])
    moved = flat(step(draw(parameters, 1), kept, mx.array(True)))
    assert all((moved[name] != old).any() and np.isfinite(moved[name]).all() for name, old in before[0].items())


@every_row
def test_assigning_an_equal_tree_restores(row: str) -> None:
    parameters = make_toy().trainable_parameters()
    first, second = config_of(row).build(parameters), config_of(row).build(parameters)
    first.apply_gradients(draw(parameters, 1), parameters)
    second.state = tree_unflatten(list(first.state_dict().items()))
    assert_equal(first.state, second.state)


@every_row
def test_a_tree_and_a_flat_dict_give_the_same(row: str) -> None:
    parameters = make_toy().trainable_parameters()
    gradients = draw(parameters, 1)
    nested = config_of(row).build(parameters).apply_gradients(gradients, parameters)
    by_name = config_of(row).build(parameters)
    dotted = by_name.apply_gradients(dict(tree_flatten(gradients)), dict(tree_flatten(parameters)))
    assert isinstance(nested["layers"], list)
    assert "layers.0.up_proj.weight" in dotted
    assert_equal(nested, dotted)


@every_row
def test_only_decayed_parameters_shrink_under_zero_gradients(row: str) -> None:
    parameters = make_toy().trainable_parameters()
    config = config_of(row, learning_rate=0.1, weight_decay=0.5)
    new = flat(config.build(parameters).apply_gradients(tree_map(mx.zeros_like, parameters), parameters))
    for name, old in flat(parameters).items():
        kept = any(word in name for word in ("norm", "bias", "embed"))
        np.testing.assert_allclose(new[name], old * (1.0 if kept else 0.95), rtol=1e-6, err_msg=name)


@every_row
def test_own_no_decay_globs_replace_the_default(row: str) -> None:
    parameters = make_toy().trainable_parameters()
    config = config_of(row, learning_rate=0.1, weight_decay=0.5, no_decay=("*.down_proj.*",))
    new = flat(config.build(parameters).apply_gradients(tree_map(mx.zeros_like, parameters), parameters))
    old = flat(parameters)
    np.testing.assert_array_equal(new["layers.0.down_proj.weight"], old["layers.0.down_proj.weight"])
    np.testing.assert_allclose(new["norm.weight"], 0.95 * old["norm.weight"], rtol=1e-6)


@every_row
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_half_precision_parameters_keep_their_dtype_and_float32_moments(row: str, dtype: mx.Dtype) -> None:
    parameters = tree_map(lambda p: p.astype(dtype), make_toy().trainable_parameters())
    optimizer = config_of(row).build(parameters)
    gradients = tree_map(lambda g: g * 1e-4, draw(parameters, 1))
    new = optimizer.apply_gradients(gradients, parameters)
    assert {array.dtype for array in dict(tree_flatten(new)).values()} == {dtype}
    moments: dict[str, mx.array] = dict(tree_flatten(optimizer.state["parameters"]))
    assert {array.dtype for array in moments.values()} == {mx.float32}

    reference = config_of(row).build(parameters)
    exact = tree_map(lambda p: p.astype(mx.float32), parameters)
    reference.apply_gradients(tree_map(lambda g: g.astype(mx.float32), gradients), exact)
    assert_equal(optimizer.state["parameters"], reference.state["parameters"])


@every_row
def test_the_learning_rate_is_base_times_schedule(row: str) -> None:
    config = config_of(row, learning_rate=0.01, weight_decay=0.0)
    parameters = make_toy().trainable_parameters()
    gradients = draw(parameters, 1)
    moves = []
    for multiplier in (1.0, 0.5):
        optimizer = config.build(parameters)
        optimizer.set_schedule(multiplier)
        assert optimizer.learning_rate.item() == pytest.approx(0.01 * multiplier)
        new = flat(optimizer.apply_gradients(gradients, parameters))
        moves.append({name: new[name] - old for name, old in flat(parameters).items()})
    for name in moves[0]:
        np.testing.assert_allclose(moves[1][name], moves[0][name] / 2, rtol=1e-3, atol=1e-6, err_msg=name)
    assert {group.learning_rate for group in optimizer.groups} == {0.01}


@every_row
def test_gradients_of_other_parameters_are_refused(row: str) -> None:
    parameters = dict(tree_flatten(make_toy().trainable_parameters()))
    optimizer = config_of(row).build(parameters)
    gradients = draw(parameters, 1)
    del gradients["norm.weight"]
    with pytest.raises(ValueError, match=r"differ in 1 parameters: norm\.weight"):
        optimizer.apply_gradients(gradients, parameters)


@every_row
@pytest.mark.parametrize(
    "settings",
    [
        {"learning_rate": -1e-3},
        {"learning_rate": float("nan")},
        {"weight_decay": -0.1},
        {"weight_decay": "x"},
    ],
)
def test_bad_numbers_are_refused(row: str, settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(settings))):
        config_of(row, **settings)


def test_betas_momentum_and_iterations_have_bounds() -> None:
    for row, settings in [
        ("adamw", {"betas": (0.9, 1.0)}),
        ("adamw", {"eps": 0.0}),
        ("lion", {"betas": (-0.1, 0.9)}),
        ("sgd", {"momentum": 1.0}),
        ("sgd", {"momentum": 0.0, "nesterov": True}),
        ("muon", {"momentum": 1.0}),
        ("muon", {"ns_steps": 7}),
        ("muon", {"update_scale": "other"}),
        ("muon", {"adamw_learning_rate": 0.0}),
    ]:
        with pytest.raises(ValidationError):
            config_of(row, **settings)


@every_row
def test_restoring_what_does_not_fit_lists_everything(row: str) -> None:
    optimizer = config_of(row).build(make_toy().trainable_parameters())
    arrays = optimizer.state_dict()
    before = flat(optimizer.state)
    moment = next(name for name in arrays if name.startswith("parameters.layers.0.up_proj.weight."))
    arrays[moment] = mx.zeros((3, 3))
    arrays["parameters.gone.first"] = mx.zeros((2,))
    del arrays["schedule"]
    with pytest.raises(CheckpointError) as caught:
        optimizer.load_state(arrays)
    text = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 3
    assert "'schedule' is missing" in text
    assert "'parameters.gone.first' belongs to no parameter" in text
    assert "(3, 3)" in text
    assert moment in text
    assert_equal(optimizer.state, before)


@every_row
def test_a_glob_without_a_match_names_the_nearest_parameters(row: str) -> None:
    config = config_of(row, no_decay=("*norm*", "*.up_prjo.*"))
    with pytest.raises(ConfigError, match=r"no_decay: '\*\.up_prjo\.\*' .*layers\.\*\.up_proj"):
        config.build(make_toy().trainable_parameters())


def test_the_default_globs_need_no_match() -> None:
    config_of("adamw").build({"weight": mx.zeros((2, 2))})
    check_globs("match", ["wei*"], ["weight"])


def test_every_parameter_belongs_to_exactly_one_group() -> None:
    parameters = {"a": mx.zeros((2,)), "b": mx.zeros((2,))}

    def group(name: str, *names: str) -> Group:
        return Group(name, 0.1, dict.fromkeys(names, 0.0), zeros("m"), lambda update: {})

    with pytest.raises(ConfigError, match="no optimizer group matches the parameter b"):
        Optimizer([group("one", "a")], parameters)
    with pytest.raises(ConfigError, match="a is in 2 groups: one, two"):
        Optimizer([group("one", "a"), group("two", "a", "b")], parameters)
    with pytest.raises(ConfigError, match="'one' names a parameter that is not there: c"):
        Optimizer([group("one", "a", "b", "c")], parameters)
