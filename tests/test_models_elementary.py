"""The elementary functions against NumPy in float64, values and derivatives, on both of their paths."""

import mlx.core as mx
import numpy as np
import pytest

from models import elementary

RANDOM = np.random.default_rng(0)
WIDE = np.concatenate([np.linspace(-87, 88, 4001), [0.0, -0.0, 1e-30, -1e-30]]).astype(np.float32)


@pytest.fixture(params=[True, False], ids=["polynomial", "mlx"])
def path(request, monkeypatch):
    monkeypatch.setattr(elementary, "has_slow_exp", lambda x: request.param)


def gradient_of(function, x, cotangent):
    return np.array(mx.grad(lambda x: (function(x) * mx.array(cotangent)).sum())(mx.array(x)))


def softmax_float64(x):
    weights = np.exp(x.astype(np.float64) - x.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def test_the_relative_error_of_exp_is_that_of_rounding_its_argument():
    got = np.array(elementary.polynomial_exp(mx.array(WIDE)), dtype=np.float64)
    error = np.abs(got / np.exp(WIDE.astype(np.float64)) - 1)
    assert (error < 2e-7 + 8e-8 * np.abs(WIDE)).all()


def test_exp_at_the_ends():
    got = np.array(elementary.polynomial_exp(mx.array([-np.inf, -1e30, -100.0, 100.0, 1e30, np.inf, np.nan])))
    np.testing.assert_array_equal(got, [0, 0, 0, np.inf, np.inf, np.inf, np.nan])


def test_exp_and_sigmoid_and_their_derivatives(path):
    x = RANDOM.normal(size=(3, 50)).astype(np.float32) * 5
    cotangent = RANDOM.normal(size=x.shape).astype(np.float32)
    s = 1 / (1 + np.exp(-x.astype(np.float64)))
    np.testing.assert_allclose(np.array(elementary.exp(mx.array(x))), np.exp(x.astype(np.float64)), rtol=1e-6)
    np.testing.assert_allclose(np.array(elementary.sigmoid(mx.array(x))), s, rtol=1e-6)
    np.testing.assert_allclose(gradient_of(elementary.exp, x, cotangent), cotangent * np.exp(x), rtol=1e-5)
    np.testing.assert_allclose(
        gradient_of(elementary.sigmoid, x, cotangent), cotangent * s * (1 - s), rtol=1e-5, atol=1e-7
    )


def test_tanh_and_its_derivative(path):
    x = np.concatenate([RANDOM.normal(size=200) * 3, [0.0, 50.0, -1e4]]).astype(np.float32)
    cotangent = RANDOM.normal(size=x.shape).astype(np.float32)
    expected = np.tanh(x.astype(np.float64))
    np.testing.assert_allclose(np.array(elementary.tanh(mx.array(x))), expected, atol=2e-7)
    np.testing.assert_allclose(gradient_of(elementary.tanh, x, cotangent), cotangent * (1 - expected**2), atol=1e-6)


def test_sigmoid_far_out_is_finite(path):
    np.testing.assert_allclose(np.array(elementary.sigmoid(mx.array([-1e4, -200.0, 200.0, 1e4]))), [0, 0, 1, 1])


def test_softmax_and_its_derivative(path):
    x = RANDOM.normal(size=(2, 3, 40)).astype(np.float32) * 10
    cotangent = RANDOM.normal(size=x.shape).astype(np.float32)
    p = softmax_float64(x)
    np.testing.assert_allclose(np.array(elementary.softmax(mx.array(x))), p, rtol=1e-5, atol=1e-12)
    expected = p * (cotangent - (p * cotangent).sum(-1, keepdims=True))
    np.testing.assert_allclose(gradient_of(elementary.softmax, x, cotangent), expected, atol=2e-6)


def test_softmax_gives_a_masked_entry_exactly_nothing(path):
    row = np.array(elementary.softmax(mx.array([[1.0, -np.inf, 3.0, -np.inf]])))
    assert row[0, 1] == row[0, 3] == 0
    assert np.isfinite(gradient_of(elementary.softmax, [[1.0, -np.inf, 3.0]], [[1.0, 2.0, 3.0]])).all()


def test_logsumexp_and_its_derivative(path):
    x = RANDOM.normal(size=(4, 5, 30)).astype(np.float32) * 20
    cotangent = RANDOM.normal(size=(4, 5)).astype(np.float32)
    largest = x.max(-1)
    expected = largest + np.log(np.exp(x.astype(np.float64) - largest[..., None]).sum(-1))
    np.testing.assert_allclose(np.array(elementary.logsumexp(mx.array(x))), expected, rtol=1e-6)
    np.testing.assert_allclose(
        gradient_of(elementary.logsumexp, x, cotangent), cotangent[..., None] * softmax_float64(x), atol=1e-5
    )


def test_half_precision_takes_the_path_of_mlx():
    assert not elementary.has_slow_exp(mx.zeros((1,), dtype=mx.bfloat16))
    assert elementary.softmax(mx.zeros((2, 4), dtype=mx.bfloat16)).dtype == mx.bfloat16
