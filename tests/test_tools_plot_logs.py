"""`tools/plot-logs.py` as a person calls it: once as a process, without what tests have imported, then in this one."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import Done, call
from tests.tool_files import load_tool
from utils.metrics import MetricsWriter

REPOSITORY = Path(__file__).parent.parent


def plot_logs(*arguments: str | Path) -> Done:
    """The tool, in this process."""
    return call(load_tool("plot-logs").main, *arguments)


def plot_logs_by_itself(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The tool, started from the checkout."""
    command = [sys.executable, REPOSITORY / "tools" / "plot-logs.py", *arguments]
    environment = {"PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def make_run(folder: Path, num_rows: int = 3, figures: dict[str, float] | None = None) -> Path:
    """A run folder with nothing but metrics, `figures` in each row."""
    folder.mkdir(parents=True)
    writer = MetricsWriter(folder / "metrics.jsonl")
    for step in range(1, num_rows + 1):
        writer.write({"step": step, "tokens": step * 10, "time": 1.0, "train/loss": 3.0 / step, **(figures or {})})
    writer.close()
    return folder


def test_one_run_goes_into_its_plots_and_several_into_the_first(tmp_path: Path) -> None:
    first, second = make_run(tmp_path / "a" / "run"), make_run(tmp_path / "b" / "run")
    assert plot_logs_by_itself(first).stdout == f"wrote {first}/plots/training.png\n"
    assert plot_logs(first, second).returncode == 0
    assert plot_logs(first, "--out", tmp_path / "out" / "x.png").returncode == 0
    assert {path.name for path in (first / "plots").iterdir()} == {"training.png", "comparison.png"}
    assert (tmp_path / "out" / "x.png").stat().st_size > 10_000


def test_a_run_that_logged_its_layers_gets_a_second_picture(tmp_path: Path) -> None:
    layers = {"layers/grad_norm/model.norm": 1.0, "layers/update_ratio/model.norm": 0.1}
    run, other = make_run(tmp_path / "run", figures=layers), make_run(tmp_path / "other", figures=layers)
    assert plot_logs(run).stdout == f"wrote {run}/plots/training.png\nwrote {run}/plots/layers.png\n"
    assert plot_logs(run, "--out", tmp_path / "x.png").stdout.endswith(f"wrote {tmp_path}/x-layers.png\n")
    assert plot_logs(run, other).stdout == f"wrote {run}/plots/comparison.png\n"
    assert (run / "plots" / "layers.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("case", "message"),
    [("missing", "no such run folder"), ("bare", "metrics.jsonl"), ("empty", "no rows yet"), ("broken", "jsonl:1:")],
)
def test_what_cannot_be_plotted_is_one_error_line(tmp_path: Path, case: str, message: str) -> None:
    run = tmp_path / case
    if case != "missing":
        make_run(run, num_rows=0)
    if case == "bare":
        (run / "metrics.jsonl").unlink()
    if case == "broken":
        (run / "metrics.jsonl").write_text("nonsense\n{}\n")
    result = plot_logs(run)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (run / "plots").exists()


def test_an_unwritable_out_is_one_error_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = plot_logs(make_run(tmp_path / "run"), "--out", tmp_path / "file" / "x.png")
    assert result.returncode == 2
    assert result.stderr.startswith("error: cannot write")


def test_no_run_named_is_exit_code_2() -> None:
    assert plot_logs().returncode == 2
