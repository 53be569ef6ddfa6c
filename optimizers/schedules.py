"""Learning-rate schedules: what multiplies every learning rate at each update, in plain Python floats.

All rise first, so that the first update already moves, and reach 1 at the end of the rise; those with a
`final_ratio` stand at exactly that in the last update, and their decay spans what remains. Cosine is the usual
choice; `wsd` (warm up, stay, decay) lets a run be extended from before its decay, `inverse_sqrt` at any time. One
after another: `schedule_sequence.py`. To add a shape: a function of progress or step, a config with `multiplier`, a
row in `optimizers.SCHEDULES`.
"""

import math
from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from pydantic import Field

from utils.schema import TypedSection
from utils.units import Duration


class Timeline(NamedTuple):
    """How long a run is, and what its lengths are counted in."""

    total_steps: int
    tokens_per_step: int = 1
    num_params: int | None = None
    rows_per_epoch: int | None = None
    batch_size: int | None = None

    def steps(self, duration: Duration) -> int:
        """Updates that `duration` takes. Raises ValueError when what its unit needs is not known."""
        return duration.to_steps(**self._asdict())


def cosine(progress: float) -> float:
    """Half a cosine from 1 at progress 0 to 0 at progress 1."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def linear(progress: float) -> float:
    """A line from 1 at progress 0 to 0 at progress 1."""
    return 1.0 - progress


def polynomial(progress: float, power: float) -> float:
    """(1 - progress)^power: 1 at progress 0, 0 at progress 1, the later and steeper the smaller the power."""
    return (1.0 - progress) ** power


def flat(progress: float) -> float:
    """1 throughout."""
    return 1.0


def ramp(
    shape: Callable[[float], float],
    step: int,
    total_steps: int,
    warmup_steps: int,
    decay_steps: int,
    final_ratio: float,
) -> float:
    """Multiplier of update `step` (from 0): up to 1 in the warm-up, then 1, then `shape` in the last steps.

    The first update of W warm-up steps has 1 / W, the W-th has 1. The last update has exactly `final_ratio`,
    also when it is the only one.
    """
    if step >= total_steps - 1:
        return final_ratio
    if step < warmup_steps - 1:
        return (step + 1) / warmup_steps
    progress = max(0.0, (step - (total_steps - 1 - decay_steps)) / decay_steps) if decay_steps else 0.0
    return final_ratio + (1.0 - final_ratio) * shape(progress)


def inverse_sqrt(step: int, warmup_steps: int) -> float:
    """Multiplier of update `step` (from 0): a line up to 1 in the warm-up of W updates, then sqrt(W / (step + 1)).

    Vaswani et al. 2017, equation 3, divided by its largest value.
    """
    warmup = max(warmup_steps, 1)
    return min((step + 1) / warmup, math.sqrt(warmup / (step + 1)))


def one_cycle(
    step: int, total_steps: int, peak_steps: int, decay_steps: int, start_ratio: float, final_ratio: float
) -> float:
    """Multiplier of update `step` (from 0): half a cosine from `start_ratio` up to 1 in update P, another one down.

    Smith & Topin 2018 (super-convergence), with the cosines of fastai and PyTorch instead of lines.
    """
    if step >= min(peak_steps - 1, total_steps - 1):
        return ramp(cosine, step, total_steps, 0, decay_steps, final_ratio)
    return start_ratio + (1.0 - start_ratio) * (1.0 - cosine(step / (peak_steps - 1)))


def room_for_decay(total_steps: int, warmup_steps: int, key: str = "warmup") -> int:
    """Steps from the end of the warm-up to the last update. Raises ValueError when warm-up fills the run."""
    if total_steps < 1:
        raise ValueError(f"a schedule needs at least one step, got {total_steps}")
    if warmup_steps >= total_steps > 1:
        raise ValueError(
            f"schedule.{key} is {warmup_steps} steps but the run has only {total_steps}: "
            "shorten it, or write it as a share of the run, such as '2 %'"
        )
    return total_steps - max(warmup_steps, 1)


class ScheduleConfig(TypedSection):
    """One row of `optimizers.SCHEDULES`."""

    @abstractmethod
    def multiplier(self, step: int, timeline: Timeline) -> float:
        """What multiplies the learning rates in update `step` (from 0).

        Raises ValueError when the parts of the schedule do not fit into the run.
        """

    @abstractmethod
    def warmup_steps(self, timeline: Timeline) -> int:
        """Updates until the learning rate has first reached its full value."""

    def units(self) -> set[str]:
        """Of all lengths the schedule is made of: what must be known before it can be used."""
        return {length.unit for length in dict(self).values() if isinstance(length, Duration)}


class WarmupSchedule(ScheduleConfig):
    """A schedule that begins with a linear warm-up."""

    warmup: Duration = Duration(0.02, "fraction")
    """How long the learning rate rises from zero to its full value: `200 steps`, `10M tokens`, `2 %`."""

    def warmup_steps(self, timeline: Timeline) -> int:
        """As the base class says."""
        return timeline.steps(self.warmup)

    def lengths(self, timeline: Timeline) -> tuple[int, int, int]:
        """Updates of the run, of the warm-up, and what is left for a decay."""
        warmup = self.warmup_steps(timeline)
        return timeline.total_steps, warmup, room_for_decay(timeline.total_steps, warmup)


class ConstantConfig(WarmupSchedule):
    """Warm-up, then the full learning rate to the end."""

    type: str = "constant"
    """The row of the table."""

    def multiplier(self, step: int, timeline: Timeline) -> float:
        """As the base class says."""
        total_steps, warmup, _ = self.lengths(timeline)
        return ramp(flat, step, total_steps, warmup, 0, 1.0)


class CosineConfig(WarmupSchedule):
    """Warm-up, then half a cosine down to `final_ratio`."""

    type: str = "cosine"
    """The row of the table."""
    final_ratio: float = Field(default=0.1, ge=0, le=1)
    """Last learning rate as a share of the largest."""

    def multiplier(self, step: int, timeline: Timeline) -> float:
        """As the base class says."""
        return ramp(cosine, step, *self.lengths(timeline), self.final_ratio)


class LinearConfig(WarmupSchedule):
    """Warm-up, then a straight line down to `final_ratio`."""

    type: str = "linear"
    """The row of the table."""
    final_ratio: float = Field(default=0.0, ge=0, le=1)
    """Last learning rate as a share of the largest."""

    def multiplier(self, step: int, timeline: Timeline) -> float:
        """As the base class says."""
        return ramp(linear, step, *self.lengths(timeline), self.final_ratio)


class PolynomialConfig(WarmupSchedule):
    """Warm-up, then down to `final_ratio` as a power of the distance to the end."""

    type: str = "polynomial"
    """The row of the table."""
    power: float = Field(default=2.0, gt=0)
    """Of the remaining share of the decay: 1 is a line, above it most of the fall comes first, below it last."""
    final_ratio: float = Field(default=0.0, ge=0, le=1)
    """Last learning rate as a share of the largest."""

    def multiplier(self, step: int, timeline: Timeline) -> float:
        """As the base class says."""
        return ramp(partial(polynomial, power=self.power), step, *self.lengths(timeline), self.final_ratio)


class InverseSqrtConfig(WarmupSchedule):
    """Warm-up of W updates, then the square root of W / update (Vaswani et al. 2017, the first Transformer).

    It knows no end: with a warm-up in steps or tokens, a run can be extended without changing what came before. Four
    times the warm-up halves the learning rate, so without one (W = 1) it has halved in update 4.
    """

    type: str = "inverse_sqrt"
    """The row of the table."""

    def multiplier(self, step: int, timeline: Timeline) -> float:
        """As the base class says."""
        _, warmup, _ = self.lengths(timeline)
        return inverse_sqrt(step, warmup)


class OneCycleConfig(ScheduleConfig):
    """Half a cosine from `start_ratio` up, another down to `final_ratio` (Smith & Topin 2018, super-convergence)."""

    type: str = "one_cycle"
    """The row of the table."""
    peak_at: Duration = Duration(0.3, "fraction")
    """When the learning rate is largest: `30 %` of the run, `1000 steps`, `100M tokens`."""
    start_ratio: float = Field(default=0.04, gt=0, le=1)
    """First learning rate as a share of the largest."""
    final_ratio: float = Field(default=0.0, ge=0, le=1)
    """Last learning rate as a share of the largest."""

    def warmup_steps(self, timeline: Timeline) -> int:
        """As the base class says."""
        return timeline.steps(self.peak_at)

    def multiplier(self, step: int, timeline: Timeline) -> float:
        """As the base class says."""
        total_steps, peak = timeline.total_steps, self.warmup_steps(timeline)
        room = room_for_decay(total_steps, peak, key="peak_at")
        return one_cycle(step, total_steps, peak, room, self.start_ratio, self.final_ratio)


class WSDConfig(WarmupSchedule):
    """Warm up, stay at the full learning rate, decay in a line at the end (Hu et al. 2024, MiniCPM)."""

    type: str = "wsd"
    """The row of the table."""
    decay: Duration = Duration(0.2, "fraction")
    """How long the decay at the end takes: `20 %`, `1000 steps`, `100M tokens`."""
    final_ratio: float = Field(default=0.0, ge=0, le=1)
    """Last learning rate as a share of the largest."""

    def multiplier(self, step: int, timeline: Timeline) -> float:
        """As the base class says."""
        total_steps, warmup, room = self.lengths(timeline)
        decay = timeline.steps(self.decay)
        if decay > room and total_steps > 1:
            raise ValueError(
                f"schedule.decay is {decay} steps, but a warm-up of {warmup} leaves "
                f"{room} of {total_steps}: shorten schedule.warmup or schedule.decay"
            )
        return ramp(linear, step, total_steps, warmup, decay, self.final_ratio)
