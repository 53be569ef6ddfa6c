"""The heat map of layers: every value in its place and color, whatever else rows hold."""

import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from utils.layer_plot import MAPS, draw_map, edges, has_layers, layers_of, plot_layers
from utils.metrics import Row

PREFIX, TITLE = MAPS[0]


def make_rows(num_layers: int, steps: list[int]) -> list[Row]:
    """Rows of layers, with one of another kind before each."""
    rows: list[Row] = []
    for step in steps:
        rows.append({"step": step, "tokens": step, "train/loss": 2.0})
        figures = {f"{prefix}model.layers.{i}": 10.0 ** (i - step) for prefix, _ in MAPS for i in range(num_layers)}
        rows.append({"step": step, "tokens": step, **figures})
    return rows


def test_a_column_reaches_halfway_to_its_neighbours() -> None:
    assert edges([10, 20, 40]).tolist() == [5, 15, 30, 50]
    assert edges([7]).tolist() == [6.5, 7.5]


def test_layers_come_in_the_order_of_the_model_and_only_where_measured() -> None:
    rows = make_rows(12, [1, 2])
    assert layers_of(rows, PREFIX) == [f"model.layers.{index}" for index in range(12)]
    assert has_layers(rows)
    assert not has_layers([row for row in rows if "train/loss" in row])
    assert not has_layers([{"step": 1, "tokens": 1, "layers/weight_norm/a": 1.0}])


def test_every_value_is_drawn_where_it_belongs() -> None:
    rows = make_rows(3, [2, 4])
    rows[1][f"{PREFIX}model.layers.0"], rows[3][f"{PREFIX}model.layers.1"] = 0.0, math.nan
    axes = Figure().subplots()
    draw_map(axes, rows, PREFIX, TITLE)
    drawn = axes.collections[0].get_array()
    assert drawn is not None
    values = np.ma.filled(np.ma.reshape(drawn, (3, 2)), -1)
    np.testing.assert_allclose(values, [[-1, 1e-4], [1e-1, -1], [1, 1e-2]])
    assert axes.get_ylim() == (3, 0)
    assert [label.get_text() for label in axes.get_yticklabels()] == [f"model.layers.{index}" for index in range(3)]


def test_nothing_measured_is_said() -> None:
    axes = Figure().subplots()
    draw_map(axes, [{"step": 1, "tokens": 1}], PREFIX, TITLE)
    assert [text.get_text() for text in axes.texts] == ["not measured"]


@pytest.mark.parametrize(("num_layers", "steps"), [(1, [5]), (66, [10, 20, 30]), (4, list(range(1, 50)))])
def test_the_file_is_a_picture(tmp_path: Path, num_layers: int, steps: list[int]) -> None:
    plot_layers(make_rows(num_layers, steps), tmp_path / "plots" / "layers.png")
    assert imread(tmp_path / "plots" / "layers.png").shape[1] > 1000


def test_a_map_of_zeros_is_a_picture_too(tmp_path: Path) -> None:
    rows: list[Row] = [{"step": 1, "tokens": 1, f"{PREFIX}a": 0.0, f"{MAPS[1][0]}a": math.nan}]
    plot_layers(rows, tmp_path / "layers.png")
    assert imread(tmp_path / "layers.png").shape[1] > 1000
