"""How large an epoch is: counted by planning its rows from lengths alone, and remembered in a small JSON file.

Best fit gives no formula for the number of rows, and a run's length may be asked for in epochs before its first step.
Millions of tokens take a fraction of a second, billions some minutes, hence the file; losing it costs that time only.
"""

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from data.row_stream import RowStream

MAX_REMEMBERED = 100


class EpochSize(NamedTuple):
    """The first epoch of a mixture; by shares, as many tokens as there are in all sources."""

    num_rows: int
    num_pairs: int


def measure_epoch(stream: RowStream, num_tokens: int) -> EpochSize:
    """Plan the first epoch of the stream, or all of it if it ends before.

    By shares a source may need many epochs' time for one pass, so `num_tokens`, what all sources hold, end one as well.
    """
    num_rows = num_pairs = 0
    for opened in stream.windows():
        num_rows, num_pairs = num_rows + opened.rows.num_rows, num_pairs + int(opened.rows.sizes.sum())
        by_shares = opened.after["by"] != "epochs"
        if opened.after["epoch"] or (by_shares and sum(opened.after["tokens"]) >= num_tokens):
            break
    return EpochSize(num_rows, num_pairs)


def remembered(path: Path | None, key: str, measure: Callable[[], EpochSize]) -> EpochSize:
    """What `path` remembers under `key`; else it is measured, and remembered if the file can be written."""
    known = _read(path) if path else {}
    if key in known:
        return known[key]
    size = measure()
    if path:
        kept = dict(list(known.items())[1 - MAX_REMEMBERED :]) | {key: size}
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}-{os.getpid()}")
            temporary.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
            temporary.replace(path)
    return size


def _read(path: Path) -> dict[str, EpochSize]:
    """What the file says; nothing when it is missing or is no such file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {key: EpochSize(int(rows), int(pairs)) for key, (rows, pairs) in content.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
