"""The rows of one window: its documents cut into pieces, packed, put into a random order, and copied into arrays.

Planning knows lengths only, so it can run ahead to count rows or to find a position without reading a token. The
tokens of a window are read once, in the order of the disk, into one small array; from there rows are filled in any
order by any thread. To change which pieces share a row, see `data/packing.py`; which documents come, `data/mixture.py`.
"""

from typing import NamedTuple

import numpy as np

from data.fill_in_the_middle import NUM_SENTINELS, FillInTheMiddleConfig, Sentinels, rearrange
from data.mixture import Window
from data.order import ROW_STREAM, permutation
from data.packing import PackingConfig
from data.store import StoredDocuments


class RowSettings(NamedTuple):
    """What rows depend on besides their documents."""

    row_length: int
    packing: PackingConfig
    seed: int | None
    """None: the rows of a window stay in the order in which they were packed (validation)."""
    fill_in_the_middle: FillInTheMiddleConfig | None = None
    sentinels: Sentinels | None = None


class PieceInfo(NamedTuple):
    """One piece of a row and where it comes from."""

    source: int
    document: int
    """Its number among the stored documents of the source."""
    ordinal: int
    """Its number in the source as it was read, dropped documents counted."""
    start: int
    """The first token of the piece in the stored document."""
    length: int
    """(input, target) pairs of the document; in the row 3 more when `transformed`."""
    epoch: int
    """How often the source had been passed through before."""
    transformed: bool
    """Whether it was rearranged to fill in the middle."""


class WindowRows:
    """R planned rows with P pieces; the arrays [P] hold one entry per piece, row after row."""

    def __init__(self, window: Window, lengths: np.ndarray, settings: RowSettings, first_row: int) -> None:
        """`lengths` [D]: stored tokens of each document. `first_row`: global number of the window's first row."""
        self.settings = settings
        fim, length = settings.fill_in_the_middle, settings.row_length
        longest = length - NUM_SENTINELS if fim else length
        self._window, self._num_pairs = window, lengths - 1
        pieces = settings.packing.cut(self._num_pairs, length, longest)
        sizes, cuts = pieces.lengths, None
        if fim:
            assert settings.seed is not None
            origins = (*(array[pieces.documents] for array in window), pieces.starts)
            cuts = fim.choose(settings.seed, origins)
            sizes = sizes + NUM_SENTINELS * cuts.transformed
        layout = settings.packing.pack(sizes, length)
        self.num_rows = len(layout.row_starts) - 1
        order, self.row_starts = layout
        if settings.seed is not None:
            rows = permutation(self.num_rows, settings.seed, ROW_STREAM, first_row)
            order, self.row_starts = reorder(order, self.row_starts, rows)
        self._documents = pieces.documents[order]
        self.sources, self.starts, self.sizes = window.sources[self._documents], pieces.starts[order], sizes[order]
        self._cuts = None if cuts is None else cuts.at(order)
        self._before = np.cumsum(self.sizes) - self.sizes
        self._tokens: np.ndarray | None = None

    def load(self, stored: StoredDocuments) -> None:
        """Read the tokens; needed before `fill`. Raises DataError when a file is damaged."""
        self._tokens, first_tokens = stored.read(self._window.sources, self._window.documents)
        self._firsts = first_tokens[self._documents] + self.starts

    def count(self, first: int, stop: int, num_sources: int) -> np.ndarray:
        """[num_sources] int64: the real pairs of each source in the rows `first` to `stop`."""
        places = slice(*self.row_starts[[first, stop]])
        return np.bincount(self.sources[places], self.sizes[places], num_sources).astype(np.int64)

    def describe(self, row: int, stored: StoredDocuments) -> list[PieceInfo]:
        """The pieces of a row of the window, from left to right."""
        places = slice(*self.row_starts[row : row + 2])
        chosen = self._documents[places]
        sources, documents, epochs = (np.asarray(array)[chosen].tolist() for array in self._window)
        starts, transformed = self.starts[places].tolist(), self._transformed(places)
        lengths = (self.sizes[places] - NUM_SENTINELS * transformed).tolist()
        ordinals = [int(stored.ordinals(s, np.array([d]))[0]) for s, d in zip(sources, documents, strict=True)]
        rows = zip(sources, documents, ordinals, starts, lengths, epochs, transformed.tolist(), strict=True)
        return [PieceInfo(*values) for values in rows]

    def fill(self, first: int, tokens: np.ndarray, targets: np.ndarray, segments: np.ndarray) -> None:
        """Write the rows from `first` on into three zeroed, contiguous int32 arrays [B, L]."""
        assert self._tokens is not None
        num_rows, length = tokens.shape
        low, high = self.row_starts[first], self.row_starts[first + num_rows]
        counts = np.diff(self.row_starts[first : first + num_rows + 1])
        rows = np.repeat(np.arange(num_rows), counts)
        heads = self.row_starts[first : first + num_rows]
        sizes = self.sizes[low:high]
        begins = rows * length + self._before[low:high] - self._before[heads][rows]
        flat, source, firsts = tokens.reshape(-1), self._tokens, self._firsts[low:high]
        transformed = self._transformed(slice(low, high))
        columns = (begins.tolist(), np.where(transformed, 0, sizes).tolist(), firsts.tolist())
        for begin, size, token in zip(*columns, strict=True):
            flat[begin : begin + size] = source[token : token + size]
        ends = source[np.where(transformed, 0, firsts + sizes)]  # Targets of last pairs, which are no inputs.
        for place in np.flatnonzero(transformed).tolist():
            told = self._rearranged(low + place)
            flat[begins[place] : begins[place] + sizes[place]] = told[:-1]
            ends[place] = told[-1]
        targets[:, :-1] = tokens[:, 1:]
        targets.reshape(-1)[begins + sizes - 1] = ends
        segments.reshape(-1)[begins] = 1
        filled = np.bincount(rows, sizes, num_rows).astype(np.int64)
        np.cumsum(segments, axis=1, out=segments)
        segments *= np.arange(length) < filled[:, None]

    def _transformed(self, places: slice) -> np.ndarray:
        return np.zeros(len(self.sizes[places]), bool) if self._cuts is None else self._cuts.transformed[places]

    def _rearranged(self, place: int) -> np.ndarray:
        """The tokens of a transformed piece as they are told: one more than its pairs."""
        assert self._tokens is not None
        assert self._cuts is not None
        assert self.settings.sentinels is not None
        first, start = self._firsts[place], self.starts[place]
        length = self.sizes[place] - NUM_SENTINELS
        is_last = bool(start + length == self._num_pairs[self._documents[place]])
        tokens = self._tokens[first : first + length + 1]
        points, suffix_first = self._cuts.points[place], bool(self._cuts.suffix_first[place])
        return rearrange(tokens, bool(start == 0), is_last, points, suffix_first, self.settings.sentinels)


def reorder(order: np.ndarray, row_starts: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same rows in the order `rows`: places [P] and where each row starts [R + 1]."""
    counts = np.diff(row_starts)[rows]
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return order[np.repeat(row_starts[:-1][rows] - starts[:-1], counts) + np.arange(len(order))], starts
