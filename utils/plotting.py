"""Pictures: loss, bits per byte, learning rate and speed of one or more runs, and the learning rates of a planned one.

Tokens are the axis because runs of different batch sizes meet there. A noisy figure is drawn twice: raw and faint, and
as a centred average, which unlike a running one does not lag behind. Losses are on a logarithmic scale, so that the
end of a run has room beside its beginning. Figures are made without pyplot: nothing global is touched, no display is
needed. To add a panel, add a row to `PANELS`.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from utils.metrics import Row, column
from utils.units import format_count

COLORS = ("#1f6fb4", "#d95f02", "#2c9c55", "#c2307b", "#7a5cc9", "#8a6d00", "#0097a7", "#666666")
LineStyle = Literal["-", "--", ":"]
LINE_STYLES: tuple[LineStyle, ...] = ("-", "--", ":")
MARK: dict[str, Any] = {"marker": "o", "markersize": 4.5, "markeredgecolor": "white", "markeredgewidth": 0.8}
LARGEST_HALF_WIDTH = 25
PLAIN_NUMBER = FuncFormatter(lambda value, _: f"{value:.3g}")
COUNT = FuncFormatter(lambda value, _: format_count(round(value)))
LARGEST_RATIO = 20.0
"""Of the largest rates of two groups that can be read on one linear axis."""


class Panel(NamedTuple):
    """One set of axes."""

    title: str
    scale: Literal["log", "linear", "from zero"]
    exact: str | None = None
    """A figure without noise, drawn as it is."""
    noisy: str | None = None
    """A noisy figure, drawn raw and averaged."""
    marked: str | None = None
    """A figure measured now and then, drawn with a mark for each measurement."""


PANELS = (
    Panel("loss (nats per token)", "log", noisy="train/loss", marked="eval/loss"),
    Panel("validation bits per byte", "log", marked="eval/bits_per_byte"),
    Panel("learning rate", "linear", exact="optim/learning_rate"),
    Panel("tokens per second", "from zero", noisy="speed/tokens_per_second"),
)


def plot_runs(runs: Mapping[str, Sequence[Row]], path: str | Path) -> None:
    """Draw the metrics rows of each named run into one PNG at `path`."""
    figure = Figure(figsize=(11, 7.4), dpi=130, layout="constrained")
    all_axes = figure.subplots(2, 2, sharex=True).flat
    for axes, panel in zip(all_axes, PANELS, strict=True):
        draw_panel(axes, panel, runs)
    for axes in figure.axes[2:]:
        axes.set_xlabel("tokens")
    add_legend(figure, list(runs))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")


def plot_learning_rates(
    rates: Mapping[str, Sequence[float]], updates: Sequence[int], path: str | Path, tokens_per_update: int, warmup: int
) -> None:
    """Draw the learning rate of each group at `updates` (from 1) into one PNG; its `warmup` is shaded."""
    figure = Figure(figsize=(10, 5.2), dpi=130, layout="constrained")
    axes = figure.subplots()
    draw_learning_rates(axes, rates, updates)
    warmup = min(warmup, updates[-1])
    if warmup > 1:
        axes.axvspan(0, warmup, color="gray", alpha=0.12, linewidth=0, label=f"warm-up: {warmup:,} updates")
    axes.set_xlim(0, max(updates[-1], 2))
    to_tokens, to_updates = partial(np.multiply, tokens_per_update), partial(np.multiply, 1 / tokens_per_update)
    tokens = axes.secondary_xaxis("top", functions=(to_tokens, to_updates))
    tokens.set_xlabel("tokens")
    for axis in (axes.xaxis, tokens.xaxis):
        axis.set_major_formatter(COUNT)
        axis.set_major_locator(MaxNLocator(8, steps=[1, 2, 2.5, 5, 10], integer=True))
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")


def draw_learning_rates(axes: Axes, rates: Mapping[str, Sequence[float]], updates: Sequence[int]) -> None:
    """One line for each different curve, named after the groups that share it."""
    names: dict[tuple[float, ...], list[str]] = {}
    for name, values in rates.items():
        names.setdefault(tuple(values), []).append(name)
    for index, (values, sharing) in enumerate(names.items()):
        color, line_style = run_style(index)
        label = f"{', '.join(sharing)}: at most {max(values):.3g}"
        marker = "o" * (len(updates) == 1)
        axes.plot(updates, values, color=color, linestyle=line_style, linewidth=1.8, marker=marker, label=label)
    peaks = [max(values) for values in names if max(values) > 0]
    axes.set_xlabel("updates")
    axes.set_ylabel("learning rate")
    axes.grid(alpha=0.25)
    axes.spines["right"].set_visible(False)
    axes.yaxis.set_major_formatter(PLAIN_NUMBER)
    if peaks and max(peaks) > LARGEST_RATIO * min(peaks):
        axes.set_yscale("log", nonpositive="clip")
        axes.set_ylim(min(peaks) / 100, max(peaks) * 1.5)
        axes.yaxis.set_major_formatter(PLAIN_NUMBER)
    else:
        axes.set_ylim(0, 1.05 * max(peaks, default=1.0))


def draw_panel(axes: Axes, panel: Panel, runs: Mapping[str, Sequence[Row]]) -> None:
    """Draw one panel with every run."""
    axes.set_title(panel.title, loc="left", fontsize=11)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    for index, rows in enumerate(runs.values()):
        draw_run(axes, panel, rows, *run_style(index))
    if not any(np.size(line.get_xdata()) for line in axes.lines):
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color="gray")
    set_scale(axes, panel.scale)


def draw_run(axes: Axes, panel: Panel, rows: Sequence[Row], color: str, line_style: LineStyle) -> None:
    """Draw the figures of one run that belong into a panel; a single point is a dot."""
    if panel.noisy is not None:
        x, y = column(rows, panel.noisy, "tokens")
        axes.plot(x, y, color=color, linewidth=0.7, alpha=0.3)
        axes.plot(x, average(y), color=color, linestyle=line_style, linewidth=1.6, marker="." * (len(x) == 1))
    if panel.exact is not None:
        x, y = column(rows, panel.exact, "tokens")
        axes.plot(x, y, color=color, linestyle=line_style, linewidth=1.6, marker="." * (len(x) == 1))
    if panel.marked is not None:
        x, y = column(rows, panel.marked, "tokens")
        axes.plot(x, y, color=color, linestyle=line_style, linewidth=1.0, zorder=3, **MARK)


def set_scale(axes: Axes, scale: str) -> None:
    """Ticks a person reads: 3.5 rather than 10^0.54, 20M rather than 2e7."""
    axes.xaxis.set_major_formatter(COUNT)
    if scale == "log":
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(MaxNLocator(12, steps=[1, 2, 5, 10]))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(PLAIN_NUMBER)
    if scale == "from zero":
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(COUNT)


def average(values: Sequence[float]) -> list[float]:
    """Centred moving average, as wide as a twentieth of the run; a NaN stays a NaN, so that the gap is seen.

    Towards the beginning, where losses are steep, the window shrinks on both sides and a straight line stays as it is;
    at the end, where they are flat and the last value matters, only the missing side is left out.
    """
    half_width = min(LARGEST_HALF_WIDTH, len(values) // 40)
    result = []
    for index, value in enumerate(values):
        reach = min(half_width, index)
        window = [near for near in values[index - reach : index + reach + 1] if not math.isnan(near)]
        result.append(value if math.isnan(value) else sum(window) / len(window))
    return result


def run_style(index: int) -> tuple[str, LineStyle]:
    """A color and a line style for the run at `index`; styles tell apart the runs that share a color."""
    return COLORS[index % len(COLORS)], LINE_STYLES[index // len(COLORS) % len(LINE_STYLES)]


def add_legend(figure: Figure, names: Sequence[str]) -> None:
    """Below the panels: what each color is, and what lines and marks are."""
    handles = [
        Line2D([], [], color=run_style(index)[0], linestyle=run_style(index)[1], linewidth=2.5, label=name)
        for index, name in enumerate(names)
    ]
    handles.append(Line2D([], [], color="gray", linewidth=1.6, label="training"))
    handles.append(Line2D([], [], color="gray", linewidth=1.2, marker="o", markersize=4.5, label="validation"))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 5), frameon=False)
