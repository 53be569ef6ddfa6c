"""The picture of the data: what is drawn is what was given, many sources become few, odd input does not break it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from utils.data_plot import (
    GRAY,
    MOST_SOURCES,
    PALETTE,
    DataPicture,
    bins_of,
    colors_of,
    draw_batch,
    draw_left_out,
    draw_lengths,
    draw_mixture,
    fold,
    plot_data,
    shorten,
)

NAN = float("nan")


def picture_of(num_sources: int = 2, **changes: Any) -> DataPicture:
    """Documents of 2, 4 and 8 tokens; a batch of two rows; a run of ten updates, of which six were looked at."""
    sources = np.arange(num_sources)
    counts = [np.array([1, 5, 2]) + source for source in sources]
    shares = np.full((2, num_sources), 1 / num_sources)
    values: dict[str, Any] = {
        "title": "a run",
        "names": [f"source{source}" for source in sources],
        "lengths": [(np.array([2, 4, 8]) * (1 + source), counts[source]) for source in sources],
        "row_length": 4,
        "batch_title": "batch",
        "sources": np.array([[0, 0, num_sources - 1, -1], [num_sources - 1, 0, 0, 0]]),
        "segments": np.array([[1, 1, 2, 0], [1, 2, 2, 3]]),
        "step": 3,
        "asked": (np.array([0, 5, 10]), shares),
        "observed": (np.array([0, 2, 6]), shares),
        "left_out": {"too_short": [3] * num_sources, "held_out": [1] * num_sources, "never": [0] * num_sources},
        "num_read": 100,
    }
    return DataPicture(**(values | changes))


def axes_of() -> Any:
    return Figure().subplots()


def test_lengths_are_drawn_from_the_first_source_on_top_to_the_last() -> None:
    axes = axes_of()
    draw_lengths(axes, picture_of())
    filled = [patch for patch in axes.patches if patch.get_fill()]
    assert [patch.get_data().baseline for patch in filled] == [0, 1]
    for line, source in enumerate((1, 0)):
        values, edges, _ = filled[line].get_data()
        lengths, counts = picture_of().lengths[source]
        heights = np.histogram(np.repeat(lengths, counts), edges)[0]
        np.testing.assert_allclose(values - line, 0.85 * heights / heights.max())
        assert heights.sum() == counts.sum()
        assert to_rgb(filled[line].get_facecolor()) == to_rgb(PALETTE[source])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["source1 (11)", "source0 (8)"]
    medians = [float(line.get_xdata()[0]) for line in axes.lines[:2]]
    assert medians == [8.0, 4.0]
    assert axes.texts[0].get_text() == "row: 4"


def test_the_bar_is_at_the_median() -> None:
    axes = axes_of()
    draw_lengths(axes, picture_of(1, lengths=[(np.array([2, 4, 8]), np.array([5, 6, 1]))]))
    assert float(axes.lines[0].get_xdata()[0]) == 4.0


def test_every_length_falls_into_a_bin_of_at_least_a_token() -> None:
    for low, high in ((2, 2), (2, 9), (5, 100_000), (300, 301)):
        edges = bins_of(low, high)
        assert edges[0] < low <= high < edges[-1]
        assert (np.diff(edges) >= 1).all()


def test_a_piece_has_the_color_of_its_source_and_padding_is_white() -> None:
    axes = axes_of()
    draw_batch(axes, picture_of())
    image = axes.images[0].get_array()
    rows = image.reshape(2, -1, 4, 3)
    assert (rows == rows[:, :1]).all()
    first, second = (np.array(to_rgb(color)) for color in PALETTE[:2])
    lighter = [0.55 * color + 0.45 for color in (first, second)]
    expected = [[first, first, lighter[1], np.ones(3)], [second, lighter[0], lighter[0], first]]
    np.testing.assert_allclose(rows[:, 0], expected)


def test_only_the_first_rows_of_a_large_batch_are_drawn() -> None:
    axes = axes_of()
    draw_batch(axes, picture_of(sources=np.zeros((300, 4), int), segments=np.ones((300, 4), int)))
    assert axes.get_ylabel() == "row (the first 64 of 300)"
    assert axes.get_ylim() == (64.5, 0.5)


def test_the_mixture_is_a_stack_of_shares_and_borders_are_those_asked_for() -> None:
    axes = axes_of()
    observed = (np.array([0, 2, 6]), np.array([[0.25, 0.5, 0.25], [1.0, 0.0, 0.0]]))
    asked = (np.array([0, 5, 10]), np.array([[0.2, 0.3, 0.5], [0.0, 0.5, 0.5]]))
    draw_mixture(axes, picture_of(3, observed=observed, asked=asked))
    drawn = [patch.get_data() for patch in axes.patches]
    np.testing.assert_allclose([data.values for data in drawn[:3]], [[0.25, 1], [0.75, 1], [1, 1]])
    np.testing.assert_allclose([data.values for data in drawn[3:]], [[0.2, 0.0], [0.5, 0.5]])
    assert [tuple(data.edges) for data in drawn] == [(0, 2, 6)] * 3 + [(0, 5, 10)] * 2
    assert axes.get_xlim() == (0, 10)
    assert axes.texts[0].get_text() == "step 3"


def test_reasons_are_ordered_and_counted() -> None:
    axes = axes_of()
    draw_left_out(axes, picture_of())
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["too short", "held out"]
    assert [text.get_text().strip() for text in axes.texts] == ["6 (6.0%)", "2 (2.0%)"]
    assert [bar.get_width() for bar in axes.patches] == [3, 1, 3, 1]
    assert [bar.get_x() for bar in axes.patches] == [0, 0, 3, 1]
    assert axes.get_yticks()[0] > axes.get_yticks()[1]


def test_rare_reasons_become_one() -> None:
    axes = axes_of()
    draw_left_out(axes, picture_of(1, left_out={f"reason{number}": [100 - number] for number in range(15)}))
    assert len(axes.get_yticklabels()) == 13
    assert axes.get_yticklabels()[-1].get_text() == "3 others"
    assert axes.texts[-1].get_text().split()[0] == str(88 + 87 + 86)


@pytest.mark.parametrize(("left_out", "text"), [({}, "every document"), ({"x": [0, 0]}, "every"), (None, "not known")])
def test_where_nothing_is_left_out_a_sentence_says_so(left_out: dict[str, list[int]] | None, text: str) -> None:
    axes = axes_of()
    draw_left_out(axes, picture_of(left_out=left_out))
    assert text in axes.texts[0].get_text()
    assert not axes.patches


def test_the_smallest_of_many_sources_become_one() -> None:
    num_sources = MOST_SOURCES + 3
    whole = picture_of(num_sources)
    sources = np.array([[*range(num_sources), -1]])
    folded = fold(whole._replace(sources=sources, segments=np.ones_like(sources)))
    assert folded.names == [*whole.names[3:], "3 others"]  # Documents get longer from source to source.
    assert folded.sources.tolist() == [[12, 12, 12, *range(12), -1]]
    values, counts = folded.lengths[-1]
    assert values.tolist() == sorted(values.tolist())
    together = sorted(np.concatenate([np.repeat(*each) for each in whole.lengths[:3]]).tolist())
    assert np.repeat(values, counts).tolist() == together
    for course in (folded.asked, folded.observed):
        np.testing.assert_allclose(course[1][0], [1 / num_sources] * MOST_SOURCES + [3 / num_sources])
    assert folded.left_out is not None
    assert folded.left_out["too_short"] == [3.0] * MOST_SOURCES + [9.0]
    assert colors_of(folded.names)[-1] == GRAY
    assert len(set(colors_of(folded.names))) == MOST_SOURCES + 1
    assert fold(picture_of(MOST_SOURCES)).names == picture_of(MOST_SOURCES).names


def test_long_names_keep_beginning_and_end() -> None:
    assert shorten("x" * 26) == "x" * 26
    assert shorten("abc" + "x" * 50 + "yz", 9) == "abc...xyz"


def odd_pictures() -> Iterator[DataPicture]:
    none = (np.zeros(0, int), np.zeros(0, int))
    yield picture_of()
    yield picture_of(1)
    yield picture_of(15, names=["a long $name_ with { and \\ of " + "x" * number for number in range(15)])
    yield picture_of(1, lengths=[none], left_out=None)
    yield picture_of(2, lengths=[none, (np.array([7]), np.array([1]))], sources=np.full((2, 4), -1))
    yield picture_of(2, asked=(np.array([0, 1]), np.array([[NAN, NAN]])), observed=(np.array([0]), np.zeros((0, 2))))
    yield picture_of(2, sources=np.zeros((1, 1), int), segments=np.ones((1, 1), int), step=10)


@pytest.mark.parametrize("picture", odd_pictures())
def test_a_png_is_written_into_a_new_folder(tmp_path: Path, picture: DataPicture) -> None:
    path = tmp_path / "new" / "picture.png"
    plot_data(picture, path)
    pixels = matplotlib.image.imread(path)
    assert pixels.shape[:2] == (1080, 1680)
    assert len(np.unique((255 * pixels[..., :3]).astype(np.int64) @ [65536, 256, 1])) > 50
