"""Models that mlx-lm does not have: named so that it refuses them, and read back here as they were."""

import importlib
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from core.config import build_section
from core.export import export_run
from core.loading import load_model
from models.attention.mask import Mask
from models.huggingface import base_type
from models.llama import LlamaConfig
from models.qwen3 import Qwen3Config
from tests.small_runs import logits_of, save_run, small_config, small_tokenizer
from utils.errors import CheckpointError

HERE = __name__
SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
WINDOW = {"type": "sliding_window", "window": 8}
CAP = {"type": "soft_cap", "cap": 20.0}


def far(b, h, q, k):
    return (q - k) % 2 == 0


OTHERS: list[dict[str, Any]] = [
    {"attention": {"type": "flex", "mods": [WINDOW], "block_size": 16}},
    {"attention": {"type": "flex", "mods": [CAP]}},
    {"attention": {"type": "flex", "mods": [{"type": "function", "mask": f"{HERE}:far"}]}},
    {"attention": {"type": "flex", "mods": [{"type": "or", "mods": [WINDOW, {"type": "prefix_lm", "length": 64}]}]}},
    {
        "attention": {
            "type": "flex",
            "mods": [{"type": "or", "mods": [{"type": "causal"}, {"type": "prefix_lm", "length": 9}]}],
        }
    },
    {"attention": {"type": "flex", "mods": [{"type": "and", "mods": [WINDOW, {"type": "document"}]}]}},
    {"final_logit_softcapping": 30.0},
    {"final_logit_softcapping": 30.0, "attention": {"type": "simple"}},
]
SAME: list[list[dict[str, Any]]] = [
    [],
    [{"type": "causal"}],
    [{"type": "document"}, {"type": "sliding_window", "window": 64}],
    [{"type": "or", "mods": [WINDOW, {"type": "causal"}]}],
    [{"type": "or", "mods": [{"type": "document"}, {"type": "global_local", "window": 3, "num_global": 1}]}],
]


def read(kind, **values) -> Any:
    return build_section(kind, {**SIZES, **values})


@pytest.mark.parametrize("values", OTHERS, ids=range(len(OTHERS)))
@pytest.mark.parametrize("kind", [LlamaConfig, Qwen3Config])
def test_another_model_is_refused_by_mlx_lm_and_read_back_here(kind, values):
    from mlx_lm.utils import _get_classes  # pyright: ignore[reportPrivateUsage]

    config = read(kind, **values)
    hf = json.loads(json.dumps(config.to_hf()))
    assert hf["model_type"] == f"pippin_{config.type}"
    assert hf["architectures"] == [f"Pippin{config.architecture}"]
    with pytest.raises(ValueError, match="not supported"):
        _get_classes(hf)
    again = kind.from_hf(hf)
    assert again.attention == config.attention
    assert again.to_hf() == config.to_hf()
    assert again.final_logit_softcapping == config.final_logit_softcapping
    assert base_type(hf["model_type"]) == config.type
    assert len(config.beyond_mlx_lm()) == 1


@pytest.mark.parametrize("mods", SAME, ids=range(len(SAME)))
def test_what_changes_nothing_in_a_single_text_is_an_ordinary_llama(mods):
    """mlx-lm's own logits are the oracle."""
    config = read(LlamaConfig, attention={"type": "flex", "mods": mods})
    hf = config.to_hf()
    assert (hf["model_type"], config.beyond_mlx_lm()) == ("llama", [])
    assert not any("pippin" in key or "soft" in key for key in hf)
    model = config.build(0).eval()
    module = importlib.import_module("mlx_lm.models.llama")
    twin = module.Model(module.ModelArgs.from_dict(hf))
    twin.load_weights(list(tree_flatten(model.parameters())))
    tokens = mx.array(np.random.default_rng(0).integers(0, 40, size=(2, 64)).astype(np.int32))
    np.testing.assert_allclose(np.array(model(tokens, Mask())), np.array(twin(tokens)), atol=1e-4)


def test_mlx_lm_has_no_llama_all_of_whose_layers_have_a_window():
    """Why a window is not written in mlx-lm's own form. When this fails, it can be."""
    module = importlib.import_module("mlx_lm.models.llama")
    hf = {**LlamaConfig(**SIZES).to_hf(), "sliding_window": 8, "layer_types": ["sliding_attention"] * 2}
    with pytest.raises(ValueError, match="full_attention"):
        module.Model(module.ModelArgs.from_dict(hf))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pippin_attention": {"type": "flex", "mods": [{"type": "sliding_window", "window": 100}]}}, "window 100"),
        ({"pippin_attention": {"type": "flex", "mods": [{"type": "gone:Mod"}]}}, "there is no module 'gone'"),
        ({"pippin_attention": {"type": "flexx"}}, "did you mean 'flex'"),
        ({"final_logit_softcapping": -1.0}, "final_logit_softcapping"),
        ({"model_type": "pippin_qwen3"}, "model_type is 'pippin_qwen3', not 'llama'"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(change, words):
    hf = read(LlamaConfig, **OTHERS[0]).to_hf()
    with pytest.raises(ValueError, match=words.replace("[", r"\[")):
        LlamaConfig.from_hf(hf | change)


@pytest.mark.parametrize("values", [OTHERS[0], OTHERS[5]], ids=["window", "soft cap"])
def test_a_checkpoint_is_a_model_folder_of_ours_and_no_export(tmp_path: Path, values):
    import mlx_lm

    run = save_run(tmp_path / "run", small_config(values), small_tokenizer(), {3: 1})
    as_run = load_model(run=run)
    as_model = load_model(model=as_run.source)
    tokens = list(range(1, 25))
    np.testing.assert_array_equal(logits_of(as_model.model, tokens), logits_of(as_run.model, tokens))
    assert as_model.model_config.beyond_mlx_lm() == as_run.model_config.beyond_mlx_lm() != []
    plain = small_config().model.model_copy(update={"vocab_size": as_run.model_config.vocab_size}).build(0).eval()
    plain.update(as_run.model.parameters())
    assert not np.allclose(logits_of(plain, tokens), logits_of(as_run.model, tokens), atol=1e-2)
    with pytest.raises(ValueError, match="pippin_llama not supported"):
        mlx_lm.load(str(as_run.source))
    with pytest.raises(CheckpointError) as raised:
        export_run(run, tmp_path / "out")
    (line,) = raised.value.problems
    assert as_run.model_config.beyond_mlx_lm()[0] in line
    assert "--run" in line
    assert not (tmp_path / "out").exists()
