"""What a run logs of its layers: norms of gradients and weights, and how far an update moves the weights.

The norm of every gradient array comes out of the compiled step, which needs it for clipping. The rest is made outside,
and only for updates that are logged so: the weights from before are kept by reference (the new ones then go into the
memory of the gradients, so it costs none), and two vectors are computed from old and new behind the update, started
and read late as everything else. An update is often near a thousandth of the weight; a layer far from the others is
where to look. All figures are of the weights before the update and of the gradient before clipping. To cut a model into
layers otherwise, edit `layer_of`.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from core.gradients import leaves, square_sum

NUMBERED = re.compile(r"(.*?\.\d+)\.")

Indices = Mapping[str, Sequence[int]]


class Movement(NamedTuple):
    """What one update did: L2 norms [arrays], float32, in the order of `core.gradients.leaves`."""

    weights: mx.array
    """Before the update."""
    changes: mx.array
    """Of new minus old weights: zeros for an update that was held back."""


class Arrangement(NamedTuple):
    """Which arrays, by their place in `core.gradients.leaves`, are logged together."""

    layers: Indices
    groups: Indices
    """Of the optimizer."""


def movement(before: Any, after: Any) -> Movement:
    """How far one tree of weights is from another, started and not waited for."""
    weights, changes = [], []
    last = mx.zeros(())
    for pair in zip(leaves(before), leaves(after), strict=True):
        # One array after the other: only a few differences are alive at once.
        old, new = mx.depends(list(pair), [last])
        last = square_sum(new.astype(mx.float32) - old.astype(mx.float32))
        weights.append(square_sum(old))
        changes.append(last)
    found = Movement(mx.sqrt(mx.stack(weights)), mx.sqrt(mx.stack(changes)))
    mx.async_eval(found)
    return found


def layer_of(name: str) -> str:
    """`model.layers.3` of `model.layers.3.mlp.up_proj.weight`; without a number the module, as `model.norm`."""
    numbered = NUMBERED.match(name)
    return numbered.group(1) if numbered else name.rpartition(".")[0] or name


def arrange(parameters: Any, group_of: Callable[[str], str]) -> Arrangement:
    """The layers of a tree of parameters, in its order, and the groups that `group_of` puts its dotted names in."""
    names = [name for name, _ in tree_flatten(parameters)]
    return Arrangement(indices_by(map(layer_of, names)), indices_by(map(group_of, names)))


def indices_by(keys: Iterable[str]) -> dict[str, list[int]]:
    """Where each key stands."""
    found: dict[str, list[int]] = {}
    for index, key in enumerate(keys):
        found.setdefault(key, []).append(index)
    return found


def combined(norms: mx.array, indices: Indices) -> dict[str, float]:
    """The norm of the arrays of each key together."""
    squares = np.square(np.array(norms, dtype=np.float64))
    return {key: math.sqrt(squares[list(places)].sum()) for key, places in indices.items()}


def ratio(change: float, weight: float) -> float:
    """change / weight; 0 when nothing moved, infinite when weights left zero."""
    if weight == 0:
        return math.inf if change else change
    return change / weight


def by_group(name: str, overall: float, values: Mapping[str, float]) -> dict[str, float]:
    """`name` with the overall value and, when there are several groups, `name/group` with each one's."""
    each = {f"{name}/{group}": value for group, value in values.items()} if len(values) > 1 else {}
    return {name: overall, **each}


def layer_figures(arrangement: Arrangement, grad_norms: mx.array, moved: Movement) -> dict[str, float]:
    """The figures of a row of metrics: of each layer three, and the ratio of update to weight of each group."""
    gradients, weights, changes = (combined(norms, arrangement.layers) for norms in (grad_norms, *moved))
    figures = {}
    for layer, weight in weights.items():
        figures[f"layers/grad_norm/{layer}"] = gradients[layer]
        figures[f"layers/weight_norm/{layer}"] = weight
        figures[f"layers/update_ratio/{layer}"] = ratio(changes[layer], weight)
    weights, changes = (combined(norms, arrangement.groups) for norms in moved)
    overall = ratio(math.hypot(*changes.values()), math.hypot(*weights.values()))
    ratios = {group: ratio(changes[group], weight) for group, weight in weights.items()}
    return figures | by_group("optim/update_ratio", overall, ratios)
