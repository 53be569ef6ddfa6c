"""Schedules: exact ends, bounds, monotone parts, no jumps, and lengths that do not fit."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizers import SCHEDULES
from optimizers.schedules import ConstantConfig, CosineConfig, LinearConfig, Timeline, WarmupSchedule, WSDConfig
from utils.registry import look_up
from utils.units import Duration

ratios = st.floats(0.0, 1.0, allow_nan=False)


def values_of(config: WarmupSchedule, timeline: Timeline) -> list[float]:
    return [config.multiplier(step, timeline) for step in range(timeline.total_steps)]


def after(config: WarmupSchedule, warmup: int) -> WarmupSchedule:
    return config.model_copy(update={"warmup": Duration(warmup, "steps")})


@st.composite
def curves(draw: st.DrawFn) -> tuple[WarmupSchedule, list[float], int, float]:
    """A config, all its values, its warm-up and its last ratio."""
    total = draw(st.integers(2, 300))
    warmup = draw(st.integers(0, total - 1))
    ratio = draw(ratios)
    room = total - max(warmup, 1)
    configs = [
        (ConstantConfig(), 1.0),
        (CosineConfig(final_ratio=ratio), ratio),
        (LinearConfig(final_ratio=ratio), ratio),
        (WSDConfig(decay=Duration(draw(st.integers(1, room)), "steps"), final_ratio=ratio), ratio),
    ]
    config, last = draw(st.sampled_from(configs))
    config = after(config, warmup)
    return config, values_of(config, Timeline(total)), warmup, last


@settings(max_examples=150, deadline=None)
@given(curves())
def test_every_curve_rises_from_above_zero_then_falls_to_exactly_the_last_ratio(
    curve: tuple[WarmupSchedule, list[float], int, float],
) -> None:
    config, values, warmup, last = curve
    assert values[-1] == last
    assert values[0] > 0 or len(values) == 1
    assert all(0 <= value <= 1 for value in values)
    peak = max(warmup, 1) - 1
    assert values[peak] == 1.0
    assert all(one < other for one, other in zip(values[:peak], values[1 : peak + 1], strict=True))
    assert all(other <= one + 1e-15 for one, other in zip(values[peak:], values[peak + 1 :], strict=False))


@settings(max_examples=150, deadline=None)
@given(curves())
def test_no_curve_jumps(curve: tuple[WarmupSchedule, list[float], int, float]) -> None:
    config, values, warmup, last = curve
    decay_steps = len(values) - max(warmup, 1)
    if isinstance(config, WSDConfig):
        decay_steps = int(config.decay.value)
    steepest = max(1 / max(warmup, 1), math.pi / 2 * (1 - last) / decay_steps)
    for one, other in zip(values, values[1:], strict=False):
        assert abs(other - one) <= steepest + 1e-12


@pytest.mark.parametrize("row", sorted(SCHEDULES))
def test_every_row_builds_from_its_defaults_for_any_length(row: str) -> None:
    for total_steps in (1, 2, 3, 7, 50, 1000):
        schedule = look_up(SCHEDULES, row, "schedule")()
        values = values_of(schedule, Timeline(total_steps, 1024))
        assert all(0 <= value <= 1 for value in values)
        assert values[0] > 0 or total_steps == 1


def test_known_values() -> None:
    cosine = CosineConfig(warmup=Duration(4, "steps"), final_ratio=0.1)
    assert values_of(cosine, Timeline(104))[:4] == [0.25, 0.5, 0.75, 1.0]
    assert cosine.multiplier(53, Timeline(104)) == pytest.approx(0.55)
    linear = LinearConfig(warmup=Duration(0, "steps"), final_ratio=0.0)
    assert values_of(linear, Timeline(5)) == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    wsd = WSDConfig(warmup=Duration(2, "steps"), decay=Duration(0.4, "fraction"), final_ratio=0.2)
    assert values_of(wsd, Timeline(10)) == pytest.approx([0.5, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])
    assert ConstantConfig(warmup=Duration(3, "steps")).multiplier(99, Timeline(100)) == 1.0
    assert after(cosine, 0).multiplier(0, Timeline(1)) == after(cosine, 1).multiplier(0, Timeline(1)) == 0.1


def test_lengths_may_be_given_in_tokens() -> None:
    schedule = WSDConfig(warmup=Duration(2_000, "tokens"), decay=Duration(10_000, "tokens"))
    values = values_of(schedule, Timeline(100, 1000))
    assert [values[step] for step in (0, 1, 89, 90, 99)] == [0.5, 1.0, 1.0, pytest.approx(0.9), 0.0]


@pytest.mark.parametrize("row", sorted(SCHEDULES))
def test_a_warmup_as_long_as_the_run_is_refused_with_a_way_out(row: str) -> None:
    config = look_up(SCHEDULES, row, "schedule")()
    with pytest.raises(ValueError, match=r"warmup is 200 steps but the run has only 20: .*'2 %'"):
        after(config, 200).multiplier(0, Timeline(20))


def test_a_decay_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="decay is 90 steps, but a warm-up of 20 leaves 80 of 100"):
        after(WSDConfig(decay=Duration(0.9, "fraction")), 20).multiplier(0, Timeline(100))
    with pytest.raises(ValueError, match="at least one step"):
        CosineConfig().multiplier(0, Timeline(0))
    with pytest.raises(ValueError, match="final_ratio"):
        CosineConfig(final_ratio=1.5)
