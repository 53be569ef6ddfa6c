"""Which blocks of the score matrix an attention mask empties, cuts or leaves whole: what decides how much is computed.

A block is `block_size` queries by `block_size` keys. For causal masks and windows the answer is interval arithmetic on
query minus key positions, so a layout costs nothing and is remembered; segments differ from batch to batch, so they
make every kept block PARTIAL. `tiles.py` walks the rows of a layout; to skip more, describe more here.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np

from models.attention.mask import Mask

SKIP, PARTIAL, FULL = 0, 1, 2


class BlockRow(NamedTuple):
    """What one block of queries needs. Positions count from the first query, or the first key."""

    runs: tuple[tuple[int, int], ...]
    """(first block, last block + 1) of the stretches of key blocks that are not skipped, in order."""
    masked: tuple[int, int] | None
    """(first, last + 1) among the kept blocks, counted from 0: outside these all are FULL; None: all are."""


@dataclass(frozen=True, eq=False)
class BlockLayout:
    """The kind of every block; the queries are the last ones of the keys. Static: it takes part in no gradient."""

    block_size: int
    """Queries, and keys, of a block; the last block of either may be shorter."""
    kinds: np.ndarray
    """int8 [num_query_blocks, num_key_blocks] of SKIP, PARTIAL and FULL."""
    band: tuple[int, int] | None = None
    """Smallest and largest query minus key position that may be seen, where that is all of the rule that needs no
    index arrays; None: it is not known."""

    @cached_property
    def rows(self) -> tuple[BlockRow, ...]:
        """One for each block of queries."""
        return tuple(block_row(kinds) for kinds in self.kinds)

    @cached_property
    def most_kept(self) -> int:
        """Key blocks of the widest row."""
        return max(sum(last - first for first, last in row.runs) for row in self.rows)

    @property
    def num_kept(self) -> int:
        """Blocks that are computed."""
        return int((self.kinds != SKIP).sum())


def block_row(kinds: np.ndarray) -> BlockRow:
    """The stretches of a row of block kinds that are kept, and where among them a mask is needed."""
    kept = np.flatnonzero(kinds != SKIP)
    breaks = np.flatnonzero(np.diff(kept) > 1) + 1
    runs = tuple((int(run[0]), int(run[-1]) + 1) for run in np.split(kept, breaks) if len(run))
    partial = np.flatnonzero(kinds[kept] == PARTIAL)
    return BlockRow(runs, (int(partial[0]), int(partial[-1]) + 1) if len(partial) else None)


def layout_of(mask: Mask, num_queries: int, num_keys: int, block_size: int) -> BlockLayout:
    """The layout of a mask. With segments every kept block is PARTIAL: which ones match is known only at run time."""
    return _layout(mask.kind == "causal", mask.window, mask.segments is not None, num_queries, num_keys, block_size)


@lru_cache(maxsize=256)
def _layout(
    causal: bool, window: int | None, segments: bool, num_queries: int, num_keys: int, block_size: int
) -> BlockLayout:
    reach = num_keys if window is None else min(window, num_keys) - 1
    lowest, highest = 0 if causal else -reach, reach
    first_query, last_query = _ends(num_queries, block_size, num_keys - num_queries)
    first_key, last_key = _ends(num_keys, block_size, 0)
    # A block of positions holds every difference between these two, so the comparison is exact.
    smallest = first_query[:, None] - last_key[None, :]
    largest = last_query[:, None] - first_key[None, :]
    kinds = np.where((smallest >= lowest) & (largest <= highest), FULL, PARTIAL)
    kinds = np.where((largest < lowest) | (smallest > highest), SKIP, kinds)
    if segments:
        kinds = np.minimum(kinds, PARTIAL)
    return BlockLayout(block_size, kinds.astype(np.int8), (lowest, highest))


def _ends(length: int, block_size: int, offset: int) -> tuple[np.ndarray, np.ndarray]:
    first = np.arange(0, length, block_size)
    return first + offset, np.minimum(first + block_size, length) - 1 + offset
