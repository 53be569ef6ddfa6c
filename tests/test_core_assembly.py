"""Parts of a run: where vocabulary, weights and tokenizer come from; what a checkpoint puts back; averaged weights."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map

from core.assembly import (
    Progress,
    build_parts,
    complete_model_config,
    refuse_too_little_data,
    restore,
    set_recomputation,
    take_snapshot,
)
from core.checkpoint import Restored, list_checkpoints, read_checkpoint
from core.config import Config
from core.evaluation import number
from core.gradients import leaves
from core.run import run_folder
from core.training import average, make_step, to_micro_batches
from data.mixture import Budget
from distributed.group import SingleConfig
from models.weights import save_weights
from tests.tiny_run import metric_rows, quiet_train, tiny_config, write_corpus, write_sources
from utils.errors import BackendError, CheckpointError, ConfigError, DataError


def parts_of(config: Config, say: Any = lambda line: None) -> Any:
    return build_parts(config, SingleConfig().build(), None, say)


def weights_of(parts: Any) -> dict[str, np.ndarray]:
    return {name: np.array(array) for name, array in tree_flatten(parts.model.parameters())}


def last(config: Config) -> Restored:
    return read_checkpoint(list_checkpoints(run_folder(config) / "checkpoints")[-1])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A short run whose tokenizer is not the one that another corpus gives; every step saved."""
    config = tiny_config(
        tmp_path_factory.mktemp("trained"),
        training={"duration": "6 steps", "weight_ema": 0.7},
        checkpoint={"every": "1 steps", "keep_last": 9},
        evaluation={"every": None},
        data={"tokenizer": {"vocab_size": 280}},
    )
    quiet_train(config)
    return config


def test_the_vocabulary_is_the_tokenizers_and_what_the_objective_reserves(tmp_path: Path) -> None:
    assert complete_model_config(tiny_config(tmp_path), 300).vocab_size == 300
    denoise = tiny_config(tmp_path, objective={"type": "denoise"})
    assert complete_model_config(denoise, 300).vocab_size == 301
    assert complete_model_config(tiny_config(tmp_path, model={"vocab_size": 512}), 300).vocab_size == 512
    with pytest.raises(ConfigError, match="model.vocab_size is 300, and tokenizer and objective need 301"):
        complete_model_config(tiny_config(tmp_path, objective={"type": "denoise"}, model={"vocab_size": 300}), 300)


def test_a_run_gives_weights_and_tokenizer(trained: Config, tmp_path: Path) -> None:
    said: list[str] = []
    folder = run_folder(trained)
    parts = parts_of(tiny_config(tmp_path, init_from=str(folder)), said.append)
    for name, array in last(trained).model.items():
        np.testing.assert_array_equal(weights_of(parts)[name], array)
    assert parts.dataset.tokenizer.vocab_size == 280
    assert parts.dataset.tokenizer.hash == last(trained).state["tokenizer_hash"]
    assert any("tokenizer from" in line and "data.tokenizer is not used" in line for line in said)
    assert any(line.startswith("weights from") and "step_00000006" in line for line in said)


def mlx_lm_folder(trained: Config, folder: Path, dtype: Any = mx.float32) -> Path:
    """What others publish: config.json, half-precision weights, tokenizer files, nothing of a run."""
    checkpoint = list_checkpoints(run_folder(trained) / "checkpoints")[-1]
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(checkpoint / name, folder / name)
    save_weights(folder, {name: mx.array(array).astype(dtype) for name, array in last(trained).model.items()})
    return folder


def test_an_mlx_lm_folder_gives_weights_in_float32_and_trains_on(trained: Config, tmp_path: Path) -> None:
    folder = mlx_lm_folder(trained, tmp_path / "model", mx.bfloat16)
    config = tiny_config(tmp_path, init_from=str(folder), training={"duration": "3 steps"})
    parts = parts_of(config)
    assert {array.dtype for array in leaves(parts.model.parameters())} == {mx.float32}
    for name, array in last(trained).model.items():
        np.testing.assert_allclose(weights_of(parts)[name], array, rtol=2**-8)
    assert quiet_train(config).step == 3
    shutil.rmtree(folder)  # a run that has begun does not need it any more
    longer = tiny_config(tmp_path, init_from=str(folder), training={"duration": "4 steps"})
    assert quiet_train(longer, resume=True).step == 4


def test_weights_that_do_not_fit_are_listed(trained: Config, tmp_path: Path) -> None:
    folder = mlx_lm_folder(trained, tmp_path / "model")
    config = tiny_config(tmp_path, init_from=str(folder), model={"intermediate_size": 64, "tie_word_embeddings": False})
    with pytest.raises(CheckpointError) as error:
        quiet_train(config)
    text = str(error.value)
    assert "lm_head.weight" in text
    assert "model.layers.1.mlp.down_proj.weight: the weights have shape (32, 48), the model (32, 64)" in text
    assert str(folder) in error.value.problems[0]
    assert not run_folder(config).exists()


def test_what_shapes_do_not_tell_is_a_warning(
    trained: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same shapes with other heads or another base of the rotation compute something else."""
    folder = str(run_folder(trained))
    parts_of(tiny_config(tmp_path, init_from=folder))
    assert capsys.readouterr().err == ""
    parts_of(tiny_config(tmp_path, init_from=folder, model={"rope_theta": 5e5, "num_attention_heads": 4}))
    parts_of(tiny_config(tmp_path, init_from=folder, model={"num_attention_heads": 2, "num_key_value_heads": 1}))
    warnings = capsys.readouterr().err.splitlines()
    assert "model.rope_theta is 500000.0 here, 10000.0 in" in warnings[0]
    assert "model.num_attention_heads is 2 here, 4 in" in warnings[1]
    assert len(warnings) == 3


def test_quantized_weights_are_refused(trained: Config, tmp_path: Path) -> None:
    folder = mlx_lm_folder(trained, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text()) | {"quantization": {"bits": 4}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="init_from: .* holds quantized weights"):
        parts_of(tiny_config(tmp_path, init_from=str(folder)))


@pytest.mark.parametrize("kind", ["missing", "empty", "no checkpoint"])
def test_init_from_what_holds_no_weights(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "source"
    if kind != "missing":
        folder.mkdir()
    if kind == "no checkpoint":
        (folder / "checkpoints").mkdir()
        (folder / "config.yaml").write_text("name: x\n")
    config = tiny_config(tmp_path, init_from=str(folder))
    with pytest.raises(CheckpointError, match=f"init_from.*{folder}"):
        quiet_train(config)
    assert not (tmp_path / "cache").exists()  # found out before the corpus is read


def test_a_snapshot_restores_everything(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, training={"weight_ema": 0.9}, optimizer={"type": "muon", "learning_rate": 1e-2})
    parts = parts_of(config)
    parts.model.update(tree_map(lambda array: array + 1, parts.model.parameters()))
    parts.optimizer.load_state({name: array + 2 for name, array in parts.optimizer.state_dict().items()})
    parts.guard["skipped"] = mx.array(3, mx.int32)
    progress = Progress(5, 1280, {"row": 40, "epoch": 0}, [1280], best_loss=2.5, evaluated_step=5, skipped_updates=3)
    snapshot = take_snapshot(parts, progress, seed=config.seed, is_best=False)
    state = json.loads(json.dumps(snapshot.state))
    ema = None if snapshot.ema is None else dict(snapshot.ema)
    fresh = parts_of(config)
    assert restore(fresh, Restored(dict(snapshot.model), dict(snapshot.optimizer), ema, state)) == progress
    for name, array in weights_of(parts).items():
        np.testing.assert_array_equal(weights_of(fresh)[name], array)
    for name, array in parts.optimizer.state_dict().items():
        np.testing.assert_array_equal(np.array(fresh.optimizer.state_dict()[name]), np.array(array))
    assert number(fresh.guard["skipped"]) == 3


def test_another_tokenizer_than_the_checkpoints_is_refused(trained: Config, tmp_path: Path) -> None:
    parts = parts_of(tiny_config(tmp_path, data={"tokenizer": {"type": "bytes"}}))
    with pytest.raises(DataError, match="was trained with tokenizer .* the data has .* put the run's tokenizer"):
        restore(parts, last(trained))


def test_averaged_weights_are_numpys_recurrence(trained: Config) -> None:
    checkpoints = [read_checkpoint(path) for path in list_checkpoints(run_folder(trained) / "checkpoints")]
    first = trained.model.model_copy(update={"vocab_size": 280}).build(trained.seed)
    expected = {name: np.array(array, np.float64) for name, array in tree_flatten(first.parameters())}
    assert len(checkpoints) == 6
    for checkpoint in checkpoints:
        updates = checkpoint.state["step"]
        decay = min(0.7, (1 + updates) / (10 + updates))
        assert checkpoint.ema is not None
        assert checkpoint.ema.keys() == expected.keys()
        for name, raw in checkpoint.model.items():
            expected[name] = decay * expected[name] + (1 - decay) * raw
            np.testing.assert_allclose(checkpoint.ema[name], expected[name], rtol=1e-5, atol=1e-7)


def test_an_update_that_is_held_back_does_not_move_the_average() -> None:
    old, new = {"a": mx.array([1.0, 2.0])}, {"a": mx.array([3.0, mx.nan])}
    np.testing.assert_array_equal(np.array(average(old, new, mx.array(0.5), mx.array(False))["a"]), [1.0, 2.0])


def test_a_corpus_that_changed_is_refused_on_resume(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, training={"duration": "4 steps"})
    quiet_train(config)
    write_corpus(tmp_path / "corpus.jsonl", num_documents=90)
    with pytest.raises(DataError, match="the corpus has changed"):
        quiet_train(tiny_config(tmp_path, training={"duration": "8 steps"}), resume=True)


def test_an_output_layer_that_would_be_dropped_is_refused(tmp_path: Path) -> None:
    untied = tiny_config(tmp_path, name="untied", model={"tie_word_embeddings": False})
    quiet_train(untied)
    tied = tiny_config(tmp_path, name="tied", init_from=str(run_folder(untied)))
    with pytest.raises(CheckpointError, match="set model.tie_word_embeddings: false"):
        quiet_train(tied)


def test_patience_without_anything_to_count_is_refused(tmp_path: Path) -> None:
    for changes in ({"data": {"validation_fraction": 0}}, {"evaluation": {"every": None}}):
        with pytest.raises(ConfigError, match=r"training\.early_stopping needs held-out text"):
            quiet_train(tiny_config(tmp_path, training={"early_stopping": 2}, **changes))


def test_wrong_kernels_of_a_device_are_found_before_anything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(precision: str, head_dim: int | None) -> None:
        raise BackendError(f"matmul in {precision} is wrong, heads of {head_dim}")

    monkeypatch.setattr("core.assembly.check_device", refuse)
    config = tiny_config(tmp_path)
    with pytest.raises(BackendError, match="matmul in float32 is wrong, heads of 8"):
        build_parts(config, SingleConfig().build(), None, lambda line: None)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(("asked", "num_recomputed"), [("none", 0), ("every 2", 2), ("all", 3)])
def test_the_step_recomputes_as_many_blocks_as_the_config_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str, num_recomputed: int
) -> None:
    calls = []

    def counted(layer: Any, x: mx.array, *context: Any) -> mx.array:
        calls.append(layer)
        return layer(x, *context)

    monkeypatch.setattr("models.decoder.recomputed", counted)
    config = tiny_config(tmp_path, model={"num_hidden_layers": 3}, training={"activation_checkpointing": asked})
    parts = parts_of(config)
    loader = parts.dataset.batches(8, rank=0, world_size=1, micro_batch_size=8)
    batch, _ = next(loader)
    loader.close()
    mx.eval(make_step(parts, SingleConfig().build(), config)(to_micro_batches(batch, 8)))
    assert len(calls) == num_recomputed


def test_a_model_of_ones_own_without_recomputation_is_refused_only_where_it_is_asked_for(tmp_path: Path) -> None:
    set_recomputation(nn.Linear(2, 2), tiny_config(tmp_path))
    asked = tiny_config(tmp_path, training={"activation_checkpointing": "every 2"})
    with pytest.raises(ConfigError, match=r"activation_checkpointing is 'every 2'.*no `recompute\(every\)`.*none"):
        set_recomputation(nn.Linear(2, 2), asked)


def test_what_cannot_fit_is_refused_before_the_data_is_prepared(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, training={"memory_limit": 200_000})
    with pytest.raises(ConfigError, match="a step needs about"):
        parts_of(config)
    assert not (tmp_path / "cache").exists()


def test_a_run_gives_mlx_the_limit_it_was_planned_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[int] = []
    monkeypatch.setattr("core.training.set_limits", lambda limit, *_: limits.append(limit))
    quiet_train(tiny_config(tmp_path, training={"memory_limit": "300M", "duration": "3 steps"}))
    assert limits == [300_000_000]


def mixed_config(folder: Path, duration: str, **mixture: Any) -> Config:
    """Sources a and b by tokens in small windows."""
    data = {"sources": write_sources(folder, a=1, b=1), "mixture": {"by": "tokens", "window_tokens": 300, **mixture}}
    return tiny_config(folder, data=data, training={"duration": duration}, evaluation={"every": None})


def test_stages_in_units_of_the_run_give_the_shares_asked_for(tmp_path: Path) -> None:
    """0.04 tokens per parameter of a, half the run of b, the rest three of a to one of b."""
    stages = [
        {"tokens": "0.04 tokens_per_param", "weights": {"a": 1}},
        {"tokens": "50 %", "weights": {"b": 1}},
        {"weights": {"a": 3, "b": 1}},
    ]
    config = mixed_config(tmp_path, "20 steps", stages=stages)
    parts = parts_of(config)
    first, second = (stage.end for stage in parts.dataset.mixture().stages[:2])
    num_params = sum(array.size for array in leaves(parts.model.parameters()))
    assert (first, second - first) == (math.ceil(0.04 * num_params), 20 * 8 * 32 // 2)
    quiet_train(config)
    shares = [row["data/share/a"] for row in metric_rows(run_folder(config)) if "data/share/a" in row]
    per_step = 8 * 32
    from_a, from_b = first // per_step, first // per_step + 2
    assert shares[: from_a - 1] == [1] * (from_a - 1)
    assert shares[from_b : second // per_step - 2] == [0] * (second // per_step - 2 - from_b)
    assert np.mean(shares[second // per_step + 2 :]) == pytest.approx(3 / 4, abs=0.08)


def test_sources_that_stop_long_before_the_run_ends_are_refused(tmp_path: Path) -> None:
    config = mixed_config(tmp_path, "1000 steps", exhausted="stop")
    with pytest.raises(ConfigError, match=r"the sources hold .* tokens and stop .*the run wants 256k: shorten"):
        quiet_train(config)
    assert not run_folder(config).exists()
    repeating = mixed_config(tmp_path, "1000 steps", exhausted="repeat")
    assert parts_of(repeating).plan.total_steps == 1000


def test_a_run_a_tenth_longer_than_its_sources_passes(tmp_path: Path) -> None:
    mixture = parts_of(mixed_config(tmp_path, "3 steps", exhausted="stop")).dataset.mixture()
    held = mixture.num_tokens()
    assert held is not None
    refuse_too_little_data(mixture, Budget(1, int(held / 0.9)))
    refuse_too_little_data(mixture, Budget(1, None))
    with pytest.raises(ConfigError, match=r"data\.mixture\.exhausted"):
        refuse_too_little_data(mixture, Budget(1, int(held / 0.9) + 2))
