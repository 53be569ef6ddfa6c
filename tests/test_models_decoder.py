"""The decoder against mlx-lm's llama and qwen3 with the same weights, and the properties a language model must have."""

import importlib
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map_with_path

from models import MODELS
from models.attention.flash_attention import FlashAttentionConfig
from models.attention.mask import Mask
from models.attention.simple_attention import SimpleAttentionConfig
from models.decoder_config import parameter_shapes
from models.layers import RopeScalingConfig
from models.llama import LlamaConfig
from models.qwen3 import Qwen3Config
from tests.small_runs import small_config, small_model
from utils.errors import ConfigError
from utils.registry import look_up

V = 61
SIZES: dict[str, Any] = {
    "vocab_size": V,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
LINEAR = RopeScalingConfig(rope_type="linear", factor=4.0)
LLAMA3 = RopeScalingConfig(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)
VARIANTS = {
    "mha tied": LlamaConfig(**SIZES),
    "gqa untied": LlamaConfig(**SIZES, num_key_value_heads=2, tie_word_embeddings=False),
    "mqa biases": LlamaConfig(**SIZES, num_key_value_heads=1, attention_bias=True, mlp_bias=True),
    "head_dim": LlamaConfig(**SIZES, head_dim=12, num_key_value_heads=2),
    "traditional": LlamaConfig(**SIZES, rope_traditional=True, rope_theta=500.0),
    "linear": LlamaConfig(**SIZES, rope_scaling=LINEAR),
    "llama3": LlamaConfig(**SIZES, rope_scaling=LLAMA3),
    "qwen3 tied": Qwen3Config(**SIZES, num_key_value_heads=2),
    "qwen3 untied": Qwen3Config(**SIZES, head_dim=16, tie_word_embeddings=False, rope_scaling=LINEAR),
}


@pytest.fixture(params=VARIANTS.values(), ids=list(VARIANTS))
def config(request):
    return request.param


def llama(changes: dict[str, Any]) -> LlamaConfig:
    return LlamaConfig(**{**SIZES, **changes})


def random_model(config, seed=0) -> Any:
    """A model none of whose parameters is at its initial value."""
    model = config.build(seed)
    random = np.random.default_rng(seed)

    def value(name, array):
        centre = 1.0 if "norm" in name else 0.0
        return mx.array((centre + 0.3 * random.normal(size=array.shape)).astype(np.float32))

    model.update(tree_map_with_path(value, model.parameters()))
    return model.eval()


def tokens_of(B, L, seed=0):
    return mx.array(np.random.default_rng(seed).integers(0, V, size=(B, L)).astype(np.int32))


def mlx_lm_twin(config, model) -> Any:
    module = importlib.import_module(f"mlx_lm.models.{config.type}")
    twin = module.Model(module.ModelArgs.from_dict(config.to_hf()))
    twin.load_weights(list(tree_flatten(model.parameters())))
    return twin


def test_logits_equal_those_of_mlx_lm(config):
    model, tokens = random_model(config), tokens_of(2, 40)
    expected = mlx_lm_twin(config, model)(tokens)
    assert np.abs(np.array(expected)).max() > 0.1
    np.testing.assert_allclose(np.array(model(tokens, Mask())), np.array(expected), atol=1e-4)


def with_parameters(model: Any, parameters: Any) -> Any:
    model.update(parameters)
    return model


def test_gradients_equal_those_of_mlx_lm(config):
    model, tokens = random_model(config), tokens_of(2, 12)
    twin = mlx_lm_twin(config, model)
    # A bounded function of the logits, so that the tolerance means the same for every parameter.
    ours = mx.grad(lambda p: mx.tanh(with_parameters(model, p)(tokens, Mask())).mean())(model.parameters())
    theirs = dict(tree_flatten(mx.grad(lambda p: mx.tanh(with_parameters(twin, p)(tokens)).mean())(twin.parameters())))
    for name, gradient in tree_flatten(ours):
        np.testing.assert_allclose(np.array(gradient), np.array(theirs[name]), atol=1e-5, err_msg=name)


def test_cached_decoding_equals_the_full_forward(config):
    model, tokens = random_model(config), tokens_of(2, 20)
    expected = model(tokens, Mask())
    cache, parts, start = model.make_cache(), [], 0
    for size in (7, 1, 4, 1, 1, 6):
        parts.append(model(tokens[:, start : start + size], Mask(), cache))
        start += size
    np.testing.assert_allclose(np.array(mx.concatenate(parts, axis=1)), np.array(expected), atol=1e-4)


@pytest.mark.parametrize("attention", [SimpleAttentionConfig(), FlashAttentionConfig()])
def test_windowed_cached_decoding(attention):
    model = random_model(LlamaConfig(**SIZES, num_key_value_heads=2, attention=attention))
    tokens, mask = tokens_of(1, 16), Mask("causal", window=5)
    expected, cache = model(tokens, mask), model.make_cache()
    parts = [model(tokens[:, :9], mask, cache)]
    parts += [model(tokens[:, i : i + 1], mask, cache) for i in range(9, 16)]
    np.testing.assert_allclose(np.array(mx.concatenate(parts, axis=1)), np.array(expected), atol=1e-4)
    assert not np.allclose(np.array(expected), np.array(model(tokens, Mask())), atol=1e-3)


@pytest.mark.parametrize("attention", [SimpleAttentionConfig(), FlashAttentionConfig()])
@pytest.mark.parametrize("config_class", [LlamaConfig, Qwen3Config])
def test_left_padded_prompts_decode_as_if_alone(config_class, attention):
    model = random_model(config_class(**SIZES, num_key_value_heads=2, attention=attention))
    lengths, num_new, longest = (3, 8, 5), 4, 8
    texts = [np.array(tokens_of(1, length + num_new, seed=length))[0] for length in lengths]
    alone = [np.array(model(mx.array(text)[None], Mask()))[0, -num_new - 1 :] for text in texts]
    padded = np.stack([np.pad(text, (longest - length, 0)) for text, length in zip(texts, lengths, strict=True)])
    segments = mx.array((np.arange(padded.shape[1]) >= longest - np.array(lengths)[:, None]).astype(np.int32))
    tokens, cache, got = mx.array(padded.astype(np.int32)), model.make_cache(), []
    for start, end in [(0, longest)] + [(longest + i, longest + i + 1) for i in range(num_new)]:
        mask = Mask("causal", segments=segments[:, start:end], key_segments=segments[:, :end])
        got.append(np.array(model(tokens[:, start:end], mask, cache))[:, -1])
    np.testing.assert_allclose(np.stack(got, axis=1), np.stack(alone), atol=1e-4)


def test_a_later_token_changes_nothing_before_it(config):
    model, tokens = random_model(config), tokens_of(1, 12)
    changed = mx.array(np.where(np.arange(12) == 8, (np.array(tokens) + 1) % V, np.array(tokens)))
    before, after = np.array(model(tokens, Mask())), np.array(model(changed, Mask()))
    np.testing.assert_array_equal(before[:, :8], after[:, :8])
    assert all(np.abs(before[0, i] - after[0, i]).max() > 1e-3 for i in range(8, 12))
    both_ways = np.array(model(changed, Mask("bidirectional"))) - np.array(model(tokens, Mask("bidirectional")))
    assert np.abs(both_ways[:, :8]).max() > 1e-3


def test_positions_matter(config):
    model, tokens = random_model(config), np.array(tokens_of(1, 10))
    swapped = tokens.copy()
    swapped[0, [1, 6]] = swapped[0, [6, 1]]
    assert tokens[0, 1] != tokens[0, 6]
    last = [np.array(model(mx.array(x), Mask()))[0, -1] for x in (tokens, swapped)]
    assert np.abs(last[0] - last[1]).max() > 1e-3


def test_segments_do_not_see_each_other(config):
    model = random_model(config)
    first, second = tokens_of(1, 5, seed=1), tokens_of(1, 7, seed=2)
    packed = mx.concatenate([first, second, mx.zeros((1, 3), dtype=mx.int32)], axis=1)
    segments = mx.array([[1] * 5 + [2] * 7 + [0] * 3])
    for kind in ("causal", "bidirectional"):
        logits = np.array(model(packed, Mask(kind, segments=segments)))
        np.testing.assert_allclose(logits[:, :5], np.array(model(first, Mask(kind))), atol=1e-4)
        np.testing.assert_allclose(logits[:, 5:12], np.array(model(second, Mask(kind))), atol=1e-4)
        assert np.isfinite(logits).all()


def test_backbone_and_head_are_the_model(config):
    model, tokens = random_model(config), tokens_of(2, 5)
    hidden = model.backbone(tokens, Mask())
    assert hidden.shape == (2, 5, 32)
    assert mx.array_equal(model.head(hidden), model(tokens, Mask()))


def test_parameters_are_those_counted(config):
    parameters = dict(tree_flatten(config.build(0).parameters()))
    assert {name: array.shape for name, array in parameters.items()} == parameter_shapes(config)
    assert sum(array.size for array in parameters.values()) == config.num_params()
    assert all(array.dtype == mx.float32 for array in parameters.values())


def test_bfloat16_weights_compute_in_bfloat16(config):
    model = random_model(config)
    model.set_dtype(mx.bfloat16)
    for layer in [model.model.norm, model.model.layers[0].input_layernorm]:
        layer.set_dtype(mx.float32)
    assert model(tokens_of(1, 4), Mask()).dtype == mx.bfloat16


@pytest.mark.parametrize("field", ["residual_dropout", "attention_dropout", "embedding_dropout"])
def test_dropout_acts_in_train_mode_only_and_follows_the_seed(field):
    tokens = tokens_of(2, 8)
    dropped, plain = random_model(llama({field: 0.2})), random_model(LlamaConfig(**SIZES))
    assert mx.array_equal(dropped(tokens, Mask()), plain(tokens, Mask()))
    dropped.train()
    mx.random.seed(5)
    first, second = dropped(tokens, Mask()), dropped(tokens, Mask())
    mx.random.seed(5)
    assert mx.array_equal(first, dropped(tokens, Mask()))
    assert not mx.allclose(first, second, atol=1e-3)
    assert not mx.allclose(first, plain(tokens, Mask()), atol=1e-3)


@pytest.mark.parametrize("silenced", ["self_attn.o_proj", "mlp.down_proj"])
def test_residual_dropout_acts_on_each_branch(silenced):
    model, tokens = random_model(llama({"residual_dropout": 0.5, "num_hidden_layers": 1})), tokens_of(2, 8)
    name = f"model.layers.0.{silenced}.weight"
    model.load_weights([(name, mx.zeros_like(dict(tree_flatten(model.parameters()))[name]))], strict=False)
    plain = model(tokens, Mask())
    assert not mx.allclose(model.train()(tokens, Mask()), plain, atol=1e-3)


def test_the_same_seed_builds_the_same_and_moves_no_other_random_stream(config):
    mx.random.seed(1)
    expected = mx.random.uniform(shape=(3,))
    mx.random.seed(1)
    first = dict(tree_flatten(config.build(7).parameters()))
    assert mx.array_equal(expected, mx.random.uniform(shape=(3,)))
    again, other = (dict(tree_flatten(config.build(seed).parameters())) for seed in (7, 8))
    assert all(mx.array_equal(first[name], again[name]) for name in first)
    assert not mx.array_equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_initial_weights():
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 8, "tie_word_embeddings": False}
    config = llama({**sizes, "attention_bias": True, "mlp_bias": True})
    weights = {name: np.array(array) for name, array in tree_flatten(config.build(0).parameters())}
    assert not weights["lm_head.weight"].any()
    assert all((array == 1).all() for name, array in weights.items() if "norm" in name)
    assert not any(array.any() for name, array in weights.items() if name.endswith("bias"))
    for name, array in weights.items():
        if array.ndim == 2 and name != "lm_head.weight":
            residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            assert abs(array.std() / (0.02 / 4 if residual else 0.02) - 1) < 0.05, name
            assert abs(array.mean()) < 0.001
    assert np.unique([array.flat[0] for array in weights.values() if array.ndim == 2]).size == 7 * 8 + 2


def test_a_further_layer_leaves_the_others_as_they_were():
    shallow, deep = (llama({"num_hidden_layers": n}).build(0) for n in (1, 2))
    name = "model.layers.0.self_attn.q_proj.weight"
    assert mx.array_equal(*(dict(tree_flatten(model.parameters()))[name] for model in (shallow, deep)))


def test_an_untied_model_starts_at_the_uniform_distribution():
    model = LlamaConfig(**SIZES, tie_word_embeddings=False).build(0)
    assert not np.array(model(tokens_of(1, 4), Mask())).any()


@pytest.mark.parametrize("name", MODELS)
def test_every_row_of_the_table_builds_and_compiles(name):
    config = look_up(MODELS, name, "model")(**SIZES)
    model, tokens = config.build(0), tokens_of(2, 8)

    def loss(parameters, tokens):
        model.update(parameters)
        return mx.logsumexp(model(tokens, Mask()), axis=-1).sum()

    parameters = model.parameters()
    plain, compiled = mx.grad(loss)(parameters, tokens), mx.compile(mx.grad(loss))(parameters, tokens)
    for (path, expected), (_, got) in zip(tree_flatten(plain), tree_flatten(compiled), strict=True):
        np.testing.assert_allclose(np.array(got), np.array(expected), atol=1e-5, err_msg=path)


def with_sinks(**changes):
    """A tiny model with lively sinks, in blocks of 8."""
    model = small_model(50, attention_sinks=True, attention={"type": "flash", "block_size": 8}, **changes)
    assert model.model.layers[0].self_attn.sinks.shape == (4,)
    return model


def test_sinks_take_weight_and_give_nothing():
    model = with_sinks(num_hidden_layers=1)
    layer = model.model.layers[0].self_attn
    q, k, v = (mx.random.normal((1, heads, 20, 8), key=mx.random.key(heads)) for heads in (4, 2, 2))
    out = np.array(layer.attend(q, k, v, Mask("causal"), 0.3, sinks_H=layer.sinks))
    q, k, v = (np.array(x, dtype=np.float64) for x in (q, k, v))
    scores = np.einsum("bhlk,bhsk->bhls", q, np.repeat(k, 2, axis=1)) * 0.3
    weights = np.where(np.tri(20, dtype=bool), np.exp(scores), 0)
    total = weights.sum(-1, keepdims=True) + np.exp(np.array(layer.sinks))[None, :, None, None]
    np.testing.assert_allclose(out, weights / total @ np.repeat(v, 2, axis=1), atol=1e-5)


def test_sinks_are_trained_counted_and_used_when_decoding():
    model = with_sinks()
    config: Any = small_config({"attention_sinks": True, "attention": {"type": "flash"}}).model
    config = config.model_copy(update={"vocab_size": 50})
    parameters = dict(tree_flatten(model.parameters()))
    assert sum(array.size for array in parameters.values()) == config.num_params()
    assert type(config).from_hf(config.to_hf()).attention_sinks
    assert config.to_hf()["model_type"] == "pippin_llama"
    tokens = mx.array(np.random.default_rng(0).integers(0, 50, (2, 12)))
    whole, cache = np.array(model(tokens, Mask())), model.make_cache()
    pieces = [np.array(model(tokens[:, part], Mask(), cache)) for part in (slice(0, 7), slice(7, 8), slice(8, 12))]
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), whole, atol=2e-4)
    gradients = dict(tree_flatten(nn.value_and_grad(model, lambda: model(tokens, Mask()).square().mean())()[1]))
    assert np.abs(np.array(gradients["model.layers.1.self_attn.sinks"])).min() > 0


@pytest.mark.parametrize("kind", ["auto", "simple", "flex"])
def test_only_flash_takes_sinks(kind):
    with pytest.raises(ConfigError, match=f"attention type '{kind}' has no attention_sinks; use type 'flash'"):
        small_config({"attention_sinks": True, "attention": {"type": kind}})
