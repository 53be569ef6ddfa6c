"""The picture of runs: the average against its definition, every run and panel drawn, and the command's mistakes."""

import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from utils.metrics import Row
from utils.plotting import (
    PANELS,
    average,
    draw_learning_rates,
    draw_panel,
    plot_learning_rates,
    plot_runs,
    run_style,
)


def make_rows(num_steps: int, loss: float = 2.0) -> list[Row]:
    """A run with every figure the panels show."""
    return [
        {
            "step": step,
            "tokens": 100 * step,
            "time": float(step),
            "train/loss": loss + 1 / (step + 1),
            "eval/loss": loss,
            "eval/bits_per_byte": loss / 3,
            "optim/learning_rate": 1e-3,
            "speed/tokens_per_second": 1000.0 + step,
        }
        for step in range(num_steps)
    ]


def test_average_is_the_mean_of_a_centred_window() -> None:
    values = [float((7 * step) % 11) for step in range(200)]
    averaged = average(values)
    for index in range(5, 195):
        assert averaged[index] == pytest.approx(sum(values[index - 5 : index + 6]) / 11)
    assert averaged[0] == values[0]
    assert averaged[-1] == pytest.approx(sum(values[-6:]) / 6)


def test_average_does_not_lag_on_a_slope() -> None:
    values = [10.0 - step / 100 for step in range(400)]
    assert average(values)[:380] == pytest.approx(values[:380])


def test_average_keeps_a_nan_where_it_is() -> None:
    averaged = average([1.0] * 50 + [math.nan] + [1.0] * 50)
    assert math.isnan(averaged[50])
    assert [value for value in averaged if not math.isnan(value)] == [1.0] * 100


@pytest.mark.parametrize("panel", PANELS, ids=[panel.title for panel in PANELS])
def test_every_panel_draws_every_run_at_its_tokens(panel) -> None:
    axes = Figure().subplots()
    draw_panel(axes, panel, {"a": make_rows(30), "b": make_rows(10, loss=3.0)})
    assert {line.get_color() for line in axes.lines} == {run_style(0)[0], run_style(1)[0]}
    assert np.max(axes.lines[0].get_xdata()) == 2900


def test_nothing_measured_is_said() -> None:
    axes = Figure().subplots()
    draw_panel(axes, PANELS[1], {"a": [{"step": 1, "tokens": 4, "train/loss": 2.0}]})
    assert [text.get_text() for text in axes.texts] == ["not measured"]


@pytest.mark.parametrize("num_steps", [1, 300])
def test_the_file_is_a_picture_with_every_run_in_it(tmp_path: Path, num_steps: int) -> None:
    runs = {f"run-{index}": make_rows(num_steps, loss=1.0 + index) for index in range(12)}
    runs["with-nan"] = [{**row, "train/loss": math.nan} for row in make_rows(num_steps)]
    plot_runs(runs, tmp_path / "plots" / "all.png")
    picture = imread(tmp_path / "plots" / "all.png")
    assert picture.shape[0] > 600
    assert picture.shape[1] > 1000


def test_styles_tell_24_runs_apart() -> None:
    assert len({run_style(index) for index in range(24)}) == 24


def test_groups_with_one_learning_rate_share_a_line() -> None:
    axes = Figure().subplots()
    draw_learning_rates(axes, {"a": [0.1, 0.3], "b": [0.2, 0.1], "c": [0.1, 0.3]}, [1, 2])
    assert [line.get_label() for line in axes.lines] == ["a, c: at most 0.3", "b: at most 0.2"]
    assert [list(line.get_ydata()) for line in axes.lines] == [[0.1, 0.3], [0.2, 0.1]]  # pyright: ignore
    assert [list(line.get_xdata()) for line in axes.lines] == [[1, 2]] * 2  # pyright: ignore
    assert (axes.get_yscale(), axes.get_ylim()[0]) == ("linear", 0)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("updates", "learning rate")


def test_rates_far_apart_are_on_a_logarithmic_axis_that_zero_does_not_break() -> None:
    axes = Figure().subplots()
    draw_learning_rates(axes, {"a": [0.1, 0.0], "b": [1e-4, 1e-5], "c": [0.0, 0.0]}, [1, 2])
    assert axes.get_yscale() == "log"
    assert axes.get_ylim() == pytest.approx((1e-6, 0.15))


def planned(updates: int, warmup: int, path: Path, monkeypatch: pytest.MonkeyPatch) -> Figure:
    """The figure of a planned run that was written to `path`."""
    saved: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (saved.append(self), save(self, *a, **k)))
    plot_learning_rates({"a": [0.1] * updates}, list(range(1, updates + 1)), path, 512, warmup)
    return saved[0]


@pytest.mark.parametrize("num_updates", [1, 2, 3, 5])
def test_ticks_of_a_short_run_are_whole_updates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_updates: int
) -> None:
    axes = planned(num_updates, 0, tmp_path / "schedule.png", monkeypatch).axes[0]
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels == [str(update) for update in range(max(num_updates, 2) + 1)]


@pytest.mark.parametrize(
    ("num_updates", "warmup", "said"),
    [(1, 2, []), (2, 9, ["warm-up: 2 updates"]), (30, 4, ["warm-up: 4 updates"])],
)
def test_the_warmup_is_no_longer_than_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_updates: int, warmup: int, said: list[str]
) -> None:
    axes = planned(num_updates, warmup, tmp_path / "schedule.png", monkeypatch).axes[0]
    assert axes.get_legend_handles_labels()[1] == ["a: at most 0.1", *said]


@pytest.mark.parametrize(("updates", "warmup"), [([1], 0), ([1, 2, 3], 2), (list(range(1, 400)), 40)])
def test_planned_learning_rates_are_a_picture(tmp_path: Path, updates: list[int], warmup: int) -> None:
    path = tmp_path / "plots" / "schedule.png"
    plot_learning_rates({"a": [0.1] * len(updates), "b": [0.0] * len(updates)}, updates, path, 512, warmup)
    picture = imread(path)
    assert picture.shape[0] > 600
    assert picture.shape[1] > 1000
    shaded = np.isclose(picture[300, :, :3], 237 / 255, atol=0.02).all(axis=1).sum()
    assert (shaded > 30) == (warmup > 1)
