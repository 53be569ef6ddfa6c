"""Numbers as people write them: `500M`, `3e-4`, `2000 steps`, `500M tokens`, `3 epochs`, `5 %`.

Arithmetic is exact (`fractions`), because a duration decides how many updates a run makes: in floats, 7 % of 100 steps
would round up to 8. To add a unit: a row in `UNITS`, a branch in `Duration.to_steps`.
"""

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from pydantic_core import core_schema

Unit = Literal["steps", "tokens", "tokens_per_param", "epochs", "fraction"]

SUFFIXES = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9, "G": 10**9, "T": 10**12}
NUMBER = re.compile(r"([+-]?(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(?:[eE][+-]?\d{1,3})?)\s*([kKMBGT]?)(?:(?<=[kKMGT])B)?")

UNITS: dict[str, Unit] = {
    "": "steps",
    "step": "steps",
    "steps": "steps",
    "token": "tokens",
    "tokens": "tokens",
    "token_per_param": "tokens_per_param",
    "tokens_per_param": "tokens_per_param",
    "epoch": "epochs",
    "epochs": "epochs",
    "%": "fraction",
    "% of training": "fraction",
    "of training": "fraction",
}
EXAMPLES = "'2000 steps', '500M tokens', '20 tokens_per_param', '3 epochs' or '5 %'"


def parse_number(text: str | int | float) -> int | float:
    """`500M` -> 500000000, `24GB` -> 24000000000, `3e-4` -> 0.0003; an int when whole. Raises ValueError else."""
    if isinstance(text, bool):
        raise ValueError(f"expected a number, got {str(text).lower()}")
    if isinstance(text, int):
        return text
    number = _exact(text if isinstance(text, str) else repr(text))
    return int(number) if number.denominator == 1 else float(number)


def _exact(text: str) -> Fraction:
    match = NUMBER.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"expected a number, got '{text}'")
    digits, suffix = match.groups()
    return Fraction(digits.replace("_", "")) * SUFFIXES["k" if suffix == "K" else suffix]


def format_count(count: float) -> str:
    """Three significant digits for people: 13_800_000 -> `13.8M`."""
    for suffix, scale in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if abs(count) >= scale * 0.9995:
            return f"{count / scale:.3g}{suffix}" if abs(count) < scale * 999.5 else f"{count / scale:.0f}{suffix}"
    return f"{count:.3g}" if count != round(count) else str(round(count))


@dataclass(frozen=True)
class Duration:
    """A length of training. Usable as a pydantic field: reads text or a bare number (steps), is written as text."""

    value: float
    unit: Unit

    def __post_init__(self) -> None:
        if not 0 <= self.value < math.inf:
            raise ValueError(f"expected a length of 0 or more, got {self.value} {self.unit}")
        if self.unit == "fraction" and self.value > 1:
            raise ValueError(f"expected at most 100 % of training, got {self}")

    @classmethod
    def parse(cls, text: "Duration | str | int | float") -> "Duration":
        """Read `2000 steps` and the like. Raises ValueError that says how one is written."""
        if isinstance(text, Duration):
            return text
        if isinstance(text, bool) or not isinstance(text, str | int | float):
            raise ValueError(f"expected a length such as {EXAMPLES}, got {text!r}")
        written = repr(text) if isinstance(text, int | float) else text.strip()
        match = NUMBER.match(written)
        unit = " ".join(written[match.end() :].lower().split()) if match else None
        if match is None or unit not in UNITS:
            raise ValueError(f"expected a length such as {EXAMPLES}, got '{text}'")
        value = _exact(match.group()) / (100 if unit.startswith("%") else 1)
        return cls(int(value) if value.denominator == 1 else float(value), UNITS[unit])

    def to_steps(
        self,
        *,
        tokens_per_step: int,
        num_params: int | None = None,
        rows_per_epoch: int | None = None,
        batch_size: int | None = None,
        total_steps: int | None = None,
    ) -> int:
        """Optimizer updates, rounded up.

        `tokens_per_step` counts the tokens of one update over all ranks, `rows_per_epoch` the packed rows of one pass
        over the data, `batch_size` the rows of one update. Raises ValueError when what the unit needs is not known.
        """
        value = Fraction(repr(self.value))
        if self.unit == "tokens":
            return math.ceil(value / tokens_per_step)
        if self.unit == "tokens_per_param":
            return math.ceil(value * self._needs(num_params, "the number of parameters") / tokens_per_step)
        if self.unit == "epochs":
            rows = self._needs(rows_per_epoch, "the size of the data")
            return math.ceil(value * rows / self._needs(batch_size, "the batch size"))
        if self.unit == "fraction":
            return math.ceil(value * self._needs(total_steps, "the length of training"))
        return math.ceil(value)

    def _needs(self, value: int | None, what: str) -> int:
        if value is None:
            raise ValueError(f"'{self}' cannot be used here: {what} is not known")
        return value

    def __str__(self) -> str:
        """The text that reads back to an equal length."""
        exact = Fraction(repr(self.value))
        if self.unit == "fraction":
            return f"{_plain(exact * 100)} %"
        if self.unit == "tokens":
            return f"{_short(exact)} tokens"
        return f"{_plain(exact)} {self.unit}"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> core_schema.CoreSchema:
        written = core_schema.plain_serializer_function_ser_schema(str, return_schema=core_schema.str_schema())
        return core_schema.no_info_plain_validator_function(cls.parse, serialization=written)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: Any) -> dict[str, Any]:
        return {
            "anyOf": [{"type": "number", "minimum": 0}, {"type": "string"}],
            "examples": ["2000 steps", "500M tokens"],
        }


def _plain(number: Fraction) -> str:
    return str(number.numerator) if number.denominator == 1 else repr(float(number))


def _short(number: Fraction) -> str:
    for suffix, scale in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("k", 10**3)):
        scaled = number / scale
        if scaled >= 1 and 100 % scaled.denominator == 0:
            return _plain(scaled) + suffix
    return _plain(number)
