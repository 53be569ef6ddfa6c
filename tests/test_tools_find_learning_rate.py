"""`tools/find-learning-rate.py` as a person calls it: what it prints and writes, and their mistakes."""

import json
from pathlib import Path

import pytest
from matplotlib.axes import Axes

from tests.processes import write_yaml
from tests.tool_files import load_tool
from utils.cli import exit_code_of
from utils.errors import ConfigError

FAST = ("--steps", "20", "--min", "1e-4", "--max", "1")


def call(*arguments: str | Path) -> int:
    """Exit code of the command in this process."""
    return exit_code_of(lambda: load_tool("find-learning-rate").main([str(argument) for argument in arguments]))


def test_it_suggests_a_value_with_its_reason_and_leaves_a_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("--config", write_yaml(tmp_path), *FAST) == 0
    folder = tmp_path / "runs" / "tiny-learning-rate"
    found = json.loads((folder / "learning-rate.json").read_text())
    lines = capsys.readouterr().out.splitlines()
    assert f"optimizer.learning_rate: {found['learning_rate']:g}, where {found['reason']}" in lines
    assert lines[-1] == f"wrote {folder / 'learning-rate.png'} and {folder / 'learning-rate.json'}"
    assert 1e-4 < found["learning_rate"] < 1
    assert found["points"][0]["learning_rate"] == pytest.approx(1e-4)
    assert found["points"][0].keys() == {"learning_rate", "loss", "smoothed"}
    assert (folder / "learning-rate.png").stat().st_size > 10_000
    assert not (tmp_path / "runs" / "tiny").exists()


def test_groups_with_rates_of_their_own_are_told_theirs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    optimizer = {"type": "muon", "learning_rate": 0.02, "adamw_learning_rate": 0.002}
    out = tmp_path / "out"
    assert call("--config", write_yaml(tmp_path, optimizer=optimizer), *FAST, "--out", out) == 0
    found = json.loads((out / "learning-rate.json").read_text())["learning_rate"]
    printed = capsys.readouterr().out
    assert f"all groups times {found / 0.02:.2g}: muon {found:.2g}, adamw {found / 10:.2g}" in printed


def test_a_hybrid_whose_groups_state_theirs_is_told_what_to_multiply(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    labels: list[str] = []
    monkeypatch.setattr(Axes, "set_xlabel", lambda axes, text: labels.append(text))
    groups = [
        {"match": ["*layers.*"], "optimizer": {"type": "muon", "learning_rate": 0.02, "adamw_learning_rate": 0.002}},
        {"match": ["*"], "optimizer": {"type": "adamw", "learning_rate": 0.004}},
    ]
    config = write_yaml(tmp_path, optimizer={"type": "hybrid", "groups": groups})
    assert call("--config", config, *FAST, "--out", tmp_path / "out") == 0
    found = json.loads((tmp_path / "out" / "learning-rate.json").read_text())
    rate = found["learning_rate"]
    assert found["group"] == "0-muon"
    lines = capsys.readouterr().out.splitlines()
    each = f"0-muon {rate:.2g}, 0-adamw {rate / 10:.2g}, 1-adamw {rate / 5:.2g}"
    assert f"multiply the learning rate of every group by {rate / 0.02:.2g}: {each}" in lines
    assert f"where, in learning rates of 0-muon, {found['reason']}" in lines
    assert not any(line.startswith("optimizer.learning_rate") for line in lines)
    assert labels[-1] == "learning rate of 0-muon, the other groups in proportion"


def test_values_on_the_command_line_win_and_data_parallel_needs_no_launcher(tmp_path: Path) -> None:
    config = write_yaml(tmp_path, distributed={"type": "data_parallel"})
    assert call("--config", config, "optimizer.type=lion", "optimizer.learning_rate=1e-3", *FAST) == 0
    found = json.loads((tmp_path / "runs" / "tiny-learning-rate" / "learning-rate.json").read_text())
    assert found["optimizer"]["type"] == "lion"


def test_a_curve_that_says_nothing_is_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_yaml(tmp_path)
    assert call("--config", config, "--steps", "20", "--min", "1e-12", "--max", "1e-11") == 0
    assert "no suggestion: the loss did not fall from" in capsys.readouterr().out
    found = json.loads((tmp_path / "runs" / "tiny-learning-rate" / "learning-rate.json").read_text())
    assert found["learning_rate"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--min", "1", "--max", "0.1"), "give 0 < min < max"),
        (("--min", "nan"), "give 0 < min < max"),
        (("--steps", "3"), "at least 20"),
        (("data.sources=[{type: jsonl, path: nowhere.jsonl}]",), "nowhere.jsonl"),
        (("--out", "RUN"), "is a run: name another folder"),
        (("--out", "FILE/x"), "cannot make"),
        (("optimizer.learning_rate=-1",), "learning_rate"),
    ],
)
def test_mistakes_are_one_error_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    (tmp_path / "RUN" / "checkpoints").mkdir(parents=True)
    (tmp_path / "FILE").write_text("")
    given = [argument.replace("RUN", f"{tmp_path}/RUN").replace("FILE", f"{tmp_path}/FILE") for argument in arguments]
    assert call("--config", write_yaml(tmp_path), *given) == 2
    errors = capsys.readouterr().err
    assert errors.count("error: ") == 1
    assert message in errors
    assert not list(tmp_path.rglob("learning-rate.*"))


def test_a_number_that_is_none_is_exit_code_2(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        call("--config", write_yaml(tmp_path), "--steps", "many")
    assert ended.value.code == 2


def test_a_folder_that_exists_is_used_again(tmp_path: Path) -> None:
    tool = load_tool("find-learning-rate")
    assert tool.make_folder(tmp_path / "a") == tool.make_folder(tmp_path / "a") == tmp_path / "a"
    (tmp_path / "a" / "metrics.jsonl").write_text("")
    with pytest.raises(ConfigError, match="is a run"):
        tool.make_folder(tmp_path / "a")
