"""Schedules: exact ends, bounds, monotone parts, no jumps, and lengths that do not fit."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizers import SCHEDULES
from optimizers.schedules import (
    ConstantConfig,
    CosineConfig,
    InverseSqrtConfig,
    LinearConfig,
    OneCycleConfig,
    PolynomialConfig,
    ScheduleConfig,
    Timeline,
    WarmupSchedule,
    WSDConfig,
)
from utils.registry import look_up
from utils.units import Duration

ratios = st.floats(0.0, 1.0, allow_nan=False)
RISES = {"one_cycle": "peak_at", "sequence": "parts"}
"""The key that says how long a row rises, where it is not `warmup`."""


def values_of(config: ScheduleConfig, timeline: Timeline) -> list[float]:
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
    power = draw(st.floats(0.3, 4.0))
    configs = [
        (PolynomialConfig(power=power, final_ratio=ratio), ratio),
        (InverseSqrtConfig(), math.sqrt(max(warmup, 1) / total)),
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
    fall = math.pi / 2 / decay_steps
    if isinstance(config, PolynomialConfig):
        # The steepest is the first step for powers above 1, the last for those below.
        fall = max(config.power / decay_steps, decay_steps**-config.power)
    if isinstance(config, InverseSqrtConfig):
        fall, last = 1 - math.sqrt(max(warmup, 1) / (max(warmup, 1) + 1)), 0
    steepest = max(1 / max(warmup, 1), fall * (1 - last))
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


@pytest.mark.parametrize("row", sorted(SCHEDULES.keys() - RISES.keys()))
def test_a_warmup_may_be_given_in_steps_tokens_or_a_share(row: str) -> None:
    config = look_up(SCHEDULES, row, "schedule")()
    curves = [
        values_of(config.model_copy(update={"warmup": warmup}), Timeline(100, 1000))
        for warmup in (Duration(5, "steps"), Duration(5_000, "tokens"), Duration(0.05, "fraction"))
    ]
    assert curves[0] == curves[1] == curves[2]
    assert curves[0][4] == 1.0 > curves[0][3]


def test_a_peak_may_be_given_in_tokens() -> None:
    values = values_of(OneCycleConfig(peak_at=Duration(30_000, "tokens")), Timeline(100, 1000))
    assert values == values_of(OneCycleConfig(), Timeline(100, 1000))
    assert values[29] == 1.0 > values[30]


def test_lengths_may_be_given_in_tokens() -> None:
    schedule = WSDConfig(warmup=Duration(2_000, "tokens"), decay=Duration(10_000, "tokens"))
    values = values_of(schedule, Timeline(100, 1000))
    assert [values[step] for step in (0, 1, 89, 90, 99)] == [0.5, 1.0, 1.0, pytest.approx(0.9), 0.0]


@pytest.mark.parametrize("row", sorted(SCHEDULES.keys() - RISES.keys()))
def test_a_warmup_as_long_as_the_run_is_refused_with_a_way_out(row: str) -> None:
    config = look_up(SCHEDULES, row, "schedule")()
    with pytest.raises(ValueError, match=r"warmup is 200 steps but the run has only 20: .*'2 %'"):
        after(config, 200).multiplier(0, Timeline(20))


def test_a_polynomial_by_hand() -> None:
    square = PolynomialConfig(warmup=Duration(2, "steps"), power=2, final_ratio=0.2)
    wanted = [0.5, 1, 0.2 + 0.8 * 0.5625, 0.2 + 0.8 * 0.25, 0.2 + 0.8 * 0.0625, 0.2]
    assert values_of(square, Timeline(6)) == pytest.approx(wanted)
    root = PolynomialConfig(warmup=Duration(0, "steps"), power=0.5)
    assert values_of(root, Timeline(5)) == pytest.approx([1, 0.75**0.5, 0.5**0.5, 0.5, 0])
    line = PolynomialConfig(power=1, final_ratio=0.3)
    assert values_of(line, Timeline(50)) == values_of(LinearConfig(final_ratio=0.3), Timeline(50))


@pytest.mark.parametrize("warmup", [1, 7, 4000])
def test_inverse_sqrt_is_the_formula_of_vaswani(warmup: int) -> None:
    """lrate = d_model^-0.5 * min(step^-0.5, step * warmup^-1.5), steps from 1, divided by its value at the peak."""
    config = after(InverseSqrtConfig(), warmup)
    for step in (1, 2, 6, 7, 8, 28, 3999, 4000, 4001, 16000):
        wanted = 512**-0.5 * min(step**-0.5, step * warmup**-1.5) / (512**-0.5 * warmup**-0.5)
        assert config.multiplier(step - 1, Timeline(20000)) == pytest.approx(wanted, rel=1e-12)


def test_inverse_sqrt_does_not_depend_on_the_length_and_halves_in_four_times_the_warmup() -> None:
    config = after(InverseSqrtConfig(), 10)
    assert values_of(config, Timeline(90)) == values_of(config, Timeline(300))[:90]
    assert config.multiplier(39, Timeline(90)) == pytest.approx(0.5)
    assert values_of(after(config, 0), Timeline(4)) == pytest.approx([1, 0.5**0.5, (1 / 3) ** 0.5, 0.5])


@settings(max_examples=60, deadline=None)
@given(total=st.integers(2, 200), data=st.data(), start=st.floats(0.001, 1), final=ratios)
def test_one_cycle_is_two_half_cosines_as_in_pytorch(
    total: int, data: st.DataObject, start: float, final: float
) -> None:
    """torch.optim.lr_scheduler.OneCycleLR: phases end in updates pct_start * total - 1 and total - 1 (from 0)."""
    peak = data.draw(st.integers(1, total - 1))
    config = OneCycleConfig(peak_at=Duration(peak, "steps"), start_ratio=start, final_ratio=final)

    def annealed(begin: float, end: float, share: float) -> float:
        return end + (begin - end) / 2 * (math.cos(math.pi * share) + 1)

    for step, value in enumerate(values_of(config, Timeline(total))):
        rising = step < peak - 1
        share = step / (peak - 1) if rising else (step - (peak - 1)) / (total - peak)
        assert value == pytest.approx(annealed(start, 1, share) if rising else annealed(1, final, share), abs=1e-12)
    assert config.warmup_steps(Timeline(total)) == peak
    assert config.multiplier(peak - 1, Timeline(total)) == 1.0
    assert config.multiplier(total - 1, Timeline(total)) == final


def test_a_cycle_without_a_fall_is_refused_with_a_way_out() -> None:
    config = OneCycleConfig(peak_at=Duration(200, "steps"))
    with pytest.raises(ValueError, match=r"schedule.peak_at is 200 steps but the run has only 200: .*'2 %'"):
        config.multiplier(0, Timeline(200))


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        (PolynomialConfig, {"power": 0}),
        (PolynomialConfig, {"power": float("nan")}),
        (PolynomialConfig, {"final_ratio": -0.1}),
        (OneCycleConfig, {"start_ratio": 0}),
        (OneCycleConfig, {"final_ratio": 1.1}),
    ],
)
def test_numbers_that_make_no_schedule_are_refused(kind: type[ScheduleConfig], bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        kind(**bad)


def test_a_decay_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="decay is 90 steps, but a warm-up of 20 leaves 80 of 100"):
        after(WSDConfig(decay=Duration(0.9, "fraction")), 20).multiplier(0, Timeline(100))
    with pytest.raises(ValueError, match="at least one step"):
        CosineConfig().multiplier(0, Timeline(0))
    with pytest.raises(ValueError, match="final_ratio"):
        CosineConfig(final_ratio=1.5)
