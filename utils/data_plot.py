"""One picture of what a run trains on: lengths of documents, a batch as a map, the mixture, what was left out and why.

Every source keeps its color in all panels. Lengths have a baseline for each source, since a dozen outlines on top of
each other cannot be told apart; the mixture is a stack, whose borders can. More than `MOST_SOURCES` sources are too
many colors: the smallest become one, in gray. Knows names and numbers only. To add a panel, add axes in `plot_data`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from utils.plotting import COLORS, COUNT, LineStyle
from utils.units import format_count

PALETTE = (*COLORS[:7], "#e3b505", "#7f3b08", "#86b83a", "#ee8fb0", "#27408b")
MOST_SOURCES = len(PALETTE)
GRAY = "#8c8c8c"
NUM_BINS = 48
MOST_ROWS = 64
"""Rows of the batch that are drawn."""
MOST_REASONS = 12
NAME_LETTERS = 26
PERCENT = FuncFormatter(lambda value, _: f"{100 * value:g} %")


class DataPicture(NamedTuple):
    """What is drawn; S sources."""

    title: str
    names: Sequence[str]
    """[S]"""
    lengths: Sequence[tuple[np.ndarray, np.ndarray]]
    """[S]: rising lengths in tokens, and how many documents have each."""
    row_length: int
    batch_title: str
    sources: np.ndarray
    """[B, L]: the source of each position, -1 where nothing is learned."""
    segments: np.ndarray
    """[B, L]: the piece of the row that each position belongs to."""
    step: int
    """The update whose batch this is."""
    asked: tuple[np.ndarray, np.ndarray]
    """Edges [P + 1] in updates, and shares [P, S]."""
    observed: tuple[np.ndarray, np.ndarray]
    """The same; may end before."""
    left_out: Mapping[str, Sequence[float]] | None
    """Documents [S] by reason; None: not known."""
    num_read: int
    """Documents of all sources."""


def plot_data(picture: DataPicture, path: str | Path) -> None:
    """Draw into a PNG at `path`. Raises OSError."""
    picture = fold(picture)
    figure = Figure(figsize=(14, 9), dpi=120, layout="constrained")
    (lengths, batch), (mixture, left_out) = figure.subplots(2, 2)
    draw_lengths(lengths, picture)
    draw_batch(batch, picture)
    draw_mixture(mixture, picture)
    draw_left_out(left_out, picture)
    figure.suptitle(picture.title, fontsize=12, x=0.01, ha="left")
    colors = colors_of(picture.names)
    handles = [Patch(color=color, label=shorten(name)) for name, color in zip(picture.names, colors, strict=True)]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 5), frameon=False)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")


def fold(picture: DataPicture) -> DataPicture:
    """The picture with at most MOST_SOURCES sources besides one that stands for all others."""
    num_others = len(picture.names) - MOST_SOURCES
    if num_others <= 0:
        return picture
    sizes = [float(np.dot(values, counts)) for values, counts in picture.lengths]
    largest = sorted(sorted(range(len(sizes)), key=lambda source: -sizes[source])[:MOST_SOURCES])
    others = [source for source in range(len(sizes)) if source not in largest]
    place = np.full(len(sizes) + 1, MOST_SOURCES)
    place[largest], place[-1] = range(MOST_SOURCES), -1  # -1, no source, stays what it is.

    def add_up(values: Any) -> np.ndarray:
        array = np.asarray(values, float)
        return np.concatenate([array[..., largest], array[..., others].sum(axis=-1, keepdims=True)], axis=-1)

    values, counts = (np.concatenate([picture.lengths[source][part] for source in others]) for part in (0, 1))
    order = np.argsort(values, kind="stable")
    left_out = picture.left_out
    return picture._replace(
        names=[*(picture.names[source] for source in largest), f"{num_others} others"],
        lengths=[*(picture.lengths[source] for source in largest), (values[order], counts[order])],
        sources=place[picture.sources],
        asked=(picture.asked[0], add_up(picture.asked[1])),
        observed=(picture.observed[0], add_up(picture.observed[1])),
        left_out=left_out and {reason: add_up(counts).tolist() for reason, counts in left_out.items()},
    )


def colors_of(names: Sequence[str]) -> list[str]:
    """A color for each source; gray for the one beyond the palette."""
    return [*PALETTE, GRAY][: len(names)]


def shorten(name: str, most: int = NAME_LETTERS) -> str:
    """Beginning and end of a long name: where paths and data sets differ."""
    half = (most - 3) // 2
    return name if len(name) <= most else f"{name[: most - 3 - half]}...{name[-half:]}"


def draw_lengths(axes: Axes, picture: DataPicture) -> None:
    """A histogram for each source on a baseline of its own, as high as its fullest bin."""
    title(axes, "length of documents by source, and how many there are")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(COUNT)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("stored tokens (bar: median)")
    values = np.concatenate([values for values, _ in picture.lengths])
    low, high = (values.min(), values.max()) if len(values) else (2, picture.row_length)
    edges = bins_of(min(low, picture.row_length), max(high, picture.row_length))
    names = list(zip(picture.names, picture.lengths, colors_of(picture.names), strict=True))
    for line, (_, (values, counts), color) in enumerate(reversed(names)):
        heights = np.histogram(values, edges, weights=counts)[0]
        if not heights.any():
            continue
        heights = 0.85 * heights / heights.max()
        axes.stairs(line + heights, edges, baseline=line, fill=True, color=color, alpha=0.45)
        axes.stairs(line + heights, edges, baseline=line, color=color, linewidth=1.0)
        median = values[np.searchsorted(np.cumsum(counts), 0.5 * np.sum(counts))]
        axes.plot([median, median], [line, line + 0.85], color=color, linewidth=2.2, solid_capstyle="butt")
    labels = [f"{shorten(name)} ({format_count(sum(counts))})" for name, (_, counts), _ in names]
    axes.set_yticks(np.arange(len(names)) + 0.4, reversed(labels), fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(0, 1.05 * len(names) + 0.1)
    mark(axes, picture.row_length, f"row: {picture.row_length:,}", "--")


def bins_of(low: float, high: float) -> np.ndarray:
    """Edges of bins that grow evenly on a logarithmic axis; none is narrower than one token."""
    exact = np.geomspace(low, high + 1, NUM_BINS + 1)
    return np.unique(exact.round()) - 0.5


def draw_batch(axes: Axes, picture: DataPicture) -> None:
    """A row of the picture for each row of the batch; a piece is lighter than its neighbours, padding is white."""
    title(axes, picture.batch_title)
    sources, segments = picture.sources[:MOST_ROWS], picture.segments[:MOST_ROWS]
    dark = np.array([to_rgb(color) for color in colors_of(picture.names)])
    shades = np.stack([dark, 0.55 * dark + 0.45])
    image = np.where(sources[..., None] < 0, 1.0, shades[(segments - 1) % 2, sources])
    num_rows, length = sources.shape
    # Rows never blend; positions do where they are narrower than a dot.
    image, blend = np.repeat(image, -(-1000 // num_rows), axis=0), "nearest" if length <= 1000 else "antialiased"
    axes.imshow(image, aspect="auto", extent=(0, length, num_rows + 0.5, 0.5), interpolation=blend)
    axes.hlines(np.arange(1, num_rows) + 0.5, 0, length, color="white", linewidth=0.6)
    axes.yaxis.set_major_locator(MaxNLocator(10, integer=True))
    axes.set_xlabel("position (neighbouring pieces differ in shade; white: not learned)")
    few = len(picture.sources) > MOST_ROWS
    axes.set_ylabel(f"row (the first {MOST_ROWS} of {len(picture.sources):,})" if few else "row")


def draw_mixture(axes: Axes, picture: DataPicture) -> None:
    """The observed shares as a stack, the borders that were asked for as lines over the whole run."""
    title(axes, "mixture along the run (areas: observed, lines: asked for)")
    edges, shares = picture.observed
    tops = np.cumsum(np.nan_to_num(shares), axis=1)
    for source, color in enumerate(colors_of(picture.names) if len(shares) else []):
        below = tops[:, source - 1] if source else np.zeros(len(tops))
        axes.stairs(tops[:, source], edges, baseline=below, fill=True, color=color, alpha=0.75, linewidth=0)
    edges, shares = picture.asked
    for border in np.cumsum(shares, axis=1).T[:-1]:
        axes.stairs(border, edges, baseline=None, color="black", linewidth=1.0)
    axes.set_xlim(0, max(1, edges[-1]))
    axes.set_ylim(0, 1)
    mark(axes, picture.step - 0.5, f"step {picture.step:,}", ":")
    axes.yaxis.set_major_formatter(PERCENT)
    axes.xaxis.set_major_formatter(COUNT)
    axes.set_xlabel("updates")
    axes.set_ylabel("share of the tokens")


def draw_left_out(axes: Axes, picture: DataPicture) -> None:
    """A bar for each reason, the most frequent on top."""
    title(axes, "documents that are not trained on, by reason")
    counts = {reason: np.asarray(each, float) for reason, each in (picture.left_out or {}).items() if sum(each)}
    if not counts:
        known = picture.left_out is not None
        text = "every document is trained on" if known else "not known: the data holds no report of its preparation"
        axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", color="gray")
        axes.set_axis_off()
        return
    ordered = sorted(counts, key=lambda reason: -counts[reason].sum())
    shown = {reason: counts[reason] for reason in ordered[:MOST_REASONS]}
    if rest := ordered[MOST_REASONS:]:
        shown[f"{len(rest)} others"] = np.sum([counts[reason] for reason in rest], axis=0)
    places = np.arange(len(shown))[::-1]
    stack, begins = np.array(list(shown.values())), np.zeros(len(shown))
    for source, color in enumerate(colors_of(picture.names)):
        axes.barh(places, stack[:, source], 0.7, left=begins, color=color)
        begins = begins + stack[:, source]
    for place, total in zip(places, begins, strict=True):
        share = f" {total:,.0f} ({total / max(1, picture.num_read):.1%})"
        axes.annotate(share, (total, place), va="center", fontsize=9)
    axes.set_yticks(places, [shorten(reason.replace("_", " ")) for reason in shown], fontsize=9)
    axes.set_ylim(len(shown) - max(len(shown), 5) - 0.6, len(shown) - 0.4)
    axes.set_xlim(0, 1.3 * begins.max())
    axes.xaxis.set_major_formatter(COUNT)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel(f"documents, of {picture.num_read:,} read")


def mark(axes: Axes, place: float, text: str, style: LineStyle) -> None:
    """A line across the panel and a word beside it, on the side that has room."""
    axes.axvline(place, color="black", linestyle=style, linewidth=1.2)
    share = axes.transAxes.inverted().transform(axes.transData.transform((place, 0.0)))[0]
    side, shift = ("left", 4) if share < 0.6 else ("right", -4)
    axes.annotate(
        text,
        (place, 1.0),
        xytext=(shift, -4),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        va="top",
        ha=side,
        fontsize=8,
        bbox={"boxstyle": "square,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
    )


def title(axes: Axes, text: str) -> None:
    """What all panels share."""
    axes.set_title(text, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
