"""The `mixture` section: how much of each source is trained on, and when.

Weights count passes through a source in an epoch of the mixture (the default), or shares of the documents or of the
tokens; shares may change in stages. All is a function of seed and position, so a mixture is resumed by a few numbers.
To add a way of mixing: a subclass of `Mixture` in `data/mixing.py` and its branch in `MixtureConfig.build`.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

from pydantic import Field, model_validator

from data.mixing import EpochMixture, ShareMixture
from data.stages import Budget, Stage, StageConfig, exact, resolve, rounded, shares_of
from data.windows import Extent, Lengths, Mixture
from data.windows import Window as Window
from utils.errors import ConfigError, DataError
from utils.schema import Misfits, Section


class MixtureConfig(Section):
    """How much of each source is trained on, and when."""

    by: Literal["epochs", "documents", "tokens"] = "epochs"
    """What a source's weight means: how often its documents come in an epoch, or its share of the documents or of the
    tokens."""
    temperature: float = Field(default=1.0, gt=0)
    """Flattens shares to share^(1/temperature): 1 leaves them, large values make sources equal. By epochs the shares
    are those of weight times size, so sources are flattened by their size, and an epoch keeps its length."""
    exhausted: Literal["repeat", "stop"] = "repeat"
    """A source that has given each of its documents once begins again, or gives no more; after all, the run ends."""
    stages: tuple[StageConfig, ...] = ()
    """Weights that change during the run (by documents or tokens), in place of the weights of the sources. If they
    hold fewer tokens than the run, the last one goes on."""
    window_tokens: int = Field(default=2_000_000, gt=0)
    """Tokens that are shuffled and packed together, about."""

    @model_validator(mode="after")
    def _stages_fit(self) -> "MixtureConfig":
        if self.stages and self.by == "epochs":
            reason = "stages need shares: set by: tokens or by: documents (by: epochs counts whole passes)"
            raise Misfits(("stages", reason))
        early = [number for number, stage in enumerate(self.stages[:-1]) if stage.tokens is None]
        if early:
            reason = "only the last stage may go on to the end of the run; write how long this one is"
            raise Misfits(*((f"stages.{number}.tokens", reason) for number in early))
        return self

    def build(self, extents: Sequence[Extent], lengths: Lengths, seed: int, budget: Budget) -> "Mixture":
        """The mixture of the sources `extents`.

        Raises ConfigError for stages that do not fit the sources or the run, DataError for a source that has a weight
        but no documents.
        """
        weights = [exact(extent.weight) for extent in extents]
        if self.stages:
            stages = resolve(self.stages, [extent.name for extent in extents], self.temperature, budget)
        elif not any(weights):
            raise ConfigError("data.sources: no source has a weight above 0")
        elif self.by == "epochs":
            stages = [Stage(None, tuple(passes_of(extents, weights, self.temperature)))]
        else:
            stages = [Stage(None, shares_of(weights, self.temperature))]
        empty = [
            f"source '{extent.name}' has a weight, but no document to train on; remove it or check data.sources"
            for number, extent in enumerate(extents)
            if not extent.num_documents and any(stage.shares[number] for stage in stages)
        ]
        if empty:
            raise DataError(*empty)
        kind = EpochMixture if self.by == "epochs" else ShareMixture
        return kind(self.by, self.exhausted == "stop", self.window_tokens, list(extents), lengths, seed, budget, stages)


def passes_of(extents: Sequence[Extent], weights: Sequence[Fraction], temperature: float) -> list[Fraction]:
    """How often an epoch of the mixture passes through each source: its weight, unless there is a temperature."""
    if temperature == 1:
        return list(weights)
    sizes = [weight * extent.num_tokens for weight, extent in zip(weights, extents, strict=True)]
    shares = shares_of(sizes, temperature)
    return [
        rounded(float(share * sum(sizes) / extent.num_tokens)) if share else Fraction(0)
        for share, extent in zip(shares, extents, strict=True)
    ]
