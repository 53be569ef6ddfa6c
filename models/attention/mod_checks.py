"""Finds out, before a run, what a mod's function does that the blockwise engine could not bear.

The engine asks for some blocks, in any number of axes, while MLX traces the step. So a function is asked here for a
whole grid of pairs, for pieces of that grid, in the engine's six axes, and under a trace, and all answers must agree.
Each mod of a list is asked by itself, so that what is wrong has a name. To check something more: a function here,
called in `check_functions`.
Legend: B rows, G key/value heads, R query heads of each.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from models.attention.mods import Combination, Mod, ScoreFunction, Setting, named
from utils.errors import ConfigError

NUM_ROWS = 2
NUM_FIRST, NUM_LAST = 16, 8
"""Positions of the grid: from the beginning and from the end of the longest row."""

View = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Rows, heads, queries and keys of the grid, as indices that broadcast."""


def mod_problems(mod: Mod, model_config: Any) -> list[str]:
    """What is wrong with a mod and those inside it, with value and remedy; nothing when all is well.

    Reads `num_attention_heads` and `max_position_embeddings`.
    """
    inside = mod.mods if isinstance(mod, Combination) else ()
    if inside:
        return [problem for other in inside for problem in mod_problems(other, model_config)]
    longest = model_config.max_position_embeddings
    try:
        check_hash(mod)
        mod.check_sizes(model_config)
        check_lookahead(mod, longest)
        check_functions(mod, Setting(model_config.num_attention_heads), longest)
    except ValueError as error:
        return [str(error)]
    return []


def check_lookahead(mod: Mod, longest: int) -> None:
    """Refuse a mod that sees further ahead than a row is long."""
    if mod.lookahead > longest:
        raise ValueError(
            f"mod '{mod.type}' sees ahead over {mod.lookahead} positions, and max_position_embeddings is {longest}:"
            f" give at most {longest}"
        )


def check_hash(mod: Mod) -> None:
    """Refuse a mod whose fields can change after it was made: its layout of blocks is kept."""
    try:
        hash(mod)
    except TypeError as error:
        raise ValueError(f"mod '{mod.type}': {error}; make its fields tuples, numbers or text") from None


def check_functions(mod: Mod, setting: Setting, longest: int) -> None:
    """Refuse a mod without functions, and functions whose answer is not one for each pair by itself."""
    try:
        allowed, score = mod.mask_function(setting), mod.score_function(setting)
        if allowed is None and score is None:
            raise ValueError(
                f"mod '{mod.type}' changes nothing: define allowed(self, b, h, q, k), score(self, score, b, h, q, k)"
                " or both"
            )
        grid = Grid(setting.num_heads, longest)
        if allowed is not None:
            answer = grid.check_answers(f"mod '{mod.name}': allowed", named(allowed, mod), None)
            if not answer.any():
                raise ValueError(f"mod '{mod.name}': allowed hides every key from every query: let each see itself")
        if score is not None:
            grid.check_score(f"mod '{mod.name}': score", named(score, mod))
    except ConfigError as error:
        raise ValueError(str(error)) from error


class Grid:
    """Some rows, all heads and some positions, and several ways to ask about them."""

    def __init__(self, num_heads: int, longest: int) -> None:
        few = min(longest, NUM_FIRST + NUM_LAST)
        first = np.arange(min(few, NUM_FIRST))
        self.positions = np.concatenate([first, np.arange(longest - (few - len(first)), longest)]).astype(np.int32)
        self.sizes = (NUM_ROWS, num_heads, few, few)
        self.whole = self.view(*map(range, self.sizes))

    def view(self, *parts: Sequence[int]) -> View:
        """Four axes: the rows, heads, queries and keys given."""
        shapes = [[-1 if i == axis else 1 for i in range(4)] for axis in range(4)]
        b, h, q, k = (np.array(part).reshape(shape) for part, shape in zip(parts, shapes, strict=True))
        return b, h, q, k

    def others(self) -> Iterator[View]:
        """The same again, two pieces, and the engine's axes: [B, G, R, pairs of blocks, queries, keys]."""
        rows, heads, few, _ = self.sizes
        half = (few + 1) // 2
        yield self.whole
        yield self.view(range(1, rows), range(heads - 1, heads), range(few // 3, few), range(half))
        yield self.view(range(1), range(heads), range(half), range(few // 4, few))
        starts = np.array([0, few - half, few - half, 0])
        queries, keys = starts[[0, 1, 2, 3], None] + np.arange(half), starts[[0, 1, 3, 2], None] + np.arange(half)
        yield (
            np.arange(rows).reshape(-1, 1, 1, 1, 1, 1),
            np.arange(heads).reshape(1, 1, -1, 1, 1, 1),
            queries[None, None, None, :, :, None],
            keys[None, None, None, :, None, :],
        )

    def indices(self, view: View) -> list[mx.array]:
        """What the function is asked: int32 arrays (b, h, q, k)."""
        b, h, q, k = view
        return [mx.array(part.astype(np.int32)) for part in (b, h, self.positions[q], self.positions[k])]

    def ask(self, says: str, function: Callable[..., mx.array], view: View, scores: np.ndarray | None) -> np.ndarray:
        """The answer for every pair of `view`; `scores` are those of the whole grid."""
        before = [] if scores is None else [mx.array(scores[view])]
        answer = function(*before, *self.indices(view))
        if not isinstance(answer, mx.array):
            raise ValueError(f"{says} gives {type(answer).__name__}, not an MLX array")
        wanted = mx.float32 if before else mx.bool_
        if answer.dtype != wanted:
            hint = "leave the score's type as it is" if before else "compare, as in `k <= q`"
            raise ValueError(f"{says} gives {answer.dtype}, not {wanted}: {hint}")
        shape = np.broadcast_shapes(*(part.shape for part in view))
        if before and answer.shape != shape or not fits(answer.shape, shape):
            raise ValueError(f"{says} gives shape {list(answer.shape)} for pairs of shape {list(shape)}")
        return np.broadcast_to(np.array(answer), shape)

    def check_score(self, says: str, score: ScoreFunction) -> None:
        """Refuse scores that are not finite float32 of the same shape, or that mix those of several pairs."""
        scores = 4.0 * np.random.default_rng(0).normal(size=self.sizes).astype(np.float32)
        answer = self.check_answers(says, score, scores)
        slope = mx.grad(lambda scores: score(scores, *self.indices(self.whole)).sum())(mx.array(scores))
        for values, what in ((answer, "scores"), (np.array(slope), "derivatives")):
            if not np.isfinite(values).all():
                raise ValueError(
                    f"{says} gives {what} that are not finite; keys are hidden with `allowed`, and a score must be a"
                    " number also where a mask hides it"
                )

    def check_answers(self, says: str, function: Callable[..., mx.array], scores: np.ndarray | None) -> np.ndarray:
        """The answer for the whole grid, after comparing it with those for all views, and tracing the function."""
        whole = self.ask(says, function, self.whole, scores)
        before = [] if scores is None else [mx.array(scores)]
        try:
            mx.compile(lambda *arrays: function(*arrays))(*before, *self.indices(self.whole))
        except ConfigError as error:
            raise ValueError(
                f"{says} looks at the values of its arrays, which are not known while MLX traces the step: use"
                f" comparisons and mx.where instead of if, item() and NumPy ({error})"
            ) from error
        for view in self.others():
            if not np.allclose(
                self.ask(says, function, view, scores), whole[view], rtol=1e-5, atol=1e-5, equal_nan=True
            ):
                each = "pairs it is asked about" if scores is None else "scores beside it"
                raise ValueError(
                    f"{says} answers differently for the same pair, depending on the {each}: it must compute each"
                    " element from its own b, h, q and k, without sums, shapes or random numbers"
                )
        return whole


def fits(shape: Sequence[int], wanted: Sequence[int]) -> bool:
    """Whether an array of `shape` broadcasts to `wanted`, axis by axis."""
    return len(shape) == len(wanted) and all(size in (1, whole) for size, whole in zip(shape, wanted, strict=True))
