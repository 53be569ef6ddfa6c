"""Model configs: counts against independent ones, `config.json` there and back, and what is refused."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from pydantic import ValidationError

from models.attention.flash_attention import FlashAttentionConfig
from models.attention.mask import Mask
from models.layers import RopeScalingConfig, rotary_wavelengths
from models.llama import LlamaConfig
from models.qwen3 import Qwen3Config
from utils.errors import ConfigError

SMALL: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
LLAMA3: dict[str, Any] = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
CONFIGS = [
    LlamaConfig(**SMALL),
    LlamaConfig(**SMALL, num_key_value_heads=2, head_dim=6, attention_bias=True, tie_word_embeddings=False),
    LlamaConfig(**SMALL, mlp_bias=True, rope_traditional=True, rope_scaling=RopeScalingConfig(**LLAMA3)),
    LlamaConfig(**SMALL, rope_scaling=RopeScalingConfig(rope_type="linear", factor=2.0), attention_dropout=0.1),
    Qwen3Config(**SMALL, num_key_value_heads=1),
    Qwen3Config(**SMALL, head_dim=8, tie_word_embeddings=False),
]


@pytest.fixture(params=CONFIGS, ids=range(len(CONFIGS)))
def config(request):
    return request.param


class CountedProducts:
    """Stands in for `mx.array.__matmul__` and `mx.addmm`; adds up 2 * rows * inner * columns of each product."""

    def __init__(self, monkeypatch):
        self.flops = 0
        self.matmul, self.addmm = mx.array.__matmul__, mx.addmm
        monkeypatch.setattr(mx.array, "__matmul__", lambda a, b: self.count(a, b) or self.matmul(a, b))
        monkeypatch.setattr(mx, "addmm", lambda c, a, b: self.count(a, b) or self.addmm(c, a, b))

    def count(self, a, b):
        if b.shape[-1] != 1:
            self.flops += 2 * a.size * b.shape[-1]


def test_flops_equal_a_count_of_the_products_performed(config, monkeypatch):
    config = config.model_copy(update={"attention": type(config.attention)()})
    model, (B, L) = config.build(0).eval(), (3, 10)
    monkeypatch.setattr("models.attention.auto_attention.platform.system", lambda: "Linux")
    counted = CountedProducts(monkeypatch)
    model(mx.zeros((B, L), dtype=mx.int32), Mask())
    assert 3 * counted.flops == config.flops_per_token(L) * B * L


def test_a_32b_model_is_counted_without_allocating():
    before = mx.get_active_memory()
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=6656,
        intermediate_size=17920,
        num_hidden_layers=60,
        num_attention_heads=52,
        tie_word_embeddings=False,
    )
    block = 4 * 6656**2 + 3 * 6656 * 17920 + 2 * 6656
    assert config.num_params() == 60 * block + 2 * 32000 * 6656 + 6656 > 32e9
    assert mx.get_active_memory() == before


def test_qwen3_7m_of_the_issue():
    config = Qwen3Config(
        vocab_size=49152,
        hidden_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=512,
        max_position_embeddings=256,
    )
    assert config.num_params() == 6_291_456 + 3 * (128 * 128 * 3 + 3 * 128 * 512 + 2 * 128 + 2 * 32) + 128 == 7_029_824


def test_counting_needs_a_vocabulary():
    with pytest.raises(ConfigError, match=r"model\.vocab_size"):
        LlamaConfig().num_params()


def test_config_json_there_and_back(config):
    hf = config.to_hf()
    assert type(config).from_hf(hf).to_hf() == hf
    assert hf["model_type"] == config.type
    assert hf["head_dim"] == config.head_size
    assert hf["num_key_value_heads"] == config.num_groups


def test_what_transformers_makes_of_our_config_json_reads_back(config):
    import transformers

    hf = config.to_hf()
    theirs = getattr(transformers, config.architecture.replace("ForCausalLM", "Config"))(**config.to_hf())
    again = type(config).from_hf(theirs.to_dict()).to_hf()
    assert again == {**hf, "rope_traditional": again["rope_traditional"]}


def test_the_rotary_keys_of_transformers_5():
    hf = LlamaConfig(**SMALL).to_hf()
    del hf["rope_theta"], hf["rope_scaling"]
    got = LlamaConfig.from_hf(hf | {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}})
    assert (got.rope_theta, got.rope_scaling) == (5e5, None)
    got = LlamaConfig.from_hf(hf | {"rope_parameters": {"rope_theta": 5e5, **LLAMA3}})
    assert (got.rope_theta, got.rope_scaling) == (5e5, RopeScalingConfig(**LLAMA3))
    got = LlamaConfig.from_hf(hf | {"rope_scaling": {"type": "linear", "factor": 2.0}})
    assert got.rope_scaling == RopeScalingConfig(rope_type="linear", factor=2.0)


def test_what_transformers_assumes_for_missing_keys():
    required = {**SMALL, "model_type": "qwen3", "some_unknown_key": 1}
    qwen = Qwen3Config.from_hf(required)
    assert (qwen.head_dim, qwen.tie_word_embeddings, qwen.num_groups) == (128, False, 4)
    llama = LlamaConfig.from_hf(SMALL)
    assert (llama.head_size, llama.rms_norm_eps, llama.tie_word_embeddings) == (4, 1e-6, False)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"hidden_act": "gelu"}, "gelu"),
        ({"model_type": "mistral"}, "mistral"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"quantization": {"bits": 4}}, "quantized"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2}}, "yarn"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding-window"),
        ({"partial_rotary_factor": 0.5}, "0.5"),
        ({"num_key_value_heads": 3}, "does not divide"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2}}, "low_freq_factor"),
    ],
)
def test_config_json_that_is_refused(change, reason):
    with pytest.raises(ValueError, match=reason):
        LlamaConfig.from_hf(LlamaConfig(**SMALL).to_hf() | change)


def test_all_problems_of_a_config_json_at_once():
    hf = LlamaConfig(**SMALL).to_hf() | {"hidden_act": "gelu", "partial_rotary_factor": 0.5}
    with pytest.raises(ValueError, match=r"gelu.*; .*partial_rotary_factor"):
        LlamaConfig.from_hf(hf)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"num_attention_heads": 5}, r"hidden_size 16 is not a multiple of num_attention_heads 5; use 15 or 20"),
        ({"num_key_value_heads": 3}, r"3 does not divide num_attention_heads 4; there are 1, 2, 4"),
        ({"head_dim": 7}, r"the head width 7 must be even"),
        ({"hidden_size": 12}, r"the head width 3 must be even"),
        ({"attention": FlashAttentionConfig(), "attention_dropout": 0.1}, r"attention_dropout is 0.1"),
        ({"hidden_size": 0}, r"hidden_size"),
        ({"residual_dropout": 1.0}, r"residual_dropout"),
    ],
)
def test_sizes_that_do_not_fit(change, reason):
    with pytest.raises(ValidationError, match=reason):
        LlamaConfig(**{**SMALL, **change})


@pytest.mark.parametrize("key", ["attention_bias", "mlp_bias", "rope_traditional"])
def test_a_qwen3_has_no_biases(key):
    with pytest.raises(ValidationError, match=key):
        Qwen3Config(**{**SMALL, key: True})


@pytest.mark.parametrize(
    "values",
    [
        {"rope_type": "linear", "factor": 2.0, "low_freq_factor": 1.0},
        {"rope_type": "llama3", "factor": 2.0},
        LLAMA3 | {"low_freq_factor": 4.0},
        {"rope_type": "linear", "factor": 0.0},
        {"rope_type": "yarn", "factor": 2.0},
    ],
)
def test_rope_scaling_that_is_refused(values):
    with pytest.raises(ValidationError):
        RopeScalingConfig(**values)


def test_llama3_wavelengths_equal_those_of_mlx_lm():
    from mlx_lm.models.rope_utils import Llama3RoPE

    values: dict[str, Any] = {**LLAMA3, "original_max_position_embeddings": 8192}
    theirs = Llama3RoPE(64, 131072, False, 5e5, values)._freqs
    ours = rotary_wavelengths(64, 5e5, RopeScalingConfig(**values))
    np.testing.assert_allclose(ours, np.array(theirs), rtol=1e-5)
    plain = rotary_wavelengths(64, 5e5, None)
    assert sum(a != b for a, b in zip(ours, plain, strict=True)) > 5


def test_building_computes_nothing():
    before = mx.get_active_memory()
    model = LlamaConfig(**{**SMALL, "hidden_size": 1024, "intermediate_size": 4096, "vocab_size": 30000}).build(0)
    assert mx.get_active_memory() - before < 1_000_000
    assert len(tree_flatten(model.parameters())) == 1 + 2 * 9 + 1
