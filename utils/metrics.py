"""`metrics.jsonl`: one JSON object a line, appended while a run goes on, the only source of plots and monitors.

Plain lines beat a database here: `tail -f` reads them, a killed process can tear only the last one, and a resumed run
cuts off what it will do again. Every row holds `step`, `tokens`, `time` (seconds of training) and named figures, as
`train/loss`. JSON has no NaN or infinity: such a figure is written as null and read back as NaN. To change what a row
holds, edit the caller; this file knows no names but `step`.
"""

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from utils.errors import CheckpointError, DataError

Row = dict[str, Any]


class MetricsWriter:
    """Appends rows to one file; each is on disk, as far as other processes can see, when `write` returns."""

    def __init__(
        self, path: str | Path, *, resume_step: int = 0, is_stale: Callable[[Row], bool] = lambda row: False
    ) -> None:
        """Open `path` for a run that continues after `resume_step` updates, without the rows that will come again.

        0 starts the file anew; `is_stale` names further rows to drop.
        """
        self._path = Path(path)
        try:
            drop_rows_after(self._path, resume_step, is_stale)
            self._file = self._path.open("ab", buffering=0)
        except OSError as error:
            raise self._cannot_write(error) from error

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row. Raises CheckpointError when the disk does not take it."""
        line = json.dumps({name: without_nan(value) for name, value in row.items()}, allow_nan=False) + "\n"
        try:
            written = self._file.write(line.encode())
        except OSError as error:
            raise self._cannot_write(error) from error
        if written != len(line.encode()):
            raise CheckpointError(f"cannot write {self._path}: the disk is full; free some space and use --resume")

    def close(self) -> None:
        """Nothing can be written afterwards."""
        self._file.close()

    def _cannot_write(self, error: OSError) -> CheckpointError:
        return CheckpointError(f"cannot write {self._path}: {error.strerror}; free some space or change out_dir")


def without_nan(value: Any) -> Any:
    """None in place of a number that JSON cannot write."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def drop_rows_after(path: Path, step: int, is_stale: Callable[[Row], bool] = lambda row: False) -> None:
    """Leave only whole rows of at most `step` updates that are not stale; none when `step` is 0. Atomic."""
    if not path.exists():
        return
    content = path.read_bytes()
    rows = parse_lines(content.splitlines(keepends=True))
    kept = b"".join(line for line, row in rows if row is not None and 0 < step >= row["step"] and not is_stale(row))
    if kept != content:
        temporary = path.with_name(path.name + ".tmp")
        with temporary.open("wb") as file:
            file.write(kept)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)


def parse_lines(lines: Iterable[bytes]) -> Iterator[tuple[bytes, Row | None]]:
    """Every line with its row; None where a line is torn or is no row."""
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        is_row = isinstance(row, dict) and isinstance(row.get("step"), int) and line.endswith(b"\n")
        yield line, row if is_row else None


def read_metrics(path: str | Path) -> list[Row]:
    """All rows of a file, null as NaN. A torn last line is a row still being written and left out.

    Raises DataError when there is no such file or another line is no row.
    """
    try:
        lines = Path(path).read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; metrics.jsonl is written by a training run") from error
    rows = [row for _, row in parse_lines(lines)]
    if rows and rows[-1] is None:
        rows.pop()
    broken = [number for number, row in enumerate(rows, 1) if row is None]
    if broken:
        raise DataError(f"{path}:{broken[0]}: not a row of metrics ({len(broken)} such lines); remove the line")
    return [with_nan(row) for row in rows if row is not None]


def with_nan(row: Row) -> Row:
    """The row with NaN in place of null."""
    return {name: math.nan if value is None else value for name, value in row.items()}


def column(rows: Iterable[Row], name: str, against: str = "step") -> tuple[list[float], list[float]]:
    """Values of `against` and of `name`, from the rows that hold both."""
    pairs = [(row[against], row[name]) for row in rows if name in row and against in row]
    return [x for x, _ in pairs], [y for _, y in pairs]
