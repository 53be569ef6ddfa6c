"""The run folder: who gets it, what is refused with which words, and what lies in it afterwards."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from core.checkpoint import list_checkpoints
from core.config import Config, load
from core.run import Run, acquire_lock, differing_keys, flatten, open_run, refuse_other_config, run_folder, travelled
from tests.tiny_run import metric_rows, quiet_train, tiny_config
from utils.errors import CheckpointError, ConfigError, DataError


def short_config(folder: Path, **changes: Any) -> Config:
    """Six updates, a checkpoint every second one."""
    training = {"duration": "6 steps", **changes.pop("training", {})}
    sections = {"checkpoint": {"every": "2 steps"}, "evaluation": {"every": None}, **changes}
    return tiny_config(folder, training=training, **sections)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A run that has been made."""
    config = short_config(tmp_path)
    quiet_train(config)
    return config


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_lies_in_a_run_folder(config: Config) -> None:
    folder = run_folder(config)
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "config.yaml", "environment.json", "lock", "log.txt", "metrics.jsonl", "tokenizer", "checkpoints"
    }  # fmt: skip
    assert load(folder / "config.yaml") == config
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["packages"]["mlx"]
    assert not any(os.environ.get("HOME", "?") == value for value in environment.values())
    assert "plan" in (folder / "log.txt").read_text()
    assert [path.name for path in list_checkpoints(folder / "checkpoints")] == [
        "step_00000002", "step_00000004", "step_00000006"
    ]  # fmt: skip


def test_an_existing_run_is_refused_and_untouched(config: Config, tmp_path: Path) -> None:
    before = contents(run_folder(config))
    with pytest.raises(ConfigError) as error:
        quiet_train(config)
    (line,) = error.value.problems
    assert "is there already: continue it with --resume or start anew with --overwrite" in line
    other = short_config(tmp_path, optimizer={"learning_rate": 5e-3}, training={"gradient_clip": None})
    with pytest.raises(ConfigError) as error:
        quiet_train(other)
    assert error.value.problems[1:] == [
        "its config differs in optimizer.learning_rate: 0.01 there, 0.005 here",
        "its config differs in training.gradient_clip: 1.0 there, None here",
    ]
    assert contents(run_folder(config)) == before


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"model": {"attention": {"type": "flash", "block_size": 16}}}, []),
        ({"training": {"activation_checkpointing": "all", "memory_limit": "1G", "micro_batch_size": "auto"}}, []),
        ({"objective": {"chunk_size": 7}}, []),
        ({"objective": {"z_loss": 1e-4}}, ["objective.z_loss"]),
        ({"model": {"attention": {"type": "flex", "mods": [{"type": "alibi"}]}}}, ["model.attention.mods"]),
        ({"model": {"final_logit_softcapping": 30}}, ["model.final_logit_softcapping"]),
    ],
)
def test_how_the_same_numbers_come_about_may_change_and_the_numbers_may_not(
    config: Config, tmp_path: Path, changes: dict[str, Any], refused: list[str]
) -> None:
    other, named = short_config(tmp_path, **changes), []
    try:
        refuse_other_config(other, run_folder(config))
    except ConfigError as error:
        named = [line.removeprefix("its config differs in ").split(":")[0] for line in error.problems[1:]]
    assert named == refused


def test_resuming_with_what_may_not_change_lists_it(config: Config, tmp_path: Path) -> None:
    other = short_config(tmp_path, seed=7, model={"hidden_size": 64}, training={"duration": "8 steps", "batch_size": 4})
    with pytest.raises(ConfigError) as error:
        quiet_train(other, resume=True)
    assert "was started with another config" in error.value.problems[0]
    assert [problem.split(":")[0] for problem in error.value.problems[1:]] == [
        "its config differs in model.hidden_size",
        "its config differs in seed",
        "its config differs in training.batch_size",
    ]
    assert load(run_folder(config) / "config.yaml") == config


@pytest.mark.parametrize(
    "changes",
    [
        {"training": {"duration": "9 steps", "micro_batch_size": 2, "max_skipped_updates": 3}},
        {"logging": {"every": "3 steps"}, "evaluation": {"every": "2 steps"}, "checkpoint": {"keep_last": 1}},
        {"model": {"attention": {"type": "simple"}}},
    ],
)
def test_resuming_with_what_may_change(config: Config, tmp_path: Path, changes: dict[str, Any]) -> None:
    other = short_config(tmp_path, **{"training": {"duration": "9 steps"}, **changes})
    assert quiet_train(other, resume=True).step == 9
    assert load(run_folder(config) / "config.yaml") == other


def test_resuming_what_is_not_there(tmp_path: Path) -> None:
    config = short_config(tmp_path)
    with pytest.raises(CheckpointError, match="there is no run to resume at .*: start it without --resume"):
        quiet_train(config, resume=True)
    assert not run_folder(config).exists()


def test_a_run_that_saved_nothing_is_resumed_from_its_start(config: Config) -> None:
    folder = run_folder(config)
    rows = metric_rows(folder)
    for path in sorted((folder / "checkpoints").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    assert quiet_train(config, resume=True).step == 6
    assert [row["train/loss"] for row in metric_rows(folder)[:6]] == [row["train/loss"] for row in rows[:6]]


def test_metrics_behind_the_checkpoint_are_done_again_once(config: Config) -> None:
    folder = run_folder(config)
    before = metric_rows(folder)
    os.rename(folder / "checkpoints" / "step_00000006", folder / "thrown-away")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "train/lo')
    quiet_train(config, resume=True)
    after = metric_rows(folder)
    assert [row["step"] for row in after] == [row["step"] for row in before]
    assert [row.get("train/loss") for row in after] == [row.get("train/loss") for row in before]


def test_resuming_a_finished_run_changes_nothing(config: Config) -> None:
    folder = run_folder(config)
    before = contents(folder / "checkpoints")
    assert quiet_train(config, resume=True).step == 6
    assert contents(folder / "checkpoints") == before


def test_overwriting_keeps_nothing_of_the_earlier_run(config: Config, tmp_path: Path) -> None:
    folder = run_folder(config)
    (folder / "samples.jsonl").write_text("{}\n")
    (folder / "plots").mkdir()
    (folder / "plots" / "loss.png").write_bytes(b"old")
    other = short_config(tmp_path, data={"tokenizer": {"type": "bytes"}}, training={"duration": "3 steps"})
    assert quiet_train(other, overwrite=True).step == 3
    assert not (folder / "samples.jsonl").exists()
    assert not (folder / "plots").exists()
    assert [row["step"] for row in metric_rows(folder) if "train/loss" in row] == [1, 2, 3]
    assert [path.name for path in list_checkpoints(folder / "checkpoints")] == ["step_00000002", "step_00000003"]
    vocabulary = json.loads((folder / "tokenizer" / "tokenizer.json").read_text())["model"]["vocab"]
    assert len(vocabulary) < 300
    assert load(folder / "config.yaml") == other


def test_overwriting_with_what_cannot_start_keeps_the_earlier_run(config: Config, tmp_path: Path) -> None:
    before = contents(run_folder(config))
    sources = [{"type": "jsonl", "path": str(tmp_path / "missing.jsonl")}]
    with pytest.raises(DataError):
        quiet_train(short_config(tmp_path, data={"sources": sources}), overwrite=True)
    after = contents(run_folder(config))
    assert {name: after[name] for name in before if name != "lock"} == {
        name: before[name] for name in before if name != "lock"
    }


def test_overwriting_spares_a_folder_that_is_no_run(tmp_path: Path) -> None:
    precious = tmp_path / "runs" / "tiny" / "thesis.tex"
    precious.parent.mkdir(parents=True)
    precious.write_text("years")
    with pytest.raises(ConfigError, match=r"is no run, so --overwrite does not delete what it holds \(thesis.tex\)"):
        quiet_train(short_config(tmp_path), overwrite=True)
    assert precious.read_text() == "years"


def test_a_start_that_fails_leaves_no_folder(tmp_path: Path) -> None:
    config = short_config(tmp_path, data={"sources": [{"type": "jsonl", "path": str(tmp_path / "missing.jsonl")}]})
    with pytest.raises(DataError):
        quiet_train(config)
    assert not run_folder(config).exists()
    quiet_train(short_config(tmp_path))


def test_a_locked_run_is_refused_and_named(config: Config) -> None:
    holder = acquire_lock(run_folder(config))
    with pytest.raises(CheckpointError, match=f"is in use by process {os.getpid()} on "):
        quiet_train(config, resume=True)
    with pytest.raises(CheckpointError, match="is in use by"):
        quiet_train(config, overwrite=True)
    holder.close()
    quiet_train(config, resume=True)


def test_the_lock_of_a_dead_process_is_broken(tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        acquire_lock(tmp_path / "run")
        os._exit(9)
    os.waitpid(pid, 0)
    assert f"process {pid} " in (tmp_path / "run" / "lock").read_text()
    acquire_lock(tmp_path / "run").close()


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write to .*: Not a directory; choose another out_dir"):
        quiet_train(short_config(tmp_path, out_dir=str(tmp_path / "file" / "runs")))


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    config = short_config(tmp_path)
    run = open_run(config, resume=False, overwrite=True, is_main=False)
    run.start(config, overwrite=True, precision="float32")
    run.log("hello")
    run.close()
    assert not run_folder(config).exists()
    assert isinstance(run, Run)
    assert not run.is_main


def test_differences_name_both_values(tmp_path: Path) -> None:
    new = tiny_config(tmp_path, optimizer={"type": "sgd", "learning_rate": 1e-2})
    lines = differing_keys(new, tiny_config(tmp_path))
    assert "optimizer.type: adamw there, sgd here" in lines
    assert "optimizer.betas: [0.9, 0.95] there, (absent) here" in lines
    assert flatten({"a": {"b": 1, "c": [1, 2]}, "d": None}) == {"a.b": 1, "a.c": [1, 2], "d": None}


def test_environment_json_tells_where_a_run_has_been(tmp_path: Path) -> None:
    file = tmp_path / "environment.json"
    mac = {"device": "Device(gpu, 0)", "precision": "float32", "command": ["a"]}
    cuda = mac | {"precision": "bfloat16", "command": ["b"]}
    assert travelled(file, mac) == mac
    file.write_text(json.dumps(mac))
    again = mac | {"command": ["a", "--resume"]}
    assert travelled(file, again) == again, "the same place again is no stage of the journey"
    there = travelled(file, cuda)
    assert there == cuda | {"earlier": [mac]}
    file.write_text(json.dumps(there))
    assert travelled(file, mac) == mac | {"earlier": [mac, cuda]}
    file.write_text("[broken")
    assert travelled(file, mac) == mac
