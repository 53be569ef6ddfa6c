"""Where dropout gets its random keys: from `mx.random`, or from a key given for a while.

A block that is computed twice (models/checkpointing.py) must drop the same values twice, and `mx.random` cannot be
set back to an earlier array inside a compiled step. Whoever drops values asks `next_key` here; nothing else in
models/ is random.
"""

import contextlib
from collections.abc import Iterator

import mlx.core as mx

_given: list[mx.array] = []


def next_key() -> mx.array | None:
    """A key [2] uint32 never returned before; None: draw from `mx.random`."""
    if not _given:
        return None
    _given[-1], key = mx.random.split(_given[-1])
    return key


@contextlib.contextmanager
def drawn_from(key: mx.array) -> Iterator[None]:
    """Everything random inside depends on `key` [2] uint32 only."""
    _given.append(key)
    try:
        yield
    finally:
        _given.pop()


def drop(x: mx.array, probability: float) -> mx.array:
    """Zero each value with the given probability and scale the rest to keep the mean (Srivastava et al. 2014)."""
    if probability == 0:
        return x
    kept = mx.random.bernoulli(1 - probability, x.shape, key=next_key())
    return mx.where(kept, x * (1 / (1 - probability)), mx.zeros_like(x))
