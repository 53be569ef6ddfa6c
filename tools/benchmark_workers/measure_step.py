"""A worker of tools/benchmark.py: one training step a round, ours or a bare one of MLX.

`ours` is what `core.training` runs: its parts wired by `build_parts`, with random tokens in place of a corpus, and its
compiled step with guard, float32 sums and schedule. `bare` is a dozen lines of MLX on the same model: forward,
backward, clip, AdamW. Both wait for the results of every step; the loop itself reads them two steps late.
"""

import core  # noqa: F401 -- before MLX

# isort: split
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.optimizers
import numpy as np
from mlx.utils import tree_flatten

from core.assembly import Parts, build_parts
from core.config import Config, load
from core.evaluation import to_arrays
from core.objectives.base import cross_entropy
from core.precision import cast
from core.training import make_step, to_micro_batches
from data.batch import Batch
from data.text import DataConfig
from distributed.group import ProcessGroup
from models.attention.mask import Mask
from optimizers.base import refresh_period
from utils.benchmarking import Row, random_tokens, serve, time_on_mlx
from utils.fast_blas import openblas_version
from utils.memory import set_cache_limit


class RandomTokensConfig(DataConfig):
    """Random tokens instead of a corpus; nothing is read or prepared."""

    type: str = "random"
    """No row of a table: the worker puts it in place of the config's data section."""
    vocab_size: int
    """Ids are drawn below this."""

    def build(self, seed: int, tokenizer: Any = None, report: Any = print, prepared: Any = None) -> Any:
        """As much of a `Dataset` as `build_parts` looks at."""
        tokenizer = SimpleNamespace(vocab_size=self.vocab_size)
        endless = SimpleNamespace(num_tokens=lambda: None)
        return SimpleNamespace(
            tokenizer=tokenizer,
            rows_per_epoch=2**20,
            validation_bytes=0,
            set_budget=lambda budget: None,
            mixture=lambda: endless,
        )

    def expected_vocab_size(self) -> int | None:
        """Known from the start."""
        return self.vocab_size

    def find_problems(self) -> list[str]:
        """Nothing can be missing."""
        return []


class CountingGroup(ProcessGroup):
    """A group of one that counts how often the step is traced: a trace sums over the group once."""

    num_traces = 0

    def reduce(self, tree: Any) -> Any:
        self.num_traces += 1
        return super().reduce(tree)


def random_batch(num_rows: int, length: int, vocab_size: int) -> Batch:
    """Full rows of random tokens: the batch every peer gets too."""
    tokens = np.array(random_tokens(num_rows, length + 1, vocab_size), np.int32)
    shape = (num_rows, length)
    return Batch(
        tokens=np.ascontiguousarray(tokens[:, :-1]),
        targets=np.ascontiguousarray(tokens[:, 1:]),
        weights=np.ones(shape, np.float32),
        segments=np.ones(shape, np.int32),
        keys=np.zeros((num_rows, 2), np.uint32),
    )


def our_step(parts: Parts, config: Config, group: CountingGroup, batch: Batch) -> Callable[[], mx.array]:
    """Turns of the loop of `core.training`, from one refresh of the optimizer to the next; returns the last loss."""
    step = make_step(parts, group, config)
    num_updates, period = 0, refresh_period(parts.optimizer.groups)

    def run() -> mx.array:
        nonlocal num_updates
        for _ in range(period):
            parts.optimizer.set_schedule(0.5)
            refreshed = parts.optimizer.refresh(num_updates)
            output = step(to_micro_batches(batch, parts.plan.micro_batch_size))
            parts.optimizer.install(refreshed)
            mx.eval(output, parts.model.state, parts.optimizer.state)
            num_updates += 1
        return output.loss

    return run


def bare_step(parts: Parts, group: CountingGroup, batch: Batch) -> Callable[[], mx.array]:
    """Forward, backward, clip, AdamW: compiled, and nothing else."""
    model, precision = parts.model, parts.plan.precision
    optimizer = mlx.optimizers.AdamW(1e-3, [0.9, 0.95], 1e-8, 0.1, bias_correction=True)
    optimizer.init(model.trainable_parameters())
    state = [model.state, optimizer.state]

    def mean_loss(parameters: Any, batch: Batch) -> mx.array:
        model.update(cast(parameters, precision))
        return (cross_entropy(model(batch.tokens, Mask("causal")), batch.targets) * batch.weights).mean()

    def step(batch: Batch) -> mx.array:
        group.num_traces += 1
        masters = model.trainable_parameters()
        loss, gradients = mx.value_and_grad(mean_loss)(masters, batch)
        gradients, _ = mlx.optimizers.clip_grad_norm(gradients, 1.0)
        model.update(optimizer.apply_gradients(gradients, masters))
        return loss

    compiled = mx.compile(step, inputs=state, outputs=state)

    def run() -> mx.array:
        loss = compiled(to_arrays(batch))
        mx.eval(loss, state)
        return loss

    return run


def num_bytes(tree: Any) -> int:
    """Bytes of all arrays of a tree."""
    pairs: Any = tree_flatten(tree)
    return sum(array.nbytes for _, array in pairs)


def build(spec: Row) -> tuple[Config, Parts, CountingGroup]:
    """The parts of the run that `spec` names, on random tokens."""
    config = load(spec["config"], spec["overrides"])
    group = CountingGroup()
    num_tokens = spec["vocab_size"] - config.objective.num_reserved_tokens
    data = RandomTokensConfig(sequence_length=config.data.sequence_length, vocab_size=num_tokens)
    config = config.model_copy(update={"data": data})
    return config, build_parts(config, group, None, lambda line: None, initialise=False), group


def prepare(spec: Row) -> tuple[Row, Callable[[], Row]]:
    """Build the model; a round is one step."""
    set_cache_limit()
    config, parts, group = build(spec)
    mx.eval(parts.model.parameters())
    plan = parts.plan
    batch = random_batch(plan.batch_size, plan.sequence_length, parts.dataset.tokenizer.vocab_size)
    is_bare = spec["kind"] == "bare"
    run = bare_step(parts, group, batch) if is_bare else our_step(parts, config, group, batch)
    weights = num_bytes(parts.model.parameters())
    facts = {
        "parameters": plan.num_params,
        "precision": plan.precision,
        "attention": plan.attention,
        "blas": openblas_version(),
        "state_bytes": num_bytes(parts.optimizer.state),
    }
    # Gradients are as large as the weights; a bare AdamW holds as much state as ours.
    held = 2 * weights + num_bytes(parts.optimizer.state)
    if is_bare:
        parts.optimizer.state.clear()
    num_steps = 1 if is_bare else refresh_period(parts.optimizer.groups)
    losses: list[Any] = []

    def measure() -> Row:
        row = time_on_mlx(lambda: losses.append(run().item()), held)
        row["seconds"] /= num_steps
        variants = group.num_traces if config.training.compile else None
        row |= {"compiled_variants": variants, "value": losses[0]}
        return row if is_bare else row | {"plan_error": abs(plan.memory.peak / row["peak_bytes"] - 1)}

    return facts, measure


if __name__ == "__main__":
    serve(prepare)
