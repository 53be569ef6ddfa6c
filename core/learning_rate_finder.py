"""The learning-rate finder: a short training whose learning rate rises until the loss diverges (Smith 2017,
arXiv 1506.01186), and what to read from it.

It is training: the same parts, the same compiled step, real batches in their order, and afterwards weights, optimizer,
averages, guard and random numbers are bit for bit what they were. All groups of the optimizer, also those with a
schedule of their own, are multiplied alike. To read the curve otherwise, edit `suggest`; whose rate a hybrid's curve
shows, `reference_of`.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from core.assembly import Parts, copy_tree
from core.config import Config
from core.evaluation import number
from core.session import StepOutput
from core.training import assign, make_step, noise_seed, to_micro_batches
from data.batch import Batch
from utils.errors import ConfigError
from utils.memory import format_bytes

FEWEST_STEPS = 20
SHARE_OF_FALL = 0.9
LEAST_FALL = 0.01
"""A curve that falls by less than this share of the first loss says nothing."""
SMOOTHING = 0.03
"""Standard deviation of the smoothing kernel, as a share of the curve."""
DIVERGED = 0.25
"""It is over when the loss has risen from its lowest by this share of the first loss."""
MEMORY = 0.7
"""Of the running average that divergence is judged by: of the last three losses or so."""


Report = Callable[[int, float], None]


class Range(NamedTuple):
    """What to try: learning rates with equal ratios between them."""

    smallest: float
    largest: float
    num_steps: int

    def rates(self) -> list[float]:
        """All of them, rising."""
        return np.geomspace(self.smallest, self.largest, self.num_steps).tolist()


class Point(NamedTuple):
    """One update."""

    learning_rate: float
    """As `optimizer.learning_rate` would be, or that of the group in `reference_of`."""
    loss: float
    """Nats per token of the next batch, so the first that the update acts on."""


class Curve(NamedTuple):
    """What was seen."""

    first_loss: float
    """Before any update."""
    points: list[Point]
    diverged: bool
    """False: the largest rate was tried."""


class Reference(NamedTuple):
    """What the learning rates of a search are learning rates of."""

    learning_rate: float
    """As the config has it: what is tried, divided by this, multiplies all groups."""
    group: str | None
    """None: `optimizer.learning_rate`."""


def reference_of(parts: Parts, config: Config) -> Reference:
    """`optimizer.learning_rate`; for a hybrid that does not give it to all of its groups, the largest of theirs."""
    if not config.optimizer.gives_learning_rate:
        fastest = max(parts.optimizer.groups, key=lambda group: group.learning_rate)
        return Reference(fastest.learning_rate, fastest.name)
    return Reference(config.optimizer.learning_rate, None)


def check_range(tried: Range) -> None:
    """Raise ConfigError unless it is a rising range of enough positive rates."""
    problems = []
    if not 0 < tried.smallest < tried.largest < math.inf:
        problems.append(f"--min is {tried.smallest:g} and --max {tried.largest:g}: give 0 < min < max")
    if tried.num_steps < FEWEST_STEPS:
        problems.append(f"--steps is {tried.num_steps}: a curve needs at least {FEWEST_STEPS}")
    if problems:
        raise ConfigError(*problems)


def check_memory(parts: Parts) -> int:
    """Bytes at the peak, with the weights and the state that are kept. Raises ConfigError when they do not fit."""
    plan = parts.plan
    kept = 4 * plan.num_params * (1 if parts.ema is None else 2) + plan.optimizer_bytes
    if plan.memory.peak + kept > plan.memory_limit:
        raise ConfigError(
            f"the finder keeps a copy of weights and optimizer state: {format_bytes(plan.memory.peak + kept)}, and "
            f"{format_bytes(plan.memory_limit)} are there; give a smaller training.micro_batch_size"
        )
    return plan.memory.peak + kept


@contextlib.contextmanager
def unchanged(parts: Parts) -> Iterator[None]:
    """Whatever happens to the parts inside, afterwards they are as before, and so are MLX's random numbers."""
    weights, state, guard = parts.model.trainable_parameters(), parts.optimizer.state_dict(), dict(parts.guard)
    averages = copy_tree(parts.ema or {})
    random: Any = mx.random.state
    high, low = random[0].tolist()
    try:
        yield
    finally:
        parts.model.update(weights)
        parts.optimizer.load_state(state)
        parts.guard.update(guard)
        assign(parts.ema or {}, averages)
        mx.random.seed(high << 32 | low)  # The key itself: a seed's two halves are its key.


def find(parts: Parts, group: Any, config: Config, tried: Range, report: Report = lambda step, loss: None) -> Curve:
    """Train with each rate once, until the loss diverges; `parts` are afterwards as before.

    Args:
        report: gets the number of updates made and the loss of the last batch.
    """
    plan = parts.plan
    loader = parts.dataset.batches(plan.batch_size, micro_batch_size=plan.micro_batch_size)
    with unchanged(parts), contextlib.closing(loader) as batches:
        step = make_step(parts, group, config)
        rates, reference = tried.rates(), reference_of(parts, config).learning_rate
        losses: list[float] = []
        diverged = False
        for index, rate in enumerate([*rates, rates[-1]]):  # The last update's loss is that of one batch more.
            output = update(parts, step, next(batches)[0], rate / reference, index, config.seed)
            losses.append(number(output.loss))
            report(index, losses[-1])
            diverged = has_diverged(losses) or number(output.skipped) > 0
            if diverged:
                break
    points = [Point(rate, loss) for rate, loss in zip(rates, losses[1:], strict=False)]
    return Curve(losses[0], points, diverged)


def update(
    parts: Parts, step: Callable[..., StepOutput], batch: Batch, multiplier: float, index: int, seed: int
) -> StepOutput:
    """Update number `index` (from 0) as the training loop makes it, with all learning rates times `multiplier`."""
    optimizer = parts.optimizer
    optimizer.set_schedule(multiplier, {each.name: multiplier for each in optimizer.groups if each.schedule})
    refreshed = optimizer.refresh(index)
    mx.random.seed(noise_seed(seed, index, 0))
    output = step(to_micro_batches(batch, parts.plan.micro_batch_size))
    optimizer.install(refreshed)
    mx.eval(output, parts.model.state, optimizer.state, parts.guard, parts.ema or {})
    return output


def has_diverged(losses: Sequence[float]) -> bool:
    """Whether the last loss is not finite, or their running average well above its lowest."""
    if not math.isfinite(losses[-1]):
        return True
    average = lowest = losses[0]
    for loss in losses:
        average = MEMORY * average + (1 - MEMORY) * loss
        lowest = min(lowest, average)
    return average > lowest + DIVERGED * abs(losses[0])


class Suggestion(NamedTuple):
    """What to read from a curve."""

    learning_rate: float | None
    """Two digits; None: the curve says nothing."""
    reason: str
    """One line."""


def smoothed(curve: Curve) -> list[float]:
    """The loss at each point as a Gaussian average of its neighbours, which unlike a running one does not lag behind.

    Losses are taken as at most twice the first one, so that what diverges at the end does not hide what was before.
    """
    largest = 2 * abs(curve.first_loss)
    losses = [min(loss, largest) if math.isfinite(loss) else largest for _, loss in curve.points]
    width = SMOOTHING * len(losses)
    away = np.arange(len(losses))[:, None] - np.arange(len(losses))[None, :]
    weights = np.exp(-0.5 * np.square(away / width))
    return (weights @ losses / weights.sum(axis=1)).tolist()


def suggest(curve: Curve) -> Suggestion:
    """The rate at which the smoothed loss had first made 90 % of its whole fall.

    The lowest point itself is badly defined: the curve is flat there and often has a second valley close to divergence.
    The steepest point is as stable as this one and lies 1.5 to 4.6 times lower. This one came out the same within 15 %
    over three seeds, and within 2.6 times the best known rate in the three cases that were tried (docs/log.md).
    """
    losses = smoothed(curve)
    if not losses:
        return Suggestion(None, "the first update diverged: give a smaller --min")
    lowest = int(np.argmin(losses))
    fall = curve.first_loss - losses[lowest]
    if fall < LEAST_FALL * abs(curve.first_loss):
        why = "give a smaller --min" if curve.diverged else "give a larger --max"
        return Suggestion(None, f"the loss did not fall from {curve.first_loss:.3g}: {why}, or look at the data")
    reached = curve.first_loss - SHARE_OF_FALL * fall
    rate = next(point.learning_rate for point, loss in zip(curve.points, losses, strict=True) if loss <= reached)
    reason = f"the smoothed loss had made {SHARE_OF_FALL:.0%} of its fall from {curve.first_loss:.3g} to "
    reason += f"{losses[lowest]:.3g}, which is lowest at {curve.points[lowest].learning_rate:.2g}"
    if lowest >= len(losses) - 1 - SMOOTHING * len(losses) and not curve.diverged:
        reason += f"; the loss still falls at --max {curve.points[-1].learning_rate:g}, so try a larger one"
    elif not curve.diverged:
        reason += f"; it did not diverge up to --max {curve.points[-1].learning_rate:g}"
    return Suggestion(float(f"{rate:.2g}"), reason)
