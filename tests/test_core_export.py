"""Exports against the programs that read them: mlx-lm here, transformers with PyTorch in the slow test."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import models.weights
from core import export
from core.export import export_run
from core.generation import generate
from core.loading import load_model
from tests.small_runs import WORDS, logits_of, save_run, small_config, small_model, small_tokenizer
from utils.errors import CheckpointError

SCALED = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-gqa-tied-bytes": ("bytes", {}),
    "llama-mha-untied-bpe": ("bpe", {"num_key_value_heads": 4, "tie_word_embeddings": False}),
    "llama-biases-wide-heads": ("bpe", {"attention_bias": True, "mlp_bias": True, "head_dim": 16}),
    "llama-scaled-rope": ("bytes", {"rope_scaling": SCALED, "rope_theta": 500.0, "rms_norm_eps": 1e-3}),
    "llama-linear-rope": ("bytes", {"rope_scaling": {"rope_type": "linear", "factor": 3.0}}),
    "qwen3-gqa-tied-bpe": ("bpe", {"type": "qwen3"}),
    "qwen3-mha-untied-bytes": (
        "bytes",
        {"type": "qwen3", "num_key_value_heads": 4, "head_dim": 12, "tie_word_embeddings": False},
    ),
}
TEXT = "the cat sat on \u00e9t\u00e9 \U0001f600"


def make_run(tmp_path: Path, variant: str = "llama-gqa-tied-bytes", **options: Any) -> Path:
    tokenizer, changes = VARIANTS[variant]
    return save_run(tmp_path / "run", small_config(changes), small_tokenizer(tokenizer), {4: 1, 5: 2}, **options)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def nothing_half_written(folder: Path) -> bool:
    return not [path for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("variant", VARIANTS)
def test_mlx_lm_computes_the_same_logits_and_generates(tmp_path: Path, variant: str) -> None:
    import mlx_lm

    loaded = export_run(make_run(tmp_path, variant), tmp_path / "out")
    theirs, their_tokenizer = mlx_lm.load(str(tmp_path / "out"))[:2]
    tokens = [loaded.tokenizer.bos_id, *loaded.tokenizer.encode(TEXT)]
    their_logits = np.array(theirs(mx.array([tokens]))[0].astype(mx.float32))
    ours = logits_of(loaded.model, tokens)
    assert np.ptp(ours) > 1, "the model is lively, or equality says nothing"
    np.testing.assert_allclose(their_logits, ours, atol=1e-4)
    assert their_tokenizer.encode(TEXT, add_special_tokens=False) == tokens[1:]
    assert their_tokenizer.decode(tokens[1:]) == TEXT
    assert their_tokenizer.eos_token_id == loaded.tokenizer.eos_id
    assert isinstance(mlx_lm.generate(theirs, their_tokenizer, prompt=tokens, max_tokens=5), str)
    drawn = [step.token for step in mlx_lm.stream_generate(theirs, their_tokenizer, tokens, max_tokens=12)]
    (completion,) = generate(loaded.model, loaded.tokenizer, TEXT, temp=0, max_tokens=12)
    assert list(completion.tokens) == drawn


@pytest.mark.parametrize("variant", ["llama-gqa-tied-bytes", "qwen3-mha-untied-bytes"])
def test_a_checkpoint_loads_in_mlx_lm_as_it_is(tmp_path: Path, variant: str) -> None:
    import mlx_lm

    loaded = load_model(run=make_run(tmp_path, variant))
    theirs = mlx_lm.load(str(loaded.source))[0]
    logits = np.array(theirs(mx.array([[1, 2, 3]]))[0])
    np.testing.assert_allclose(logits, logits_of(loaded.model, [1, 2, 3]), atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_weights_are_stored_in_the_type_asked_for(tmp_path: Path, dtype: str) -> None:
    loaded = export_run(make_run(tmp_path), tmp_path / "out", dtype=dtype)
    hf_config, written = models.weights.read_folder(tmp_path / "out")
    assert hf_config["torch_dtype"] == dtype
    assert {array.dtype for array in written.values()} == {getattr(mx, dtype)}
    back = load_model(model=tmp_path / "out")
    tolerance = {"float32": 0, "float16": 0.02, "bfloat16": 0.2}[dtype]
    np.testing.assert_allclose(logits_of(back.model, [1, 2]), logits_of(loaded.model, [1, 2]), atol=tolerance)


def test_the_folder_holds_what_other_programs_look_for(tmp_path: Path) -> None:
    loaded = export_run(make_run(tmp_path), tmp_path / "new" / "out")
    names = {path.name for path in (tmp_path / "new" / "out").iterdir()}
    assert names == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    for name in ("config.json", "generation_config.json"):
        ids = json.loads((tmp_path / "new" / "out" / name).read_text())
        assert (ids["bos_token_id"], ids["eos_token_id"]) == (loaded.tokenizer.bos_id, loaded.tokenizer.eos_id)
    assert nothing_half_written(tmp_path / "new")


def test_large_weights_are_cut_into_shards_that_mlx_lm_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlx_lm

    write = models.weights.save_weights
    monkeypatch.setattr(export, "save_weights", lambda folder, arrays: write(folder, arrays, max_shard_bytes=20_000))
    loaded = export_run(make_run(tmp_path), tmp_path / "out")
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 1
    theirs = mlx_lm.load(str(tmp_path / "out"))[0]
    logits = np.array(theirs(mx.array([[1, 2, 3]]))[0])
    np.testing.assert_allclose(logits, logits_of(loaded.model, [1, 2, 3]), atol=1e-4)


@pytest.mark.parametrize(("weights", "half"), [("raw", 1.0), ("ema", 0.5), (None, 0.5)])
def test_raw_or_averaged_weights_of_the_checkpoint_asked_for(tmp_path: Path, weights: str | None, half: float) -> None:
    run = make_run(tmp_path, ema=True, best=4)
    export_run(run, tmp_path / "out", weights=weights, checkpoint="best")
    _, written = models.weights.read_folder(tmp_path / "out")
    embedding = np.array(small_model(257, 1).model.embed_tokens.weight)
    np.testing.assert_array_equal(np.array(written["model.embed_tokens.weight"]), embedding * half)


def test_an_existing_folder_is_left_alone_unless_told(tmp_path: Path) -> None:
    run, out = make_run(tmp_path), tmp_path / "out"
    export_run(run, out)
    before = files_of(out)
    with pytest.raises(CheckpointError, match="--overwrite"):
        export_run(run, out, checkpoint=4)
    assert files_of(out) == before
    export_run(run, out, checkpoint=4, overwrite=True)
    assert files_of(out)["model.safetensors"] != before["model.safetensors"]
    assert nothing_half_written(tmp_path)


def test_overwrite_deletes_nothing_but_exports(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("not a folder")
    for destination in (precious, run, tmp_path, tmp_path / "file"):
        before = files_of(tmp_path)
        with pytest.raises(CheckpointError, match="will not delete"):
            export_run(run, destination, overwrite=True)
        assert files_of(tmp_path) == before


def test_a_failed_export_leaves_the_older_one_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, out = make_run(tmp_path), tmp_path / "out"
    export_run(run, out)
    before = files_of(out)

    def fail(folder: Path, arrays: Any) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise RuntimeError("[write] Unable to write 300104 bytes to file.")

    monkeypatch.setattr(export, "save_weights", fail)
    with pytest.raises(CheckpointError, match="cannot write .*Unable to write"):
        export_run(run, out, checkpoint=4, overwrite=True)
    assert files_of(out) == before
    assert nothing_half_written(tmp_path)


def test_weights_that_do_not_read_back_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = models.weights.save_weights

    def flip(folder: Path, arrays: dict[str, mx.array]) -> None:
        write(folder, {**arrays, "model.norm.weight": arrays["model.norm.weight"] + 1})

    monkeypatch.setattr(export, "save_weights", flip)
    with pytest.raises(CheckpointError, match=r"do not read back .*: model\.norm\.weight"):
        export_run(make_run(tmp_path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_values_too_large_for_the_type_are_named(tmp_path: Path) -> None:
    loaded = load_model(run=make_run(tmp_path))
    loaded.model.model.norm.weight = mx.full((32,), 1e6)
    with pytest.raises(CheckpointError, match=r"float16 cannot hold the values of model\.norm\.weight"):
        export.convert(loaded, "float16")
    export.convert(loaded, "bfloat16")


def test_a_run_no_program_can_use_is_refused(tmp_path: Path) -> None:
    config = small_config(objective={"type": "denoise"})
    run = save_run(tmp_path / "run", config, small_tokenizer(), {1: 0})
    with pytest.raises(CheckpointError, match="left to right"):
        export_run(run, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_transformers_computes_the_same_logits(tmp_path: Path, variant: str) -> None:
    assert importlib.util.find_spec("torch"), "this check needs PyTorch: pip install torch==2.13.0"
    import torch  # pyright: ignore[reportMissingImports]
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded = export_run(make_run(tmp_path, variant), tmp_path / "out")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    their_tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert theirs.dtype == torch.float32
    tokens = [loaded.tokenizer.bos_id, *loaded.tokenizer.encode(TEXT + WORDS)][:60]
    with torch.no_grad():
        their_logits = theirs(torch.tensor([tokens])).logits[0].numpy()
    np.testing.assert_allclose(their_logits, logits_of(loaded.model, tokens), atol=1e-4)
    assert their_tokenizer(TEXT)["input_ids"] == loaded.tokenizer.encode(TEXT)
    assert their_tokenizer.decode(their_tokenizer(TEXT)["input_ids"]) == TEXT
    assert (their_tokenizer.eos_token_id, their_tokenizer.bos_token_id) == (
        loaded.tokenizer.eos_id,
        loaded.tokenizer.bos_id,
    )
    assert theirs.generation_config.eos_token_id == loaded.tokenizer.eos_id
