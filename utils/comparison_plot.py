"""One picture of a comparison: losses over tokens at each best learning rate, and final losses over learning rates.

On the left a line is the mean over seeds and its band their range; the dashed line is what the baseline ended with. On
the right each optimizer's learning rates are shown as multiples of its best one, so that widths compare; a run that
diverged stands at the upper edge. A mean over the seeds that did not diverge would flatter, so a line ends where the
first of them did, and its name says so. Knows names and numbers only. To add a panel, add axes in `plot_comparison`.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from utils.plotting import COUNT, MARK, PLAIN_NUMBER, run_style

ROOM = 0.06


class Rival(NamedTuple):
    """One of those compared."""

    curves: Sequence[Sequence[tuple[int, float]]]
    """(tokens, loss) of each seed, at the same tokens as far as it goes."""
    finals: Sequence[float]
    """Final loss of each seed, infinite where it diverged."""
    grid: Sequence[tuple[float, float]]
    """(learning rate, final loss), infinite where it diverged."""
    best: float
    """Of the learning rates."""


def plot_comparison(rivals: Mapping[str, Rival], title: str, path: str | Path) -> None:
    """Draw into a PNG at `path`; the first rival is the baseline."""
    figure = Figure(figsize=(12, 5.4), dpi=130, layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_curves(left, rivals)
    draw_grids(right, rivals)
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    handles, names = left.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(len(names), 6), frameon=False)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")


def draw_curves(axes: Axes, rivals: Mapping[str, Rival]) -> None:
    """Mean and range over the seeds, without the first steep part."""
    for index, (name, rival) in enumerate(rivals.items()):
        color, style = run_style(index)
        tokens, losses = common_part(rival)
        axes.plot(tokens, losses.mean(axis=0), color=color, linestyle=style, linewidth=1.7, label=label_of(name, rival))
        axes.fill_between(tokens, losses.min(axis=0), losses.max(axis=0), color=color, alpha=0.15, linewidth=0)
    name, base = next(iter(rivals.items()))
    if not num_diverged(base):
        mark_final_loss(axes, name, float(np.mean(base.finals)))
    limit_losses(axes, rivals)
    axes.xaxis.set_major_formatter(COUNT)
    finish(axes, "validation loss, best learning rate of each", "tokens")


def common_part(rival: Rival) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of the evaluations that all seeds have, (evaluations,), and losses (seeds, evaluations)."""
    curves = [dict(curve) for curve in rival.curves]
    tokens = sorted(set(curves[0]).intersection(*curves[1:]))
    return np.array(tokens), np.array([[curve[at] for at in tokens] for curve in curves])


def label_of(name: str, rival: Rival) -> str:
    """The name, and how many seeds diverged."""
    lost = num_diverged(rival)
    return f"{name} ({lost} of {len(rival.finals)} diverged)" if lost else name


def num_diverged(rival: Rival) -> int:
    """Seeds that diverged."""
    return sum(not math.isfinite(loss) for loss in rival.finals)


def mark_final_loss(axes: Axes, name: str, loss: float) -> None:
    """The dashed line that the others are to be read against."""
    axes.axhline(loss, color="gray", linestyle="--", linewidth=1.0, zorder=0)
    axes.annotate(
        f"final loss of {name}: {loss:.3f}",
        (0.99, loss),
        xycoords=("axes fraction", "data"),
        xytext=(0, 4),
        textcoords="offset points",
        ha="right",
        fontsize=9,
        color="gray",
    )


def limit_losses(axes: Axes, rivals: Mapping[str, Rival]) -> None:
    """To where losses end and a bit above; what runs did before they diverged does not count."""
    pairs = [pair for rival in rivals.values() for pair in zip(rival.curves, rival.finals, strict=True)]
    whole = [(curve, final) for curve, final in pairs if math.isfinite(final)]
    if whole:
        lowest = min(final for _, final in whole)
        highest = max(np.quantile([loss for _, loss in curve], 0.75) for curve, _ in whole)
        highest = max(float(highest), lowest + ROOM)  # A run that was evaluated once has no range.
        axes.set_ylim(lowest - ROOM * (highest - lowest), highest)


def draw_grids(axes: Axes, rivals: Mapping[str, Rival]) -> None:
    """Final loss over the learning rate as a multiple of the best one."""
    finite = [loss for rival in rivals.values() for _, loss in rival.grid if math.isfinite(loss)]
    finish(axes, "final loss of every trial (at the upper edge: as high or higher)", "learning rate / best")
    if not finite:
        axes.text(0.5, 0.5, "every trial diverged", transform=axes.transAxes, ha="center", color="gray")
        return
    lowest = min(finite)
    top = lowest + 1.15 * (sorted(finite)[int(0.85 * (len(finite) - 1))] - lowest) + 1e-3
    for index, rival in enumerate(rivals.values()):
        color, style = run_style(index)
        rates = [rate / rival.best for rate, _ in rival.grid]
        losses = [min(loss, top) for _, loss in rival.grid]
        axes.plot(rates, losses, color=color, linestyle=style, linewidth=1.2, **MARK)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(LogLocator(base=2))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(lowest - ROOM * (top - lowest), top * 1.0005)


def finish(axes: Axes, title: str, x_label: str) -> None:
    """What both panels share."""
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel(x_label)
    axes.set_ylabel("nats per token")
    axes.yaxis.set_major_formatter(PLAIN_NUMBER)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
