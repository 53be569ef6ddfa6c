"""The sequence of global rows: windows of documents, one after the other, packed into rows; for training, without end.

A position is JSON: how many rows were given, the mixture's state before the window in use, and how many rows of that
window are used up. To go on there is to plan one window, however far the run is. Nothing here knows of ranks or
threads, so neither can change the order. To count or find rows, nothing but lengths is read.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from data.batch import Batch
from data.mixture import Window
from data.rows import RowSettings, WindowRows
from data.store import StoredDocuments
from utils.errors import CheckpointError

State = dict[str, Any]
"""A position. `row`: global rows given so far; `epoch`: whole epochs of the mixture before the window in use; `tokens`:
pairs given so far, by source; `window`: the mixture's state before that window, null at the start; `within`: rows of it
given."""

FindWindows = Callable[[State | None], Iterator[tuple[Window, State]]]
"""The windows behind a state of theirs (None: from the start), each with the state behind it, which holds "epoch"."""


class Part(NamedTuple):
    """The rows `first` to `stop` of a window."""

    rows: WindowRows
    first: int
    stop: int


class Take(NamedTuple):
    """Consecutive global rows, not yet filled."""

    parts: list[Part]
    first_row: int
    """Global number of the first."""
    state: State
    """The position behind the last."""

    @property
    def num_rows(self) -> int:
        """Rows there are: fewer than asked for where the mixture ends."""
        return sum(part.stop - part.first for part in self.parts)


class Opened(NamedTuple):
    """A planned window, and the mixture's states around it."""

    rows: WindowRows
    before: State | None
    after: State


class RowStream:
    """The rows of one split. Which documents come is up to `find_windows`, `Mixture.windows` for training."""

    def __init__(self, find_windows: FindWindows, stored: StoredDocuments, settings: RowSettings) -> None:
        self.find_windows, self.stored, self.settings = find_windows, stored, settings

    def start(self) -> State:
        """The position before the first row."""
        return {"row": 0, "epoch": 0, "tokens": [0] * len(self.stored.num_documents), "window": None, "within": 0}

    def windows(self, state: State | None = None, load: bool = False) -> Iterator[Opened]:
        """The windows from the one in use at `state` on, with their tokens where `load` says so."""
        state = state or self.start()
        before, first_row = state["window"], state["row"] - state["within"]
        for window, after in self.find_windows(before):
            rows = WindowRows(window, self._lengths(window.sources, window.documents), self.settings, first_row)
            if load:
                rows.load(self.stored)
            yield Opened(rows, before, after)
            before, first_row = after, first_row + rows.num_rows

    def _lengths(self, sources: np.ndarray, documents: np.ndarray) -> np.ndarray:
        lengths = np.empty(len(documents), np.int64)
        for source in np.unique(sources):
            chosen = sources == source
            lengths[chosen] = self.stored.lengths(int(source), documents[chosen])
        return lengths

    def takes(self, sizes: Iterable[int], state: State | None = None, load: bool = False) -> Iterator[Take]:
        """The next rows behind `state` (None: from the start), `sizes` at a time.

        Where the mixture ends, the last take is shorter, its state counts the rows that are missing as given, and the
        iterator ends. Raises CheckpointError for a state that is not one.
        """
        state = state or self.start()
        if state.keys() != self.start().keys():
            raise CheckpointError(
                f"the run's place in the data holds {sorted(state)}, expected {sorted(self.start())}: it was saved by "
                "another version; start a new run from its weights (init_from)"
            )
        tokens, row, within, before = np.array(state["tokens"]), state["row"], state["within"], state["window"]
        windows, opened = self.windows(state, load), None
        for size in sizes:
            parts, missing = [], size
            while missing and (opened := opened or next(windows, None)):
                stop = min(within + missing, opened.rows.num_rows)
                parts.append(Part(opened.rows, within, stop))
                tokens = tokens + opened.rows.count(within, stop, len(tokens))
                missing, within, before = missing - (stop - within), stop, opened.before
                if stop == opened.rows.num_rows:
                    within, before, opened = 0, opened.after, None
            if not parts:
                return
            row += size
            epoch = before["epoch"] if before else 0
            behind = {"row": row, "epoch": epoch, "tokens": tokens.tolist(), "window": before, "within": within}
            yield Take(parts, row - size, behind)


def documents_in_order(stored: StoredDocuments, window_tokens: int) -> FindWindows:
    """Windows of about so many tokens that hold every document once, in the order in which they are stored."""
    ends = np.cumsum([0, *stored.num_documents])
    size = int(max(1, window_tokens * ends[-1] // max(1, sum(stored.num_tokens))))

    def find_windows(state: State | None) -> Iterator[tuple[Window, State]]:
        for first in range(state["document"] if state else 0, int(ends[-1]), size):
            numbers = np.arange(first, min(first + size, ends[-1]))
            sources = np.searchsorted(ends, numbers, side="right") - 1
            window = Window(sources, numbers - ends[sources], np.zeros(len(numbers), np.int64))
            yield window, {"epoch": 0, "document": int(numbers[-1]) + 1}

    return find_windows


def part_of(parts: list[Part], first: int, count: int) -> list[Part]:
    """`count` rows of these parts from the row `first` on, counted over all of them; fewer where they end."""
    chosen, begin = [], 0
    for rows, low, high in parts:
        start, stop = max(low, low + first - begin), min(high, low + first + count - begin)
        if start < stop:
            chosen.append(Part(rows, start, stop))
        begin += high - low
    return chosen


def fill_batch(parts: list[Part], keys: np.ndarray, row_length: int) -> Batch:
    """The rows of `parts`, whose windows are loaded, with their keys [B, 2]; missing rows are padding."""
    tokens, targets, segments = (np.zeros((len(keys), row_length), np.int32) for _ in range(3))
    begin = 0
    for rows, first, stop in parts:
        end = begin + stop - first
        rows.fill(first, tokens[begin:end], targets[begin:end], segments[begin:end])
        begin = end
    return Batch(tokens, targets, (segments > 0).astype(np.float32), segments, keys)
