"""The plan: what it says before a run is what the run then does, exactly where it says exactly."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from core import plan as plan_module
from core.assembly import build_parts
from core.checkpoint import list_checkpoints, read_checkpoint
from core.config import Config
from core.plan import (
    Plan,
    compiler_warning,
    disk_warning,
    due,
    estimate_seconds,
    format_duration,
    free_bytes,
    make_plan,
    rows,
)
from core.run import run_folder
from distributed.group import SingleConfig
from tests.tiny_run import metric_rows, quiet_train, tiny_config
from utils.errors import ConfigError
from utils.memory import format_bytes, memory_limit


def plan_of(config: Config, world_size: int = 1, **known: Any) -> Plan:
    """The plan without data, with a vocabulary of 300."""
    model_config = config.model.model_copy(update={"vocab_size": 300})
    known = {"rows_per_epoch": 50, "precision": "float32", "optimizer_bytes": 8, **known}
    return make_plan(config, model_config, world_size=world_size, **known)


@pytest.mark.parametrize("duration", ["7 steps", "3000 tokens", "0.15 tokens_per_param", "0.4 epochs"])
def test_the_run_does_what_the_plan_says(tmp_path: Path, duration: str) -> None:
    training = {"duration": duration, "micro_batch_size": 4}
    config = tiny_config(tmp_path, training=training, schedule={"warmup": "20 %", "final_ratio": 0.1})
    parts = build_parts(config, SingleConfig().build(), None, lambda line: None)
    plan = parts.plan
    result = quiet_train(config)
    folder = run_folder(config)
    saved = read_checkpoint(list_checkpoints(folder / "checkpoints")[-1])
    assert sum(array.size for array in saved.model.values()) == plan.num_params
    assert saved.state["step"] == result.step == plan.total_steps
    assert saved.state["tokens"] == plan.total_tokens == plan.total_steps * 8 * 32
    logged = [row for row in metric_rows(folder) if "train/loss" in row]
    assert [row["step"] for row in logged] == list(range(1, plan.total_steps + 1))
    assert logged[-1]["tokens"] == plan.total_tokens
    rates = [row["optim/learning_rate"] for row in logged]
    assert rates[-1] == pytest.approx(0.1 * 1e-2, rel=1e-12)
    assert rates.index(max(rates)) == plan.warmup_steps - 1
    expected = {
        "7 steps": 7,
        "3000 tokens": 12,
        "0.15 tokens_per_param": -(-plan.num_params * 15 // (100 * 256)),
        "0.4 epochs": -(-2 * parts.dataset.rows_per_epoch // (5 * 8)),
    }
    assert plan.total_steps == expected[duration]


def test_the_disk_a_run_takes_is_what_the_plan_says(tmp_path: Path) -> None:
    config = tiny_config(
        tmp_path,
        training={"weight_ema": 0.9},
        checkpoint={"every": "2 steps", "keep_last": 2, "keep_best": True},
        evaluation={"every": "2 steps"},
    )
    plan = build_parts(config, SingleConfig().build(), None, lambda line: None).plan
    quiet_train(config)
    checkpoints = list_checkpoints(run_folder(config) / "checkpoints")
    assert len(checkpoints) <= plan.num_checkpoints == 3
    saved = read_checkpoint(checkpoints[-1])
    arrays = [*saved.model.values(), *saved.optimizer.values(), *(saved.ema or {}).values()]
    counters = sum(array.nbytes for array in saved.optimizer.values() if array.ndim == 0)
    assert sum(array.nbytes for array in arrays) - counters == plan.checkpoint_bytes
    assert plan.disk_bytes == 4 * plan.checkpoint_bytes


@pytest.mark.parametrize(
    ("training", "world_size", "words"),
    [
        ({"batch_size": 8}, 3, ["8 sequences cannot be shared over 3 ranks", "6 and 9"]),
        ({"batch_size": 8, "micro_batch_size": 4}, 4, ["over 4 ranks in micro-batches of 4", "16"]),
        ({"batch_tokens": 8 * 32}, 5, ["8 sequences", "5 and 10"]),
    ],
)
def test_a_batch_that_ranks_cannot_share_names_those_that_they_can(
    tmp_path: Path, training: dict[str, int], world_size: int, words: list[str]
) -> None:
    changes = training if "batch_size" in training else {**training, "batch_size": None}
    config = tiny_config(tmp_path, training=changes)
    with pytest.raises(ConfigError) as error:
        plan_of(config, world_size)
    assert all(word in str(error.value) for word in words), error.value


def test_counts_over_ranks_and_micro_batches(tmp_path: Path) -> None:
    plan = plan_of(tiny_config(tmp_path, training={"batch_size": 24, "micro_batch_size": 3}), world_size=4)
    assert plan.num_micro_batches == 2
    assert plan.tokens_per_step == 24 * 32
    assert ("batch", "24 x 32 tokens = 4 rank(s) x 2 x 3") in rows(plan, tmp_path)


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"schedule": {"warmup": "20 steps"}}, ["schedule.warmup is 20 steps", "only 20", "'2 %'"]),
        ({"schedule": {"type": "wsd", "warmup": "15 steps", "decay": "50 %"}}, ["schedule.decay is 10 steps"]),
        ({"training": {"duration": "0 steps"}}, ["training.duration", "at least 1 step"]),
        ({"training": {"duration": "5 %"}}, ["training.duration", "length of training is not known"]),
    ],
)
def test_lengths_that_do_not_fit_are_refused(tmp_path: Path, sections: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        plan_of(tiny_config(tmp_path, **sections))
    assert all(word in str(error.value) for word in words), error.value


def test_an_unknown_size_of_the_data_names_the_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.every: '1 epochs' cannot be used here"):
        plan_of(tiny_config(tmp_path, evaluation={"every": "1 epochs"}), rows_per_epoch=None)


def test_periods_are_counted_in_steps(tmp_path: Path) -> None:
    config = tiny_config(
        tmp_path,
        logging={"every": "1 tokens", "layers_every": "20 %"},
        evaluation={"every": "10 %", "samples": {"every": "1 epochs"}},
        checkpoint={"every": None},
    )
    periods = plan_of(config).periods
    assert periods == (1, 2, 7, None, 4)
    assert [step for step in range(1, 9) if due(periods.evaluate, step)] == [2, 4, 6, 8]
    assert not due(None, 0)


def fill_disk(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(plan_module.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))


def test_a_disk_that_is_too_small_is_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(tiny_config(tmp_path))
    fill_disk(monkeypatch, plan.disk_bytes)
    assert disk_warning(plan, tmp_path) is None
    fill_disk(monkeypatch, plan.disk_bytes - 1)
    warning = str(disk_warning(plan, tmp_path))
    assert format_bytes(plan.disk_bytes) in warning
    assert "lower checkpoint.keep_last" in warning


def test_training_warns_of_a_small_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fill_disk(monkeypatch, 1000)
    quiet_train(tiny_config(tmp_path, training={"duration": "2 steps"}, schedule={"warmup": 0}))
    assert capsys.readouterr().err.count("warning: checkpoints need") == 1


def test_free_space_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "a" / "b") == pytest.approx(free_bytes(tmp_path), rel=0.5)


def test_time_is_work_over_speed(tmp_path: Path) -> None:
    plan = plan_of(tiny_config(tmp_path))
    assert plan.total_flops == plan.flops_per_token * 20 * 8 * 32
    np.testing.assert_allclose(estimate_seconds(plan, gflops=100.0), plan.total_flops / 50e9)
    np.testing.assert_allclose(estimate_seconds(plan._replace(world_size=2), 100.0), plan.total_flops / 100e9)
    assert ("time", "about 1 second, a rough estimate") in rows(plan, tmp_path, gflops=100.0)
    assert "time" not in dict(rows(plan, tmp_path))


def test_the_printed_plan_holds_the_exact_numbers(tmp_path: Path) -> None:
    plan = plan_of(tiny_config(tmp_path))
    printed = dict(rows(plan, tmp_path))
    assert printed["parameters"].startswith(f"{plan.num_params:,} (")
    assert printed["tokens"].startswith(f"{20 * 8 * 32:,} (")
    assert printed["steps"] == "20, 2 of them warm-up"
    assert printed["epochs"] == f"{20 * 8 / 50:.2f}"
    json.dumps(plan._asdict())


def test_the_printed_plan_says_what_memory_is_for(tmp_path: Path) -> None:
    plan = plan_of(tiny_config(tmp_path), optimizer_bytes=12345)
    printed = rows(plan, tmp_path)
    start = [name for name, _ in printed].index("memory")
    peak, parts, cache = (text for _, text in printed[start : start + 3])
    assert peak.startswith(f"about {format_bytes(plan.memory.peak)} of {format_bytes(plan.memory_limit)} at the peak")
    assert f"weights {format_bytes(4 * plan.num_params)}, optimizer 12.3 kB" in parts
    assert f"up to {format_bytes(plan.memory_limit // 2)}" in cache
    assert plan.memory_limit == memory_limit()


def test_auto_takes_the_largest_micro_batch_that_fits_and_says_so(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, training={"batch_size": 24})
    peaks = {size: plan_of(with_memory(config, size)).memory.peak for size in (1, 2, 3, 4, 6, 8, 12, 24)}
    for size, peak in peaks.items():
        plan = plan_of(with_memory(config, "auto", peak))
        assert plan.micro_batch_size == size
        assert plan.memory.peak == peak
        assert f"; {size} at once is the largest divisor of the batch that fits" in dict(rows(plan, tmp_path))["batch"]
    assert "largest" not in dict(rows(plan_of(config), tmp_path))["batch"]
    assert plan_of(with_memory(config, "auto"), world_size=2).micro_batch_size == 12


def with_memory(config: Config, micro_batch_size: Any, limit: int | None = None) -> Config:
    """Another micro-batch and memory limit."""
    update = {"micro_batch_size": micro_batch_size, "memory_limit": limit}
    return config.model_copy(update={"training": config.training.model_copy(update=update)})


def test_a_step_that_does_not_fit_is_refused_unless_it_need_not(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, training={"batch_size": 64})
    small = with_memory(config, None, plan_of(config).memory.peak // 2)
    with pytest.raises(ConfigError, match=r"training\.micro_batch_size: \d+ \("):
        plan_of(small)
    plan = plan_of(small, must_fit=False)
    assert plan.memory.peak > plan.memory_limit


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "1 second"), (80, "80 seconds"), (180, "3 minutes"), (9000, "2.5 hours"), (354240, "4.1 days"),
     (86400 * 400, "400 days")],
)  # fmt: skip
def test_durations_for_people(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_a_missing_compiler_is_told_only_to_who_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.cpu))
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert "apt install g++" in str(compiler_warning(compiles=True))
    assert compiler_warning(compiles=False) is None
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/g++")
    assert compiler_warning(compiles=True) is None
