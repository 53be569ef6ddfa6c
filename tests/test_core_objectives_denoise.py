"""Masked-token prediction: its two estimators agree by exact enumeration, and its noise is a function of the row."""

import itertools
import math
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from core.evaluation import number
from core.objectives import denoise
from core.objectives.denoise import DenoiseConfig, masked_count, masked_probability, row_noise
from data.batch import Batch
from models.attention.mask import Mask
from models.llama import LlamaConfig
from tests.small_runs import lively
from tests.tiny_run import TINY_LLAMA

VOCABULARY = 3


def make_batch(targets: Any, weights: Any = None, seed: int = 0) -> Batch:
    """Rows with random keys; every position is real unless `weights` says otherwise."""
    targets = np.array(targets, np.int32)
    weights = np.ones(targets.shape, np.float32) if weights is None else np.array(weights, np.float32)
    keys = np.random.default_rng(seed).integers(0, 2**32, (len(targets), 2), dtype=np.uint32)
    segments = (weights > 0).astype(np.int32)
    return Batch(*(mx.array(array) for array in (np.roll(targets, 1, 1), targets, weights, segments, keys)))


def random_batch(num_rows: int, length: int, vocabulary: int = VOCABULARY, seed: int = 0) -> Batch:
    return make_batch(np.random.default_rng(seed).integers(0, vocabulary, (num_rows, length)), seed=seed)


class TableModel:
    """Logits looked up by the whole input row: a model without any structure, of V + 1 ids."""

    def __init__(self, length: int, vocabulary: int = VOCABULARY) -> None:
        self.base = vocabulary + 1
        shape = (self.base**length, length, self.base)
        self.table = mx.array(np.random.default_rng(7).normal(0, 2, shape).astype(np.float32))

    def __call__(self, tokens: mx.array, mask: Mask) -> mx.array:
        self.tokens, self.mask = tokens, mask
        powers = mx.array([self.base**position for position in range(tokens.shape[1])])
        return self.table[mx.sum(tokens * powers, axis=1)]


class Uniform:
    """Logits all equal for the V real ids; the mask's own logit is huge, which must not matter."""

    def __call__(self, tokens: mx.array, mask: Mask) -> mx.array:
        self.tokens = tokens
        logits = mx.zeros((*tokens.shape, VOCABULARY + 1))
        return logits + mx.array([0.0] * VOCABULARY + [1e4])


def fix_noise(monkeypatch: pytest.MonkeyPatch, row: Any, position: Any) -> None:
    fixed = mx.array(np.array(row, np.float32)), mx.array(np.array(position, np.float32))
    monkeypatch.setattr(denoise, "row_noise", lambda keys, length: fixed)


def test_a_uniform_prediction_scores_exactly_ln_v() -> None:
    model: Any = Uniform()
    weights = np.ones((64, 9), np.float32)
    weights[5, 4:] = 0
    weights[6] = 0
    batch = make_batch(np.random.default_rng(0).integers(0, VOCABULARY, (64, 9)), weights)
    loss = DenoiseConfig().build(VOCABULARY).evaluate(model, batch)
    assert number(loss.weight) == weights.sum()
    np.testing.assert_allclose(number(loss.total) / number(loss.weight), math.log(VOCABULARY), rtol=1e-6)


def test_a_fresh_model_with_its_own_output_layer_starts_at_ln_v() -> None:
    num_tokens = 300
    config = LlamaConfig(**{**TINY_LLAMA, "tie_word_embeddings": False}, vocab_size=num_tokens + 1)
    objective = DenoiseConfig().build(num_tokens)
    loss = objective.evaluate(config.build(seed=3), random_batch(8, 16, num_tokens))
    np.testing.assert_allclose(number(loss.total) / number(loss.weight), math.log(num_tokens), rtol=1e-6)


def expected_evaluation(model: Any, targets: list[int], monkeypatch: pytest.MonkeyPatch) -> float:
    """Every k and every order of the positions, each as likely as the next."""
    length = len(targets)
    draws = [(k, order) for k in range(length) for order in itertools.permutations(range(length))]
    fix_noise(monkeypatch, [(k + 0.5) / length for k, _ in draws], [[p / length for p in order] for _, order in draws])
    loss = DenoiseConfig().build(VOCABULARY).evaluate(model, make_batch([targets] * len(draws)))
    return number(loss.total) / len(draws)


def expected_training(model: Any, targets: list[int], monkeypatch: pytest.MonkeyPatch) -> float:
    """Every set of masked positions with its probability, integrated over t by Gauss-Legendre (exact: polynomials)."""
    nodes, node_weights = np.polynomial.legendre.leggauss(8)
    expectation = 0.0
    for u, node_weight in zip((nodes + 1) / 2, node_weights / 2, strict=True):
        t = number(masked_probability(mx.array(u)))
        for masked in itertools.product([True, False], repeat=len(targets)):
            fix_noise(monkeypatch, [u], [[0.0 if is_masked else 1.0 for is_masked in masked]])
            loss = DenoiseConfig().build(VOCABULARY)(model, make_batch([targets]))
            probability = t ** sum(masked) * (1 - t) ** (len(targets) - sum(masked))
            expectation += node_weight * probability * number(loss.total)
    return expectation


@pytest.mark.parametrize("targets", [[0], [2, 1], [0, 2, 2]])
def test_training_and_validation_estimate_the_same_bound(targets: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Equation 1.4 (2): integrating t out of the training loss gives the validation loss."""
    model = TableModel(len(targets))
    monkeypatch.setattr(denoise, "SMALLEST_T", 0.0)
    evaluation = expected_evaluation(model, targets, monkeypatch)
    np.testing.assert_allclose(expected_training(model, targets, monkeypatch), evaluation, rtol=1e-5)


def test_leaving_out_the_smallest_t_changes_the_bound_by_a_thousandth(monkeypatch: pytest.MonkeyPatch) -> None:
    targets = [0, 2, 2]
    model = TableModel(len(targets))
    evaluation = expected_evaluation(model, targets, monkeypatch)
    np.testing.assert_allclose(expected_training(model, targets, monkeypatch), evaluation, rtol=2e-3)


def test_the_bound_equals_its_definition_in_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    targets = [1, 0, 2]
    model = TableModel(3)
    table = np.array(model.table, np.float64)[..., :VOCABULARY]
    log_p = table - np.log(np.exp(table).sum(-1, keepdims=True))
    expected = 0.0
    for size in (1, 2, 3):
        sets = list(itertools.combinations(range(3), size))
        for masked in sets:
            row = [VOCABULARY if place in masked else token for place, token in enumerate(targets)]
            nats = -sum(log_p[sum(t * 4**i for i, t in enumerate(row)), place, targets[place]] for place in masked)
            expected += nats / size / len(sets)
    np.testing.assert_allclose(expected_evaluation(model, targets, monkeypatch), expected, rtol=1e-6)


def test_validation_masks_exactly_k_of_the_real_tokens_of_a_row() -> None:
    length, num_rows = 6, 400
    weights = np.ones((num_rows, length), np.float32)
    weights[::2, 4:] = 0
    model: Any = Uniform()
    batch = make_batch(np.zeros((num_rows, length)), weights)
    DenoiseConfig().build(VOCABULARY).evaluate(model, batch)
    is_masked = np.array(model.tokens) == VOCABULARY
    row_B, _ = row_noise(batch.keys, length)
    expected = np.array(masked_count(row_B, mx.array(weights.sum(1))))
    np.testing.assert_array_equal(is_masked.sum(1), expected)
    assert not is_masked[weights == 0].any()
    counts = np.bincount(expected[1::2].astype(int), minlength=length + 1)
    assert counts[0] == 0
    assert counts[1:].min() > 200 / length / 2
    assert is_masked[1::2].mean(0).std() < 0.06  # no position is preferred


def test_training_masks_each_token_with_the_probability_of_its_row() -> None:
    length = 2000
    model: Any = Uniform()
    batch = make_batch(np.zeros((20, length)))
    loss = DenoiseConfig().build(VOCABULARY)(model, batch)
    is_masked = np.array(model.tokens) == VOCABULARY
    t_B = np.array(masked_probability(row_noise(batch.keys, length)[0]))
    np.testing.assert_allclose(is_masked.mean(1), t_B, atol=5 * 0.5 / math.sqrt(length))
    assert t_B.std() > 0.15
    np.testing.assert_allclose(number(loss.metrics["masked_fraction"]), is_masked.sum())


@pytest.mark.parametrize("method", ["__call__", "evaluate"])
def test_noise_does_not_depend_on_the_micro_batch(method: str) -> None:
    batch = random_batch(8, 12)
    objective, model = DenoiseConfig().build(VOCABULARY), Uniform()
    getattr(objective, method)(model, batch)
    whole = np.array(model.tokens)
    for size in (1, 2, 4):
        for first in range(0, 8, size):
            getattr(objective, method)(model, Batch(*(array[first : first + size] for array in batch)))
            np.testing.assert_array_equal(np.array(model.tokens), whole[first : first + size])


def test_padding_contributes_nothing() -> None:
    batch = random_batch(4, 3)
    model: Any = TableModel(3)
    padded = Batch(*(mx.concatenate([array, mx.zeros_like(array)]) for array in batch))
    objective = DenoiseConfig().build(VOCABULARY)
    for method in (objective, objective.evaluate):
        alone, beside = method(model, batch), method(model, padded)
        np.testing.assert_allclose(number(beside.total), number(alone.total), rtol=1e-6)
        assert number(beside.weight) == number(alone.weight)
        assert number(beside.metrics["masked_fraction"]) == number(alone.metrics["masked_fraction"])


def test_what_is_right_of_a_masked_token_counts_and_the_token_itself_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    num_tokens = 20
    config = LlamaConfig(**TINY_LLAMA, vocab_size=num_tokens + 1)
    model = lively(config.build(seed=0))
    objective = DenoiseConfig().build(num_tokens)
    seen = []

    class Watching:
        def __call__(self, tokens: mx.array, mask: Mask) -> mx.array:
            seen.append((tokens, model(tokens, mask)))
            return seen[-1][1]

    watching: Any = Watching()
    fix_noise(monkeypatch, [0.0], [[0.9, 0.0, 0.9, 0.9]])  # k = 1: position 1 is masked
    for row in ([3, 4, 5, 6], [3, 9, 5, 6], [3, 4, 5, 7]):
        objective.evaluate(watching, make_batch([row]))
    (inputs, first), (_, other_target), (_, other_right) = seen
    assert np.array(inputs).tolist() == [[3, num_tokens, 5, 6]]
    np.testing.assert_array_equal(np.array(first), np.array(other_target))
    assert np.abs(np.array(first - other_right))[0, 1].max() > 1e-3


def test_documents_are_cut_apart_on_request() -> None:
    model, batch = TableModel(3), random_batch(2, 3)
    any_model: Any = model
    DenoiseConfig(document_mask=True).build(VOCABULARY)(any_model, batch)
    assert model.mask.kind == "bidirectional"
    assert model.mask.segments is batch.segments
    DenoiseConfig().build(VOCABULARY)(any_model, batch)
    assert model.mask == Mask("bidirectional")
