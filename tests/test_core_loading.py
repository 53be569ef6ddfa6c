"""Loading: the right checkpoint, the right weights, and a clear refusal of everything that does not belong together."""

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from core.loading import find_checkpoint, load_model
from models.weights import read_folder
from tests.small_runs import host_weights, logits_of, save_run, small_config, small_model, small_tokenizer
from utils.errors import CheckpointError, DataError, UserError

TOKENS = [1, 5, 9, 200, 3]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return small_tokenizer()


@pytest.fixture(scope="module")
def shared_run(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """Steps 1, 2 (best) and 3, with averaged weights that are half the raw ones; not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    return save_run(folder, small_config(), tokenizer, {1: 11, 2: 12, 3: 13}, best=2, ema=True)


@pytest.fixture
def run(shared_run: Path, tmp_path: Path) -> Path:
    """A copy of it to damage."""
    return Path(shutil.copytree(shared_run, tmp_path / "run"))


def same_weights(model: Any, expected: dict[str, np.ndarray]) -> bool:
    got = host_weights(model)
    return got.keys() == expected.keys() and all(np.array_equal(got[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("checkpoint", "seed"),
    [("last", 13), ("best", 12), ("1", 11), (1, 11), ("step_00000002", 12), ("00000003", 13)],
)
def test_the_checkpoint_asked_for_is_loaded(shared_run: Path, tokenizer: Any, checkpoint: Any, seed: int) -> None:
    loaded = load_model(run=shared_run, checkpoint=checkpoint, weights="raw")
    assert same_weights(loaded.model, host_weights(small_model(tokenizer.vocab_size, seed)))
    assert loaded.tokenizer.hash == tokenizer.hash
    assert loaded.config == small_config()
    assert loaded.eos_ids == {tokenizer.eos_id}
    assert not loaded.model.training


@pytest.mark.parametrize(("asked", "got"), [(None, "ema"), ("ema", "ema"), ("raw", "raw")])
def test_averaged_weights_are_taken_when_present(shared_run: Path, asked: str | None, got: str, tokenizer: Any) -> None:
    loaded = load_model(run=shared_run, weights=asked)
    raw = host_weights(small_model(tokenizer.vocab_size, 13))
    expected = raw if got == "raw" else {name: array / 2 for name, array in raw.items()}
    assert loaded.weights == got
    assert same_weights(loaded.model, expected)


def test_raw_weights_are_taken_when_there_are_no_others(tmp_path: Path, tokenizer: Any) -> None:
    run = save_run(tmp_path / "run", small_config(), tokenizer, {1: 0})
    assert load_model(run=run).weights == "raw"
    with pytest.raises(CheckpointError, match="weight_ema was not set"):
        load_model(run=run, weights="ema")


def test_a_checkpoint_is_also_a_model_folder(shared_run: Path) -> None:
    folder = find_checkpoint(shared_run, "best")
    from_folder, from_run = load_model(model=folder), load_model(run=shared_run, checkpoint="best")
    assert from_folder.config is None
    assert from_folder.source == folder
    np.testing.assert_array_equal(logits_of(from_folder.model, TOKENS), logits_of(from_run.model, TOKENS))


def test_a_damaged_newest_checkpoint_is_passed_over_loudly(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = run / "checkpoints" / "step_00000003" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert load_model(run=run).source.name == "step_00000002"
    assert "warning: damaged checkpoint passed over" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match=r"model\.safetensors has changed"):
        load_model(run=run, checkpoint=3)


@pytest.mark.parametrize(
    ("checkpoint", "named"),
    [
        ("first", "give last, best or a step; there are steps 1, 2, 3"),
        (7, "no checkpoint of step 7; there are steps 1, 2, 3"),
        ("-1", "give last, best or a step"),
    ],
)
def test_an_unknown_checkpoint_lists_what_there_is(shared_run: Path, checkpoint: Any, named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        load_model(run=shared_run, checkpoint=checkpoint)


def test_missing_and_empty_runs_are_refused(tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    empty = save_run(tmp_path / "runs" / "empty", small_config(), tokenizer, {})
    (tmp_path / "other").mkdir()
    for run, named in [
        ("nowhere", "there is no run nowhere$"),
        ("empty", "did you mean runs/empty"),
        (empty, "holds no checkpoint yet"),
        ("other", "is no run: it holds no config.yaml"),
    ]:
        with pytest.raises(CheckpointError, match=named):
            load_model(run=run)
    with pytest.raises(CheckpointError, match="holds no best checkpoint; nothing has been saved"):
        load_model(run=empty, checkpoint="best")


def test_one_source_at_a_time(shared_run: Path) -> None:
    with pytest.raises(CheckpointError, match="either"):
        load_model()
    with pytest.raises(CheckpointError, match="either"):
        load_model(run=shared_run, model=shared_run)
    with pytest.raises(CheckpointError, match="means nothing"):
        load_model(model=shared_run, checkpoint="best")


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "mamba"}, "unknown model_type 'mamba'"),
        ({"vocab_size": 100}, "the tokenizer has 257 tokens and the model 100"),
        ({"intermediate_size": 40}, "mlp.down_proj.weight: the weights have shape"),
        ({"quantization": {"bits": 4}}, "quantized"),
        ({"hidden_size": None}, "hidden_size is missing"),
    ],
)
def test_a_model_folder_that_does_not_fit_together_is_refused(run: Path, changes: dict[str, Any], named: str) -> None:
    folder = find_checkpoint(run)
    edit_json(folder / "config.json", **changes)
    with pytest.raises(CheckpointError, match=named):
        load_model(model=folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_model_folder_with_a_missing_or_broken_file_is_refused(run: Path, name: str) -> None:
    folder = find_checkpoint(run)
    (folder / name).write_bytes(b"{broken")
    with pytest.raises(UserError, match=name.split(".")[0]):
        load_model(model=folder)
    (folder / name).unlink()
    with pytest.raises((CheckpointError, DataError), match=name.split(".")[0]):
        load_model(model=folder)


def test_every_end_token_of_a_model_folder_counts(run: Path) -> None:
    folder = find_checkpoint(run)
    edit_json(folder / "config.json", eos_token_id=[7, 8])
    (folder / "generation_config.json").write_text('{"eos_token_id": 9}')
    assert load_model(model=folder).eos_ids == {7, 8, 9, 256}


def test_half_precision_folders_load_as_float32(run: Path) -> None:
    folder = find_checkpoint(run)
    _, weights = read_folder(folder)
    halves = {name: array.astype(mx.bfloat16) for name, array in weights.items()}
    mx.eval(halves)
    mx.save_safetensors(str(folder / "model.safetensors"), halves)
    loaded = load_model(model=folder, weights="raw")
    assert {array.dtype for array in host_weights(loaded.model).values()} == {np.dtype(np.float32)}
