"""`python tools/benchmark-step.py [--config X.yaml]`: what the training loop costs over a step written by hand.

Both train the same model on the same batches with AdamW, in turns, in one process; other work on the machine then
disturbs both alike. The bare step is a dozen lines of MLX: one compiled function, one blocking `mx.eval`. Ours is what
`core.training` runs: loader, guard, float32 casts, schedule, late reads. Printed: the ratio of the medians, and the
median of the ratios of neighbours.
"""

import core  # noqa: F401 -- before MLX

# isort: split
import statistics
import time
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers

from core.assembly import Parts, build_parts
from core.config import load
from core.evaluation import to_arrays
from core.objectives.base import cross_entropy
from core.training import make_step, to_micro_batches
from distributed.group import SingleConfig
from models.attention.mask import Mask
from utils.cli import Parser, run_command


def bare_step(model: nn.Module) -> Callable[[Any], mx.array]:
    """Forward, backward, clip, AdamW: compiled, and nothing else."""
    optimizer = mlx.optimizers.AdamW(1e-3, [0.9, 0.95], 1e-8, 0.1, bias_correction=True)
    optimizer.init(model.trainable_parameters())
    state = [model.state, optimizer.state]

    def mean_loss(model: nn.Module, batch: Any) -> mx.array:
        return (cross_entropy(model(batch.tokens, Mask("causal")), batch.targets) * batch.weights).mean()

    def step(batch: Any) -> mx.array:
        loss, gradients = nn.value_and_grad(model, mean_loss)(model, batch)
        gradients, _ = mlx.optimizers.clip_grad_norm(gradients, 1.0)
        optimizer.update(model, gradients)
        return loss

    compiled = mx.compile(step, inputs=state, outputs=state)

    def run(batch: Any) -> mx.array:
        loss = compiled(to_arrays(batch))
        mx.eval(loss, state)
        return loss

    return run


def our_step(parts: Parts, config: Any) -> Callable[[Any], Any]:
    """One turn of the loop of `core.training`, its outputs read at once so that turns do not overlap."""
    step = make_step(parts, SingleConfig().build(), config)

    def run(batch: Any) -> Any:
        parts.optimizer.set_schedule(0.5)
        output = step(to_micro_batches(batch, parts.plan.micro_batch_size))
        mx.eval(output, parts.model.state, parts.optimizer.state)
        return output.loss.item()

    return run


def seconds(run: Callable[[Any], Any], batch: Any) -> float:
    """Wall-clock time of one call."""
    start = time.perf_counter()
    run(batch)
    return time.perf_counter() - start


def main() -> int:
    """Measure and print."""
    parser = Parser("Compare a training step with a bare MLX step of the same model.")
    parser.add_argument("--config", default="configs/training/quickstart.yaml", help="what is trained (%(default)s)")
    parser.add_argument("--steps", type=int, default=30, help="counted steps of each (%(default)s)")
    arguments = parser.parse_args()
    config = load(arguments.config, ["optimizer={type: adamw, learning_rate: 1e-3}"])
    parts = build_parts(config, SingleConfig().build(), None, lambda line: None)
    bare, ours = bare_step(parts.model_config.build(config.seed)), our_step(parts, config)
    batches = parts.dataset.batches(parts.plan.batch_size)
    pairs = []
    for _ in range(arguments.steps + 5):
        batch = next(batches)[0]
        pairs.append((seconds(ours, batch), seconds(bare, batch)))
    batches.close()
    pairs = pairs[5:]
    ours_median, bare_median = (statistics.median(column) for column in zip(*pairs, strict=True))
    paired = statistics.median(a / b for a, b in pairs)
    print(f"{config.name}: {parts.plan.num_params:,} parameters, {parts.plan.tokens_per_step:,} tokens a step")
    print(f"ours {ours_median * 1e3:.1f} ms, bare {bare_median * 1e3:.1f} ms: {ours_median / bare_median:.3f}x")
    print(f"median of {len(pairs)} neighbouring ratios: {paired:.3f}x")
    return 0


if __name__ == "__main__":
    run_command(main)
