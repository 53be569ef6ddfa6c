"""What share each source has, and until when: weights, temperature and the stages of a curriculum made exact.

Shares are fractions, not floats: two machines must not disagree about one document. Temperature T flattens shares q to
p_i ~ q_i^(1/T) (as multilingual models sample their languages; Devlin et al., 2019, with 1/T = 0.7): 1 leaves
them, large values make all sources equal, values below 1 sharpen. To change what a stage may say, edit `StageConfig`.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from pydantic import Field, field_validator

from utils.errors import ConfigError
from utils.registry import suggestion
from utils.schema import Section
from utils.units import Duration


class StageConfig(Section):
    """A part of the run with weights of its own."""

    tokens: Duration | None = None
    """How many tokens of documents it hands out: `500M tokens`, `20 tokens_per_param` or `30 %` of the run; null, in
    the last stage only: the rest."""
    weights: dict[str, float] = Field(min_length=1)
    """Weight by name of the source; a source that is not named gives nothing in this stage."""

    @field_validator("tokens")
    @classmethod
    def _is_in_tokens(cls, tokens: Duration | None) -> Duration | None:
        if tokens and (tokens.unit in ("steps", "epochs") or tokens.value == 0):
            raise ValueError(f"expected '500M tokens', '20 tokens_per_param' or '30 %', got '{tokens}'")
        return tokens

    @field_validator("weights")
    @classmethod
    def _are_weights(cls, weights: dict[str, float]) -> dict[str, float]:
        for name, weight in weights.items():
            if not 0 <= weight < math.inf:
                raise ValueError(f"expected weights of 0 or more, got {weight} for '{name}'")
        if not any(weights.values()):
            raise ValueError("expected a weight above 0, got only 0")
        return weights


class Budget(NamedTuple):
    """What `tokens_per_param` and `%` refer to."""

    num_params: int
    total_tokens: int | None
    """Tokens of the whole run; None: not known, or without end."""


class Stage(NamedTuple):
    """A stage with its numbers worked out."""

    end: int | None
    """Tokens handed out since the start of the run at which it ends; None: never."""
    shares: tuple[Fraction, ...]
    """Share of each source; they sum to 1."""


def exact(number: float) -> Fraction:
    """The decimal number a person wrote, exactly."""
    return Fraction(repr(number))


def rounded(number: float) -> Fraction:
    """Nine significant digits, so that the last bits of another machine's logarithm change nothing."""
    return Fraction(f"{number:.9g}")


def shares_of(weights: Sequence[Fraction], temperature: float) -> tuple[Fraction, ...]:
    """Shares proportional to weight^(1/temperature); a weight of 0 stays 0. At least one weight is above 0."""
    if temperature != 1:
        logarithms = [math.log(weight) / temperature if weight else -math.inf for weight in weights]
        weights = [rounded(math.exp(logarithm - max(logarithms))) for logarithm in logarithms]
    total = sum(weights)
    return tuple(weight / total for weight in weights)


def resolve(stages: Sequence[StageConfig], names: Sequence[str], temperature: float, budget: Budget) -> list[Stage]:
    """The stages with shares in the order of `names`; the last one has no end. Raises ConfigError with every problem.

    When the stages hold fewer tokens than the run, the weights of the last one go on.
    """
    problems = _duplicates(names)
    resolved, end = [], 0
    for number, stage in enumerate(stages):
        where = f"data.mixture.stages[{number}]"
        problems += _unknown_names(stage, names, f"{where}.weights")
        try:
            end += _num_tokens(stage.tokens, budget) if stage.tokens else 0
        except ValueError as error:
            problems.append(f"{where}.tokens: {error}")
        weights = [exact(stage.weights.get(name, 0.0)) for name in names]
        if not problems:
            resolved.append(Stage(end if number < len(stages) - 1 else None, shares_of(weights, temperature)))
    if problems:
        raise ConfigError(*problems)
    return resolved


def _num_tokens(tokens: Duration, budget: Budget) -> int:
    """A stage's length in tokens, rounded up. Raises ValueError when the run's length is needed and not known."""
    factors: dict[str, int | None] = {
        "tokens": 1,
        "tokens_per_param": budget.num_params,
        "fraction": budget.total_tokens,
    }
    factor = factors[tokens.unit]
    if factor is None:
        raise ValueError(f"'{tokens}' cannot be used here: the length of the run is not known; write '500M tokens'")
    return math.ceil(exact(tokens.value) * factor)


def _duplicates(names: Sequence[str]) -> list[str]:
    twice = sorted({name for name in names if names.count(name) > 1})
    return [f"data.mixture.stages: two sources are called '{name}'; give each a `name` of its own" for name in twice]


def _unknown_names(stage: StageConfig, names: Sequence[str], where: str) -> list[str]:
    there = ", ".join(f"'{name}'" for name in names)
    return [
        f"{where}: there is no source '{name}'{suggestion(name, names)}; the sources are {there}"
        for name in stage.weights
        if name not in names
    ]
