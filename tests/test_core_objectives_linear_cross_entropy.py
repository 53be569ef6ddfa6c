"""The loss in chunks: NumPy in float64 says what it is, the plain path for any shape, counters what memory it takes."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.evaluation import number
from core.objectives import base, linear_cross_entropy
from core.objectives.linear_cross_entropy import LossOptions, auto_chunk_size
from core.objectives.linear_cross_entropy import linear_cross_entropy as loss_of
from models.elementary import has_slow_exp
from tests.memory_peaks import peak_of
from tests.tiny_run import needs_compiler

OPTIONS = [
    LossOptions(),
    LossOptions(z_loss=0.02),
    LossOptions(label_smoothing=0.1),
    LossOptions(soft_cap=2.0),
    LossOptions(z_loss=0.01, label_smoothing=0.2, soft_cap=3.0),
]
WAYS = {"by hand": True, "by mlx": False}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of a Linux CPU, in pieces of a few rows, or that of all other devices."""
    take(WAYS[request.param], monkeypatch)


def take(by_hand: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (base, linear_cross_entropy):
        monkeypatch.setattr(module, "has_slow_exp", lambda x: by_hand and x.dtype == mx.float32)
    monkeypatch.setattr(linear_cross_entropy, "PIECE", 40)


def make_inputs(T: int = 11, V: int = 13, D: int = 5, seed: int = 0, scale: float = 1.0) -> tuple[mx.array, ...]:
    """Hidden states, head, targets, weights: some 0, some above 1."""
    rng = np.random.default_rng(seed)
    hidden, head = rng.normal(0, scale, (T, D)), rng.normal(0, 1, (V, D))
    weights = rng.choice([0.0, 1.0, 1.0, 2.5], T)
    targets = mx.array(rng.integers(0, V, T).astype(np.int32))
    return *(mx.array(array.astype(np.float32)) for array in (hidden, head)), targets, mx.array(weights, mx.float32)


def oracle(inputs: tuple[mx.array, ...], options: LossOptions) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Total, cross-entropy and z-loss; the gradients of the total with respect to hidden states and head: float64."""
    hidden, head, targets, weights = (np.array(array.astype(mx.float32), np.float64) for array in inputs)
    targets = targets.astype(int)
    raw, cap = hidden @ head.T, options.soft_cap
    logits = raw if cap is None else cap * np.tanh(raw / cap)
    largest = logits.max(1)
    lse = largest + np.log(np.exp(logits - largest[:, None]).sum(1))
    target = np.eye(len(head))[targets]
    smooth = (1 - options.label_smoothing) * target + options.label_smoothing / len(head)
    log_p = logits - lse[:, None]
    z_loss = options.z_loss * lse**2
    cross_entropy = -(log_p * target).sum(1)
    total = -(log_p * smooth).sum(1) + z_loss
    gradient = np.exp(log_p) * (1 + 2 * options.z_loss * lse[:, None]) - smooth
    gradient *= weights[:, None] * (1 if cap is None else 1 - np.tanh(raw / cap) ** 2)
    sums = np.array([(values * weights).sum() for values in (total, cross_entropy, z_loss)])
    return sums, gradient @ head, gradient.T @ hidden


def sums_and_gradients(
    inputs: tuple[mx.array, ...], chunk_size: int | None, options: LossOptions
) -> tuple[mx.array, ...]:
    """Total, cross-entropy, z-loss, and both gradients."""
    _, _, targets, weights = inputs

    def total_first(hidden: mx.array, head: mx.array) -> Any:
        return loss_of(hidden, head, targets, weights, chunk_size=chunk_size, **options._asdict())

    sums, gradients = mx.value_and_grad(total_first, argnums=(0, 1))(*inputs[:2])
    return *sums, *gradients


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("chunk_size", [None, 4, 11, 64])
@pytest.mark.parametrize("options", OPTIONS)
def test_values_and_gradients_are_numpys(options: LossOptions, chunk_size: int | None) -> None:
    inputs = make_inputs()
    expected_sums, *expected = oracle(inputs, options)
    *sums, hidden_gradient, head_gradient = sums_and_gradients(inputs, chunk_size, options)
    np.testing.assert_allclose([number(value) for value in sums], expected_sums, rtol=1e-5)
    for found, gradient in zip((hidden_gradient, head_gradient), expected, strict=True):
        np.testing.assert_allclose(np.array(found), gradient, rtol=1e-5, atol=1e-5 * np.abs(gradient).max())
    assert np.all(np.array(hidden_gradient)[np.array(inputs[3]) == 0] == 0)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("options", OPTIONS)
def test_evaluation_is_the_same_sums(options: LossOptions) -> None:
    inputs = make_inputs()
    sums = loss_of(*inputs, chunk_size=4, **options._asdict(), differentiable=False)
    np.testing.assert_allclose([number(value) for value in sums], oracle(inputs, options)[0], rtol=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(2, 60), st.integers(1, 9)),
    chunk_size=st.integers(1, 50),
    options=st.builds(
        LossOptions,
        z_loss=st.sampled_from([0.0, 1e-4, 0.5]),
        label_smoothing=st.sampled_from([0.0, 0.1, 0.9]),
        soft_cap=st.sampled_from([None, 1.0, 30.0]),
    ),
    scale=st.sampled_from([0.01, 1.0, 20.0]),
    by_hand=st.booleans(),
)
def test_chunks_of_any_size_are_the_plain_loss(
    shape: tuple[int, int, int], chunk_size: int, options: LossOptions, scale: float, by_hand: bool
) -> None:
    inputs = make_inputs(*shape, seed=sum(shape), scale=scale)
    plain = sums_and_gradients(inputs, None, options)
    with pytest.MonkeyPatch.context() as monkeypatch:
        take(by_hand, monkeypatch)
        chunked = sums_and_gradients(inputs, chunk_size, options)
        mx.eval(chunked)
    for found, expected in zip(chunked, plain, strict=True):
        size = np.abs(np.array(expected)).max()
        np.testing.assert_allclose(np.array(found), np.array(expected), rtol=1e-5, atol=1e-5 * size + 1e-6)


@pytest.mark.usefixtures("way")
def test_logits_far_apart_neither_overflow_nor_vanish() -> None:
    hidden, head, targets, weights = make_inputs(scale=300.0)
    assert float(np.abs(np.array(hidden @ head.T)).max()) > 1000
    inputs = (hidden, head, targets, weights)
    expected_sums, expected, _ = oracle(inputs, LossOptions())
    *sums, gradient, _ = sums_and_gradients(inputs, 4, LossOptions())
    np.testing.assert_allclose(number(sums[0]), expected_sums[0], rtol=1e-5)
    np.testing.assert_allclose(np.array(gradient), expected, atol=1e-3)


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16], ids=str)
@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[-1]])
def test_half_precision_gives_its_own_gradients_and_sums_in_float32(dtype: mx.Dtype, options: LossOptions) -> None:
    hidden, head, targets, weights = make_inputs(T=64, V=50, D=8)
    inputs = (hidden.astype(dtype), head.astype(dtype), targets, weights)
    expected_sums, *expected = oracle(inputs, options)
    *sums, hidden_gradient, head_gradient = sums_and_gradients(inputs, 16, options)
    assert [value.dtype for value in sums] == [mx.float32] * 3
    assert hidden_gradient.dtype == head_gradient.dtype == dtype
    step = 2.0**-8 if dtype == mx.bfloat16 else 2.0**-11
    np.testing.assert_allclose([number(value) for value in sums], expected_sums, rtol=4 * step)
    for found, gradient in zip((hidden_gradient, head_gradient), expected, strict=True):
        error = np.abs(np.array(found.astype(mx.float32)) - gradient).max()
        assert error < 8 * step * np.abs(gradient).max()


def test_many_chunks_of_bfloat16_are_summed_in_float32() -> None:
    """Equal chunks, so that in bfloat16 the sum would stop growing at 256 of them."""
    hidden, head = mx.ones((1024, 1), mx.bfloat16), mx.zeros((2, 1), mx.bfloat16)
    inputs = (hidden, head, mx.zeros((1024,), mx.int32), mx.ones((1024,)))
    gradient = sums_and_gradients(inputs, 1, LossOptions())[-1]
    assert np.array(gradient.astype(mx.float32)).tolist() == [[-512.0], [512.0]]


def test_float16_keeps_small_probabilities_for_the_loss_scale() -> None:
    """Logits 0 and -20: a gradient of 2e-9, which float16 holds only after the scale has multiplied it."""
    hidden = mx.array([[1.0]], mx.float16)
    head = mx.array([[0.0], [-20.0]], mx.float16)
    targets, weights = mx.array([0]), mx.array([1.0])

    def scaled(head: mx.array) -> mx.array:
        return loss_of(hidden, head, targets, weights, chunk_size=1).total * 2.0**16

    gradient = np.array(mx.grad(scaled)(head).astype(mx.float32))
    np.testing.assert_allclose(gradient[1], 2.0**16 * np.exp(-20.0), rtol=2e-3)


def test_the_gradient_that_arrives_multiplies() -> None:
    hidden, head, targets, weights = make_inputs()

    def cubed(hidden: mx.array, head: mx.array, chunk_size: int | None) -> mx.array:
        return loss_of(hidden, head, targets, weights, chunk_size=chunk_size).total ** 3 / 1000

    plain, chunked = (mx.grad(cubed, argnums=(0, 1))(hidden, head, size) for size in (None, 3))
    for found, expected in zip(chunked, plain, strict=True):
        np.testing.assert_allclose(np.array(found), np.array(expected), rtol=1e-4, atol=1e-4)


@needs_compiler
def test_a_compiled_sum_over_micro_batches_is_one_batch() -> None:
    hidden, head, targets, weights = make_inputs(T=24)
    options = OPTIONS[-1]

    def step(hidden: mx.array, head: mx.array) -> tuple[mx.array, ...]:
        parts, sums = [slice(start, start + 6) for start in range(0, 24, 6)], None
        hidden_gradients = []
        for part in parts:
            *more, gradient, head_gradient = sums_and_gradients(
                (hidden[part], head, targets[part], weights[part]), 4, options
            )
            hidden_gradients.append(gradient)
            more = [*more, head_gradient]
            sums = more if sums is None else [a + b for a, b in zip(sums, more, strict=True)]
        assert sums is not None
        return *sums[:3], mx.concatenate(hidden_gradients), sums[3]

    found = mx.compile(step)(hidden, head)
    expected = sums_and_gradients((hidden, head, targets, weights), 5, options)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.array(a), np.array(b), rtol=1e-5, atol=1e-5)


def peak_bytes(function: Callable[..., Any], *arguments: mx.array) -> int:
    """What a later call takes above what was there; the most of two, since threads may free early."""
    mx.eval(function(*arguments))
    before = mx.get_active_memory()
    return max(peak_of(lambda: mx.eval(function(*arguments))) for _ in range(2)) - before


def peak_of_loss(num_tokens: int, chunk_size: int | None, *, differentiable: bool = True) -> int:
    """Bytes above inputs and gradients for V = 2,048, where 64 tokens make half a megabyte of logits."""
    inputs = make_inputs(T=num_tokens, V=2048, D=8)
    mx.eval(inputs)
    *arrays, targets, weights = inputs

    def total(hidden: mx.array, head: mx.array) -> mx.array:
        sums = loss_of(hidden, head, targets, weights, chunk_size=chunk_size, differentiable=differentiable)
        return sums.total

    return peak_bytes(mx.compile(mx.value_and_grad(total, (0, 1)) if differentiable else total), *arrays)


@needs_compiler
@pytest.mark.parametrize("differentiable", [True, False], ids=["training", "evaluation"])
def test_chunks_hold_a_fraction_of_the_plain_loss_however_many_they_are(differentiable: bool) -> None:
    few, many = (peak_of_loss(num_tokens, 64, differentiable=differentiable) for num_tokens in (1024, 4096))
    assert many < 1.5 * few
    assert many < peak_of_loss(4096, None, differentiable=differentiable) / 6


@needs_compiler
@pytest.mark.skipif(not has_slow_exp(mx.zeros(1)), reason="only exp by hand needs pieces")
def test_the_exp_of_a_chunk_is_made_in_pieces() -> None:
    assert peak_of_loss(1024, 1024) < 5 * 4 * 1024 * 2048


@needs_compiler
def test_evaluation_computes_no_gradients() -> None:
    inputs = make_inputs(T=512, V=4096, D=1024)
    mx.eval(inputs)

    def evaluate(*arrays: mx.array) -> mx.array:
        return loss_of(*arrays, chunk_size=16, differentiable=False).total  # pyright: ignore[reportCallIssue]

    assert peak_bytes(mx.compile(evaluate), *inputs) < inputs[1].nbytes / 2


def test_the_chosen_chunk() -> None:
    assert auto_chunk_size(2048, 256, on_gpu=False) is None
    assert auto_chunk_size(2048, 2048, on_gpu=False) == 512
    assert auto_chunk_size(2048, 32768, on_gpu=False) == 256
    assert auto_chunk_size(2048, 200_000, on_gpu=False) == 256
    assert auto_chunk_size(2048, 32768, on_gpu=True) is None
    assert auto_chunk_size(65536, 50304, on_gpu=True) == 1280
    assert auto_chunk_size(65536, 500, on_gpu=True) is None
    assert auto_chunk_size(10**6, 500, on_gpu=True) == 8192
