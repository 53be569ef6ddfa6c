"""Next-token loss against NumPy in float64: values, gradients, and what the model is told about documents."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from core.evaluation import number
from core.objectives.causal import CausalConfig
from data.batch import Batch
from models.attention.mask import Mask
from utils.errors import ConfigError

ROWS, LENGTH, VOCABULARY = 3, 5, 11


def make_batch(seed: int = 0) -> Batch:
    """Random pairs; the last row is padding, the one before half so."""
    rng = np.random.default_rng(seed)
    tokens, targets = rng.integers(0, VOCABULARY, (2, ROWS, LENGTH)).astype(np.int32)
    segments = np.array([[1, 1, 2, 2, 2], [1, 1, 1, 0, 0], [0, 0, 0, 0, 0]], np.int32)
    weights = (segments > 0).astype(np.float32)
    keys = rng.integers(0, 2**32, (ROWS, 2), dtype=np.uint32)
    return Batch(*(mx.array(array) for array in (tokens, targets, weights, segments, keys)))


class FixedLogits:
    """A model that answers with the same logits and remembers what it was asked."""

    def __init__(self, logits: Any) -> None:
        self.logits = logits

    def __call__(self, tokens: mx.array, mask: Mask) -> mx.array:
        self.tokens, self.mask = tokens, mask
        return self.logits


def random_logits(scale: float = 3.0) -> np.ndarray:
    return np.random.default_rng(1).normal(0, scale, (ROWS, LENGTH, VOCABULARY))


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def expected_total(logits: np.ndarray, batch: Batch) -> float:
    targets, weights = np.array(batch.targets), np.array(batch.weights, np.float64)
    chosen = np.take_along_axis(log_probabilities(logits), targets[..., None], -1)[..., 0]
    return float(-(chosen * weights).sum())


@pytest.mark.parametrize("scale", [0.1, 3.0, 80.0])
def test_the_loss_is_numpys(scale: float) -> None:
    logits, batch = random_logits(scale), make_batch()
    model: Any = FixedLogits(mx.array(logits.astype(np.float32)))
    loss = CausalConfig().build(VOCABULARY)(model, batch)
    np.testing.assert_allclose(number(loss.total), expected_total(logits, batch), rtol=1e-6)
    assert number(loss.weight) == 8
    assert loss.metrics == {}
    assert model.tokens is batch.tokens
    assert model.mask == Mask("causal")


def test_the_gradient_is_numpys() -> None:
    logits, batch = random_logits(), make_batch()
    objective = CausalConfig().build(VOCABULARY)

    def total(given: mx.array) -> mx.array:
        model: Any = FixedLogits(given)
        return objective(model, batch).total

    gradient = mx.grad(total)(mx.array(logits.astype(np.float32)))
    expected = np.exp(log_probabilities(logits)) - np.eye(VOCABULARY)[np.array(batch.targets)]
    expected *= np.array(batch.weights)[..., None]
    np.testing.assert_allclose(np.array(gradient), expected, atol=1e-6)


def test_half_precision_logits_are_summed_in_float32() -> None:
    half = mx.array(random_logits()).astype(mx.bfloat16)
    batch = make_batch()
    model: Any = FixedLogits(half)
    loss = CausalConfig().build(VOCABULARY)(model, batch)
    assert loss.total.dtype == loss.weight.dtype == mx.float32
    rounded = np.array(half.astype(mx.float32), np.float64)
    np.testing.assert_allclose(number(loss.total), expected_total(rounded, batch), rtol=1e-6)


def test_a_batch_is_the_sum_of_its_rows() -> None:
    logits, batch = mx.array(random_logits().astype(np.float32)), make_batch()
    objective = CausalConfig().build(VOCABULARY)
    whole: Any = FixedLogits(logits)
    parts = []
    for row in range(ROWS):
        part: Any = FixedLogits(logits[row : row + 1])
        parts.append(objective(part, Batch(*(array[row : row + 1] for array in batch))))
    loss = objective(whole, batch)
    np.testing.assert_allclose(sum(number(part.total) for part in parts), number(loss.total), rtol=1e-6)
    assert sum(number(part.weight) for part in parts) == number(loss.weight)


def test_validation_is_the_same_loss() -> None:
    model: Any = FixedLogits(mx.array(random_logits().astype(np.float32)))
    objective, batch = CausalConfig().build(VOCABULARY), make_batch()
    assert number(objective.evaluate(model, batch).total) == number(objective(model, batch).total)


def test_documents_are_cut_apart_on_request() -> None:
    model: Any = FixedLogits(mx.array(random_logits().astype(np.float32)))
    batch = make_batch()
    CausalConfig(document_mask=True).build(VOCABULARY)(model, batch)
    assert model.mask.kind == "causal"
    assert model.mask.segments is batch.segments


@pytest.mark.parametrize("num_lookahead", [0, 1, 3, LENGTH])
def test_a_position_that_sees_its_own_target_counts_for_nothing(num_lookahead: int) -> None:
    """Positions 0 to n - 1 see each other, so all of them but the last see the token that follows them."""
    logits, batch = random_logits(), make_batch()
    model: Any = FixedLogits(mx.array(logits.astype(np.float32)))
    model.num_lookahead = num_lookahead
    weights = np.array(batch.weights)
    weights[:, : max(num_lookahead - 1, 0)] = 0
    expected = expected_total(logits, batch._replace(weights=mx.array(weights)))
    objective = CausalConfig().build(VOCABULARY)
    for loss in (objective(model, batch), objective.evaluate(model, batch)):
        np.testing.assert_allclose(number(loss.total), expected, rtol=1e-6)
        assert number(loss.weight) == weights.sum()


def test_rows_that_hold_nothing_but_prefix_are_refused() -> None:
    model: Any = FixedLogits(mx.array(random_logits().astype(np.float32)))
    model.num_lookahead = LENGTH + 1
    with pytest.raises(ConfigError, match=r"first 6 positions .* rows have 5: .* lower it to 5"):
        CausalConfig().build(VOCABULARY)(model, make_batch())
