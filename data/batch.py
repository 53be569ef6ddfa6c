"""`Batch`: the one tuple in which data meets models and objectives.

Shapes: B = rows, L = positions of a row. Arrays are NumPy in the data folder; the loop turns them into MLX arrays.
Positions that begin anew with each document are not stored, since segments say it all: `positions_of`.
"""

from typing import Any, NamedTuple

import numpy as np


class Batch(NamedTuple):
    """B packed rows of L (input, target) pairs; every pair lies inside one document."""

    tokens: Any
    """[B, L] int32: the inputs."""
    targets: Any
    """[B, L] int32: the token that follows each input in its document; 0 where `weights` is 0."""
    weights: Any
    """[B, L] float32: 1 for a real pair, 0 for padding."""
    segments: Any
    """[B, L] int32: which document of the row a position belongs to, from 1; 0 for padding."""
    keys: Any
    """[B, 2] uint32: one random key per row, a function of the seed and the row's global index only."""


def positions_of(segments: np.ndarray) -> np.ndarray:
    """[B, L] int32: the place of each position in its piece of a document, from 0; 0 for padding (segment 0)."""
    places = np.broadcast_to(np.arange(segments.shape[1], dtype=np.int32), segments.shape)
    begins = np.diff(segments, axis=1, prepend=-1) != 0
    firsts = np.maximum.accumulate(np.where(begins, places, 0), axis=1)
    return np.where(segments > 0, places - firsts, 0).astype(np.int32)
