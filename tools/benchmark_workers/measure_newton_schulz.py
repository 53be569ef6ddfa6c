"""A worker of tools/benchmark.py: one Muon update of the matrices of some layers, ours or `mlx.optimizers.Muon`.

Both run compiled, on the same weights and gradients, so what differs is the stacking, the Gram iteration and the
weight decay (ours decoupled). The gradients are always the same, so nothing but the update is timed. The nodes are
those of one compiled update's graph, as `mx.export_to_dot` writes it before anything is computed; `kernels` leaves
out the nodes that only look at memory in another way.
"""

import core  # noqa: F401 -- before MLX

# isort: split
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers
from mlx.utils import tree_flatten

from optimizers.muon import MuonConfig
from utils.benchmarking import Row, serve, time_on_mlx
from utils.fast_blas import openblas_version
from utils.memory import set_cache_limit

VIEWS = {"AsStrided", "Broadcast", "Depends", "ExpandDims", "Flatten", "Reshape", "Split", "Squeeze", "Transpose"}
RATE, DECAY = 1e-6, 0.1


def layer_shapes(hidden: int, intermediate: int, gated: bool) -> dict[str, tuple[int, int]]:
    """The matrices of one layer: four square ones, and two of a GPT-2 or three of a llama."""
    shapes = {f"self_attn.{name}_proj.weight": (hidden, hidden) for name in "qkvo"}
    shapes |= {"mlp.up_proj.weight": (intermediate, hidden), "mlp.down_proj.weight": (hidden, intermediate)}
    return shapes | ({"mlp.gate_proj.weight": (intermediate, hidden)} if gated else {})


def drawn(shapes: dict[str, tuple[int, int]], scale: float, seed: int) -> dict[str, mx.array]:
    """Normal numbers of standard deviation `scale`, the same for every variant."""
    keys = mx.random.split(mx.random.key(seed), len(shapes))
    return {
        name: scale * mx.random.normal(shape, key=keys[index]) for index, (name, shape) in enumerate(shapes.items())
    }


def nodes_of(arrays: Any) -> list[str]:
    """The kind of every node that is still to be computed for `arrays`."""
    pairs: Any = tree_flatten(arrays)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.dot"
        mx.export_to_dot(str(path), *(array for _, array in pairs))
        return re.findall(r'label ?="([^"]*)", shape=rectangle', path.read_text(encoding="utf-8"))


def build_optimizer(kind: str, weights: dict[str, mx.array]) -> mlx.optimizers.Optimizer:
    """`ours` or `mlx.optimizers.Muon`, its state allocated; the momentum and five steps of both are the same."""
    if kind == "ours":
        return MuonConfig(learning_rate=RATE, weight_decay=DECAY, update_scale="original").build(weights)
    optimizer = mlx.optimizers.Muon(RATE, momentum=0.95, weight_decay=DECAY, nesterov=True, ns_steps=5)
    optimizer.init(weights)
    return optimizer


def prepare(spec: Row) -> tuple[Row, Callable[[], Row]]:
    """Draw weights and gradients, build the optimizer; a round is one update."""
    set_cache_limit()
    layer = layer_shapes(spec["hidden_size"], spec["intermediate_size"], spec["gated"])
    shapes = {f"layers.{index}.{name}": shape for index in range(spec["layers"]) for name, shape in layer.items()}
    weights, gradients = drawn(shapes, 0.02, seed=0), drawn(shapes, 1e-3, seed=1)
    optimizer = build_optimizer(spec["kind"], weights)
    mx.eval(weights, gradients, optimizer.state)
    step = mx.compile(optimizer.apply_gradients, inputs=[optimizer.state], outputs=[optimizer.state])
    weights = step(gradients, weights)
    nodes = nodes_of((weights, optimizer.state))
    mx.eval(weights, optimizer.state)

    def run() -> None:
        nonlocal weights
        weights = step(gradients, weights)
        mx.eval(weights, optimizer.state)

    counts = {"nodes": len(nodes), "kernels": sum(node not in VIEWS for node in nodes)}
    parameters = sum(array.size for array in gradients.values())
    facts = {"parameters": parameters, "precision": "float32", "blas": openblas_version(), **counts}
    return facts, lambda: time_on_mlx(run) | counts


if __name__ == "__main__":
    serve(prepare)
