"""What stands between a non-finite number and the weights, inside the compiled step.

An update whose loss or gradient norm is not finite is not applied. `max_skipped` of them in a row are tolerated; one
more and no later update is applied either, so steps already in flight cannot touch the weights before the loop reads
the news and stops. With float16 the loss is scaled; an overflow halves the scale and is not counted while the scale
can still shrink, and 2000 good steps double it (Micikevicius et al. 2018, section 3.2).
"""

import mlx.core as mx

GROWTH_INTERVAL = 2000
FIRST_LOSS_SCALE = 2.0**16

Guard = dict[str, mx.array]


def initial_guard(precision: str) -> Guard:
    """Three 0-d arrays: updates skipped in a row, the loss scale, good steps since the scale changed."""
    return {
        "skipped": mx.array(0, mx.int32),
        "loss_scale": mx.array(FIRST_LOSS_SCALE if precision == "float16" else 1.0, mx.float32),
        "good_steps": mx.array(0, mx.int32),
    }


def decide(guard: Guard, finite: mx.array, max_skipped: int, scales: bool) -> tuple[mx.array, Guard]:
    """Whether to apply this update (0-d bool), and the guard after it. `scales`: the loss scale adapts."""
    applies = mx.logical_and(finite, guard["skipped"] <= max_skipped)
    scale, good = guard["loss_scale"], guard["good_steps"]
    counted = guard["skipped"] + 1
    if scales:
        shrinking = mx.logical_and(mx.logical_not(finite), scale > 1.0)
        counted = mx.where(shrinking, guard["skipped"], counted)
        good = mx.where(applies, good + 1, 0)
        grows = good >= GROWTH_INTERVAL
        scale = mx.where(finite, mx.where(grows, scale * 2.0, scale), mx.maximum(scale * 0.5, 1.0))
        good = mx.where(grows, 0, good)
    skipped = mx.where(applies, 0, counted)
    return applies, {"skipped": skipped, "loss_scale": scale, "good_steps": good}
