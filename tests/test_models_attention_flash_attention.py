"""Which way a call of flash attention goes, that its block size is honoured, and what it says of missing kernels."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.attention import flash_attention, simple_attention
from models.attention.blocks import layout_of
from models.attention.flash_attention import (
    Call,
    FlashAttentionConfig,
    attend,
    choose_block_size,
    choose_path,
    flash_warnings,
)
from models.attention.mask import Mask

METAL = Call("metal", mx.bfloat16, 64, 1024, 1024, "causal", training=True)
CUDA = METAL._replace(device="cuda")
CPU = METAL._replace(device="cpu", dtype=mx.float32)
BIG = 2**26 + 1


@pytest.mark.parametrize(
    ("call", "path"),
    [
        (METAL, "fused"),
        (METAL._replace(dtype=mx.float32, head_dim=192, mask="none"), "fused"),
        (METAL._replace(head_dim=48), "blocks"),
        (METAL._replace(mask="array", mask_bytes=100), "blocks"),
        (METAL._replace(sinks=True), "blocks"),
        (METAL._replace(num_queries=8), "blocks"),
        (METAL._replace(mask="array", mask_bytes=100, training=False), "fused"),
        (METAL._replace(mask="array", mask_bytes=BIG, training=False), "blocks"),
        (METAL._replace(mask="array", mask_bytes=BIG, num_queries=1, training=False), "fused"),
        (METAL._replace(head_dim=48, training=False), "blocks"),
        (METAL._replace(head_dim=48, num_queries=1, training=False), "fused"),
        (METAL._replace(sinks=True, training=False), "fused"),
        (CUDA, "fused"),
        (CUDA._replace(head_dim=72, dtype=mx.float16), "fused"),
        (CUDA._replace(dtype=mx.float32), "blocks"),
        (CUDA._replace(head_dim=192), "blocks"),
        (CUDA._replace(head_dim=60), "blocks"),
        (CUDA._replace(num_queries=1000), "blocks"),
        (CUDA._replace(mask="array", mask_bytes=2**24), "fused"),
        (CUDA._replace(mask="array", mask_bytes=BIG), "blocks"),
        (CUDA._replace(sinks=True), "blocks"),
        (CUDA._replace(sinks=True, training=False), "fused"),
        (CUDA._replace(num_queries=1000, training=False), "blocks"),
        (CUDA._replace(num_queries=1, training=False), "fused"),
        (CPU, "blocks"),
        (CPU._replace(training=False), "blocks"),
        (CPU._replace(num_queries=64), "written out"),
        (CPU._replace(num_queries=1, training=False), "written out"),
    ],
)
def test_the_fused_kernel_is_taken_where_nothing_quadratic_comes_of_it(call, path):
    assert choose_path(call) == path


def draw(B, H, G, L, S, K):
    random = np.random.default_rng(0)
    return [mx.array(random.normal(size=s).astype(np.float32)) for s in [(B, H, L, K), (B, G, S, K), (B, G, S, K)]]


@pytest.mark.parametrize("path", ["fused", "blocks", "written out"])
@pytest.mark.parametrize("training", [False, True])
def test_every_path_gives_the_same(monkeypatch, path, training):
    monkeypatch.setattr(flash_attention, "choose_path", lambda call: path)
    q, k, v = draw(2, 4, 2, 30, 35, 8)
    segments = mx.array(np.sort(np.random.default_rng(1).integers(0, 3, size=(2, 35)), axis=1))
    for mask in (Mask(), Mask("bidirectional"), Mask(window=9), Mask("causal", None, segments[:, 5:], segments)):
        got, right = attend(q, k, v, mask, 0.4, training=training), simple_attention.attend(q, k, v, mask, 0.4)
        np.testing.assert_allclose(np.array(got), np.array(right), atol=3e-6)


@pytest.mark.parametrize("path", ["fused", "blocks", "written out"])
def test_sinks_on_every_path(monkeypatch, path):
    q, k, v = draw(1, 4, 2, 20, 20, 64)
    sinks = mx.array([-1.0, 0.0, 1.0, 5.0])
    right = mx.fast.scaled_dot_product_attention(q, k, v, scale=0.125, mask="causal", sinks=sinks)
    monkeypatch.setattr(flash_attention, "choose_path", lambda call: path)
    got = attend(q, k, v, Mask(), 0.125, training=False, sinks_H=sinks)
    np.testing.assert_allclose(np.array(got), np.array(right), atol=3e-6)


@pytest.mark.parametrize("block_size", [16, 24, 200])
def test_a_block_size_is_honoured(monkeypatch, block_size):
    monkeypatch.setattr(flash_attention, "choose_path", lambda call: "blocks")
    layouts = []
    monkeypatch.setattr(
        flash_attention, "layout_of", lambda *arguments: layouts.append(layout_of(*arguments)) or layouts[-1]
    )
    q, k, v = draw(1, 2, 2, 100, 100, 8)
    FlashAttentionConfig(block_size=block_size).build()(q, k, v, Mask(), 0.4)
    assert layouts[0].block_size == block_size
    assert len(layouts[0].rows) == -(-100 // block_size)


def test_a_block_size_is_honoured_for_few_queries_too(monkeypatch):
    asked = []
    monkeypatch.setattr(flash_attention, "attend_blockwise", lambda *_, **__: asked.append(1))
    monkeypatch.setattr(flash_attention, "choose_path", lambda call: "written out")
    q, k, v = draw(1, 2, 2, 20, 20, 8)
    FlashAttentionConfig(block_size=8).build()(q, k, v, Mask(), 0.4)
    assert asked


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 200_000), st.integers(0, 1000), st.none() | st.integers(1, 200_000), st.sampled_from(["cpu", "cuda"])
)
def test_a_chosen_block_size_keeps_graph_and_waste_small(num_queries, cached, window, device):
    size = choose_block_size(num_queries, num_queries + cached, window, device)
    smallest, largest = (64, 256) if device == "cpu" else (128, 512)
    assert size & (size - 1) == 0
    assert -(-num_queries // size) <= 256
    assert size >= smallest
    assert size <= largest or num_queries > 256 * size // 2


def test_chosen_block_sizes():
    sizes = [choose_block_size(length, length, None, "cpu") for length in (65, 1024, 2048, 4096, 32768)]
    assert sizes == [64, 64, 128, 256, 256]
    assert choose_block_size(4096, 4096, 256, "cpu") == 64
    assert choose_block_size(32768, 32768, 256, "cpu") == 128


def test_explain_names_the_blocks():
    assert "blocks of a chosen size" in FlashAttentionConfig().explain()
    assert "blocks of 64" in FlashAttentionConfig(block_size=64).explain()


@pytest.mark.parametrize("size", [0, -8])
def test_a_block_holds_something(size):
    with pytest.raises(ValueError, match="greater than 0"):
        FlashAttentionConfig(block_size=size)


def test_flash_refuses_dropout():
    class Model:
        attention_dropout = 0.1

    with pytest.raises(ValueError, match="attention_dropout is 0.1"):
        FlashAttentionConfig().check(Model())


def test_warnings_on_cuda():
    assert flash_warnings(64, 1024, "bfloat16", "cuda") == []
    assert len(flash_warnings(256, 1000, "bfloat16", "cuda")) == 2
    assert "use 896 or 1024" in flash_warnings(64, 1000, "bfloat16", "cuda")[0]
    assert "use 128" in flash_warnings(64, 100, "bfloat16", "cuda")[0]
    assert len(flash_warnings(20, 256, "bfloat16", "cuda")) == 1
    assert "use bfloat16" in flash_warnings(64, 1024, "float32", "cuda")[0]
    assert flash_warnings(64, 4096, "bfloat16", "cuda", array_mask=True) == []
    assert "beyond 4096 positions" in flash_warnings(64, 8192, "bfloat16", "cuda", array_mask=True)[0]


def test_warnings_on_metal():
    assert flash_warnings(64, 1000, "float32", "metal") == []
    assert "use 64" in flash_warnings(48, 1024, "bfloat16", "metal")[0]
    assert "use 256" in flash_warnings(512, 1024, "bfloat16", "metal")[0]
    (warning,) = flash_warnings(128, 1024, "bfloat16", "metal", array_mask=True)
    assert "use plain causal attention" in warning


def test_a_cpu_has_no_kernel_to_miss():
    assert flash_warnings(20, 1000, "float32", "cpu", array_mask=True) == []
