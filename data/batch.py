"""`Batch`: the one tuple in which data meets models and objectives.

Shapes: B = rows, L = positions of a row. Arrays are NumPy in the data folder; the loop turns them into MLX arrays.
"""

from typing import Any, NamedTuple


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
