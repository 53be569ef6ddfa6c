"""Sampling against exact enumeration: float64 NumPy decides which tokens may be drawn and how often."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from core import sampling
from core.sampling import SamplingOptions
from utils.errors import ConfigError

# Small whole weights make ties frequent and probabilities exact; at least one is positive.
WEIGHTS = st.lists(st.integers(1, 9), min_size=2, max_size=12)
FEW = settings(max_examples=60, deadline=None)


def logits_of(weights: list[int]) -> mx.array:
    return mx.log(mx.array([weights], dtype=mx.float32))


def support_of(logits_BV: mx.array) -> set[int]:
    return {int(token) for token in np.flatnonzero(np.isfinite(np.array(logits_BV)[0]))}


def top_p_oracle(weights: list[int], top_p: float) -> set[int]:
    total = sum(weights)
    kept = set()
    for token, weight in enumerate(weights):
        above = sum(other for other in weights if other > weight)
        # The tie counts as a whole: it stays when the strictly more probable tokens do not reach the mass.
        if above < top_p * total:
            kept.add(token)
    return kept


def top_k_oracle(weights: list[int], allowed: set[int], top_k: int) -> set[int]:
    ranked = sorted((weights[token] for token in allowed), reverse=True)
    smallest = ranked[min(top_k, len(ranked)) - 1]
    return {token for token in allowed if weights[token] >= smallest}


@FEW
@given(WEIGHTS, st.floats(0.01, 0.99))
def test_top_p_keeps_exactly_the_nucleus(weights: list[int], top_p: float) -> None:
    sums = [sum(sorted(weights, reverse=True)[:count]) / sum(weights) for count in range(len(weights))]
    assume(min(abs(mass - top_p) for mass in sums) > 1e-4)
    assert support_of(sampling.keep_top_p(logits_of(weights), top_p)) == top_p_oracle(weights, top_p)


@FEW
@given(WEIGHTS, st.floats(0.01, 1.0))
def test_min_p_keeps_exactly_the_probable(weights: list[int], min_p: float) -> None:
    assume(all(abs(weight / max(weights) - min_p) > 1e-4 for weight in weights))
    expected = {token for token, weight in enumerate(weights) if weight >= min_p * max(weights)}
    assert support_of(sampling.keep_min_p(logits_of(weights), min_p)) == expected


def test_min_p_of_one_keeps_every_most_probable_token() -> None:
    assert support_of(sampling.keep_min_p(logits_of([3, 5, 5, 1]), 1.0)) == {1, 2}


@FEW
@given(WEIGHTS, st.integers(1, 12))
def test_top_k_keeps_exactly_the_first_and_their_ties(weights: list[int], top_k: int) -> None:
    assume(top_k <= len(weights))
    expected = top_k_oracle(weights, set(range(len(weights))), top_k)
    assert support_of(sampling.keep_top_k(logits_of(weights), top_k)) == expected


@FEW
@given(WEIGHTS, st.floats(0.05, 0.95), st.floats(0.05, 0.95), st.integers(0, 12))
def test_filters_together_keep_the_common_set(weights: list[int], top_p: float, min_p: float, top_k: int) -> None:
    sums = [sum(sorted(weights, reverse=True)[:count]) / sum(weights) for count in range(len(weights))]
    assume(min(abs(mass - top_p) for mass in sums) > 1e-4)
    assume(all(abs(weight / max(weights) - min_p) > 1e-4 for weight in weights))
    allowed = top_p_oracle(weights, top_p) & {t for t, w in enumerate(weights) if w >= min_p * max(weights)}
    if top_k:
        allowed = top_k_oracle(weights, allowed, top_k)
    options = SamplingOptions(top_p=top_p, min_p=min_p, top_k=top_k)
    assert support_of(sampling.filter_logits(logits_of(weights), options)) == allowed


def test_kept_logits_are_unchanged_and_rows_are_independent() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(5, 40)).astype(np.float32)
    options = SamplingOptions(top_p=0.8, min_p=0.05, top_k=10)
    together = np.array(sampling.filter_logits(mx.array(logits), options))
    alone = np.concatenate([np.array(sampling.filter_logits(mx.array(row[None]), options)) for row in logits])
    np.testing.assert_array_equal(together, alone)
    kept = np.isfinite(together)
    np.testing.assert_array_equal(together[kept], logits[kept])
    assert 0 < kept.sum() < kept.size


@pytest.mark.parametrize("options", [SamplingOptions(), SamplingOptions(top_p=0.0, top_k=0), SamplingOptions(top_k=99)])
def test_filters_that_are_off_change_nothing(options: SamplingOptions) -> None:
    logits = mx.array([[1.0, 2.0, 3.0]])
    np.testing.assert_array_equal(np.array(sampling.filter_logits(logits, options)), np.array(logits))


@FEW
@given(
    st.lists(st.floats(-5, 5, width=32), min_size=4, max_size=8),
    st.lists(st.integers(0, 9), min_size=1, max_size=6),
    st.floats(0.5, 2.0),
)
def test_repetition_penalty_meets_each_recent_token_once(
    logits: list[float], recent: list[int], penalty: float
) -> None:
    expected = np.array(logits, dtype=np.float64)
    for token in set(recent):
        if token < len(logits):
            expected[token] = expected[token] * penalty if expected[token] < 0 else expected[token] / penalty
    got = sampling.penalise_repetition(mx.array([logits]), mx.array([recent]), penalty)
    np.testing.assert_allclose(np.array(got)[0], expected, rtol=1e-6, atol=1e-30)


def test_penalty_is_the_one_of_mlx_lm() -> None:
    from mlx_lm.sample_utils import make_logits_processors

    logits = mx.array(np.random.default_rng(1).normal(size=(1, 30)).astype(np.float32))
    recent = [3, 4, 4, 29]
    theirs = make_logits_processors(repetition_penalty=1.3)[0](mx.array(recent), mx.array(logits))
    ours = sampling.penalise_repetition(logits, mx.array([recent]), 1.3)
    np.testing.assert_allclose(np.array(ours), np.array(theirs), rtol=1e-6)


def test_filters_are_those_of_mlx_lm_without_ties() -> None:
    from mlx_lm.sample_utils import apply_min_p, apply_top_k, apply_top_p

    logits = mx.array(np.random.default_rng(2).normal(size=(4, 50)).astype(np.float32) * 2)
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    theirs = apply_top_k(apply_min_p(apply_top_p(logprobs, 0.9), 0.05), 8)
    ours = sampling.filter_logits(logits, SamplingOptions(top_p=0.9, min_p=0.05, top_k=8))
    np.testing.assert_array_equal(np.isfinite(np.array(ours)), np.isfinite(np.array(theirs)))


def test_draws_follow_the_distribution_at_a_temperature() -> None:
    num_draws, temp = 20_000, 0.7
    weights = np.array([5.0, 3.0, 1.0, 1.0])
    logits_BV = mx.broadcast_to(mx.log(mx.array(weights.astype(np.float32))), (num_draws, 4))
    keys = sampling.draw_keys([index.to_bytes(4, "big") for index in range(num_draws)], step=0)
    tokens = np.array(sampling.sample(logits_BV, keys, SamplingOptions(temp=temp, top_k=2), None))
    expected = weights[:2] ** (1 / temp) / (weights[:2] ** (1 / temp)).sum()
    shares = np.bincount(tokens, minlength=4) / num_draws
    np.testing.assert_allclose(shares[:2], expected, atol=0.015)
    assert shares[2:].sum() == 0


def test_greedy_takes_the_first_of_the_largest_after_the_penalty() -> None:
    logits = mx.array([[1.0, 3.0, 3.0], [2.0, 1.0, 0.0]])
    keys = mx.zeros((2, 2), dtype=mx.uint32)
    assert sampling.sample(logits, keys, SamplingOptions(temp=0), None).tolist() == [1, 0]
    options = SamplingOptions(temp=0, repetition_penalty=4.0)
    assert sampling.sample(logits, keys, options, mx.array([[1], [3]])).tolist() == [2, 0]


def test_half_precision_logits_are_computed_in_float32() -> None:
    logits = mx.array([[0.0, 1.0, 2.0]], dtype=mx.bfloat16)
    keys = sampling.draw_keys([b"key"], 0)
    full = sampling.sample(logits.astype(mx.float32), keys, SamplingOptions(top_p=0.9), None)
    assert sampling.sample(logits, keys, SamplingOptions(top_p=0.9), None).tolist() == full.tolist()


def test_keys_depend_on_seed_prompt_occurrence_and_step_only() -> None:
    first, other, again = sampling.prompt_keys(7, [[1, 2], [3], [1, 2]])
    assert [first] == sampling.prompt_keys(7, [[1, 2]])
    assert [other] == sampling.prompt_keys(7, [[3]])
    assert len({first, other, again, *sampling.prompt_keys(8, [[1, 2]])}) == 4
    steps = {np.array(sampling.draw_keys([first, other], step)[0]).tobytes() for step in range(50)}
    assert len(steps) == 50


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"temp": -1}, "temp"),
        ({"temp": float("nan")}, "temp"),
        ({"top_p": 1.5}, "top_p"),
        ({"min_p": -0.1}, "min_p"),
        ({"top_k": -1}, "top_k"),
        ({"repetition_penalty": -2.0}, "repetition_penalty"),
        ({"repetition_context_size": 0}, "repetition_context_size"),
    ],
)
def test_meaningless_options_are_refused(values: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        SamplingOptions(**values)


def test_all_wrong_options_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        SamplingOptions(temp=-1, top_p=2)
    assert len(caught.value.problems) == 2
