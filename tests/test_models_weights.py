"""Reading, checking and writing weight folders."""

import json
import threading
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from safetensors import safe_open

from models.llama import LlamaConfig
from models.weights import INDEX, SINGLE, load_weights, read_folder, save_weights
from utils.errors import CheckpointError

CONFIG = LlamaConfig(vocab_size=20, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2)


def arrays_of(model):
    return {name: np.array(array) for name, array in tree_flatten(model.parameters())}


def load(path: Path) -> Any:
    return mx.load(str(path))


def write(folder, arrays, hf=None, **options):
    (folder / "config.json").write_text(json.dumps(CONFIG.to_hf() if hf is None else hf))
    return save_weights(folder, arrays, **options)


def assert_same(weights, arrays):
    assert weights.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(np.array(weights[name]), array)


def test_one_file_there_and_back(tmp_path):
    arrays = arrays_of(CONFIG.build(0))
    assert [path.name for path in write(tmp_path, arrays)] == [SINGLE]
    hf, weights = read_folder(tmp_path)
    assert hf == CONFIG.to_hf()
    assert_same(weights, arrays)
    model = CONFIG.build(1)
    load_weights(model, weights)
    assert_same(dict(tree_flatten(model.parameters())), arrays)


def test_shards_there_and_back(tmp_path):
    arrays = arrays_of(CONFIG.build(0))
    files = write(tmp_path, arrays, max_shard_bytes=1000)
    shards = [path for path in files if path.name != INDEX]
    assert len(shards) > 3
    assert shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"
    assert not (tmp_path / SINGLE).exists()
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["weight_map"].keys() == arrays.keys()
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in arrays.values())
    assert_same(read_folder(tmp_path)[1], arrays)
    for path in shards:
        held = load(path)
        assert len(held) == 1 or sum(array.nbytes for array in held.values()) <= 1000


def test_metadata_says_mlx(tmp_path):
    save_weights(tmp_path, {"a": np.ones(3, dtype=np.float32)})
    with safe_open(tmp_path / SINGLE, "numpy") as file:
        assert file.metadata()["format"] == "mlx"


def test_an_array_that_does_not_lie_in_order_is_written_as_it_reads(tmp_path):
    array = np.arange(12, dtype=np.float32).reshape(3, 4).T
    save_weights(tmp_path, {"a": array})
    np.testing.assert_array_equal(np.array(load(tmp_path / SINGLE)["a"]), array)


def test_bfloat16_through_mlx(tmp_path):
    array = mx.arange(6).astype(mx.bfloat16)
    save_weights(tmp_path, {"a": array})
    read = load(tmp_path / SINGLE)["a"]
    assert read.dtype == mx.bfloat16
    assert mx.array_equal(read, array)


def test_another_thread_may_write(tmp_path):
    arrays = arrays_of(CONFIG.build(0))
    thread = threading.Thread(target=write, args=(tmp_path, arrays))
    thread.start()
    thread.join()
    assert_same(read_folder(tmp_path)[1], arrays)


def test_mlx_lm_loads_what_is_written(tmp_path):
    from mlx_lm.utils import load_model

    model = CONFIG.build(0)
    write(tmp_path, arrays_of(model), max_shard_bytes=1000)
    theirs = load_model(tmp_path)[0]
    assert_same(dict(tree_flatten(theirs.parameters())), arrays_of(model))


@pytest.mark.parametrize("tied", [True, False])
def test_a_config_that_does_not_say_whether_it_is_tied(tmp_path, tied):
    config = CONFIG.model_copy(update={"tie_word_embeddings": tied})
    hf = {key: value for key, value in config.to_hf().items() if key != "tie_word_embeddings"}
    write(tmp_path, arrays_of(config.build(0)), hf)
    assert LlamaConfig.from_hf(read_folder(tmp_path)[0]).tie_word_embeddings is tied


def test_every_misfit_is_listed_and_the_model_is_left_alone():
    model = CONFIG.build(0)
    before, weights = arrays_of(model), arrays_of(CONFIG.build(1))
    del weights["model.norm.weight"]
    weights["model.extra"] = np.zeros(2, dtype=np.float32)
    weights["model.layers.1.mlp.up_proj.weight"] = np.zeros((3, 8), dtype=np.float32)
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, weights)
    assert caught.value.problems == [
        "the weights lack model.norm.weight (8,)",
        "the model has no model.extra (2,)",
        "model.layers.1.mlp.up_proj.weight: the weights have shape (3, 8), the model (12, 8)",
    ]
    assert_same(dict(tree_flatten(model.parameters())), before)


def test_what_a_folder_may_hold_beyond_the_model():
    model, weights = CONFIG.build(0), arrays_of(CONFIG.build(1))
    extra = {"lm_head.weight": np.zeros((20, 8)), "model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(2)}
    load_weights(model, weights | extra)
    assert_same(dict(tree_flatten(model.parameters())), weights)


def test_an_untied_model_needs_its_output_layer():
    untied = CONFIG.model_copy(update={"tie_word_embeddings": False})
    with pytest.raises(CheckpointError, match=r"lack lm_head\.weight"):
        load_weights(untied.build(0), arrays_of(CONFIG.build(1)))


def test_half_precision_weights_become_float32_masters():
    model = CONFIG.build(0)
    load_weights(model, {name: mx.array(a).astype(mx.bfloat16) for name, a in arrays_of(CONFIG.build(1)).items()})
    parameters: Any = tree_flatten(model.parameters())
    assert all(array.dtype == mx.float32 for _, array in parameters)


def test_folders_that_are_broken(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json does not exist"):
        read_folder(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="is not JSON"):
        read_folder(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="holds a list"):
        read_folder(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="neither"):
        read_folder(tmp_path)


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_a_file_cut_short(tmp_path, kept):
    write(tmp_path, arrays_of(CONFIG.build(0)))
    path = tmp_path / SINGLE
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match="copy it again"):
        read_folder(tmp_path)


def test_a_file_of_noise(tmp_path):
    write(tmp_path, arrays_of(CONFIG.build(0)))
    (tmp_path / SINGLE).write_bytes((20).to_bytes(8, "little") + b"\xff" * 60)
    with pytest.raises(CheckpointError, match="broken safetensors header"):
        read_folder(tmp_path)


def test_a_shard_that_is_missing(tmp_path):
    files = write(tmp_path, arrays_of(CONFIG.build(0)), max_shard_bytes=1000)
    files[1].unlink()
    with pytest.raises(CheckpointError, match=files[1].name):
        read_folder(tmp_path)
