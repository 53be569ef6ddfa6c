"""Peaks of MLX's own counter that do not hang on when its threads run.

What a test promises is held at once only if nothing is freed before the last of it is made. On a busy machine a worker
that frees early makes a peak lower than it is elsewhere, and none higher. So a lower bound may be met by any of a few
repetitions, while every repetition made has to keep the upper bound.
"""

import gc
from collections.abc import Callable

import mlx.core as mx


def held_bytes() -> int:
    """What the counter holds without garbage: thousands of scalars are left of a trace, until Python looks for them."""
    mx.synchronize()
    gc.collect()
    return mx.get_active_memory()


def peak_of(work: Callable[[], None]) -> int:
    """The counter's peak while `work` runs, with everything that was there before."""
    mx.reset_peak_memory()
    work()
    return mx.get_peak_memory()


def highest_peak(measure: Callable[[], int], enough: float, attempts: int = 5) -> int:
    """The largest of up to `attempts` measured peaks; the first that is above `enough` is the last."""
    highest = 0
    for _ in range(attempts):
        highest = max(highest, measure())
        if highest > enough:
            break
    return highest
