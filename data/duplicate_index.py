"""An index on disk from keys to rows: which of the rows seen so far share the key of a column with a new one?

datasketch keeps its index in memory or in a database server. Here each column is kept as sorted runs of 64-bit numbers,
key above, number of the row below; new rows make a small run, runs of like size are merged, large ones lie in files
(a log-structured merge, O'Neil et al., 1996). Looking up is a binary search for many sorted keys at once, writing is
sequential; a B-tree would be written all over for every row. Memory: a column of two runs, at most 32 MB, and 20 MB of
small runs, however many rows there are (2^32 at most). To trade lookups against merging, edit `Index.add`.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

BUCKET = 32
"""Rows found at most by one key of one column. Where more share a key, it tells little: a template, a licence."""
ROWS_IN_MEMORY, ROWS_IN_RUN = 1 << 16, 1 << 21
SHIFT, LOW = np.uint64(32), np.uint64(0xFFFFFFFF)


class Found(NamedTuple):
    """What the index holds for new rows: pairs, each once, in order."""

    news: np.ndarray
    """int64 [N]: number of the new row, in the batch asked for."""
    rows: np.ndarray
    """int64 [N]: a row of the index that shares a key with it."""
    counts: np.ndarray
    """int64 [D, C]: how many rows lie under each key."""


class Run:
    """Sorted columns uint64 [*] of some rows: in memory, or at `path` when there are many rows."""

    def __init__(self, columns: Iterable[np.ndarray], num_rows: int, path: Path) -> None:
        self.num_rows = num_rows
        self._columns: list[np.ndarray] | None = None
        self._path, self._starts = path, [0]
        if num_rows <= ROWS_IN_MEMORY:
            self._columns = list(columns)
            return
        with path.open("wb") as file:
            for column in columns:
                column.tofile(file)
                self._starts.append(self._starts[-1] + len(column))

    def column(self, number: int) -> np.ndarray:
        """A column; of a file mapped anew, so that what was read does not stay in memory."""
        if self._columns is not None:
            return self._columns[number]
        start, end = self._starts[number : number + 2]
        if start == end:  # nothing cannot be mapped
            return np.empty(0, np.uint64)
        return np.memmap(self._path, np.uint64, "r", offset=8 * start, shape=(end - start,))

    def remove(self) -> None:
        """Delete its file."""
        if self._columns is None:
            self._path.unlink()


class Index:
    """Rows uint32 [*, W] in a file, and their keys in runs. OSError when the disk is full or not to be written on."""

    def __init__(self, folder: Path, num_columns: int, row_width: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.num_rows = 0
        self.num_left_out = 0
        self._folder, self._num_columns, self._row_width = folder, num_columns, row_width
        self._runs: list[Run] = []
        self._num_runs = 0
        self._path = folder / "rows.bin"
        self._file = self._path.open("w+b", buffering=0)

    def find(self, keys: np.ndarray) -> Found:
        """What shares a key with keys uint32 [D, C], column by column."""
        counts = np.zeros(keys.shape, np.int64)
        pairs = [np.empty(0, np.uint64)]
        for number in range(self._num_columns):
            order = np.argsort(keys[:, number])
            wanted = keys[order, number].astype(np.uint64) << SHIFT
            for run in self._runs:
                news, rows = search(run.column(number), wanted)
                counts[:, number] += np.bincount(order[news], minlength=len(keys))
                pairs.append(order[news].astype(np.uint64) << SHIFT | rows)
        unique = np.unique(np.concatenate(pairs))
        return Found((unique >> SHIFT).astype(np.int64), (unique & LOW).astype(np.int64), counts)

    def read(self, numbers: np.ndarray) -> np.ndarray:
        """uint32 [N, W]: the rows of these numbers, which may repeat."""
        unique, places = np.unique(numbers, return_inverse=True)
        size = 4 * self._row_width
        # Not a map: its pages would count as memory of ours, 64 kB for every row of 0.6 kB.
        read = [os.pread(self._file.fileno(), size, size * number) for number in unique.tolist()]
        return np.frombuffer(b"".join(read), np.uint32).reshape(-1, self._row_width)[places]

    def add(self, rows: np.ndarray, keys: np.ndarray, is_entered: np.ndarray) -> None:
        """Append rows uint32 [D, W], to be found by those keys uint32 [D, C] that `is_entered` bool [D, C] marks."""
        if not len(rows):
            return
        write_all(self._file.fileno(), rows.tobytes())
        numbers = np.arange(self.num_rows, self.num_rows + len(rows), dtype=np.uint64)
        entries = keys.astype(np.uint64) << SHIFT | numbers[:, None]
        columns = (np.sort(entries[is_entered[:, number], number]) for number in range(self._num_columns))
        self._runs.append(Run(columns, len(rows), self._next_path()))
        self.num_rows += len(rows)
        self.num_left_out += int((~is_entered).sum())
        while len(self._runs) > 1 and self._is_due(*self._runs[-2:]):
            self._merge(*self._runs[-2:])

    def _is_due(self, older: Run, newer: Run) -> bool:
        return older.num_rows < 2 * newer.num_rows and older.num_rows + newer.num_rows <= ROWS_IN_RUN

    def _merge(self, older: Run, newer: Run) -> None:
        both = ((older.column(number), newer.column(number)) for number in range(self._num_columns))
        columns = (np.sort(np.concatenate(columns)) for columns in both)
        self._runs[-2:] = [Run(columns, older.num_rows + newer.num_rows, self._next_path())]
        older.remove()
        newer.remove()

    def _next_path(self) -> Path:
        self._num_runs += 1
        return self._folder / f"run-{self._num_runs:08d}.bin"

    def close(self) -> None:
        """Delete the files."""
        self._file.close()
        self._path.unlink()
        for run in self._runs:
            run.remove()


def search(column: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places in `wanted` (sorted uint64 [D], key above, zeros below) and rows uint64 under that key, all pairs [N]."""
    starts = np.searchsorted(column, wanted)
    hits = np.flatnonzero(starts < len(column))
    hits = hits[column[starts[hits]] & ~LOW == wanted[hits]]
    starts = starts[hits]
    lengths = np.searchsorted(column, wanted[hits] | LOW) - starts
    # 0, 1, ... lengths[i] - 1 behind each start.
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return np.repeat(hits, lengths), column[np.repeat(starts, lengths) + within] & LOW


def write_all(descriptor: int, content: bytes) -> None:
    """Append bytes; the kernel may take them in parts."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
