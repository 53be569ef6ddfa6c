"""Hybrid: any optimizer for any part of the model, each with its own learning rate, schedule and decay.

A group of the config names its parameters by globs and its optimizer by a section; the first match wins. There is no
maths here: the optimizers give their update rules for the parameters they get, and `Optimizer` runs rules of any
origin side by side. Globs that match nothing and parameters that nothing matches are errors, because either means that
something trains otherwise than it reads. To change who gets a parameter, edit `owners`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

from pydantic import Field, WithJsonSchema, field_validator, model_validator

from optimizers.base import NO_DECAY, Group, OptimizerConfig, Shapes, check_globs, matches, shortened
from optimizers.enhanced_optimizers import AdamWConfig
from optimizers.muon import MuonConfig
from optimizers.schedule_sequence import OneSchedule
from optimizers.schedules import ScheduleConfig
from optimizers.selection import LAYERS
from utils.errors import ConfigError
from utils.schema import OneOf, Section

HANDED_DOWN = ("learning_rate", "weight_decay", "no_decay")
"""What every group takes from the hybrid unless its optimizer says otherwise."""


class HybridGroup(Section):
    """Parameters, and the optimizer that updates them."""

    match: tuple[str, ...] = Field(min_length=1)
    """Globs over parameter names (`*` crosses dots). What an earlier group matched stays there."""
    optimizer: Annotated[
        OptimizerConfig,
        OneOf("optimizers:OPTIMIZERS", "optimizer"),
        WithJsonSchema({"type": "object", "required": ["type"], "description": "An optimizer, as at the root."}),
    ]
    """Any optimizer but a hybrid."""
    schedule: OneSchedule | None = None
    """A schedule of its own; null: the run's."""

    def taking(self, values: Mapping[str, Any]) -> "HybridGroup":
        """The group, its optimizer with those of `values` that it does not set itself."""
        stated = self.optimizer.model_fields_set
        new = {key: value for key, value in values.items() if key not in stated}
        optimizer = self.optimizer.model_copy(update=new)
        optimizer.model_fields_set.intersection_update(stated)  # What was handed down stays known as such.
        return self.model_copy(update={"optimizer": optimizer})


class Part(NamedTuple):
    """A group of the config, among the parameters of a model."""

    index: int
    optimizer: OptimizerConfig
    schedule: ScheduleConfig | None
    shapes: Shapes

    def groups(self) -> list[Group]:
        """The optimizer's groups, numbered as the config's. Raises ConfigError that names the group it is about."""
        try:
            found = self.optimizer.groups(self.shapes)
        except ConfigError as error:
            raise ConfigError(*(f"optimizer.groups[{self.index}].{problem}" for problem in error.problems)) from error
        return [
            group._replace(name=f"{self.index}-{group.name}", schedule=self.schedule or group.schedule)
            for group in found
        ]


def owners(all_globs: Sequence[Sequence[str]], names: Iterable[str]) -> dict[str, int]:
    """Every name -> index of the first list of globs that matches it.

    Raises ConfigError for globs that match nothing, or nothing that is left, and for names that nothing matches.
    """
    owner: dict[str, int] = {}
    names, problems = list(names), []
    for index, globs in enumerate(all_globs):
        problems += glob_problems(index, globs, names, owner)
        owner |= {name: index for name in names if name not in owner and matches(name, globs)}
    left = [f"optimizer.groups: no group matches the parameter {name}" for name in names if name not in owner]
    if left:
        problems += [*shortened(left), "optimizer.groups: a last group with match: ['*'] takes all that is left"]
    if problems:
        raise ConfigError(*problems)
    return owner


def glob_problems(index: int, globs: Sequence[str], names: Sequence[str], owner: Mapping[str, int]) -> list[str]:
    """A line for each glob that gets nothing; `owner` says what the groups before this one took."""
    problems: list[str] = []
    try:
        check_globs(f"groups[{index}].match", globs, names)
    except ConfigError as error:
        problems += error.problems
    for glob in globs:
        matched = [name for name in names if matches(name, [glob])]
        if matched and all(name in owner for name in matched):
            earlier = " and ".join(f"groups[{taker}]" for taker in sorted({owner[name] for name in matched}))
            problems.append(
                f"optimizer.groups[{index}].match: all that '{glob}' matches belongs to {earlier} already: "
                "the first match wins, so put the narrower globs first"
            )
    return problems


class HybridConfig(OptimizerConfig):
    """Any optimizer for any part of the model."""

    type: str = "hybrid"
    """The row of the table."""
    learning_rate: float = Field(default=3e-3, gt=0, allow_inf_nan=False)
    """Of every group whose optimizer states none. Left out here too, each optimizer's own default counts."""
    weight_decay: float = Field(default=0.1, ge=0, allow_inf_nan=False)
    """Of every group whose optimizer states none; likewise."""
    no_decay: tuple[str, ...] = NO_DECAY
    """Globs of what does not decay, in every group whose optimizer states none."""
    members: tuple[HybridGroup, ...] = Field(
        default=(
            HybridGroup(match=LAYERS, optimizer=MuonConfig()),
            HybridGroup(match=("*",), optimizer=AdamWConfig()),
        ),
        alias="groups",
        min_length=1,
    )
    """Who updates what; the first match wins. The default: Muon for the layers, AdamW for embeddings, head and norm."""

    @field_validator("members")
    @classmethod
    def _none_is_a_hybrid(cls, members: tuple[HybridGroup, ...]) -> tuple[HybridGroup, ...]:
        for index, member in enumerate(members):
            if isinstance(member.optimizer, HybridConfig):
                raise ValueError(f"the optimizer of groups[{index}] is a hybrid again: write its groups into this list")
        return members

    @model_validator(mode="after")
    def _hand_down(self) -> "HybridConfig":
        given = {key: getattr(self, key) for key in HANDED_DOWN if key in self.model_fields_set}
        # Now and not when built, so that a run's config.yaml, in which everything is stated, says what was used.
        object.__setattr__(self, "members", tuple(member.taking(given) for member in self.members))
        return self

    @property
    def ignores_learning_rate(self) -> bool:
        """Whether every group states a learning rate, so that the hybrid's changes nothing."""
        return all("learning_rate" in member.optimizer.model_fields_set for member in self.members)

    @property
    def gives_learning_rate(self) -> bool:
        """Whether every group has its learning rate from the hybrid."""
        return list(self.handed_down().values()).count("learning_rate") == len(self.members)

    def handed_down(self) -> dict[str, str]:
        """What groups have from the hybrid: dotted path of a value in them -> its key here."""
        return {
            f"groups[{index}].optimizer.{key}": key
            for index, member in enumerate(self.members)
            for key in HANDED_DOWN
            if key in self.model_fields_set and key not in member.optimizer.model_fields_set
        }

    def groups(self, shapes: Shapes) -> list[Group]:
        """Those of every optimizer, `adamw` of groups[1] as `1-adamw`.

        Raises ConfigError for globs without a match, parameters without a group, and as the optimizers do.
        """
        return [group for part in self.parts(shapes) for group in part.groups()]

    def parts(self, shapes: Shapes) -> Iterator[Part]:
        """The groups of the config with their parameters. Raises ConfigError when the globs do not fit these."""
        check_globs("no_decay", [glob for glob in self.no_decay if glob not in NO_DECAY], shapes)
        owner = owners([member.match for member in self.members], shapes)
        for index, member in enumerate(self.members):
            own = {name: shape for name, shape in shapes.items() if owner[name] == index}
            # What was handed down is for the whole model: a group need not have a match for all of it.
            globs = [glob for glob in member.optimizer.no_decay if glob not in self.no_decay or any_match(glob, own)]
            optimizer = member.optimizer.model_copy(update={"no_decay": tuple(globs)})
            yield Part(index, optimizer, member.schedule, own)

    def schedules(self) -> dict[str, ScheduleConfig]:
        """As the base class says."""
        found = {f"optimizer.groups[{index}].": member.schedule for index, member in enumerate(self.members)}
        return {where: schedule for where, schedule in found.items() if schedule is not None}

    def update_bytes(self, shapes: Shapes) -> int:
        """As the base class says; nothing orders the groups, and measured, what each holds adds up."""
        return sum(part.optimizer.update_bytes(part.shapes) for part in self.parts(shapes))

    def refresh_bytes(self, shapes: Shapes) -> int:
        """As the base class says; all groups may refresh at once."""
        return sum(part.optimizer.refresh_bytes(part.shapes) for part in self.parts(shapes))

    def renewal_bytes(self, shapes: Shapes, on_cpu: bool) -> int:
        """As the base class says, likewise."""
        return sum(part.optimizer.renewal_bytes(part.shapes, on_cpu) for part in self.parts(shapes))


def any_match(glob: str, names: Iterable[str]) -> bool:
    """Whether a glob matches one of the names."""
    return any(matches(name, [glob]) for name in names)
