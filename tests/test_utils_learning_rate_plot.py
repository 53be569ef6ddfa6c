"""The picture of a range test: curves and marks where they belong, whatever the losses are."""

import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from utils.learning_rate_plot import draw_rates, plot_rates

RATES = np.geomspace(1e-6, 1, 30).tolist()


def test_curves_and_marks_are_drawn_on_a_logarithmic_axis() -> None:
    losses = [5.0 - index / 10 for index in range(29)] + [math.nan]
    smoothed = [5.0 - index / 11 for index in range(29)] + [10.0]
    axes = Figure().subplots()
    draw_rates(axes, RATES, losses, smoothed, {"suggested:": 0.0123})
    raw, average, mark = axes.lines
    np.testing.assert_array_equal(raw.get_ydata(), losses)
    np.testing.assert_array_equal(average.get_ydata(), smoothed)
    assert list(np.asarray(mark.get_xdata())) == [0.0123, 0.0123]
    assert (axes.get_xscale(), mark.get_label()) == ("log", "suggested: 0.012")
    low, high = axes.get_ylim()
    assert low < min(smoothed) < 5.0 < high < 10.0


@pytest.mark.parametrize("losses", [[], [3.0], [math.nan] * 30, [2.0] * 30])
def test_the_file_is_a_picture(tmp_path: Path, losses: list[float]) -> None:
    path = tmp_path / "plots" / "rates.png"
    plot_rates(RATES[: len(losses)], losses, losses, {}, path, "tiny: adamw")
    assert imread(path).shape[1] > 1000
