"""Flex attention: blocks equal what is written out, values and gradients; decoding from a cache equals the forward."""

from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_map_with_path

from core import decoding
from core.config import build_section
from core.decoding import pad_left, prefill, read_one
from models.attention import flex_attention, simple_attention
from models.attention.flex_attention import FlexAttentionConfig, attend_dense
from models.attention.mask import Mask
from models.attention.mods import And, FunctionMod, Mod, Or
from models.attention.named_mods import ALiBi, Causal, Document, GlobalLocal, PrefixLM, SlidingWindow, SoftCap
from models.attention.simple_attention import SimpleAttentionConfig
from models.llama import LlamaConfig

HERE = __name__
TOLERANCE = {mx.float32: 2e-5, mx.bfloat16: 3e-2}


def sparse(b, h, q, k):
    return ((q - k) % (h + 2) == 0) & (q > 2)


def tilt(score, b, h, q, k):
    return score * 0.5 + mx.sin(score) * (q % 3).astype(mx.float32)


MASKS = [
    Causal(),
    Document(),
    SlidingWindow(window=7),
    PrefixLM(length=11),
    GlobalLocal(window=4, num_global=3),
    FunctionMod(mask=f"{HERE}:sparse"),
    Or(mods=(Document(), GlobalLocal(window=2, num_global=1))),
    Or(mods=(And(mods=(Document(), SlidingWindow(window=5))), PrefixLM(length=9))),
]
SCORES = [ALiBi(), SoftCap(cap=1.5), FunctionMod(score=f"{HERE}:tilt"), And(mods=(ALiBi(), SoftCap(cap=2.0)))]


class Case:
    """Drawn inputs of one call."""

    def __init__(self, draw):
        integer = lambda low, high: draw(st.integers(low, high))  # noqa: E731
        B, G, R, K = integer(1, 2), integer(1, 2), integer(1, 3), draw(st.sampled_from([4, 8]))
        L, self.block = integer(32, 70), draw(st.sampled_from([8, 16, 32, 33]))
        S = L + draw(st.sampled_from([0, 0, 5, 20]))
        self.dtype = draw(st.sampled_from([mx.float32, mx.float32, mx.bfloat16]))
        random = np.random.default_rng(integer(0, 1000))
        shapes = [(B, G * R, L, K), (B, G, S, K), (B, G, S, K), (B, G * R, L, K)]
        *self.inputs, self.cotangent = (mx.array(random.normal(size=shape)).astype(self.dtype) for shape in shapes)
        segments = None
        if draw(st.booleans()) and S == L:
            segments = mx.array(np.sort(random.integers(1, 4, size=(B, L)), axis=1) * (np.arange(L) < L - 4))
        self.mask = Mask(draw(st.sampled_from(["causal", "bidirectional"])), draw(st.none() | st.just(20)), segments)
        masks = draw(st.lists(st.sampled_from(MASKS), max_size=3))
        self.mods = tuple(draw(st.permutations(masks + draw(st.lists(st.sampled_from(SCORES), max_size=2)))))

    def results(self, attend: Any):
        """The output and the gradients of q, k, v."""

        def weighted(q, k, v):
            out = attend(q, k, v, self.mask, 0.4)
            return (out * self.cotangent).astype(mx.float32).sum(), out

        (_, out), gradients = mx.value_and_grad(weighted, argnums=(0, 1, 2))(*self.inputs)
        return out, *gradients


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_blocks_equal_what_is_written_out(data):
    case = Case(data.draw)
    flex = FlexAttentionConfig(mods=case.mods, block_size=case.block).build(training=True)
    expected = case.results(partial(attend_dense, mods=case.mods))
    for got, right in zip(case.results(flex), expected, strict=True):
        assert got.dtype == case.dtype
        got, right = (np.array(x.astype(mx.float32)) for x in (got, right))
        scale = max(1.0, np.abs(right).max())
        np.testing.assert_allclose(got / scale, right / scale, atol=TOLERANCE[case.dtype])


@pytest.mark.parametrize("segments", [None, mx.array([[1] * 20 + [2] * 20])])
def test_no_mods_are_plain_attention(segments):
    random = np.random.default_rng(0)
    q, k, v = (mx.array(random.normal(size=(1, heads, 40, 8)).astype(np.float32)) for heads in (4, 2, 2))
    for mods, mask in (
        ((), Mask("causal", None, segments)),
        ((Causal(), SlidingWindow(window=5), Document()), Mask("causal", 5, segments)),
    ):
        expected = simple_attention.attend(q, k, v, mask, 0.3)
        for attend in (
            FlexAttentionConfig(mods=mods).build(),
            partial(attend_dense, mods=mods),
        ):
            got = attend(q, k, v, Mask("causal", None, segments), 0.3)
            np.testing.assert_allclose(np.array(got), np.array(expected), atol=2e-6)


def test_a_compiled_step_finds_its_layout_while_it_is_traced():
    random = np.random.default_rng(0)
    q, k, v = (mx.array(random.normal(size=(2, 2, 48, 8)).astype(np.float32)) for _ in range(3))
    mods = (GlobalLocal(window=5, num_global=2), ALiBi())
    attend = FlexAttentionConfig(mods=mods, block_size=16).build()

    def loss(q):
        return (attend(q, k, v, Mask(), 0.4) ** 2).sum()

    got = mx.compile(mx.grad(loss))(q)
    expected = mx.grad(lambda q: (attend_dense(q, k, v, Mask(), 0.4, mods) ** 2).sum())(q)
    np.testing.assert_allclose(np.array(got), np.array(expected), atol=2e-5)


def test_only_some_blocks_are_computed_and_asked(monkeypatch):
    asked = []

    class Near(Mod):
        """Near."""

        type: str = "near"
        """near"""

        def allowed(self, b, h, q, k):
            asked.append(max(x.shape[-2] for x in (q, k)) * max(x.shape[-1] for x in (q, k)))
            return mx.abs(q - k) < 8

    q = mx.random.normal((1, 1, 256, 8))
    attend = FlexAttentionConfig(mods=(Near(),), block_size=16).build()
    mx.eval(attend(q, q, q, Mask(), 1.0))
    assert max(asked) < 256 * 256 / 4
    assert FlexAttentionConfig(mods=(Near(),), block_size=16).computed_blocks(1, 256) == (31, 256)


SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
MODELS: dict[str, list[dict[str, Any]]] = {
    "window": [{"type": "sliding_window", "window": 5}],
    "window and cap": [{"type": "sliding_window", "window": 5}, {"type": "soft_cap", "cap": 2.0}],
    "document": [{"type": "document"}],
    "documents or a few": [
        {"type": "or", "mods": [{"type": "document"}, {"type": "global_local", "window": 1, "num_global": 2}]}
    ],
    "global and alibi": [{"type": "global_local", "window": 4, "num_global": 2}, {"type": "alibi"}],
    "own": [{"type": "function", "mask": f"{HERE}:sparse", "score": f"{HERE}:tilt"}],
}


def random_model(mods, **more) -> Any:
    config = build_section(LlamaConfig, {**SIZES, **more, "attention": {"type": "flex", "mods": mods, "block_size": 8}})
    model, random = config.build(0), np.random.default_rng(0)

    def value(name, array):
        centre = 1.0 if "norm" in name else 0.0
        return mx.array((centre + 0.3 * random.normal(size=array.shape)).astype(np.float32))

    model.update(tree_map_with_path(value, model.parameters()))
    return model.eval()


def tokens_of(B, L):
    return mx.array(np.random.default_rng(1).integers(0, 40, size=(B, L)).astype(np.int32))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("with_segments", [False, True])
def test_decoding_from_a_cache_equals_the_forward(name, with_segments):
    model, tokens = random_model(MODELS[name]), tokens_of(2, 48)
    segments = mx.array([[1] * 37 + [2] * 11, [1] * 20 + [2] * 24 + [3] * 4]) if with_segments else None
    expected = model(tokens, Mask(segments=segments))
    cache, parts, start = model.make_cache(), [], 0
    for size in (35, 1, 4, 1, 1, 6):
        end = start + size
        mask = Mask() if segments is None else Mask("causal", None, segments[:, start:end], segments[:, :end])
        parts.append(model(tokens[:, start:end], mask, cache))
        start = end
    np.testing.assert_allclose(np.array(mx.concatenate(parts, axis=1)), np.array(expected), atol=1e-4)


def test_a_prefix_read_at_once_decodes_as_in_the_forward():
    model, tokens = random_model([{"type": "prefix_lm", "length": 10}]), tokens_of(2, 40)
    expected, cache = model(tokens, Mask()), model.make_cache()
    parts = [model(tokens[:, :12], Mask(), cache)]
    parts += [model(tokens[:, i : i + 1], Mask(), cache) for i in range(12, 40)]
    np.testing.assert_allclose(np.array(mx.concatenate(parts, axis=1)), np.array(expected), atol=1e-4)
    assert (model.num_lookahead, model.needs_segments) == (10, False)


def test_a_prefix_longer_than_a_chunk_of_the_prompt_sees_all_of_itself(monkeypatch):
    model = random_model([{"type": "prefix_lm", "length": 10}])
    tokens = mx.array([list(range(1, 15))])
    monkeypatch.setattr(decoding, "PREFILL_CHUNK", 4)
    got = prefill(model, tokens, None, model.make_cache())
    np.testing.assert_allclose(np.array(got), np.array(model(tokens, Mask()))[:, -1], atol=1e-5)


@pytest.mark.parametrize("name", [*MODELS, "prefix"])
def test_left_padded_prompts_decode_as_if_alone(name):
    model = random_model({**MODELS, "prefix": [{"type": "prefix_lm", "length": 6}]}[name])
    prompts = [[5, 6, 7], list(range(1, 36)), list(range(10, 22))]
    tokens, segments = pad_left(prompts)
    cache = model.make_cache()
    together = [prefill(model, tokens, segments, cache), read_one(model, mx.array([1, 2, 3]), segments, 1, cache)]
    for row, prompt in enumerate(prompts):
        cache = model.make_cache()
        alone = [prefill(model, *pad_left([prompt]), cache), read_one(model, mx.array([row + 1]), None, 1, cache)]
        for got, expected in zip(together, alone, strict=True):
            np.testing.assert_allclose(np.array(got[row]), np.array(expected[0]), atol=1e-4)


def test_it_says_what_runs():
    flex = FlexAttentionConfig
    assert flex().explain().startswith("flex without mods: ")
    assert flex(mods=(SlidingWindow(window=9),)).explain().startswith("flex: sliding_window 9, as the mask of ")
    line = flex(mods=(SlidingWindow(window=9), SoftCap(cap=50))).explain()
    assert line.startswith("flex: sliding_window 9, soft_cap 50, block by block")
    config = LlamaConfig(**SIZES, attention=flex(mods=(SlidingWindow(window=9), ALiBi()), block_size=8))
    assert str(config.explain_kernels(64)).endswith("without those that the mods empty; 15 of 64 blocks are computed")
    assert flex_attention.FEW_QUERIES > 1


def test_lengths_that_make_no_sense_are_warned_of():
    mods = (SlidingWindow(window=32), Or(mods=(Causal(), PrefixLM(length=40))), SoftCap(cap=1))
    config = LlamaConfig(**SIZES, attention=FlexAttentionConfig(mods=mods))
    window, prefix = config.warnings(32, "float32")
    assert "window 32 hides nothing in rows of 32 tokens" in window
    assert "prefix of 40 tokens fills rows of 32" in prefix
    assert config.warnings(64, "float32") == []


def test_a_fused_kernel_is_missed_only_where_one_could_run(monkeypatch):
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx.cuda, "is_available", lambda: False)

    def warned(*mods):
        sizes: dict[str, Any] = {**SIZES, "head_dim": 64}
        return LlamaConfig(**sizes, attention=FlexAttentionConfig(mods=mods)).warnings(64, "float32")

    assert warned() == warned(Causal()) == warned(SlidingWindow(window=8), SoftCap(cap=1)) == []
    for mod in (SlidingWindow(window=8), Document()):
        (line,) = warned(mod)
        assert "documents and windows have no fused attention on Metal" in line
    odd: dict[str, Any] = {**SIZES, "head_dim": 20}
    assert "head_dim 20" in LlamaConfig(**odd).warnings(64, "float32")[0]
    assert LlamaConfig(**odd, attention=SimpleAttentionConfig()).warnings(64, "float32", document_mask=True) == []
