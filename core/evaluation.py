"""How good a model is on held-out text: loss, perplexity, bits per byte; beside them, what gzip and xz make of it.

Always the same validation rows, token-weighted: sums of nats and of weights over all batches, divided once.
Bits per byte divides by the bytes of the original text, so runs with different tokenizers compare.
`python -m core.evaluation --run runs/NAME`. To add a measure, add a field to `Evaluation` and a line to `as_metrics`.
"""

import argparse
import gzip
import json
import lzma
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from core.assembly import evaluation_dataset
from core.loading import add_model_arguments, load_model
from core.objectives.base import Loss, Objective
from core.precision import cast, resolve_precision
from data.batch import Batch
from utils.cli import Parser, run_command, warn
from utils.errors import DataError


class Evaluation(NamedTuple):
    """Figures of one pass over the validation set."""

    total_nats: float
    num_tokens: int
    """Predicted tokens, end-of-document tokens among them."""
    num_bytes: int
    """Bytes of the original text."""

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.total_nats / self.num_tokens

    @property
    def perplexity(self) -> float:
        """exp(loss), infinite beyond the range of floats."""
        return math.inf if self.loss >= 700 else math.exp(self.loss)

    @property
    def bits_per_byte(self) -> float:
        """Comparable between tokenizers, and with a compressor."""
        return self.total_nats / math.log(2) / self.num_bytes

    def as_metrics(self) -> dict[str, float]:
        """Rows for metrics.jsonl."""
        return {
            "eval/loss": self.loss,
            "eval/perplexity": self.perplexity,
            "eval/bits_per_byte": self.bits_per_byte,
            "eval/tokens": self.num_tokens,
        }


class Evaluator:
    """Holds the compiled evaluation function of one model, so that it is traced once in a run."""

    def __init__(self, model: nn.Module, objective: Objective, precision: str, *, compiled: bool = True) -> None:
        self._model = model
        state = [model.state]

        def sums(batch: Batch) -> Loss:
            masters = model.trainable_parameters()
            model.update(cast(masters, precision))
            loss = objective.evaluate(model, batch)
            model.update(masters)
            return loss

        self._sums = mx.compile(sums, inputs=state, outputs=state) if compiled else sums

    def run(
        self, batches: Iterable[Batch], num_bytes: int, should_stop: Callable[[], bool] = lambda: False
    ) -> Evaluation | None:
        """Evaluate all `batches` (NumPy, all of one shape); None when `should_stop` ended it early."""
        self._model.eval()
        total, weight = 0.0, 0.0
        try:
            for batch in batches:
                if should_stop():
                    return None
                loss = self._sums(to_arrays(batch))
                mx.eval(loss.total, loss.weight)
                total += number(loss.total)
                weight += number(loss.weight)
        except RuntimeError:
            if not should_stop():
                raise
            return None  # The compiler that MLX runs got the same Ctrl-C.
        finally:
            self._model.train()
        return Evaluation(total, round(weight), num_bytes)


def number(array: mx.array) -> float:
    """A 0-d array as a Python number; waits for the device."""
    value: Any = array.item()
    return value


def to_arrays(batch: Batch) -> Batch:
    """NumPy to MLX."""
    return Batch(*(mx.array(np.ascontiguousarray(array)) for array in batch))


class Compressors(NamedTuple):
    """Bits per byte of general compressors on the same text: what a language model has to beat."""

    gzip: float
    xz: float


def compressors(text: bytes) -> Compressors:
    """`gzip -9` and `xz -9` on `text` as one file."""
    bits = 8.0 / len(text)
    return Compressors(len(gzip.compress(text, 9)) * bits, len(lzma.compress(text, preset=9)) * bits)


def report(evaluation: Evaluation, text: bytes) -> list[str]:
    """Lines for a person."""
    beside = compressors(text)
    rows = [
        ("loss (nats per token)", f"{evaluation.loss:.4f}"),
        ("perplexity", f"{evaluation.perplexity:.2f}"),
        ("bits per byte, this model", f"{evaluation.bits_per_byte:.3f}"),
        ("bits per byte, gzip -9", f"{beside.gzip:.3f}"),
        ("bits per byte, xz -9", f"{beside.xz:.3f}"),
        ("held-out text", f"{evaluation.num_bytes:,} bytes, {evaluation.num_tokens:,} tokens"),
    ]
    return [f"{name:<28}{value}" for name, value in rows]


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line of `core.evaluation`."""
    parser = Parser("Evaluate a run on held-out text.", prog="python -m core.evaluation")
    add_model_arguments(parser, model_folder=False)
    parser.add_argument("--data", type=Path, help="another text file to evaluate on")
    parser.add_argument("--batch-size", type=int, default=None, help="sequences at once")
    options = parser.parse_args(arguments)
    if options.batch_size is not None and options.batch_size < 1:
        parser.error(f"--batch-size is {options.batch_size}; give at least 1")
    return options


def evaluate_run(arguments: argparse.Namespace) -> tuple[Evaluation, bytes]:
    """Evaluate a run's checkpoint on its validation text, or on `--data`."""
    loaded = load_model(run=arguments.run, weights=arguments.weights, checkpoint=arguments.checkpoint)
    config: Any = loaded.config
    dataset = evaluation_dataset(config, loaded.tokenizer, arguments.data)
    if not dataset.validation_bytes:
        raise DataError(f"the run {arguments.run} has no validation text: name some with --data FILE")
    if arguments.data is None and trained_on(loaded.source) != dataset.fingerprint:
        warn("the corpus has changed since the run: this held-out text is another one, and training may have seen it")
    objective = config.objective.build(loaded.tokenizer.vocab_size)
    evaluator = Evaluator(loaded.model, objective, resolve_precision(config.training.precision))
    batch_size = arguments.batch_size or config.evaluation.batch_size or rows_at_once(config)
    evaluation = evaluator.run(dataset.validation_batches(batch_size), dataset.validation_bytes)
    assert evaluation is not None
    return evaluation, dataset.validation_text()


def rows_at_once(config: Any) -> int:
    """The micro-batch of training; eight rows where training chose it by the memory of its own machine."""
    rows = config.micro_batch_size_of(1)
    return min(8, rows) if config.training.micro_batch_size == "auto" else rows


def trained_on(checkpoint: Path) -> str:
    """The fingerprint of the data a checkpoint was trained on."""
    return json.loads((checkpoint / "state.json").read_text())["data_fingerprint"]


def main(arguments: list[str] | None = None) -> int:
    """`python -m core.evaluation`."""
    evaluation, text = evaluate_run(parse_arguments(arguments))
    print("\n".join(report(evaluation, text)))
    return 0


if __name__ == "__main__":
    run_command(main)
