"""A comparison of optimizers: which runs it takes, each run's result, and what is decided from them.

Every optimizer gets the same number of learning rates, on a grid with one factor between neighbours that grows towards
its best point; then the best one is run with further seeds, and with shares of the token budget on a schedule of their
own. `wanted` says which runs are due from the results there are, so a comparison can stop and go on anywhere.
Nothing is run here: that is core/comparison_runs.py; the report is core/comparison_report.py.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple


class Trial(NamedTuple):
    """One run."""

    optimizer: str
    learning_rate: float
    seed: int
    share: float = 1.0
    """Of the token budget."""

    @property
    def name(self) -> str:
        """Its folder."""
        part = "" if self.share == 1 else f"-{self.share:g}"
        return f"{self.optimizer}-{self.learning_rate:g}-seed{self.seed}{part}"


class Result(NamedTuple):
    """What came of a run; losses in nats per token on the held-out text, infinite when it diverged."""

    loss: float
    bits_per_byte: float
    tokens: int
    curve: tuple[tuple[int, float], ...]
    """(tokens, loss) of every evaluation."""
    note: str = ""


Results = Mapping[Trial, Result]


class Settings(NamedTuple):
    """What is compared, and how much is spent on each."""

    config: Path
    """Model, data, schedule and token budget."""
    optimizers: Mapping[str, Path]
    """Name -> YAML; the first is the baseline."""
    centers: Mapping[str, float]
    """Learning rate each grid starts from."""
    seeds: tuple[int, ...]
    num_trials: int = 5
    factor: float = 2.0
    shares: tuple[float, ...] = ()

    @property
    def baseline(self) -> str:
        """The optimizer that the others are compared with."""
        return next(iter(self.optimizers))


def num_runs(settings: Settings) -> int:
    """Runs of the whole comparison."""
    further = len(settings.seeds) - 1
    shorter = len(settings.shares) * len(settings.seeds) * (len(settings.optimizers) - 1)
    return (settings.num_trials + further) * len(settings.optimizers) + shorter


def wanted(settings: Settings, name: str, results: Results) -> list[Trial]:
    """Runs of an optimizer that can be started now and have no result; [] when it is done."""
    grid, missing = grow(settings, name, results)
    if missing:
        return missing
    best = best_rate(grid, name, settings.seeds[0], results)
    due = [Trial(name, best, seed) for seed in settings.seeds]
    if name != settings.baseline:
        due += [Trial(name, best, seed, share) for share in settings.shares for seed in settings.seeds]
    return [trial for trial in due if trial not in results]


def grow(settings: Settings, name: str, results: Results) -> tuple[list[float], list[Trial]]:
    """The grid as far as the results decide it, and its trials without a result."""
    seed, center = settings.seeds[0], settings.centers[name]

    def rate(exponent: int) -> float:
        return float(f"{center * settings.factor**exponent:.3g}")

    exponents = sorted([0, -1, 1][: settings.num_trials])
    while True:
        rates = [rate(exponent) for exponent in exponents]
        missing = [Trial(name, each, seed) for each in rates if Trial(name, each, seed) not in results]
        if missing or len(exponents) >= settings.num_trials:
            return rates, missing
        losses = [results[Trial(name, each, seed)].loss for each in rates]
        exponents = sorted([*exponents, next_exponent(exponents, losses)])


def next_exponent(exponents: Sequence[int], losses: Sequence[float]) -> int:
    """The point to add to a grid: at the end that is nearer to the best point, at the better end when neither is."""
    best = losses.index(min(losses))
    below, above = best, len(losses) - 1 - best
    goes_down = below < above if below != above else losses[0] < losses[-1]
    return exponents[0] - 1 if goes_down else exponents[-1] + 1


def best_rate(grid: Sequence[float], name: str, seed: int, results: Results) -> float:
    """The learning rate of the lowest final loss."""
    return min(grid, key=lambda rate: results[Trial(name, rate, seed)].loss)


class Summary(NamedTuple):
    """An optimizer's row of the report."""

    name: str
    learning_rate: float
    grid: tuple[tuple[float, float], ...]
    """(learning rate, final loss) of every trial."""
    losses: tuple[float, ...]
    """Final loss for each seed."""
    bits_per_byte: float
    """Mean over the seeds."""
    tokens_to_baseline: float | None
    """Share of the baseline's tokens after which its final loss was reached, mean over the seeds; None: not by all, or
    one of them or of the baseline's runs diverged."""
    shares: Mapping[float, tuple[float, ...]]
    """Share of the budget -> final loss for each seed of runs that were planned to be so short."""

    @property
    def is_interior(self) -> bool:
        """Whether the best learning rate has worse ones on both sides."""
        rates = [rate for rate, _ in self.grid]
        return min(rates) < self.learning_rate < max(rates)

    @property
    def num_diverged(self) -> int:
        """Seeds whose run diverged at the best learning rate."""
        return sum(not math.isfinite(loss) for loss in self.losses)

    @property
    def mean(self) -> float:
        """Of the final losses; infinite when a run diverged."""
        return statistics.fmean(self.losses)

    @property
    def spread(self) -> float:
        """Standard deviation of the final losses over the seeds; NaN when a run diverged or there is but one."""
        return statistics.stdev(self.losses) if len(self.losses) > 1 and not self.num_diverged else math.nan


def summarise(settings: Settings, results: Results) -> list[Summary]:
    """One row for each optimizer whose runs are all there."""
    return [summary(settings, name, results) for name in settings.optimizers if not wanted(settings, name, results)]


def summary(settings: Settings, name: str, results: Results) -> Summary:
    """See `Summary`; the baseline's own runs must be there too for `tokens_to_baseline`."""
    grid, _ = grow(settings, name, results)
    best = best_rate(grid, name, settings.seeds[0], results)
    runs = [results[Trial(name, best, seed)] for seed in settings.seeds]
    shares = settings.shares if name != settings.baseline else ()
    return Summary(
        name=name,
        learning_rate=best,
        grid=tuple((rate, results[Trial(name, rate, settings.seeds[0])].loss) for rate in grid),
        losses=tuple(run.loss for run in runs),
        bits_per_byte=statistics.fmean(run.bits_per_byte for run in runs),
        tokens_to_baseline=tokens_to_baseline(settings, runs, results),
        shares={
            share: tuple(results[Trial(name, best, seed, share)].loss for seed in settings.seeds) for share in shares
        },
    )


def tokens_to_baseline(settings: Settings, runs: Sequence[Result], results: Results) -> float | None:
    """Share of the baseline's tokens at which each run first had the baseline's final loss of the same seed."""
    base = settings.baseline
    if wanted(settings, base, results):
        return None
    grid, _ = grow(settings, base, results)
    rate = best_rate(grid, base, settings.seeds[0], results)
    found = []
    for seed, run in zip(settings.seeds, runs, strict=True):
        target = results[Trial(base, rate, seed)]
        is_fair = math.isfinite(target.loss) and math.isfinite(run.loss)
        reached = tokens_at(run.curve, target.loss) if is_fair else None
        if reached is None:
            return None
        found.append(reached / target.tokens)
    return statistics.fmean(found)


def tokens_at(curve: Sequence[tuple[int, float]], loss: float) -> float | None:
    """Tokens at which a curve first is at `loss` or below, between two evaluations in a line; None: never."""
    before: tuple[int, float] | None = None
    for tokens, now in curve:
        if now <= loss:
            if before is None:
                return float(tokens)
            return before[0] + (tokens - before[0]) * (before[1] - loss) / (before[1] - now)
        before = (tokens, now)
    return None
