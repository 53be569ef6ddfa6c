"""Numbers and durations: what a person may write, exact arithmetic, and text that reads back equal."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from utils.units import Duration, format_count, parse_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("500M", 500_000_000),
        ("16k", 16_000),
        ("16K", 16_000),
        ("1.5B", 1_500_000_000),
        ("2G", 2_000_000_000),
        ("1T", 10**12),
        ("24GB", 24 * 10**9),
        ("1.5 TB", 1_500_000_000_000),
        ("3e-4", 3e-4),
        ("1e6", 1_000_000),
        ("1.0e-5", 1e-5),
        ("1_000_000", 1_000_000),
        ("010", 10),
        ("-2", -2),
        (".5", 0.5),
        (7, 7),
        (2.0, 2),
    ],
)
def test_numbers_are_read_as_written(text: str, number: float) -> None:
    assert parse_number(text) == number
    assert type(parse_number(text)) is type(number)


@pytest.mark.parametrize(
    "text", ["", "M", "12:30", "5 apples", "0x10", "nan", "inf", "1e9999", "--1", "1 2", "1m", "24BB", "24GiB", True]
)
def test_what_is_no_number_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="expected a number"):
        parse_number(text)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "duration"),
    [
        ("2000 steps", Duration(2000, "steps")),
        ("1 step", Duration(1, "steps")),
        (2000, Duration(2000, "steps")),
        ("2e3", Duration(2000, "steps")),
        ("500M tokens", Duration(500_000_000, "tokens")),
        ("500M  Tokens", Duration(500_000_000, "tokens")),
        ("20 tokens_per_param", Duration(20, "tokens_per_param")),
        ("3 epochs", Duration(3, "epochs")),
        ("0.5 epochs", Duration(0.5, "epochs")),
        ("5 %", Duration(0.05, "fraction")),
        ("5%", Duration(0.05, "fraction")),
        ("0.05 of training", Duration(0.05, "fraction")),
        ("5 % of training", Duration(0.05, "fraction")),
    ],
)
def test_durations_are_read_as_written(text: str, duration: Duration) -> None:
    assert Duration.parse(text) == duration


@pytest.mark.parametrize("text", ["5 apples", "tokens", "", "-3 steps", "150 %", "1:30 steps", True, None, [1]])
def test_what_is_no_duration_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="expected"):
        Duration.parse(text)  # type: ignore[arg-type]


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(st.integers(0, 10**13), st.decimals(0, 1, places=4).map(float)),
    st.sampled_from(["steps", "tokens", "tokens_per_param", "epochs", "fraction"]),
)
def test_text_reads_back_equal(value: float, unit: str) -> None:
    duration = Duration(min(value, 1) if unit == "fraction" else value, unit)  # type: ignore[arg-type]
    assert Duration.parse(str(duration)) == duration


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 100), st.integers(1, 10**6))
def test_a_share_of_training_is_exact(percent: int, total: int) -> None:
    exact = -(-percent * total // 100)
    assert Duration.parse(f"{percent} %").to_steps(tokens_per_step=1, total_steps=total) == exact


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**12), st.integers(1, 10**6), st.integers(1, 10**4))
def test_steps_are_the_least_that_reach_the_length(length: int, tokens_per_step: int, num_params: int) -> None:
    steps = Duration(length, "tokens").to_steps(tokens_per_step=tokens_per_step)
    assert steps * tokens_per_step >= length > (steps - 1) * tokens_per_step
    steps = Duration(20, "tokens_per_param").to_steps(tokens_per_step=tokens_per_step, num_params=num_params)
    assert steps == -(-Fraction(20 * num_params) // tokens_per_step)


def test_epochs_round_up_to_whole_updates() -> None:
    assert Duration(3, "epochs").to_steps(tokens_per_step=1, rows_per_epoch=100, batch_size=32) == 10
    assert Duration(7, "steps").to_steps(tokens_per_step=1) == 7


@pytest.mark.parametrize("unit", ["tokens_per_param", "epochs", "fraction"])
def test_a_unit_that_cannot_be_resolved_says_what_is_missing(unit: str) -> None:
    with pytest.raises(ValueError, match="is not known"):
        Duration(1, unit).to_steps(tokens_per_step=1)  # type: ignore[arg-type]


def test_a_duration_is_a_config_field() -> None:
    class Section(BaseModel):
        every: Duration | None = Duration(10, "steps")

    assert Section(every="2 epochs").every == Duration(2, "epochs")  # type: ignore[arg-type]
    assert Section(every=None).model_dump() == {"every": None}
    assert Section().model_dump() == {"every": "10 steps"}
    assert Section.model_json_schema()["properties"]["every"]["default"] is not None
    with pytest.raises(ValidationError, match="expected a length"):
        Section(every="often")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (13_800_000, "13.8M"),
        (999, "999"),
        (7_030_000, "7.03M"),
        (1_000_000_000, "1B"),
        (999_600, "1M"),
        (0, "0"),
        (16384, "16.4k"),
    ],
)
def test_counts_for_people(count: int, text: str) -> None:
    assert format_count(count) == text
