"""A worker of tools/benchmark.py: mlx-lm's own trainer and its own generation, on the weights of our model.

`train` calls `mlx_lm.tuner.trainer.train` itself. The iterator of batches that it takes blocks until it is this
worker's turn, so the time from one batch to the next is one true step of that trainer, with its `mx.eval`, its
progress bar and its clearing of the cache. With `"openblas": true` the process begins with `import core`, as ours do:
the harder peer, for on a Linux CPU mlx-lm is many times slower as installed.
"""

# ruff: noqa: E402 -- whether `core` goes before MLX is what distinguishes two peers
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from utils.benchmarking import Channel, Row, mlx_memory, random_tokens, timed_generation

SPEC: Row = json.loads(sys.argv[1])
if SPEC["openblas"]:
    import core  # noqa: F401 -- before MLX

import mlx.core as mx
import mlx.optimizers
from mlx_lm.generate import generate_step
from mlx_lm.tuner.trainer import TrainingArgs, default_loss, train
from mlx_lm.utils import load_model

from utils.fast_blas import fit_threads, openblas_version

DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}


def load_peer() -> Any:
    """mlx-lm's model with our weights, in the precision of the run: mlx-lm keeps no float32 masters."""
    model, _ = load_model(Path(SPEC["folder"]))
    model.set_dtype(DTYPES[SPEC["precision"]])
    mx.eval(model.parameters())
    return model


def serve_training(channel: Channel) -> None:
    """Each turn is one step of mlx-lm's trainer."""
    model = load_peer()
    optimizer = mlx.optimizers.AdamW(1e-3, [0.9, 0.95], 1e-8, 0.1)
    num_rows, length = SPEC["num_rows"], SPEC["length"]
    tokens = mx.array(random_tokens(num_rows, length + 1, SPEC["vocab_size"]), mx.int32)
    lengths = mx.array([[0, length + 1]] * num_rows, mx.int32)
    first_loss = default_loss(model, tokens, lengths)[0].item()
    num_traces = 0

    def counted_loss(*arguments: Any) -> Any:
        nonlocal num_traces
        num_traces += 1
        return default_loss(*arguments)

    def batches(**_: Any) -> Iterator[tuple[mx.array, mx.array]]:
        while channel.wait():
            mx.reset_peak_memory()
            start = time.perf_counter()
            yield tokens, lengths
            row = {"seconds": time.perf_counter() - start} | mlx_memory()
            channel.answer(row | {"compiled_variants": num_traces, "value": first_loss})
        raise SystemExit(0)

    channel.ready({"attention": "mlx-lm's own", "blas": openblas_version()})
    never = 2**31
    arguments = TrainingArgs(
        batch_size=num_rows, iters=never, steps_per_report=never, steps_per_save=never, max_seq_length=length + 1
    )
    train(model, optimizer, None, args=arguments, loss=counted_loss, iterate_batches=batches)


def serve_generation(channel: Channel) -> None:
    """Each turn reads the prompt and writes greedily."""
    model = load_peer()
    prompt = mx.array(random_tokens(1, SPEC["prompt_tokens"], SPEC["vocab_size"])[0], mx.int32)

    channel.ready({"attention": "mlx-lm's own", "blas": openblas_version()})
    while channel.wait():
        channel.answer(timed_generation(lambda: generate_step(prompt, model, max_tokens=SPEC["new_tokens"])))


def main(serve: dict[str, Callable[[Channel], None]]) -> None:
    """Set up and take turns."""
    channel = Channel()
    if SPEC["openblas"]:
        fit_threads(SPEC["flops"])
    serve[SPEC["kind"]](channel)


if __name__ == "__main__":
    main({"train": serve_training, "generate": serve_generation})
