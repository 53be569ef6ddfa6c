"""A worker of tools/benchmark.py: one update of all weights of a model by one optimizer, compiled, a round.

The gradients are random and always the same, so nothing but the update is timed. Where something is made anew every so
many updates, a round is so many, and its time is divided among them. The state's bytes are exact.
"""

import core  # noqa: F401 -- before MLX

# isort: split
from collections.abc import Callable
from typing import Annotated, Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map

from core.config import build_section, load
from optimizers.base import OptimizerConfig, refresh_period
from utils.benchmarking import Row, serve, time_on_mlx
from utils.fast_blas import openblas_version
from utils.memory import set_cache_limit
from utils.schema import OneOf

Section = Annotated[OptimizerConfig, OneOf("optimizers:OPTIMIZERS", "optimizer")]


def prepare(spec: Row) -> tuple[Row, Callable[[], Row]]:
    """Build weights, gradients and optimizer; a round is one update."""
    set_cache_limit()
    config = load(spec["config"], spec["overrides"])
    weights = config.model.build(config.seed).trainable_parameters()
    gradients = tree_map(lambda array: 1e-3 * mx.random.normal(array.shape), weights)
    mx.eval(weights, gradients)
    optimizer = build_section(Section, {"type": spec["optimizer"], "learning_rate": 1e-6}).build(weights)
    num_traces = 0

    def update(weights: Any, gradients: Any) -> Any:
        nonlocal num_traces
        num_traces += 1
        return optimizer.apply_gradients(gradients, weights)

    step = mx.compile(update, inputs=[optimizer.state], outputs=[optimizer.state])

    num_updates, period = 0, refresh_period(optimizer.groups)

    def run() -> None:
        nonlocal weights, num_updates
        for _ in range(period):
            refreshed = optimizer.refresh(num_updates)
            weights = step(weights, gradients)
            optimizer.install(refreshed)
            mx.eval(weights, optimizer.state)
            num_updates += 1

    pairs: Any = tree_flatten(optimizer.state)
    facts = {
        "parameters": config.model.num_params(),
        "state_bytes": sum(array.nbytes for _, array in pairs),
        "precision": "float32",
        "blas": openblas_version(),
    }

    def measure() -> Row:
        row = time_on_mlx(run)
        return row | {"seconds": row["seconds"] / period, "compiled_variants": num_traces}

    return facts, measure


if __name__ == "__main__":
    serve(prepare)
