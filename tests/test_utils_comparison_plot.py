"""The picture of a comparison: what is drawn is what was given, and odd input does not break it."""

import math
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from utils.comparison_plot import Rival, draw_curves, draw_grids, plot_comparison

GRID = ((0.005, 3.5), (0.01, 3.0), (0.02, math.inf))
CURVES = (((0, 8.0), (100, 4.0), (200, 3.0)), ((0, 8.0), (100, 5.0), (200, 3.2)))
BASE = Rival(CURVES, (3.0, 3.2), GRID, 0.01)
RIVALS = {"base": BASE, "other": Rival(CURVES[:1], (3.0,), ((1.0, 3.1), (2.0, 3.3)), 1.0)}
LOST = Rival((CURVES[0], CURVES[1][:2]), (3.0, math.inf), GRID, 0.01)
ALL_LOST = Rival(((), ((0, 8.0), (100, 1e9))), (math.inf, math.inf), ((0.005, math.inf), (0.01, math.inf)), 0.005)


def test_curves_are_the_mean_over_the_seeds() -> None:
    axes = Figure().subplots()
    draw_curves(axes, RIVALS)
    by_name = {line.get_label(): line for line in axes.lines}
    np.testing.assert_allclose(np.asarray(by_name["base"].get_ydata(), float), [8.0, 4.5, 3.1])
    np.testing.assert_allclose(np.asarray(by_name["base"].get_xdata(), float), [0, 100, 200])
    low, high = axes.get_ylim()
    assert low < 3.0 < high < 8.0
    assert axes.texts[0].get_text() == "final loss of base: 3.100"


def test_a_line_ends_where_the_first_of_its_seeds_diverged() -> None:
    axes = Figure().subplots()
    draw_curves(axes, {"base": BASE, "other": LOST, "none": ALL_LOST})
    by_name = {line.get_label(): line for line in axes.lines}
    lost = by_name["other (1 of 2 diverged)"]
    np.testing.assert_allclose(np.asarray(lost.get_xdata(), float), [0, 100])
    np.testing.assert_allclose(np.asarray(lost.get_ydata(), float), [8.0, 4.5])
    assert np.size(by_name["none (2 of 2 diverged)"].get_xdata()) == 0
    low, high = axes.get_ylim()
    assert 2.5 < low < 3.0 < high < 8.0


def test_a_baseline_that_diverged_has_no_final_loss() -> None:
    axes = Figure().subplots()
    draw_curves(axes, {"base": LOST, "other": BASE})
    assert len(axes.lines) == 2
    assert not axes.texts


def test_one_evaluation_is_drawn() -> None:
    axes = Figure().subplots()
    draw_curves(axes, {"base": Rival((((200, 3.0),),), (3.0,), GRID, 0.01)})
    low, high = axes.get_ylim()
    assert low < 3.0 < high


def test_a_grid_of_which_every_trial_diverged_is_said() -> None:
    axes = Figure().subplots()
    draw_grids(axes, {"none": ALL_LOST})
    assert [text.get_text() for text in axes.texts] == ["every trial diverged"]
    axes = Figure().subplots()
    draw_grids(axes, {"base": BASE, "none": ALL_LOST})
    top = axes.get_ylim()[1]
    np.testing.assert_allclose(np.asarray(axes.lines[1].get_ydata(), float), top, rtol=1e-3)


def test_learning_rates_are_multiples_of_the_best_and_a_lost_run_stands_at_the_edge() -> None:
    axes = Figure().subplots()
    draw_grids(axes, RIVALS)
    base, other = axes.lines
    np.testing.assert_allclose(np.asarray(base.get_xdata(), float), [0.5, 1.0, 2.0])
    np.testing.assert_allclose(np.asarray(other.get_xdata(), float), [1.0, 2.0])
    top = axes.get_ylim()[1]
    losses = np.asarray(base.get_ydata(), float)
    assert losses[1] == 3.0
    assert losses[2] == pytest.approx(top, rel=1e-3)


@pytest.mark.parametrize("rivals", [RIVALS, {"base": BASE, "other": LOST, "none": ALL_LOST}, {"none": ALL_LOST}])
def test_a_png_is_written_into_a_new_folder(tmp_path: Path, rivals: dict[str, Rival]) -> None:
    path = tmp_path / "new" / "picture.png"
    plot_comparison(rivals, "title", path)
    assert matplotlib.image.imread(path).shape[1] > 1000
