"""Blockwise attention against NumPy in float64 and, in its gradients, against attention written out; and its memory."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.attention import blockwise, simple_attention
from models.attention.blocks import FULL, PARTIAL, SKIP, BlockLayout, layout_of
from models.attention.blockwise import attend_blockwise
from models.attention.flash_attention import same_segment
from models.attention.mask import Mask
from tests.memory_peaks import peak_of


def draw(B, H, G, L, S, K, seed=0):
    """q, k, v and a cotangent."""
    random = np.random.default_rng(seed)
    shapes = [(B, H, L, K), (B, G, S, K), (B, G, S, K), (B, H, L, K)]
    return [mx.array(random.normal(size=shape).astype(np.float32)) for shape in shapes]


def in_blocks(mask, block_size):
    """`attend` with the mask of `simple_attention.attend`."""

    def attend(q, k, v, scale):
        L, S = q.shape[2], k.shape[2]
        allowed = same_segment(mask, S - L)
        return attend_blockwise(q, k, v, scale, layout_of(mask, L, S, block_size), allowed=allowed)

    return attend


def written_out(mask):
    return lambda q, k, v, scale: simple_attention.attend(q, k, v, mask, scale)


def results(attend, q, k, v, cotangent, scale=0.4, compiled=False):
    """The output and the gradients of q, k and v."""

    def weighted(q, k, v):
        out = attend(q, k, v, scale)
        return (out * cotangent).sum(), out

    function = mx.value_and_grad(weighted, argnums=(0, 1, 2))
    (_, out), gradients = (mx.compile(function) if compiled else function)(q, k, v)
    return [np.array(x) for x in (out, *gradients)]


def in_float64(q, k, v, allowed, scale):
    q, k, v = (np.array(x, dtype=np.float64) for x in (q, k, v))
    k, v = (np.repeat(x, q.shape[1] // x.shape[1], axis=1) for x in (k, v))
    scores = np.where(allowed, np.einsum("bhlk,bhsk->bhls", q, k) * scale, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bhls,bhsk->bhlk", weights / weights.sum(-1, keepdims=True), v)


def assert_close(got, expected, atol=5e-6):
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=atol)


@st.composite
def cases(draw):
    """(B, H, G, L, S, K), a mask, a block size, bytes of a tile."""
    B, G, R = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    L = draw(st.integers(1, 40))
    S = L + draw(st.sampled_from([0, 0, 1, 13]))
    kind, window = draw(st.sampled_from(["causal", "bidirectional"])), draw(st.none() | st.integers(1, 45))
    mask = Mask(kind, window)
    if draw(st.booleans()):
        seed = draw(st.integers(0, 1000))
        keys = mx.array(np.sort(np.random.default_rng(seed).integers(0, 4, size=(B, S)), axis=1))
        # A model without a cache gives the segments only once.
        mask = (
            Mask(kind, window, keys) if S == L and draw(st.booleans()) else Mask(kind, window, keys[:, S - L :], keys)
        )
    sizes = (B, G * R, G, L, S, draw(st.sampled_from([4, 8])))
    return sizes, mask, draw(st.integers(3, 48)), draw(st.sampled_from([1, 2**12, 2**14, 2**21]))


@pytest.fixture
def tile_bytes(monkeypatch):
    def change(size):
        monkeypatch.setattr(blockwise, "CPU_TILE_BYTES", size)
        monkeypatch.setattr(blockwise, "GPU_TILE_BYTES", size)

    return change


@settings(max_examples=60, deadline=None)
@given(cases())
def test_it_equals_attention_written_out(case):
    sizes, mask, block_size, size_of_tile = case
    q, k, v, cotangent = draw(*sizes)
    L, S = sizes[3:5]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blockwise, "CPU_TILE_BYTES", size_of_tile)
        patch.setattr(blockwise, "GPU_TILE_BYTES", size_of_tile)
        got = results(in_blocks(mask, block_size), q, k, v, cotangent)
    allowed = np.ones((L, S), dtype=bool) if mask.array(L, S) is None else np.array(mask.array(L, S))
    np.testing.assert_allclose(got[0], in_float64(q, k, v, allowed, 0.4), atol=3e-6)
    assert_close(got[1:], results(written_out(mask), q, k, v, cotangent)[1:])


@settings(max_examples=10, deadline=None)
@given(cases(), st.sampled_from([mx.bfloat16, mx.float16]))
def test_half_precision_computes_in_float32(case, dtype):
    sizes, mask, block_size, _ = case
    inputs = [x.astype(dtype) for x in draw(*sizes)]
    (out, *gradients) = mx.vjp(lambda q, k, v: in_blocks(mask, block_size)(q, k, v, 0.4), inputs[:3], inputs[3:])
    right = mx.vjp(
        lambda q, k, v: written_out(mask)(q, k, v, 0.4),
        [x.astype(mx.float32) for x in inputs[:3]],
        [inputs[3].astype(mx.float32)],
    )
    for got, expected in zip([*out, *gradients[0]], [*right[0], *right[1]], strict=True):
        assert got.dtype == dtype
        expected = np.array(expected)
        atol = 0.02 * max(1.0, np.abs(expected).max())
        np.testing.assert_allclose(np.array(got.astype(mx.float32)), expected, atol=atol)


def test_compiled_and_inside_another_custom_function_it_gives_the_same():
    q, k, v, cotangent = draw(2, 4, 2, 50, 50, 8)
    attend = in_blocks(Mask("causal", window=20), 16)

    @mx.custom_function
    def recomputed(q, k, v):
        return attend(q * 2, k, v, 0.4)

    @recomputed.vjp
    def _(inputs, cotangent, _):
        return mx.vjp(lambda q, k, v: attend(q * 2, k, v, 0.4), list(inputs), [cotangent])[1]

    plain = results(lambda q, k, v, scale: attend(q * 2, k, v, scale), q, k, v, cotangent)
    assert_close(results(attend, q, k, v, cotangent, compiled=True), results(attend, q, k, v, cotangent), atol=2e-6)
    nested = results(lambda q, k, v, scale: recomputed(q, k, v), q, k, v, cotangent, compiled=True)
    assert_close(nested, plain, atol=2e-6)


def with_sinks(q, k, v, scale, sinks):
    """Written out: a column of sinks beside the scores, whose value is 0."""
    (B, H, L, _), S = q.shape, k.shape[2]
    k, v = (mx.repeat(x, H // x.shape[1], axis=1) for x in (k, v))
    scores = mx.where(mx.tri(L, S, S - L, dtype=mx.bool_), q @ k.swapaxes(-1, -2) * scale, -mx.inf)
    column = mx.broadcast_to(sinks[None, :, None, None], (B, H, L, 1))
    return mx.softmax(mx.concatenate([scores, column], axis=-1), axis=-1)[..., :-1] @ v


def test_sinks_and_their_gradient():
    q, k, v, cotangent = draw(2, 4, 2, 37, 41, 8)
    sinks = mx.array([-3.0, 0.5, 2.0, 6.0])
    layout = layout_of(Mask(), 37, 41, 16)

    def both(attend):
        return mx.vjp(attend, [q, k, v, sinks], [cotangent])

    got = both(lambda q, k, v, sinks: attend_blockwise(q, k, v, 0.4, layout, sinks_H=sinks))
    expected = both(lambda q, k, v, sinks: with_sinks(q, k, v, 0.4, sinks))
    for a, b in zip([*got[0], *got[1]], [*expected[0], *expected[1]], strict=True):
        np.testing.assert_allclose(np.array(a), np.array(b), atol=5e-6)


def near_or_first(b, h, q, k):
    """Depends on everything: the near keys, fewer in later heads, and from row 1 on the first three."""
    return (k <= q) & ((q - k < 9 - h) | ((k < 3) & (b > 0)))


def capped_and_tilted(score, b, h, q, k):
    return 2.0 * mx.tanh(score / 2.0) - 0.01 * (h + b + 1) * (q - k)


@pytest.mark.parametrize("size_of_tile", [1, 2**12, 2**21])
def test_functions_of_indices_and_a_layout_of_ones_own(tile_bytes, size_of_tile):
    tile_bytes(size_of_tile)
    B, H, G, L, S, K = 2, 6, 3, 40, 45, 8
    q, k, v, cotangent = draw(B, H, G, L, S, K)
    b, h, i, j = np.ogrid[:B, :H, S - L : S, :S]
    indices = [mx.array(x) for x in (b, h, i, j)]
    seen = np.array(near_or_first(*indices))
    size = 8
    kinds = [
        [SKIP if not block.any() else FULL if block.all() else PARTIAL for block in blocks]
        for first in range(0, L, size)
        for blocks in [[seen[:, :, first : first + size, start : start + size] for start in range(0, S, size)]]
    ]
    layout = BlockLayout(size, np.array(kinds, dtype=np.int8))
    assert max(len(row.runs) for row in layout.rows) == 2

    def blocks(q, k, v, scale):
        return attend_blockwise(q, k, v, scale, layout, allowed=near_or_first, score=capped_and_tilted)

    def dense(q, k, v, scale):
        k, v = (mx.repeat(x, H // G, axis=1) for x in (k, v))
        scores = capped_and_tilted(q @ k.swapaxes(-1, -2) * scale, *indices)
        return mx.softmax(mx.where(mx.array(seen), scores, -mx.inf), axis=-1) @ v

    assert_close(results(blocks, q, k, v, cotangent), results(dense, q, k, v, cotangent))


def test_allowed_is_asked_about_no_skipped_block_and_score_about_no_more():
    q, k, v, _ = draw(1, 2, 2, 32, 32, 8)
    kinds = np.array([[PARTIAL, SKIP, SKIP, SKIP], [FULL] * 2 + [SKIP] * 2, [SKIP, FULL, PARTIAL, SKIP], [SKIP] * 4])
    asked, scored = np.zeros((32, 32), dtype=int), np.zeros((32, 32), dtype=int)

    def allowed(b, h, q, k):
        np.add.at(asked, (np.array(q), np.array(k)), 1)
        return k <= q

    def score(score, b, h, q, k):
        np.add.at(scored, (np.array(q), np.array(k)), 1)
        return score

    attend_blockwise(q, k, v, 1.0, BlockLayout(8, kinds.astype(np.int8)), allowed=allowed, score=score)
    np.testing.assert_array_equal(asked, np.repeat(np.repeat(kinds == PARTIAL, 8, 0), 8, 1))
    np.testing.assert_array_equal(scored, np.repeat(np.repeat(kinds != SKIP, 8, 0), 8, 1))


@pytest.mark.parametrize("kind", [SKIP, PARTIAL])
def test_a_query_that_sees_no_key_gives_nothing_and_takes_nothing(kind):
    q, k, v, cotangent = draw(2, 2, 1, 24, 24, 8)
    kinds = np.full((3, 3), PARTIAL, dtype=np.int8)
    kinds[1] = kind
    layout = BlockLayout(8, kinds)

    def allowed(b, h, q, k):
        return (q < 8) | (q >= 16)

    def blocks(q, k, v, scale):
        return attend_blockwise(q, k, v, scale, layout, allowed=allowed)

    out, dq, dk, dv = results(blocks, q, k, v, cotangent)
    seen = np.r_[0:8, 16:24]
    rows = mx.array(seen)
    others = results(written_out(Mask("bidirectional")), q[:, :, rows], k, v, cotangent[:, :, rows])
    assert (out[:, :, 8:16] == 0).all()
    assert (dq[:, :, 8:16] == 0).all()
    assert_close([out[:, :, seen], dq[:, :, seen], dk, dv], others)


def test_keys_that_nobody_sees_get_no_gradient():
    q, k, v, cotangent = draw(1, 2, 2, 5, 90, 8)
    _, _, dk, dv = results(in_blocks(Mask("causal", window=3), 4), q, k, v, cotangent)
    assert (dk[:, :, :83] == 0).all()
    assert (dv[:, :, :83] == 0).all()
    assert (dv[:, :, 83:] != 0).all()


def test_nan_is_not_hidden():
    q, k, v, _ = draw(1, 1, 1, 20, 20, 8)
    q[0, 0, 7, 0] = mx.nan
    out = np.array(in_blocks(Mask(), 8)(q, k, v, 1.0))
    assert np.isnan(out[0, 0, 7]).all()
    assert np.isfinite(np.delete(out, 7, axis=2)).all()


def peak_of_gradient(attend, L, H=2, K=32):
    """Bytes above the inputs in the compiled forward and backward pass."""
    *inputs, cotangent = draw(1, H, H, L, L, K)
    mx.eval(inputs, cotangent)

    def weighted(q, k, v):
        return (attend(q, k, v, K**-0.5) * cotangent).sum()

    function = mx.compile(mx.grad(weighted, argnums=(0, 1, 2)))
    mx.eval(function(*inputs))
    mx.clear_cache()
    before = mx.get_active_memory()
    return max(peak_of(lambda: mx.eval(function(*inputs))) for _ in range(2)) - before


@pytest.mark.parametrize("mask", [Mask(), Mask("bidirectional"), Mask(window=100)])
def test_memory_grows_with_the_length_not_with_its_square(mask, tile_bytes):
    tile_bytes(2**18)
    long = peak_of_gradient(in_blocks(mask, 64), 2048)
    assert long / peak_of_gradient(in_blocks(mask, 64), 512) < 6
    assert long < peak_of_gradient(written_out(mask), 2048) / 4


def test_no_masks_are_held_for_later(tile_bytes):
    """A compiled step makes equal things once: those of the backward pass would be held from the forward pass on."""
    tile_bytes(2**18)
    L = 1536
    segments = mx.array(np.arange(L)[None] // 300)
    causal, segmented, unmasked = (
        peak_of_gradient(in_blocks(mask, 64), L) for mask in (Mask(), Mask(segments=segments), Mask("bidirectional"))
    )
    all_masks = 4 * L**2 // 2
    assert causal < unmasked + all_masks / 4
    assert segmented < unmasked + all_masks / 4
