"""One picture of what a run logged of its layers: a heat map of gradient norms and one of update-to-weight ratios.

Layer by step shows at a glance what curves for dozens of layers would not: which layer stands out, and since when.
Colors are logarithmic, since both figures span powers of ten; where a figure is zero or not finite, the map is gray. To
show another figure, add a row to `MAPS`.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from utils.metrics import Row

MAPS = (("layers/grad_norm/", "gradient norm"), ("layers/update_ratio/", "update-to-weight ratio"))
MOST_LABELS = 40


def has_layers(rows: Sequence[Row]) -> bool:
    """Whether the rows hold any figure that is drawn here."""
    return any(name.startswith(prefix) for row in rows for name in row for prefix, _ in MAPS)


def plot_layers(rows: Sequence[Row], path: str | Path) -> None:
    """Draw the layers of one run into a PNG at `path`."""
    num_layers = max(len(layers_of(rows, prefix)) for prefix, _ in MAPS)
    height = min(12.0, max(3.6, 1.6 + 0.22 * num_layers))
    figure = Figure(figsize=(13, height), dpi=130, layout="constrained")
    for index, (axes, (prefix, title)) in enumerate(zip(figure.subplots(1, 2, sharey=True), MAPS, strict=True)):
        draw_map(axes, rows, prefix, title)
        axes.tick_params(axis="y", left=index == 0)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")


def draw_map(axes: Axes, rows: Sequence[Row], prefix: str, title: str) -> None:
    """One heat map with its color bar; the first layer on top."""
    layers = layers_of(rows, prefix)
    measured = [row for row in rows if any(prefix + layer in row for layer in layers)]
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel("step")
    if not measured:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color="gray")
        return
    values = np.array([[row.get(prefix + layer, math.nan) for row in measured] for layer in layers], dtype=np.float64)
    visible = np.ma.masked_where(~(np.isfinite(values) & (values > 0)), values)
    norm = LogNorm(visible.min(), visible.max()) if visible.count() else None
    axes.set_facecolor("lightgray")
    drawn: Any = axes.pcolormesh(
        edges([row["step"] for row in measured]), np.arange(len(layers) + 1), visible, norm=norm, cmap="viridis"
    )
    every = math.ceil(len(layers) / MOST_LABELS)
    axes.set_yticks(np.arange(0, len(layers), every) + 0.5, layers[::every], fontsize=8)
    axes.set_ylim(len(layers), 0)
    axes.figure.colorbar(drawn, ax=axes, pad=0.01)


def layers_of(rows: Sequence[Row], prefix: str) -> list[str]:
    """The layers that rows name, in the order of the model."""
    names = dict.fromkeys(name for row in rows for name in row if name.startswith(prefix))
    return [name.removeprefix(prefix) for name in names]


def edges(steps: Sequence[float]) -> np.ndarray:
    """Where the column of each step begins, and where the last one ends: halfway between neighbours."""
    at = np.array(steps, dtype=np.float64)
    if len(at) == 1:
        return np.array([at[0] - 0.5, at[0] + 0.5])
    middles = (at[1:] + at[:-1]) / 2
    return np.concatenate([[2 * at[0] - middles[0]], middles, [2 * at[-1] - middles[-1]]])
