"""A worker of tools/benchmark.py: our generation, greedy, one prompt a round.

The time to the first token is that of reading the prompt (prefill); the rest is one token after the other (decode).
"""

import core  # noqa: F401 -- before MLX

# isort: split
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx

from core.config import load
from core.decoding import draw_tokens
from core.precision import cast
from core.sampling import SamplingOptions
from models.weights import load_weights, read_folder
from utils.benchmarking import Row, random_tokens, serve, timed_generation
from utils.fast_blas import fit_threads, openblas_version


def prepare(spec: Row) -> tuple[Row, Callable[[], Row]]:
    """Load the weights; a round reads the prompt and writes `new_tokens`."""
    config = load(spec["config"], spec["overrides"])
    model = config.model.build(config.seed)
    _, weights = read_folder(Path(spec["folder"]))
    load_weights(model, weights)
    model.update(cast(model.parameters(), spec["precision"]))
    mx.eval(model.parameters())
    model.eval()
    fit_threads(spec["flops"])
    prompt = random_tokens(1, spec["prompt_tokens"], spec["vocab_size"])

    def measure() -> Row:
        return timed_generation(
            lambda: draw_tokens(model, prompt, spec["new_tokens"], SamplingOptions(temp=0.0), seed=0)
        )

    return {"attention": config.model.explain_kernels(config.data.sequence_length), "blas": openblas_version()}, measure


if __name__ == "__main__":
    serve(prepare)
