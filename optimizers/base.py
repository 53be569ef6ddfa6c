"""What all optimizers share: parameter groups by glob, state that is arrays only, saving and restoring it.

An optimizer is a list of groups. A group names its parameters, its learning rate and a pure update function;
one class runs them all, so Muon-with-AdamW needs nothing that AdamW alone does not. State is fixed when the
optimizer is built and is changed in place, which is what `mx.compile(inputs=state, outputs=state)` and
checkpoints rely on. Maths sees float32 only; parameters keep their own dtype. To change the maths edit the
optimizer's own file; to change which parameters decay, `NO_DECAY`.

What is too dear for every update (roots, eigenvectors) is a group's `refresh`. The loop starts it before an update and
puts its results in place after it, so it computes beside the update: on the CPU's stream while a GPU trains.
"""

import difflib
import re
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.optimizers
from mlx.utils import tree_flatten, tree_map_with_path
from pydantic import Field

from optimizers.schedules import ScheduleConfig, Timeline
from utils.errors import CheckpointError, ConfigError
from utils.schema import TypedSection

Arrays = dict[str, mx.array]
Shapes = Mapping[str, Sequence[int]]

NO_DECAY = ("*norm*", "*bias", "*embed_tokens*")
LISTED = 20


class Update(NamedTuple):
    """What one update of a group starts from: float32 arrays (but `step`), by parameter name."""

    gradients: Arrays
    parameters: Arrays
    moments: dict[str, Arrays]
    """What `Group.start` made for each parameter, as the last update left it."""
    decay: Mapping[str, float]
    """Weight decay of each parameter, before the learning rate multiplies it."""
    rate: mx.array
    """0-d: learning rate of the group times the schedule."""
    step: mx.array
    """0-d uint64: 1 at the first update."""
    applies: mx.array | None = None
    """0-d bool: whether the update is made at all; None: it is."""

    def settled(self, name: str, moments: Arrays) -> Arrays:
        """The new moments of a parameter, or its old ones when the update is held back. Every rule ends with it.

        Each comes from a kernel of its own: one that MLX fuses from several results never reuses its arguments'
        memory, and AdamW then needs three times the weights on top during an update.
        """
        kept = {key: chosen(self.applies, array, self.moments[name][key]) for key, array in moments.items()}
        arrays = list(kept.values())
        return dict(zip(kept, mx.depends(arrays, arrays), strict=True)) if arrays else {}


def chosen(applies: mx.array | None, new: mx.array, old: mx.array) -> mx.array:
    """`new` where the update applies, else `old`; no arithmetic, so that NaN cannot leak through."""
    return new if applies is None else mx.where(applies, new, old)


Updated = dict[str, tuple[mx.array, Arrays]]


class Refresh(NamedTuple):
    """Moments that are made anew between updates, now and then."""

    is_due: Callable[[int], bool]
    """Whether it happens after so many updates (1, 2, ...)."""
    moments: Callable[[Mapping[str, Arrays], int], dict[str, Arrays]]
    """All moments by parameter name, and after how many updates -> the new ones; what it leaves out stays as it is.

    It starts (`mx.async_eval`) what is to run beside the next update, in few arrays: MLX waits after about a hundred.
    """
    period: int
    """Updates from one to the next, the first ones apart."""


class Group(NamedTuple):
    """Parameters that share a rule and a learning rate."""

    name: str
    """As it appears in the log."""
    learning_rate: float
    """Multiplied by the schedule at every update."""
    decay: Mapping[str, float]
    """Every parameter of the group, with its weight decay."""
    start: Callable[[Sequence[int]], Arrays]
    """Shape of a parameter -> its moments before the first update."""
    update: Callable[[Update], Updated]
    """The maths: parameter name -> (new parameter, new moments)."""
    refresh: Refresh | None = None
    """What else the moments need, in their own time."""
    average: Callable[[mx.array, Arrays], mx.array] | None = None
    """Parameter and its moments, float32 -> the weights to evaluate and keep, where those are not the parameter."""
    schedule: ScheduleConfig | None = None
    """A schedule of its own, instead of the run's."""


def zeros(*names: str) -> Callable[[Sequence[int]], Arrays]:
    """A `Group.start` with one float32 array of zeros, shaped like the parameter, for each name."""
    return lambda shape: {name: mx.zeros(tuple(shape), mx.float32) for name in names}


def compute_once(*scalars: mx.array | float) -> list[mx.array]:
    """The same 0-d float32 values, as arrays that a compiled kernel only reads.

    `mx.compile` fuses 0-d arithmetic into every kernel that uses it and computes it again for each element:
    4.5M parameters took AdamW 138 ms on CPU with two `expm1` in the loop and 13 ms without. A stack cannot be
    fused.
    """
    stacked = mx.stack([mx.array(scalar, mx.float32) for scalar in scalars])
    return [stacked[index] for index in range(len(scalars))]


def matches(name: str, globs: Iterable[str]) -> bool:
    """Whether a dotted parameter name matches one of the globs (`*`, `?`, `[...]`; `*` crosses dots)."""
    return any(fnmatchcase(name, glob) for glob in globs)


def check_globs(key: str, globs: Iterable[str], names: Iterable[str]) -> None:
    """Raises ConfigError for every glob that matches no name, with the nearest names there are."""
    names = list(names)
    problems = [
        f"optimizer.{key}: '{glob}' matches no parameter; nearest: {', '.join(nearest_names(glob, names))}"
        for glob in globs
        if not any(fnmatchcase(name, glob) for name in names)
    ]
    if problems:
        raise ConfigError(*problems)


def nearest_names(glob: str, names: Iterable[str]) -> list[str]:
    """Up to four names most like `glob`, layer numbers written as `*`."""
    kinds = sorted({re.sub(r"\.\d+\.", ".*.", name) for name in names})
    return difflib.get_close_matches(glob, kinds, n=4, cutoff=0.0)


class OptimizerConfig(TypedSection):
    """One row of `optimizers.OPTIMIZERS`."""

    learning_rate: float = Field(gt=0, allow_inf_nan=False)
    """Largest learning rate; the schedule multiplies it."""
    weight_decay: float = Field(default=0.1, ge=0, allow_inf_nan=False)
    """Decoupled: every update multiplies the weights by 1 - learning rate * weight_decay."""
    no_decay: tuple[str, ...] = NO_DECAY
    """Globs over parameter names that do not decay: norms, biases and embeddings. [] decays everything."""

    @abstractmethod
    def groups(self, shapes: Shapes) -> list[Group]:
        """Split the parameters (dotted name -> shape). Raises ConfigError for a glob without a match."""

    def build(self, parameters: Any) -> "Optimizer":
        """The optimizer of a tree of parameters, its state allocated. Raises ConfigError as `groups` does."""
        flat: Arrays = dict(tree_flatten(parameters))
        return Optimizer(self.groups({name: array.shape for name, array in flat.items()}), flat)

    @property
    def ignores_learning_rate(self) -> bool:
        """Whether `learning_rate` changes nothing, because every group has one of its own."""
        return False

    @property
    def gives_learning_rate(self) -> bool:
        """Whether every group's learning rate follows from `learning_rate`."""
        return True

    def handed_down(self) -> dict[str, str]:
        """Values inside the section that come from one of its keys: dotted path -> key."""
        return {}

    def schedules(self) -> dict[str, ScheduleConfig]:
        """Those that groups have of their own, by where they stand: `optimizer.groups[0].`."""
        return {}

    def update_bytes(self, shapes: Shapes) -> int:
        """Most bytes an update holds at once beside weights, gradients, state and the kernels MLX issues ahead."""
        return 0

    def refresh_bytes(self, shapes: Shapes) -> int:
        """Bytes that a refresh leaves until the update after it has been made: its results."""
        return 0

    def renewal_bytes(self, shapes: Shapes, on_cpu: bool) -> int:
        """Most bytes a refresh holds at once while it runs, its results among them; `on_cpu`: updates run there too."""
        return 0

    def decay_of(self, names: Iterable[str]) -> dict[str, float]:
        """Weight decay of every parameter. A glob of one's own that matches nothing raises ConfigError."""
        names = list(names)
        check_globs("no_decay", [glob for glob in self.no_decay if glob not in NO_DECAY], names)
        return {name: 0.0 if matches(name, self.no_decay) else self.weight_decay for name in names}


class Optimizer(mlx.optimizers.Optimizer):
    """Runs the update of each group; use it as any `mlx.optimizers.Optimizer`.

    `state` is `{"step": 0-d uint64, "schedule": 0-d float32, "parameters": {name: {moment: array}}}`, and
    `"schedules": {group: 0-d float32}` where groups have one of their own. The dicts stay the same objects for life,
    so a compiled function may capture them. A moment called `num_...` counts something (0-d float32). A loop calls
    `refresh` before each update and `install` after it.
    """

    _state: dict[str, Any]

    def __init__(self, groups: Sequence[Group], parameters: Any) -> None:
        super().__init__()
        self.groups = tuple(groups)
        self.init(parameters)

    def init(self, parameters: Any) -> None:
        """Start anew: step 0, schedule 1, moments as each rule starts them, all evaluated.

        Raises ConfigError unless every parameter belongs to exactly one group.
        """
        shapes = {name: array.shape for name, array in dict(tree_flatten(parameters)).items()}
        check_cover(self.groups, shapes)
        moments = {name: group.start(shapes[name]) for group in self.groups for name in group.decay}
        self._state.update(step=mx.array(0, mx.uint64), schedule=mx.array(1.0, mx.float32), parameters=moments)
        own = {group.name: mx.array(1.0, mx.float32) for group in self.groups if group.schedule}
        if own:
            self._state["schedules"] = own
        self._initialized = True
        mx.eval(self._state)

    def set_schedule(self, multiplier: float, own: Mapping[str, float] | None = None) -> None:
        """Multiply learning rates by this from the next update on; `own`: those of groups with their own schedule."""
        self._state["schedule"] = mx.array(multiplier, mx.float32)
        for name, value in (own or {}).items():
            self._state["schedules"][name] = mx.array(value, mx.float32)

    def follow(self, schedule: ScheduleConfig, step: int, timeline: Timeline) -> dict[str, float]:
        """Set the schedules for update `step` (from 0); the learning rate of each group, by name."""
        values = {group.name: (group.schedule or schedule).multiplier(step, timeline) for group in self.groups}
        own = {group.name: values[group.name] for group in self.groups if group.schedule}
        self.set_schedule(schedule.multiplier(step, timeline), own)
        return {group.name: group.learning_rate * values[group.name] for group in self.groups}

    @property
    def learning_rate(self) -> mx.array:
        """0-d: what the first group uses in the next update. To change it, `set_schedule`."""
        return self._rate_of(self.groups[0])

    def _rate_of(self, group: Group) -> mx.array:
        schedule = self._state["schedules"][group.name] if group.schedule else self._state["schedule"]
        return group.learning_rate * schedule

    def refresh(self, num_updates: int) -> dict[str, Arrays]:
        """What is due after so many steps, held-back ones included, for `install`; nothing is waited for."""
        moments = self._state["parameters"]
        refreshed: dict[str, Arrays] = {}
        for group in self.groups:
            if group.refresh is not None and num_updates and group.refresh.is_due(num_updates):
                refreshed |= group.refresh.moments({name: moments[name] for name in group.decay}, num_updates)
        return refreshed

    def install(self, refreshed: Mapping[str, Arrays]) -> None:
        """Put what `refresh` gave in place."""
        for name, arrays in refreshed.items():
            self._state["parameters"][name].update(arrays)

    def counts(self) -> Arrays:
        """Every count in the state, summed over the parameters: name of the moment -> 0-d float32."""
        found: Arrays = {}
        for moments in self._state["parameters"].values():
            for key, array in moments.items():
                if key.startswith("num_"):
                    found[key] = found[key] + array if key in found else array
        return found

    def averaged(self, parameters: Any) -> Any | None:
        """The weights to evaluate, in the structure of `parameters`; None when they are the parameters."""
        averages = {name: group.average for group in self.groups if group.average for name in group.decay}
        if not averages:
            return None
        moments = self._state["parameters"]

        def average(name: str, array: mx.array) -> mx.array:
            if name not in averages:
                return array
            return averages[name](array.astype(mx.float32), moments[name]).astype(array.dtype)

        return tree_map_with_path(average, parameters)

    def apply_gradients(self, gradients: Any, parameters: Any, applies: mx.array | None = None) -> Any:
        """One update: the new parameters, in the structure of `gradients` (a tree, or a dict by dotted name).

        Where `applies` (0-d bool) is false, parameters and state stay as they are, whatever the gradients hold.
        `parameters` may hold more than `gradients`; the gradients must be of exactly the parameters the optimizer was
        built for (ValueError otherwise), so that nothing is left untrained in silence.
        """
        gradient_of: Arrays = dict(tree_flatten(gradients))
        parameter_of: Arrays = dict(tree_flatten(parameters))
        moments = self._state["parameters"]
        if gradient_of.keys() != moments.keys():
            odd = sorted(gradient_of.keys() ^ moments.keys())
            raise ValueError(f"gradients and optimizer differ in {len(odd)} parameters: {', '.join(odd[:LISTED])}")
        before = self._state["step"]
        self._state["step"] = before + 1
        new: Arrays = {}
        for group in self.groups:
            updated = group.update(self._update_of(group, gradient_of, parameter_of)._replace(applies=applies))
            for name, (parameter, new_moments) in updated.items():
                old = parameter_of[name]
                new[name] = chosen(applies, parameter.astype(old.dtype), old)
                moments[name].update(new_moments)
        self._state["step"] = chosen(applies, self._state["step"], before)
        return tree_map_with_path(lambda name, _: new[name], gradients)

    def _update_of(self, group: Group, gradients: Arrays, parameters: Arrays) -> Update:
        return Update(
            gradients={name: gradients[name].astype(mx.float32) for name in group.decay},
            parameters={name: parameters[name].astype(mx.float32) for name in group.decay},
            moments={name: self._state["parameters"][name] for name in group.decay},
            decay=group.decay,
            rate=self._rate_of(group),
            step=self._state["step"],
        )

    def state_dict(self) -> Arrays:
        """The state by dotted name, ready for safetensors."""
        return dict(tree_flatten(self._state))

    def load_state(self, arrays: Mapping[str, mx.array]) -> None:
        """Take over what `state_dict` gave. Raises CheckpointError listing every array that does not fit."""
        own = self.state_dict()
        problems = [f"'{name}' is missing" for name in own if name not in arrays]
        problems += [f"'{name}' belongs to no parameter" for name in arrays if name not in own]
        problems += [
            f"'{name}' is {arrays[name].dtype} {arrays[name].shape}, not {array.dtype} {array.shape}"
            for name, array in own.items()
            if name in arrays and (arrays[name].shape, arrays[name].dtype) != (array.shape, array.dtype)
        ]
        if problems:
            raise CheckpointError(*shortened([f"optimizer state: {problem}" for problem in problems]))
        self._state.update(step=arrays["step"], schedule=arrays["schedule"])
        for name in self._state.get("schedules", {}):
            self._state["schedules"][name] = arrays[f"schedules.{name}"]
        for name, moments in self._state["parameters"].items():
            moments.update({key: arrays[f"parameters.{name}.{key}"] for key in moments})

    @property
    def state(self) -> dict[str, Any]:
        """The live state. Assigning an equal tree restores it, as `load_state` does."""
        return self._state

    @state.setter
    def state(self, state: dict[str, Any]) -> None:
        self.load_state(dict(tree_flatten(state)))


def refresh_period(groups: Iterable[Group]) -> int:
    """Updates from one refresh to the next, the longest of all groups; 1 without any."""
    return max((group.refresh.period for group in groups if group.refresh), default=1)


def check_cover(groups: Iterable[Group], shapes: Shapes) -> None:
    """Raises ConfigError for parameters that belong to no group, to several, or are not there."""
    owners: dict[str, list[str]] = {name: [] for name in shapes}
    problems = []
    for group in groups:
        for name in group.decay:
            if name in owners:
                owners[name].append(group.name)
            else:
                problems.append(f"optimizer group '{group.name}' names a parameter that is not there: {name}")
    problems += [f"no optimizer group matches the parameter {name}" for name, of in owners.items() if not of]
    problems += [f"{name} is in {len(of)} groups: {', '.join(of)}" for name, of in owners.items() if len(of) > 1]
    if problems:
        raise ConfigError(*shortened(problems))


def shortened(lines: list[str]) -> list[str]:
    """The first lines, and how many more there are."""
    return lines if len(lines) <= LISTED else [*lines[:LISTED], f"... and {len(lines) - LISTED} more"]
