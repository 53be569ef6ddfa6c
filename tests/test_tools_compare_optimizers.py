"""The command from end to end on a tiny model, and what it says to mistakes."""

from pathlib import Path

import pytest

from tests.test_core_comparison_runs import asked
from tests.tiny_run import tiny_values
from tests.tool_files import load_tool
from utils.errors import ConfigError, DataError

tool = load_tool("compare-optimizers")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One corpus."""
    return tmp_path_factory.mktemp("compare")


def command(folder: Path, shared: Path, *more: str) -> list[str]:
    """The smallest comparison there is."""
    settings = asked(folder, shared)
    files = [str(path) for path in settings.optimizers.values()]
    return ["--config", str(settings.config), *files, "--out", str(folder / "out"), *more]


def test_a_comparison_from_runs_to_page(
    tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    page = tmp_path / "page.md"
    page.write_text("# Page\n\n<!-- comparison: begin -->\n<!-- comparison: end -->\n")
    options = ("--trials", "3", "--seeds", "1", "--jobs", "2", "--share", "0.5", "--rounds", "1", "--into", str(page))
    tool.main(command(tmp_path, shared, *options))
    printed, text = capsys.readouterr().out, page.read_text()
    assert printed.startswith(f"7 runs in {tmp_path / 'out'}, ")
    assert printed.count("nats per token, ") == 7
    assert "| one | " in text
    assert "two, a whole run of 0.5 of the tokens" in text
    assert text.count("| two | ") == 1 + 3 + 1
    assert f"--config {tmp_path / 'setup.yaml'}" in text
    assert "![setup](page-setup.png)" in text
    assert (tmp_path / "page-setup.png").stat().st_size > 10_000
    # Made again without runs or timing: the costs are those measured before.
    tool.main(command(tmp_path, shared, "--trials", "3", "--seeds", "1", "--share", "0.5", "--rounds", "0"))
    again = (tmp_path / "out" / "report.md").read_text()
    assert [line for line in again.splitlines() if line.startswith("| one |")][0] in text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--trials", "2"], "--trials is 2, must be at least 3"),
        (["--factor", "1"], "--factor is 1.0, must be above 1"),
        (["--factor", "nan"], "--factor is nan, must be above 1"),
        (["--share", "1.5"], "--share must be between 0 and 1"),
        (["--jobs", "0"], "--jobs is 0"),
        (["--into", "nowhere.md"], "there is no page nowhere.md"),
    ],
)
def test_bad_options_are_told(
    tmp_path: Path, shared: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        tool.main(command(tmp_path, shared, *options))
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_bad_centers_are_all_told(tmp_path: Path, shared: Path) -> None:
    centers = ["--center", "three=1", "--center", "one=x", "--center", "two=-1"]
    with pytest.raises(ConfigError) as raised:
        tool.main(command(tmp_path, shared, *centers))
    text = "\n".join(raised.value.problems)
    assert "no optimizer is called 'three'; there are: one, two" in text
    assert "--center one=x: expected NAME=RATE" in text
    assert "--center two=-1: a learning rate is above 0" in text
    assert not (tmp_path / "out").exists()


def test_an_optimizers_file_that_changes_more_is_refused(tmp_path: Path, shared: Path) -> None:
    fat = tmp_path / "fat.yaml"
    fat.write_text("optimizer: {type: sgd}\nmodel: {hidden_size: 64}\ntraining: {duration: 40 steps}\n")
    with pytest.raises(ConfigError) as raised:
        tool.main([*command(tmp_path, shared), str(fat)])
    first, second = raised.value.problems
    assert first.endswith("changes model.hidden_size: 32 there, 64 here")
    assert second.endswith("changes training.duration: 8 steps there, 40 steps here")
    assert not (tmp_path / "out").exists()


def test_a_config_without_held_out_text_is_refused(tmp_path: Path, shared: Path) -> None:
    options = command(tmp_path, shared)
    data = {**tiny_values(shared)["data"], "validation_fraction": 0}
    asked(tmp_path, shared, data=data)
    with pytest.raises(ConfigError, match=r"validation_fraction is 0 .* no held-out text"):
        tool.main(options)


def test_a_page_without_marks_is_refused_before_anything_runs(tmp_path: Path, shared: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Page\n")
    with pytest.raises(DataError, match=r"page\.md lacks the lines"):
        tool.main(command(tmp_path, shared, "--into", str(page)))
    assert not (tmp_path / "out").exists()


def test_an_out_that_is_a_file_is_told(tmp_path: Path, shared: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot write into .*file"):
        tool.main(command(tmp_path, shared, "--out", str(tmp_path / "file")))


def test_a_file_that_is_no_optimizer_is_told(tmp_path: Path, shared: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("optimizer: {type: admaw}\n")
    with pytest.raises(ConfigError, match=r"did you mean 'adamw'"):
        tool.main([*command(tmp_path, shared), str(broken)])


def test_a_hybrid_whose_groups_state_their_rates_is_refused(tmp_path: Path, shared: Path) -> None:
    hybrid = tmp_path / "hybrid.yaml"
    groups = "{match: ['*'], optimizer: {type: adamw, learning_rate: 1e-3}}"
    hybrid.write_text(f"optimizer: {{type: hybrid, groups: [{groups}]}}\n")
    with pytest.raises(ConfigError, match=r"hybrid\.yaml: every group states its own learning_rate"):
        tool.main([*command(tmp_path, shared), str(hybrid)])
