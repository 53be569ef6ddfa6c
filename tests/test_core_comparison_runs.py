"""Runs of a comparison: made once, gone on with, made again for another config, and what a failed one says."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.comparison import Result, Settings, Trial
from core.comparison_runs import (
    Comparison,
    find_foreign_keys,
    find_missing_evaluation,
    is_run_of,
    read_result,
    reason_in,
    result_of,
    run_trial,
    trial_config,
    write_result,
)
from core.config import load
from core.run import run_folder
from tests.tiny_run import interrupt_after, last_checkpoint, metric_rows, tiny_values
from utils.errors import ConfigError, DataError
from utils.yaml_file import write_yaml


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One corpus."""
    return tmp_path_factory.mktemp("comparison")


def asked(folder: Path, shared: Path, **changes: Any) -> Settings:
    """Two optimizers, one learning rate each, one seed."""
    values: dict[str, Any] = tiny_values(shared) | {"name": "setup"}
    del values["optimizer"], values["out_dir"]
    values["training"] = values["training"] | {"duration": "8 steps"}
    values["checkpoint"] = {"every": None, "keep_best": False}
    values["evaluation"] = {"every": "4 steps"}
    config = folder / "setup.yaml"
    config.write_text(yaml.safe_dump(values | changes))
    optimizers = {}
    for name, section in (("one", {"type": "adamw", "learning_rate": 1e-2}), ("two", {"type": "sgd"})):
        optimizers[name] = folder / f"{name}.yaml"
        optimizers[name].write_text(write_yaml({"optimizer": section}))
    return Settings(config, optimizers, {"one": 1e-2, "two": 0.1}, (3,), 1)


def test_a_trial_is_the_config_the_optimizer_and_what_differs(tmp_path: Path, shared: Path) -> None:
    settings = asked(tmp_path, shared)
    config = trial_config(settings, Trial("two", 0.25, 5, 0.75), tmp_path / "out")
    assert (config.optimizer.type, config.optimizer.learning_rate, config.seed) == ("sgd", 0.25, 5)
    assert str(config.training.duration) == "6 steps"
    assert run_folder(config) == tmp_path / "out" / "runs" / "two-0.25-seed5-0.75"
    assert load(tmp_path / "out" / "configs" / "two-0.25-seed5-0.75.yaml") == config


def test_a_run_leaves_its_result_and_no_checkpoint(tmp_path: Path, shared: Path) -> None:
    config = trial_config(asked(tmp_path, shared), Trial("one", 1e-2, 3), tmp_path / "out")
    result = run_trial(config)
    assert result is not None
    rows = [row for row in metric_rows(run_folder(config)) if "eval/loss" in row]
    assert result.curve == tuple((row["tokens"], row["eval/loss"]) for row in rows)
    assert [at for at, _ in result.curve] == [0, 4 * 256, 8 * 256]
    assert (result.loss, result.bits_per_byte) == (rows[-1]["eval/loss"], rows[-1]["eval/bits_per_byte"])
    assert (result.tokens, result.note) == (8 * 256, "")
    assert not (run_folder(config) / "checkpoints").exists()
    path = tmp_path / "result.json"
    write_result(path, result)
    assert read_result(path, config) == result
    other = config.model_copy(update={"optimizer": config.optimizer.model_copy(update={"weight_decay": 0.3})})
    assert read_result(path, other) is None


def test_an_interrupted_run_goes_on_and_one_of_another_config_starts_anew(tmp_path: Path, shared: Path) -> None:
    settings = asked(tmp_path, shared)
    config = trial_config(settings, Trial("one", 1e-2, 3), tmp_path / "out")
    interrupt_after(config, step=5)
    assert last_checkpoint(run_folder(config)).state["step"] == 5
    assert is_run_of(config)
    result = run_trial(config)
    whole = run_trial(trial_config(settings, Trial("one", 1e-2, 3), tmp_path / "whole"))
    assert result is not None
    assert result == whole
    changed = trial_config(
        asked(tmp_path, shared, seed=1, model=tiny_values(shared)["model"] | {"hidden_size": 16}),
        Trial("one", 1e-2, 3),
        tmp_path / "out",
    )
    assert not is_run_of(changed)
    again = run_trial(changed)
    assert again is not None
    assert again.loss != result.loss


def test_a_run_that_diverges_has_an_infinite_loss_and_says_when(tmp_path: Path, shared: Path) -> None:
    config = trial_config(asked(tmp_path, shared), Trial("two", 1e30, 3), tmp_path / "out")
    result = run_trial(config)
    assert result is not None
    assert math.isinf(result.loss)
    assert "not finite" in result.note
    path = tmp_path / "result.json"
    write_result(path, result)
    assert json.loads(path.read_text())["loss"] is None
    assert read_result(path, config) == result


def test_rows_without_a_last_finite_loss_count_as_diverged(tmp_path: Path) -> None:
    rows = [
        {"step": s, "tokens": s, "eval/loss": loss, "eval/bits_per_byte": loss} for s, loss in ((1, 2.0), (2, None))
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert result_of(tmp_path, "") == Result(math.inf, math.inf, 2, ((1, 2.0),))


def test_a_run_without_evaluations_has_no_result_unless_it_diverged(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "tokens": 4, "train/loss": 2.0}\n')
    with pytest.raises(DataError, match=r"no evaluation in metrics\.jsonl"):
        result_of(tmp_path, "")
    lost = Result(math.inf, math.inf, 0, (), "step 3: loss or gradient was not finite")
    assert result_of(tmp_path, lost.note) == lost


def test_an_optimizers_file_changes_the_optimizer_and_nothing_that_is_compared(tmp_path: Path, shared: Path) -> None:
    settings = asked(tmp_path, shared)
    own = tmp_path / "own.yaml"
    own.write_text("name: own\noptimizer: {type: sgd, momentum: 0.5}\nschedule: {type: constant, warmup: 5 %}\n")
    assert find_foreign_keys(settings.config, own) == []
    fat = tmp_path / "fat.yaml"
    fat.write_text(
        "extends: one.yaml\nmodel: {hidden_size: 64}\ntraining: {duration: 40 steps}\ndata: {sequence_length: 64}\n"
    )
    lines = find_foreign_keys(settings.config, fat)
    assert [line.split(" also changes ")[1] for line in lines] == [
        "data.sequence_length: 32 there, 64 here",
        "model.hidden_size: 32 there, 64 here",
        "training.duration: 8 steps there, 40 steps here",
    ]
    assert all(line.startswith(str(fat)) for line in lines)


def test_a_config_without_held_out_text_is_refused(tmp_path: Path, shared: Path) -> None:
    data = tiny_values(shared)["data"]
    own = {"validation_sources": data["sources"]}

    def found(**changes: Any) -> list[str]:
        return find_missing_evaluation(load(asked(tmp_path, shared, data=data | changes).config))

    assert found() == []
    assert found(validation_fraction=0, **own) == []
    (line,) = found(validation_fraction=0)
    assert "data.validation_fraction is 0 and data.validation_sources is empty" in line


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/compare"])
def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path, shared: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot write into .*; choose another --out"):
        Comparison(asked(tmp_path, shared), tmp_path / place, lambda line: None)


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        ("", "it said nothing"),
        ("one\ntwo\n", "two"),
        ("error: first\nerror: second\n[ranks] aborted\n", "error: second"),
        ("saw an error: no\nlast\n", "last"),
    ],
)
def test_the_reason_is_the_last_error_or_the_last_line(log: str, reason: str) -> None:
    assert reason_in(log) == reason


def test_all_runs_are_made_in_processes_and_only_once(
    tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    settings = asked(tmp_path, shared)
    said: list[str] = []
    first = Comparison(settings, tmp_path / "out", said.append)
    first.run(num_jobs=2)
    assert {trial.name for trial in first.results} == {"one-0.01-seed3", "two-0.1-seed3"}
    assert len(said) == len(first.results)
    assert all("nats per token" in line for line in said)
    again = Comparison(settings, tmp_path / "out", said.append)
    monkeypatch.setattr(Comparison, "_start", lambda *_: pytest.fail("a run was made again"))
    again.run(num_jobs=1)
    assert again.results == first.results


def test_a_mistake_in_a_run_is_told_with_its_reason(
    tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    data = tiny_values(shared)["data"] | {"sources": [{"type": "jsonl", "path": "nowhere.jsonl"}]}
    comparison = Comparison(asked(tmp_path, shared, data=data), tmp_path / "out", lambda line: None)
    with pytest.raises(ConfigError, match=r"ended with exit code 2: error: .*nowhere\.jsonl.*logs"):
        comparison.run(num_jobs=2)
    assert all(process.poll() is not None for process in comparison.running.values())
