"""A worker of tools/benchmark.py: the loss from hidden states to gradients, compiled, one call a round.

A model that is nothing but its hidden states and its output layer goes through the objective itself, so what is
measured is what training runs: head product, softmax, gradients of both. Its memory is the peak above the two. Without
an objective: `mlx.nn.losses.cross_entropy` on all logits, as a script of one's own would have it.
"""

import core  # noqa: F401 -- before MLX

# isort: split
from collections.abc import Callable
from typing import Annotated, Any

import mlx.core as mx
import mlx.nn as nn

from core.config import build_section
from core.objectives.base import Loss, ObjectiveConfig
from core.precision import DTYPES
from data.batch import Batch
from utils.benchmarking import Row, random_tokens, serve, time_on_mlx
from utils.memory import set_cache_limit
from utils.schema import OneOf

Section = Annotated[ObjectiveConfig, OneOf("core.objectives:OBJECTIVES", "objective")]


class HeadOnly(nn.Module):
    """Hidden states and a tied output layer, with the interface of models/decoder.py."""

    logit_soft_cap: float | None = None
    needs_segments = False
    num_lookahead = 0

    def __init__(self, hidden_BLD: mx.array, weight_VD: mx.array) -> None:
        super().__init__()
        self.hidden, self.weight = hidden_BLD, weight_VD

    def __call__(self, tokens_BL: mx.array, mask: Any, cache: Any = None) -> mx.array:
        return self.head(self.backbone(tokens_BL, mask, cache))

    def backbone(self, tokens_BL: mx.array, mask: Any, cache: Any = None) -> mx.array:
        return self.hidden

    def head(self, hidden_BLD: mx.array) -> mx.array:
        return hidden_BLD @ self.weight.T

    @property
    def head_weight(self) -> mx.array:
        return self.weight


def mlx_loss(model: HeadOnly, batch: Batch) -> Loss:
    """MLX's own, summed in float32."""
    losses_BL = nn.losses.cross_entropy(model(batch.tokens, None), batch.targets)
    return Loss(losses_BL.astype(mx.float32).sum(), batch.weights.sum(), {})


def prepare(spec: Row) -> tuple[Row, Callable[[], Row]]:
    """Draw hidden states and weights; a round is one value and gradient."""
    set_cache_limit()
    num_rows, length, vocab_size, hidden = (spec[name] for name in ("rows", "length", "vocab_size", "hidden_size"))
    objective: Any = mlx_loss
    if spec["objective"] is not None:
        objective = build_section(Section, spec["objective"]).build(vocab_size)
    dtype = DTYPES[spec["precision"]]
    states = mx.random.normal((num_rows, length, hidden), dtype, key=mx.random.key(0))
    model = HeadOnly(states, mx.random.normal((vocab_size, hidden), dtype, scale=0.02, key=mx.random.key(1)))
    tokens = mx.array(random_tokens(num_rows, length, vocab_size), mx.int32)
    ones = mx.ones((num_rows, length))
    batch = Batch(tokens, tokens, ones, ones.astype(mx.int32), mx.zeros((num_rows, 2), mx.uint32))
    mx.eval(model.parameters(), batch)
    num_traces = 0

    def loss_of(parameters: Any, batch: Batch) -> mx.array:
        nonlocal num_traces
        num_traces += 1
        model.update(parameters)
        loss: Loss = objective(model, batch)
        return loss.total / loss.weight

    parameters = model.trainable_parameters()
    step = mx.compile(mx.value_and_grad(loss_of))
    values: list[Any] = []

    def run() -> None:
        value, gradients = step(parameters, batch)
        mx.eval(value, gradients)
        values.append(value.item())

    def measure() -> Row:
        row = time_on_mlx(run)
        return row | {"compiled_variants": num_traces, "value": values.pop()}

    return {}, measure


if __name__ == "__main__":
    serve(prepare)
