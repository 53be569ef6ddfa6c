"""Schedules one after another: each part begins `from` some point of the run and counts from there.

To a part, its own length is the whole run: `2 %` of warm-up and the end of a decay mean the part's, which makes a
sequence the way to say restarts, a second phase at a lower rate, or a decay at the end of a constant run. Whatever
does not tile the run without a gap is refused. To change what a part hands to its schedule, edit `of_part`.
"""

from typing import Annotated

from pydantic import Field, WithJsonSchema

from optimizers.schedules import CosineConfig, ScheduleConfig, Timeline
from utils.schema import OneOf, Section
from utils.units import Duration

OneSchedule = Annotated[
    ScheduleConfig,
    OneOf("optimizers:SCHEDULES", "schedule"),
    WithJsonSchema({"type": "object", "required": ["type"], "description": "A schedule, as at the root."}),
]


class Part(Section):
    """One schedule of a sequence, and where in the run it begins."""

    begin: Duration = Field(alias="from")
    """Where it begins, from the start of the run: `0`, `500 steps`, `100M tokens`, `50 %`."""
    scale: float = Field(default=1.0, ge=0)
    """Multiplies the schedule."""
    schedule: OneSchedule
    """What it does; to it, the part is the whole run."""


def check_starts(starts: list[int], total_steps: int) -> None:
    """Raises ValueError unless the parts begin at 0, each after the one before, and all inside the run."""
    if starts[0] != 0:
        raise ValueError(f"schedule.parts[0].from is {starts[0]} steps, which leaves a gap: the first part begins at 0")
    for index, (before, start) in enumerate(zip(starts, starts[1:], strict=False), 1):
        if start <= before:
            raise ValueError(
                f"schedule.parts[{index}].from is {start} steps and parts[{index - 1}].from is {before}: "
                "every part has to begin after the one before"
            )
        if start >= total_steps:
            raise ValueError(
                f"schedule.parts[{index}].from is {start} steps but the run has only {total_steps}: the part would "
                "never begin; shorten the parts, raise training.duration, or write a share of the run, such as '50 %'"
            )


def check_part(index: int, schedule: ScheduleConfig, timeline: Timeline) -> None:
    """Raises ValueError when a schedule does not fit into its part."""
    try:
        schedule.multiplier(0, timeline)
    except ValueError as error:
        what = f"schedule.parts[{index}], to whose schedule its {timeline.total_steps} steps are the whole run"
        raise ValueError(f"{what}: {error}") from error


class SequenceConfig(ScheduleConfig):
    """Schedules one after another."""

    type: str = "sequence"
    """The row of the table."""
    parts: tuple[Part, ...] = Field(
        default=(Part.model_validate({"from": Duration(0, "steps"), "schedule": CosineConfig()}),), min_length=1
    )
    """In order of time; the first begins at 0. Each lasts until the next begins, the last one to the end of the run."""

    def multiplier(self, step: int, timeline: Timeline) -> float:
        """As the base class says."""
        starts = self.starts(timeline)
        check_starts(starts, timeline.total_steps)
        own = [self.of_part(index, starts, timeline) for index in range(len(starts))]
        for index, part in enumerate(self.parts):
            check_part(index, part.schedule, own[index])
        index = max(number for number, start in enumerate(starts) if start <= step)
        part = self.parts[index]
        return part.scale * part.schedule.multiplier(step - starts[index], own[index])

    def warmup_steps(self, timeline: Timeline) -> int:
        """Those of the first part."""
        return self.parts[0].schedule.warmup_steps(self.of_part(0, self.starts(timeline), timeline))

    def starts(self, timeline: Timeline) -> list[int]:
        """The update (from 0) at which each part begins."""
        return [timeline.steps(part.begin) for part in self.parts]

    def of_part(self, index: int, starts: list[int], timeline: Timeline) -> Timeline:
        """The run as a part sees it."""
        end = [*starts[1:], timeline.total_steps][index]
        return timeline._replace(total_steps=end - starts[index])

    def units(self) -> set[str]:
        """Of where parts begin, and of all lengths of their schedules."""
        return {part.begin.unit for part in self.parts}.union(*(part.schedule.units() for part in self.parts))
