"""The loop: equal to an independent implementation, to itself after a stop, and to itself cut up otherwise."""

import gc
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers
import numpy as np
import pytest
import yaml
from mlx.utils import tree_flatten
from mlx_lm.models import llama

import core.training
from core.assembly import build_parts
from core.checkpoint import list_checkpoints, read_checkpoint
from core.config import Config, load
from core.run import run_folder
from core.session import NonFiniteError, Session
from core.training import MAX_STEPS_IN_FLIGHT, make_step, noise_seed, to_micro_batches
from data.batch import Batch
from distributed.group import SingleConfig
from tests.tiny_run import (
    TINY_QWEN3,
    assert_same_run,
    interrupt_after,
    last_checkpoint,
    losses,
    merge,
    metric_rows,
    needs_compiler,
    quiet_train,
    tiny_config,
    tiny_values,
)
from tests.toy_objectives import Counting

ROOT = Path(__file__).parent.parent


def final(config: Config):
    return last_checkpoint(run_folder(config))


VARIANTS = {
    "plain": {},
    "accumulation": {"training": {"micro_batch_size": 2}},
    "epochs": {"data": {"sequence_length": 64}, "training": {"batch_size": 24, "duration": "14 steps"}},
    "muon, averaged weights, dropout": {
        "optimizer": {"type": "muon", "learning_rate": 1e-2},
        "training": {"weight_ema": 0.9},
        "model": {"residual_dropout": 0.1, "attention_dropout": 0.1, "embedding_dropout": 0.1},
    },
    "denoise": {"objective": {"type": "denoise"}, "model": {"tie_word_embeddings": False}},
    "lion, qwen3": {
        "optimizer": {"type": "lion", "learning_rate": 1e-3},
        "model": TINY_QWEN3,
    },
    "compiled": {"training": {"compile": True, "micro_batch_size": 4}},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_resumed_run_is_the_run_that_never_stopped(tmp_path: Path, name: str) -> None:
    short = {"training": {"duration": "12 steps"}, "evaluation": {"every": "4 steps"}}
    changes = merge(short, VARIANTS[name])
    whole = tiny_config(tmp_path, name="whole", **changes)
    quiet_train(whole)
    resumed = tiny_config(tmp_path, name="resumed", **changes)
    # The schedule's length belongs to the run, so it is stopped on the way and not made shorter.
    stopped = interrupt_after(resumed, step=6)
    assert stopped.step == 6
    result = quiet_train(resumed, resume=True)
    assert result.step == resumed.training.duration.value
    if name == "epochs":
        assert final(whole).state["data"]["epoch"] >= 2
    assert_same_run(run_folder(whole), run_folder(resumed))


def test_micro_batches_do_not_change_the_losses(tmp_path: Path) -> None:
    runs = {}
    for size in (8, 4, 2, 1):
        training = {"micro_batch_size": size, "duration": "10 steps"}
        config = tiny_config(tmp_path, name=f"micro-{size}", training=training)
        quiet_train(config)
        runs[size] = losses(run_folder(config))
        np.testing.assert_allclose(runs[size][:5], runs[8][:5], rtol=1e-6)
        np.testing.assert_allclose(runs[size], runs[8], rtol=1e-4)


def test_losses_equal_an_implementation_on_mlx_lm(tmp_path: Path) -> None:
    """mlx-lm's llama, mlx's AdamW and clipping, a loop of ten lines: independent of everything here but the data."""
    config = tiny_config(tmp_path, optimizer={"weight_decay": 0.1}, training={"gradient_clip": 0.5})
    quiet_train(config)
    np.testing.assert_allclose(losses(run_folder(config)), mlx_lm_losses(config, num_steps=20), rtol=1e-4)


def mlx_lm_losses(config: Config, num_steps: int) -> list[float]:
    dataset = config.data.build(config.seed, report=lambda line: None)
    vocabulary = {"vocab_size": dataset.tokenizer.vocab_size}
    ours = config.model.model_copy(update=vocabulary)
    model = llama.Model(llama.ModelArgs.from_dict(ours.to_hf()))
    weights: Any = tree_flatten(ours.build(config.seed).parameters())
    model.load_weights(weights)
    decaying, still = (mlx.optimizers.AdamW(0, [0.9, 0.95], 1e-8, decay, bias_correction=True) for decay in (0.1, 0.0))
    optimizer = mlx.optimizers.MultiOptimizer([still, decaying], [lambda name, _: "norm" in name or "embed" in name])

    def mean_loss(model: nn.Module, batch: Batch) -> mx.array:
        nats = nn.losses.cross_entropy(model(batch.tokens), batch.targets) * batch.weights
        return nats.sum() / batch.weights.sum()

    found, batches = [], dataset.batches(8)
    for step in range(num_steps):
        batch = Batch(*(mx.array(array) for array in next(batches)[0]))
        loss, gradients = nn.value_and_grad(model, mean_loss)(model, batch)
        gradients, _ = mlx.optimizers.clip_grad_norm(gradients, 0.5)
        rate = 1e-2 * min(
            (step + 1) / 2, 0.1 + 0.45 * (1 + np.cos(np.pi * (step - 1) / (num_steps - 2))) if step else 1
        )
        decaying.learning_rate = still.learning_rate = rate
        optimizer.update(model, gradients)
        found.append(loss.item())
    return found


@needs_compiler
def test_the_step_is_traced_once_in_a_run(tmp_path: Path) -> None:
    """Whatever goes on between the steps: evaluations with averaged weights, samples, saves. Once more on resume."""
    config = tiny_config(
        tmp_path,
        objective={"type": "tests.toy_objectives:CountingConfig"},
        training={"compile": True, "micro_batch_size": 4, "weight_ema": 0.9},
        evaluation={"every": "3 steps", "samples": {"every": "4 steps", "max_tokens": 4}},
        checkpoint={"every": "5 steps"},
        logging={"layers_every": "2 steps"},
    )
    Counting.calls = 0
    interrupt_after(config, step=11)
    assert Counting.calls == 2  # once for each micro-batch of the one trace
    quiet_train(config, resume=True)
    assert Counting.calls == 4


def test_parameters_of_every_group_move(tmp_path: Path) -> None:
    config = tiny_config(
        tmp_path, checkpoint={"every": "1 steps", "keep_last": 30}, model={"tie_word_embeddings": False}
    )
    quiet_train(config)
    first, last = (read_checkpoint(list_checkpoints(run_folder(config) / "checkpoints")[i]).model for i in (0, -1))
    assert all(np.abs(last[name] - first[name]).max() > 1e-4 for name in first)


def test_not_a_number_stops_before_the_update(tmp_path: Path) -> None:
    objective = {"type": "tests.toy_objectives:BrokenConfig", "row": 40}
    config = tiny_config(tmp_path, objective=objective, checkpoint={"every": "5 steps"})
    with pytest.raises(NonFiniteError, match="step 6: loss nan"):
        quiet_train(config)
    saved = final(config)
    assert saved.state["step"] == 5
    assert all(np.isfinite(array).all() for array in saved.model.values())


def test_a_tolerated_not_a_number_is_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    objective = {"type": "tests.toy_objectives:BrokenConfig", "row": 40}
    config = tiny_config(tmp_path, objective=objective, training={"max_skipped_updates": 1})
    quiet_train(config)
    assert "step 6: loss nan, gradient norm nan: the update was skipped" in capsys.readouterr().err
    assert final(config).state["skipped_updates"] == 1
    assert int(final(config).optimizer["optimizer.step"]) == 19
    assert all(np.isfinite(array).all() for array in final(config).model.values())


def test_a_skipped_update_moves_no_averaged_weight(tmp_path: Path) -> None:
    config = tiny_config(
        tmp_path,
        objective={"type": "tests.toy_objectives:BrokenConfig", "row": 40},
        training={"max_skipped_updates": 1, "weight_ema": 0.9, "duration": "8 steps"},
        checkpoint={"every": "1 steps", "keep_last": 30},
    )
    quiet_train(config)
    saved = [read_checkpoint(path) for path in list_checkpoints(run_folder(config) / "checkpoints")]
    averages = {one.state["step"]: one.ema or {} for one in saved}
    assert averages[5]
    for name, before in averages[5].items():
        np.testing.assert_array_equal(averages[6][name], before, err_msg=name)
        assert (averages[7][name] != before).any(), name


def test_dropout_draws_anew_for_each_seed_step_and_rank() -> None:
    grid = [(seed, step, rank) for seed in (0, 1, 42) for step in (0, 1, 2, 1000) for rank in range(4)]
    assert len({noise_seed(*place) for place in grid}) == len(grid)
    assert [noise_seed(42, step, rank) for step, rank in ((0, 0), (7, 0), (7, 1))] == [
        11465652750463011511,
        10473664704035447458,
        9828885297459491986,
    ]


def test_the_loop_asks_for_the_noise_of_each_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(core.training, "noise_seed", lambda *place: asked.append(place) or noise_seed(*place))
    config = tiny_config(tmp_path, seed=3)
    interrupt_after(config, step=10)
    quiet_train(config, resume=True)
    assert asked == [(3, step, 0) for step in range(20)]


def test_a_few_steps_are_in_flight_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: dict[str, list[int]] = {"advance": [], "read": []}
    for name, found in counts.items():
        original = getattr(Session, name)

        def counting(self: Session, *arguments: Any, original=original, found=found, **keywords: Any) -> None:
            original(self, *arguments, **keywords)
            found.append(len(self.pending))

        monkeypatch.setattr(Session, name, counting)
    quiet_train(tiny_config(tmp_path))
    assert MAX_STEPS_IN_FLIGHT == 2
    assert (max(counts["advance"]), max(counts["read"])) == (3, 2)


@pytest.mark.parametrize("compiled", [False, True])
def test_many_micro_batches_need_little_more_memory_than_one(tmp_path: Path, compiled: bool) -> None:
    """Peaks of 9.6 and 10.3 MB; without the order between micro-batches 31.9 (compiled: 12.2, 13.2, 47.2)."""
    assert peak_bytes(tmp_path, 8, compiled) < 2 * peak_bytes(tmp_path, 1, compiled)


def peak_bytes(folder: Path, num_micro_batches: int, compiled: bool) -> int:
    """What one update needs beyond what was there before it."""
    training = {"batch_size": 8 * num_micro_batches, "micro_batch_size": 8, "compile": compiled}
    config = tiny_config(folder, training=training, data={"sequence_length": 64})
    group = SingleConfig().build()
    parts = build_parts(config, group, None, lambda line: None)
    loader = parts.dataset.batches(8 * num_micro_batches)
    batch = to_micro_batches(next(loader)[0], 8)
    loader.close()
    step = make_step(parts, group, config)
    mx.eval(batch, parts.model.state, parts.optimizer.state)
    gc.collect()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(step(batch), parts.model.state, parts.optimizer.state)
    return mx.get_peak_memory() - before


def test_early_stopping(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny_config(
        tmp_path,
        optimizer={"learning_rate": 1e-12, "weight_decay": 0.0},
        training={"early_stopping": 3, "duration": "50 steps"},
        evaluation={"every": "2 steps"},
    )
    assert quiet_train(config).step < 50
    assert "evaluations brought no better loss" in capsys.readouterr().out
    assert quiet_train(config, resume=True).step < 50
    assert "stopped early at step" in capsys.readouterr().out


def write_yaml(folder: Path, **changes) -> Path:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(tiny_values(folder) | changes))
    return path


def start(config: Path, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "core.training", "--config", str(config), *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_leaves_with_its_code(tmp_path: Path, number: int, code: int) -> None:
    process = start(write_yaml(tmp_path, training={"duration": "100000 steps", "batch_size": 8, "compile": False}))
    metrics = tmp_path / "runs" / "tiny" / "metrics.jsonl"
    while not metrics.exists() or len(metrics.read_bytes().splitlines()) < 5:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    steps = [row["step"] for row in metric_rows(metrics.parent) if "train/loss" in row]
    assert (
        json.loads((list_checkpoints(metrics.parent / "checkpoints")[-1] / "state.json").read_text())["step"]
        == steps[-1]
    )


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    process = start(write_yaml(tmp_path, training={"duration": "100000 steps", "batch_size": 8, "compile": False}))
    metrics = tmp_path / "runs" / "tiny" / "metrics.jsonl"
    while not metrics.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    second = start(tmp_path / "config.yaml", "--resume")
    _, errors = second.communicate(timeout=60)
    assert second.returncode == 2
    assert f"is in use by process {process.pid}" in errors
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert quiet_train(load(tmp_path / "config.yaml", ["training.duration=3 steps"]), resume=True).exit_code == 0
