"""The picture of a learning-rate range test: loss against learning rate, raw and smoothed, with the rates that matter.

The axis of rates is logarithmic, as the rates were tried. The axis of losses ends a little above the first loss, since
what diverges would press everything else into a line. To mark another rate, the caller adds it to `marks`.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.plotting import COLORS

MARGIN = 0.02


def plot_rates(
    rates: Sequence[float],
    losses: Sequence[float],
    smoothed: Sequence[float],
    marks: Mapping[str, float],
    path: str | Path,
    title: str,
    whose: str = "",
) -> None:
    """Draw losses [points] against rates [points] into a PNG at `path`; `marks`: label -> rate.

    `whose`: the group whose rates they are, where all others are in proportion.
    """
    figure = Figure(figsize=(9, 5), dpi=130, layout="constrained")
    axes = figure.subplots()
    draw_rates(axes, rates, losses, smoothed, marks)
    if whose:
        axes.set_xlabel(f"learning rate of {whose}, the other groups in proportion")
    figure.suptitle(title, fontsize=11)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")


def draw_rates(
    axes: Axes, rates: Sequence[float], losses: Sequence[float], smoothed: Sequence[float], marks: Mapping[str, float]
) -> None:
    """One set of axes; losses that are not finite are left out."""
    axes.plot(rates, losses, color=COLORS[0], linewidth=0.8, alpha=0.4, marker=".", label="loss of each batch")
    axes.plot(rates, smoothed, color=COLORS[0], linewidth=1.8, label="smoothed")
    for index, (label, rate) in enumerate(marks.items(), 1):
        axes.axvline(rate, color=COLORS[index], linestyle="--", linewidth=1.4, label=f"{label} {rate:.2g}")
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss (nats per token)")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    finite = [loss for loss in smoothed if math.isfinite(loss)]
    if finite:
        fall, margin = finite[0] - min(finite), MARGIN * abs(finite[0])
        axes.set_ylim(min(finite) - 0.3 * fall - margin, finite[0] + 0.3 * fall + margin)
    axes.legend(frameon=False, loc="best")
