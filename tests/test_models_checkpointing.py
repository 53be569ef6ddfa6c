"""Recomputed blocks: the output and gradients of kept ones, the same dropout twice, a fraction of the memory."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_unflatten

from models.attention.mask import Mask
from tests.small_runs import small_model

TOKENS = mx.array(np.random.default_rng(0).integers(0, 50, (2, 16)))
SEGMENTS = mx.array([[1] * 9 + [2] * 7, [1] * 16])


def value_and_gradients(model: Any, every: int, compiled: bool, mask: Mask) -> tuple[float, dict[str, np.ndarray]]:
    """Of the mean square of the logits, after seeding the random stream."""
    model.recompute(every)
    parameters = model.trainable_parameters()

    def loss(parameters: Any) -> mx.array:
        model.update(parameters)
        return mx.mean(mx.square(model(TOKENS, mask)))

    function: Any = mx.value_and_grad(loss)
    if compiled:
        function = mx.compile(function, inputs=mx.random.state, outputs=mx.random.state)
    mx.random.seed(3)
    value, gradients = function(parameters)
    model.update(parameters)
    return value.item(), {name: np.array(array) for name, array in tree_flatten(gradients)}


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("every", [1, 2, 5])
@pytest.mark.parametrize("mask", [Mask("causal"), Mask("causal", segments=SEGMENTS)], ids=["causal", "segments"])
@pytest.mark.parametrize("attention", ["simple", "flash"])
def test_recomputed_blocks_have_the_gradients_of_kept_ones(
    attention: str, mask: Mask, every: int, compiled: bool
) -> None:
    model = small_model(50, num_hidden_layers=3, attention={"type": attention}).train()
    value, gradients = value_and_gradients(model, 0, compiled, mask)
    again, recomputed = value_and_gradients(model, every, compiled, mask)
    assert again == pytest.approx(value, rel=1e-6)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(recomputed[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("frozen", [(0,), (1,), (0, 1, 2)], ids=["first", "middle", "all"])
def test_gradients_pass_through_recomputed_blocks_that_are_frozen(frozen: tuple[int, ...]) -> None:
    model = small_model(50, num_hidden_layers=3).train()
    for i in frozen:
        model.model.layers[i].freeze()
    _, gradients = value_and_gradients(model, 0, False, Mask())
    _, recomputed = value_and_gradients(model, 1, False, Mask())
    assert not any(name.startswith(f"model.layers.{frozen[0]}.") for name in recomputed)
    assert recomputed.keys() == gradients.keys()
    for name, gradient in gradients.items():
        np.testing.assert_allclose(recomputed[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("compiled", [False, True])
def test_dropout_drops_the_same_in_the_recomputation(compiled: bool) -> None:
    model = small_model(50, residual_dropout=0.2, attention_dropout=0.2).train()
    value, gradients = value_and_gradients(model, 1, compiled, Mask())
    assert value != value_and_gradients(model.eval(), 1, compiled, Mask())[0]
    model.train()
    name, at, step = "model.layers.1.mlp.down_proj.weight", (3, 5), 1e-2
    weights = dict(tree_flatten(model.trainable_parameters()))
    values = []
    for sign in (1, -1):
        changed = np.array(weights[name])
        changed[at] += sign * step
        model.update(tree_unflatten([(name, mx.array(changed))]))
        values.append(value_and_gradients(model, 1, compiled, Mask())[0])
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(float(gradients[name][at]), rel=5e-3)


def test_evaluation_recomputes_nothing_and_the_weights_stay_the_models_own() -> None:
    model = small_model(50)
    weights = dict(tree_flatten(model.parameters()))
    kept = np.array(model(TOKENS, Mask()))
    model.recompute(1)
    np.testing.assert_array_equal(np.array(model(TOKENS, Mask())), kept)
    cache = model.make_cache()
    parts = [model(TOKENS[:, :10], Mask(), cache), model(TOKENS[:, 10:], Mask(), cache)]
    np.testing.assert_allclose(np.array(mx.concatenate(parts, axis=1)), kept, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.array(model.train()(TOKENS, Mask())), kept, rtol=1e-6)
    assert all(array is weights[name] for name, array in tree_flatten(model.parameters()))


def peak_of(every: int) -> int:
    """Bytes above what was there of one compiled gradient of a deep and narrow model."""
    model = small_model(50, num_hidden_layers=12).train()
    model.recompute(every)
    tokens = mx.array(np.random.default_rng(0).integers(0, 50, (16, 64)))
    parameters = model.trainable_parameters()

    def loss(parameters: Any) -> mx.array:
        model.update(parameters)
        return mx.mean(mx.square(model(tokens, Mask())))

    compiled: Any = mx.compile(mx.grad(loss))
    mx.eval(parameters, compiled(parameters))
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(compiled(parameters))
    return mx.get_peak_memory() - before


def test_recomputing_all_blocks_takes_a_fraction_of_the_memory_and_every_second_one_is_between() -> None:
    nothing, second, everything = (peak_of(every) for every in (0, 2, 1))
    assert everything < nothing / 3
    assert everything < second < 0.7 * nothing
