"""Mods: what flexible attention lets a person change. A mask mod says which query may see which key, a score mod what
becomes of a score; each is one function of index arrays.

`allowed(b, h, q, k) -> bool` and `score(score, b, h, q, k) -> score` get int32 arrays that broadcast against each
other, with any number of axes, and must answer for each index by itself: the blockwise engine asks for a few blocks
at a time, the dense path for all pairs at once. b is the row of the batch, h the query head, q and k are positions in
the row, counted from its first token. A list of mods means: every mask mod allows it, score mods one after the other.

A mod of your own is a `Mod` with one or both of these functions and `type: my_module:MyMod`, or plain functions in a
`function` mod. A named one: a class here or in `named_mods.py`, a row in `models.attention.MODS`.
Legend: B rows, H query heads, L queries, S keys.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import reduce
from typing import Annotated, Any, NamedTuple, Self

import mlx.core as mx
from pydantic import Field, WithJsonSchema, model_validator

from utils.errors import ConfigError
from utils.registry import import_object
from utils.schema import OneOf, TypedSection

MaskFunction = Callable[[mx.array, mx.array, mx.array, mx.array], mx.array]
ScoreFunction = Callable[[mx.array, mx.array, mx.array, mx.array, mx.array], mx.array]
SameSegment = Callable[[mx.array, mx.array, mx.array], mx.array]


def always(b: mx.array, q: mx.array, k: mx.array) -> mx.array:
    """True for every pair: rows that are one document."""
    return mx.full((1,) * q.ndim, True)


class Setting(NamedTuple):
    """What a mod may have to know of the call it takes part in."""

    num_heads: int
    """Query heads."""
    same_segment: SameSegment = always
    """Whether query q and key k of row b lie in one document."""


class Mod(TypedSection):
    """One change to attention, by `allowed(self, b, h, q, k)`, `score(self, score, b, h, q, k)`, or both."""

    @property
    def lookahead(self) -> int:
        """n: queries may see later keys, as far as these lie among the first n of a row. 0: a causal model's never."""
        return 0

    @property
    def needs_segments(self) -> bool:
        """Whether it asks which document a position belongs to."""
        return False

    @property
    def name(self) -> str:
        """What errors and the plan call it."""
        fields = {key: getattr(self, key) for key in type(self).model_fields if key != "type"}
        texts = {key: f"{value:g}" if isinstance(value, float) else str(value) for key, value in fields.items()}
        if len(texts) == 1:
            return f"{self.type} {next(iter(texts.values()))}"
        return " ".join([self.type, *(f"{key}={text}" for key, text in texts.items())])

    def is_plain(self, longest: int) -> bool:
        """Whether it changes nothing in causal attention over a single text of up to `longest` tokens."""
        return False

    def warning(self, sequence_length: int) -> str | None:
        """Why it makes no sense for rows of this length; None when it does."""
        return None

    def mask_function(self, setting: Setting) -> MaskFunction | None:
        """Its `allowed`, if it has one. Override to use `setting`."""
        return getattr(self, "allowed", None)

    def score_function(self, setting: Setting) -> ScoreFunction | None:
        """Its `score`, if it has one. Override to use `setting`."""
        return getattr(self, "score", None)

    def check_sizes(self, model_config: Any) -> None:
        """Raise ValueError when its fields do not fit the model. Reads `max_position_embeddings`."""


Mods = tuple[Mod, ...]


def mask_of(mods: Iterable[Mod], setting: Setting) -> MaskFunction | None:
    """Where every mask mod of the list allows it; None when the list holds none."""
    functions = [function for _, function in mask_functions(mods, setting)]
    return joined(functions, lambda one, other: one & other)


def score_of(mods: Iterable[Mod], setting: Setting) -> ScoreFunction | None:
    """The score mods of the list one after the other; None when it holds none."""
    functions = [named(function, mod) for mod in mods if (function := mod.score_function(setting)) is not None]
    if not functions:
        return None

    def score(score: mx.array, b: mx.array, h: mx.array, q: mx.array, k: mx.array) -> mx.array:
        return reduce(lambda value, function: function(value, b, h, q, k), functions, score)

    return score


def mask_functions(mods: Iterable[Mod], setting: Setting) -> Iterator[tuple[Mod, MaskFunction]]:
    """The mask mods of a list, each with its function."""
    for mod in mods:
        function = mod.mask_function(setting)
        if function is not None:
            yield mod, named(function, mod)


def joined(functions: Sequence[MaskFunction], join: Callable[[mx.array, mx.array], mx.array]) -> MaskFunction | None:
    """One function of several; None of none."""
    if not functions:
        return None

    def allowed(b: mx.array, h: mx.array, q: mx.array, k: mx.array) -> mx.array:
        return reduce(join, (function(b, h, q, k) for function in functions))

    return allowed


def named(function: Callable[..., mx.array], mod: Mod) -> Callable[..., mx.array]:
    """`function`, whose mistakes name the mod. Raises ConfigError instead of what a person's code raised."""

    def call(*arrays: mx.array) -> mx.array:
        try:
            return function(*arrays)
        except ConfigError:
            raise  # A mod inside this one has said its name already.
        except Exception as error:
            raise ConfigError(f"attention mod '{mod.name}' failed: {type(error).__name__}: {error}") from error

    return call


ModList = Annotated[
    tuple[
        Annotated[
            Mod,
            OneOf("models.attention:MODS", "attention mod"),
            WithJsonSchema({"type": "object", "required": ["type"], "description": "a mod, as in attention.mods"}),
        ],
        ...,
    ],
    Field(min_length=1),
]
"""Mods inside a mod. The editor's schema ends here: written out it would contain itself."""


class Combination(Mod):
    """Several mods as one."""

    mods: ModList
    """The mods, each with its `type`."""

    @property
    def lookahead(self) -> int:
        return max(mod.lookahead for mod in self.mods)

    @property
    def needs_segments(self) -> bool:
        return any(mod.needs_segments for mod in self.mods)

    @property
    def name(self) -> str:
        return f"{self.type} ({', '.join(mod.name for mod in self.mods)})"

    def warning(self, sequence_length: int) -> str | None:
        return next(filter(None, (mod.warning(sequence_length) for mod in self.mods)), None)


class And(Combination):
    """A pair that every mask mod allows; score mods one after the other."""

    type: str = "and"
    """and"""

    def is_plain(self, longest: int) -> bool:
        return all(mod.is_plain(longest) for mod in self.mods)

    def mask_function(self, setting: Setting) -> MaskFunction | None:
        return mask_of(self.mods, setting)

    def score_function(self, setting: Setting) -> ScoreFunction | None:
        return score_of(self.mods, setting)


class Or(Combination):
    """A pair that at least one mask mod allows."""

    type: str = "or"
    """or"""

    @model_validator(mode="after")
    def _masks_only(self) -> Self:
        scores = [mod.type for mod in self.mods if mod.score_function(Setting(1)) is not None]
        if scores:
            raise ValueError(
                f"{', '.join(scores)} changes scores, and `or` can only join masks: a score is changed or not,"
                " there is nothing to choose from; put it beside the `or`"
            )
        return self

    def is_plain(self, longest: int) -> bool:
        return not self.lookahead and any(mod.is_plain(longest) for mod in self.mods)

    def mask_function(self, setting: Setting) -> MaskFunction | None:
        functions = [function for _, function in mask_functions(self.mods, setting)]
        return joined(functions, lambda one, other: one | other)


class FunctionMod(Mod):
    """Plain functions of one's own, by import path."""

    type: str = "function"
    """function"""
    mask: str | None = None
    """`module:function` of (b, h, q, k); null: every pair is allowed."""
    score: str | None = None
    """`module:function` of (score, b, h, q, k); null: scores stay as they are."""
    num_lookahead: int = Field(default=0, ge=0)
    """n: the first n keys of a row may be seen by queries before them; their targets are not scored."""

    @model_validator(mode="after")
    def _functions_are_there(self) -> Self:
        if self.mask is None and self.score is None:
            raise ValueError("give mask or score, each as `module:function`")
        for key, path in (("mask", self.mask), ("score", self.score)):
            if path is not None and not callable(import_function(path)):
                raise ValueError(f"{key}: '{path}' is no function")
        return self

    @property
    def lookahead(self) -> int:
        return self.num_lookahead

    @property
    def name(self) -> str:
        return " ".join([self.type, *(path for path in (self.mask, self.score) if path)])

    def mask_function(self, setting: Setting) -> MaskFunction | None:
        return None if self.mask is None else import_function(self.mask)

    def score_function(self, setting: Setting) -> ScoreFunction | None:
        return None if self.score is None else import_function(self.score)


def import_function(path: str) -> Any:
    """What `module:function` names. Raises ValueError, also when the module itself does not import."""
    if ":" not in path:
        raise ValueError(f"'{path}' names no function; write module:function")
    try:
        return import_object(path)
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"cannot import '{path}': {type(error).__name__}: {error}") from error
