"""Every attention backend against attention written in NumPy float64, and against `simple` in its gradients."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import noise
from models.attention import ATTENTION, auto_attention, block_attention, flash_attention, simple_attention
from models.attention.flash_attention import FlashAttentionConfig
from models.attention.flex_attention import FlexAttentionConfig
from models.attention.mask import Mask
from models.attention.mods import FunctionMod
from models.attention.simple_attention import SimpleAttentionConfig
from utils.registry import look_up

B, H, L, K = 2, 4, 6, 8
SEGMENTS = mx.array([[1, 1, 1, 2, 2, 0], [0, 0, 1, 1, 1, 1]])
KEY_SEGMENTS = mx.array([[0, 1, 1, 1, 1, 1, 1, 2, 2], [0, 0, 0, 0, 0, 1, 1, 1, 1]])
MASKS = {
    "causal": (Mask("causal"), L),
    "bidirectional": (Mask("bidirectional"), L),
    "causal window": (Mask("causal", window=3), L),
    "window 1": (Mask("causal", window=1), L),
    "wide window": (Mask("causal", window=50), L),
    "bidirectional window": (Mask("bidirectional", window=2), L),
    "causal segments": (Mask("causal", segments=SEGMENTS), L),
    "bidirectional segments": (Mask("bidirectional", segments=SEGMENTS), L),
    "segments and window": (Mask("causal", 2, SEGMENTS), L),
    "cached": (Mask("causal"), 9),
    "cached window": (Mask("causal", window=4), 9),
    "cached segments": (Mask("causal", None, KEY_SEGMENTS[:, 3:], KEY_SEGMENTS), 9),
}
CASES = [
    pytest.param(mask, keys, groups, id=f"{name}-{groups}")
    for name, (mask, keys) in MASKS.items()
    for groups in (1, 2, 4)
]


def draw(num_keys, groups, seed=0):
    random = np.random.default_rng(seed)
    shapes = [(B, H, L, K), (B, groups, num_keys, K), (B, groups, num_keys, K)]
    return [mx.array(random.normal(size=shape).astype(np.float32)) for shape in shapes]


def in_float64(q, k, v, mask, scale):
    q, k, v = (np.array(x, dtype=np.float64) for x in (q, k, v))
    k, v = (np.repeat(x, H // x.shape[1], axis=1) for x in (k, v))
    scores = np.einsum("bhlk,bhsk->bhls", q, k) * scale
    allowed = mask.array(L, k.shape[2])
    if allowed is not None:
        scores = np.where(np.broadcast_to(np.array(allowed), scores.shape), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bhls,bhsk->bhlk", weights / weights.sum(-1, keepdims=True), v)


@pytest.mark.parametrize("name", ATTENTION)
@pytest.mark.parametrize(("mask", "num_keys", "groups"), CASES)
def test_values(name, mask, num_keys, groups):
    q, k, v = draw(num_keys, groups)
    out = look_up(ATTENTION, name, "attention")().build()(q, k, v, mask, K**-0.5)
    np.testing.assert_allclose(np.array(out), in_float64(q, k, v, mask, K**-0.5), atol=2e-6)


@pytest.mark.parametrize("name", [name for name in ATTENTION if name != "simple"])
@pytest.mark.parametrize(("mask", "num_keys", "groups"), CASES)
def test_gradients(name, mask, num_keys, groups):
    inputs = draw(num_keys, groups)
    cotangent = draw(num_keys, groups, seed=1)[0]

    def gradients(attend):
        return mx.grad(lambda q, k, v: (attend(q, k, v, mask, 0.3) * cotangent).sum(), argnums=(0, 1, 2))(*inputs)

    expected = gradients(SimpleAttentionConfig().build())
    for got, right in zip(gradients(look_up(ATTENTION, name, "attention")().build()), expected, strict=True):
        np.testing.assert_allclose(np.array(got), np.array(right), atol=5e-6)


@pytest.mark.parametrize("name", ATTENTION)
def test_padding_gives_no_nan(name):
    q, k, v = draw(L, 2)
    mask = Mask("causal", segments=mx.zeros((B, L), dtype=mx.int32))
    attend = look_up(ATTENTION, name, "attention")().build()
    gradient = mx.grad(lambda q: attend(q, k, v, mask, 1.0).sum())(q)
    assert np.isfinite(np.array(gradient)).all()


def test_half_precision_keeps_its_dtype():
    q, k, v = (x.astype(mx.bfloat16) for x in draw(L, 2))
    assert simple_attention.attend(q, k, v, Mask(), 0.3).dtype == mx.bfloat16


def test_dropout_keeps_the_mean_and_follows_the_seed():
    q, k, v = draw(L, 2)
    attend = SimpleAttentionConfig().build(dropout=0.3)
    mx.random.seed(3)
    first = attend(q, k, v, Mask(), 0.3)
    mx.random.seed(3)
    assert mx.array_equal(first, attend(q, k, v, Mask(), 0.3))
    assert not mx.array_equal(first, attend(q, k, v, Mask(), 0.3))
    weights = noise.drop(mx.ones((400, 400)), 0.3)
    assert abs(weights.mean().item() - 1) < 0.01
    assert set(np.unique(np.array(weights)).round(5)) == {0.0, np.float32(1 / 0.7).round(5)}


LONG = 150
LONG_SEGMENTS = mx.array([[1] * 70 + [2] * 60 + [0] * 20, [0] * 65 + [1] * 85])
LONG_MASKS = {
    "causal": Mask("causal"),
    "window": Mask("causal", window=40),
    "segments": Mask("causal", segments=LONG_SEGMENTS),
    "segments of queries and keys": Mask("causal", 90, LONG_SEGMENTS, LONG_SEGMENTS),
    "bidirectional": Mask("bidirectional", segments=LONG_SEGMENTS),
}


@pytest.mark.parametrize("mask", LONG_MASKS.values(), ids=LONG_MASKS.keys())
def test_blocks_equal_simple_attention(mask):
    random = np.random.default_rng(0)
    shapes = [(2, 4, LONG, 8), (2, 2, LONG, 8), (2, 2, LONG, 8), (2, 4, LONG, 8)]
    q, k, v, cotangent = (mx.array(random.normal(size=shape).astype(np.float32)) for shape in shapes)
    assert 1 < LONG / block_attention.block_size(LONG) < 3

    def results(attend):
        def weighted(q, k, v):
            out = attend(q, k, v, mask, 0.4)
            return (out * cotangent).sum(), out

        (_, out), gradients = mx.value_and_grad(weighted, argnums=(0, 1, 2))(q, k, v)
        return out, *gradients

    for got, right in zip(results(block_attention.attend), results(simple_attention.attend), strict=True):
        np.testing.assert_allclose(np.array(got), np.array(right), atol=5e-6)


def test_block_sizes():
    assert [block_attention.block_size(L) for L in (1, 256, 512, 1000, 1024)] == [64, 64, 64, 125, 128]


def test_auto_says_what_it_chose_and_takes_simple_when_weights_are_dropped(monkeypatch):
    auto = auto_attention.AutoAttentionConfig()
    assert auto.build(0.1).func is simple_attention.attend
    assert "drop attention weights" in auto.explain(0.1)
    monkeypatch.setattr(auto_attention.platform, "system", lambda: "Darwin")
    assert auto.explain().startswith("flash (auto)")
    for training in (False, True):
        built = auto.build(training=training)
        assert (built.func, built.keywords) == (flash_attention.attend, {"training": training})
    monkeypatch.setattr(auto_attention.platform, "system", lambda: "Linux")
    on_cpu = mx.default_device().type == mx.DeviceType.cpu
    assert auto.explain().startswith("simple in causal blocks up to 511 positions" if on_cpu else "flash")
    assert auto.build() is auto_attention.attend_on_cpu if on_cpu else auto.build().func is flash_attention.attend


@pytest.mark.parametrize(
    ("num_queries", "num_keys", "chosen"),
    [(511, 511, "short"), (512, 512, "flash"), (1, 4096, "short"), (100, 4096, "flash")],
)
def test_auto_takes_blocks_that_are_recomputed_where_scores_are_many(monkeypatch, num_queries, num_keys, chosen):
    monkeypatch.setattr(auto_attention.block_attention, "attend", lambda *_: "short")
    monkeypatch.setattr(auto_attention.flash_attention, "attend", lambda *_: "flash")
    q, k = mx.zeros((1, 1, num_queries, 8)), mx.zeros((1, 1, num_keys, 8))
    assert auto_attention.attend_on_cpu(q, k, k, Mask(), 1.0) == chosen


ROWS = {
    "flash": lambda block: FlashAttentionConfig(block_size=block),
    "flash, blocks of its choice": lambda block: FlashAttentionConfig(),
    "flex": lambda block: FlexAttentionConfig(block_size=block),
    "flex by its own functions": lambda block: FlexAttentionConfig(
        mods=(FunctionMod(mask=f"{__name__}:everything", score=f"{__name__}:as_it_is"),), block_size=block
    ),
    "auto": lambda block: auto_attention.AutoAttentionConfig(),
}
"""Everything that must equal `simple`, given a block size."""


def everything(b, h, q, k):
    return (q >= 0) & (k >= 0)


def as_it_is(score, b, h, q, k):
    return score * 1.0


@st.composite
def attention_calls(draw):
    """Sizes, mask, dtype and block size of one call without a cache."""
    B, groups, share = (draw(st.integers(1, 3)) for _ in range(3))
    K = draw(st.sampled_from([4, 8, 10]))
    length = draw(st.integers(1, 150))
    segments = None
    if draw(st.booleans()):
        ends = sorted(draw(st.lists(st.integers(1, length), min_size=1, max_size=3)))
        row = np.searchsorted(ends, np.arange(length), side="right") + draw(st.integers(0, 1))
        segments = mx.array(np.broadcast_to(row, (B, length)).astype(np.int32))
    kind = draw(st.sampled_from(["causal", "bidirectional"]))
    mask = Mask(kind, window=draw(st.none() | st.integers(1, 160)), segments=segments)
    dtype = draw(st.sampled_from([mx.float32, mx.float32, mx.bfloat16, mx.float16]))
    return (B, groups * share, groups, length, K), mask, dtype, draw(st.sampled_from([1, 7, 16, 32, 64, 200]))


@pytest.mark.parametrize("row", ROWS)
@settings(deadline=None, max_examples=25)
@given(attention_calls())
def test_simple_flash_and_flex_are_one_function_and_so_are_their_gradients(row, call):
    (B, heads, groups, length, K), mask, dtype, block = call
    random = np.random.default_rng(length)
    shapes = [(B, heads, length, K), (B, groups, length, K), (B, groups, length, K), (B, heads, length, K)]
    q, k, v, cotangent = (mx.array(random.normal(size=shape)).astype(dtype) for shape in shapes)

    def results(config):
        attend = config.build(training=True)
        outputs, gradients = mx.vjp(lambda *inputs: attend(*inputs, mask, 0.4), [q, k, v], [cotangent])
        return [np.array(array.astype(mx.float32)) for array in (*outputs, *gradients)]

    # In half precision the sums agree and their last rounding may not: one unit of the largest result.
    tolerance = {mx.float32: 2e-5, mx.float16: 2e-3, mx.bfloat16: 1.6e-2}[dtype]
    for got, right in zip(results(ROWS[row](block)), results(SimpleAttentionConfig()), strict=True):
        np.testing.assert_allclose(got, right, atol=tolerance * max(1.0, np.abs(right).max()))
