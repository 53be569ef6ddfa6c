"""The guard inside the step: what is applied, counted and scaled, over sequences of finite and non-finite updates."""

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.evaluation import number
from core.guard import FIRST_LOSS_SCALE, GROWTH_INTERVAL, Guard, decide, initial_guard


def play(finite: list[bool], max_skipped: int = 0, precision: str = "float32", guard: Guard | None = None):
    """(applied, skipped in a row, scale) after each update."""
    guard = guard or initial_guard(precision)
    history = []
    for is_finite in finite:
        applied, guard = decide(guard, mx.array(is_finite), max_skipped, precision == "float16")
        history.append((bool(number(applied)), int(number(guard["skipped"])), number(guard["loss_scale"])))
    return history


def test_finite_updates_are_applied() -> None:
    assert play([True] * 3) == [(True, 0, 1.0)] * 3


def test_the_first_bad_update_ends_it_for_good() -> None:
    """Updates in flight behind it must not be applied either, although they are finite."""
    assert [applied for applied, _, _ in play([True, False, True, True])] == [True, False, False, False]


def test_a_tolerated_bad_update_is_skipped_and_forgotten() -> None:
    history = play([False, False, True, False, True], max_skipped=2)
    assert [applied for applied, _, _ in history] == [False, False, True, False, True]
    assert [skipped for _, skipped, _ in history] == [1, 2, 0, 1, 0]


@settings(max_examples=30, deadline=None)
@given(finite=st.lists(st.booleans(), max_size=12), max_skipped=st.integers(0, 3))
def test_no_update_is_applied_after_too_many_bad_ones(finite: list[bool], max_skipped: int) -> None:
    in_a_row, stopped = 0, False
    for is_finite, (applied, skipped, _) in zip(finite, play(finite, max_skipped), strict=True):
        assert applied == (is_finite and not stopped)
        in_a_row = 0 if applied else in_a_row + 1
        stopped = stopped or in_a_row > max_skipped
        assert (skipped > max_skipped) == stopped


def test_an_overflow_halves_the_loss_scale_and_is_not_counted() -> None:
    history = play([False, False, True], precision="float16")
    assert [scale for _, _, scale in history] == [FIRST_LOSS_SCALE / 2, FIRST_LOSS_SCALE / 4, FIRST_LOSS_SCALE / 4]
    assert [(applied, skipped) for applied, skipped, _ in history] == [(False, 0), (False, 0), (True, 0)]


def test_an_overflow_that_no_scale_prevents_is_counted() -> None:
    history = play([False] * 18, precision="float16")
    assert [skipped for _, skipped, _ in history] == [0] * 16 + [1, 2]
    assert history[-1][2] == 1.0


def test_the_loss_scale_doubles_after_enough_good_updates() -> None:
    nearly = initial_guard("float16") | {"good_steps": mx.array(GROWTH_INTERVAL - 2, mx.int32)}
    scales = [scale for _, _, scale in play([True, True, True], precision="float16", guard=nearly)]
    assert scales == [FIRST_LOSS_SCALE, 2 * FIRST_LOSS_SCALE, 2 * FIRST_LOSS_SCALE]
    scales = [scale for _, _, scale in play([True, False, True, True], precision="float16", guard=nearly)]
    assert scales == [FIRST_LOSS_SCALE] + [FIRST_LOSS_SCALE / 2] * 3  # an overflow starts the count anew


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_other_precisions_do_not_scale(precision: str) -> None:
    assert {scale for _, _, scale in play([True, False, False], 5, precision)} == {1.0}


def test_a_loss_scale_from_another_device_does_not_hide_bad_updates() -> None:
    guard = initial_guard("float16")
    for _ in range(3):
        _, guard = decide(guard, mx.array(False), 2, scales=False)
    assert guard["skipped"].item() == 3
