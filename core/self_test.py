"""Numerics self-test of a GPU before a run: wrong kernels have shipped for new chips, and a run does not notice them.

One attention with its gradient, three matrix products and two reductions are compared with float64 on the host, in
float32 and in the run's precision. What is measured is the largest error of a row over the typical size of a row: a
lost tile, a wrong mask or a dropped element shows there, rounding does not. Below a second. On a CPU nothing is fused
and nothing is tested. To test another operation, give it a field of `Operations` and a function in `errors_of`.

Shapes: B rows, H heads, G key/value heads, L positions, K head size.
"""

from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from core.precision import DTYPES
from utils.chips import Chip, this_chip
from utils.errors import BackendError

LENGTH = 128
NUM_HEADS, NUM_GROUPS = 2, 1
# Whole tiles, no multiple of 32 anywhere, and a long inner axis, which kernels split among thread groups.
MATMULS = ((256, 256, 256), (201, 1001, 73), (33, 8193, 49))
ROW_LENGTH = 65_536

# Largest error allowed. Products: float32 may run as TF32, whose 11 bits round each factor by up to 5e-4; bfloat16 has
# 8 bits (4e-3), float16 11. Attention chains two products around an exponential, its gradient five. Sums of integers
# are exact in float32, in half precision only the result is rounded; sums never run in TF32.
TOLERANCES = {
    "matmul": {"float32": 2e-3, "bfloat16": 1e-2, "float16": 2e-3},
    "attention": {"float32": 5e-3, "bfloat16": 3e-2, "float16": 5e-3},
    "attention gradient": {"float32": 1e-2, "bfloat16": 6e-2, "float16": 1e-2},
    "sum": {"float32": 1e-6, "bfloat16": 1e-2, "float16": 2e-3},
    "logsumexp": {"float32": 2e-5, "bfloat16": 5e-3, "float16": 1e-3},
}

REMEDIES = {
    "matmul": "set MLX_ENABLE_TF32=0 in the environment",
    "attention": "set model.attention.type: simple",
    "attention gradient": "set MLX_SDPA_VJP_FALLBACK=1 (Metal) or MLX_CUDA_USE_CUDNN_SDPA=0 (CUDA) in the environment",
    "sum": "train on another device",
    "logsumexp": "train on another device",
}


class Operations(NamedTuple):
    """What is tested; the fields stand for MLX's functions of that meaning."""

    attention: Callable[[mx.array, mx.array, mx.array, float], mx.array]
    """Causal, `(q_BHLK, k_BGLK, v_BGLK, scale) -> out_BHLK`."""
    matmul: Callable[[mx.array, mx.array], mx.array]
    """Of two matrices."""
    sum: Callable[[mx.array], mx.array]
    """Over the last axis."""
    logsumexp: Callable[[mx.array], mx.array]
    """Over the last axis."""


def fused_attention(q_BHLK: mx.array, k_BGLK: mx.array, v_BGLK: mx.array, scale: float) -> mx.array:
    """MLX's own kernel."""
    return mx.fast.scaled_dot_product_attention(q_BHLK, k_BGLK, v_BGLK, scale=scale, mask="causal")


OPERATIONS = Operations(fused_attention, mx.matmul, partial(mx.sum, axis=-1), partial(mx.logsumexp, axis=-1))


def check_device(precision: str, head_dim: int | None) -> None:
    """Test the default device unless it is a CPU.

    Args:
        precision: what the run computes in.
        head_dim: width of the run's heads; None leaves the fused attention out, for a run that does not use it.

    Raises:
        BackendError: one line for each operation whose result is wrong.
    """
    chip = this_chip()
    if chip.kind != "cpu":
        check_operations(chip, precision, head_dim, OPERATIONS)


def fused_head_dim(model_config: Any) -> int | None:
    """The `head_dim` for `check_device`: None for a model whose attention uses no fused kernel, or has none to tell."""
    attention = getattr(model_config, "attention", None)
    if attention is None or attention.kernel_mask(0) == "own":
        return None
    return getattr(model_config, "head_size", None)


def check_operations(chip: Chip, precision: str, head_dim: int | None, operations: Operations) -> None:
    """Compare each operation with its float64 reference, in float32 and in `precision`. Raises BackendError."""
    problems = []
    for tested in dict.fromkeys(("float32", precision)):
        worst: dict[str, float] = {}
        for name, error in errors_of(operations, tested, head_dim):
            worst[name] = max(error, worst.get(name, 0.0))
        problems += [
            f"{name} in {tested} is wrong on {chip.name} with MLX {version('mlx')}: its error is {error:.2g}, rounding "
            f"explains {TOLERANCES[name][tested]:.0e}; update MLX (pip install --upgrade mlx), or {REMEDIES[name]}, "
            "or choose another training.precision"
            for name, error in worst.items()
            if error > TOLERANCES[name][tested]
        ]
    if problems:
        raise BackendError(*problems)


def errors_of(operations: Operations, precision: str, head_dim: int | None) -> Iterator[tuple[str, float]]:
    """(operation, largest error) of everything that is tested in one precision."""
    random = np.random.default_rng(0)
    for rows, inner, columns in MATMULS:
        a, b = rounded(random, precision, (rows, inner)), rounded(random, precision, (inner, columns))
        yield "matmul", row_error(operations.matmul(a, b), host(a) @ host(b))
    if head_dim is not None:
        yield from attention_errors(operations.attention, random, precision, head_dim)
    # Small integers are exact in every format and in any order; their sum is about sqrt(length) times their size.
    integers = mx.array(random.integers(-8, 9, (4, ROW_LENGTH)).astype(np.float32)).astype(DTYPES[precision])
    scale = float(np.sqrt(np.mean(host(integers) ** 2) * ROW_LENGTH))
    yield "sum", largest(host(operations.sum(integers)) - host(integers).sum(axis=-1)) / scale
    scores = rounded(random, precision, (4, ROW_LENGTH))
    reference = np.log(np.exp(host(scores)).sum(axis=-1))
    yield "logsumexp", largest((host(operations.logsumexp(scores)) - reference) / reference)


def attention_errors(
    attention: Callable[..., mx.array], random: np.random.Generator, precision: str, head_dim: int
) -> Iterator[tuple[str, float]]:
    """Errors of one causal attention with grouped heads, and of its three gradients."""
    query_shape, key_shape = (1, NUM_HEADS, LENGTH, head_dim), (1, NUM_GROUPS, LENGTH, head_dim)
    shapes = (query_shape, key_shape, key_shape, query_shape)
    q, k, v, cotangent = (rounded(random, precision, shape) for shape in shapes)
    scale = head_dim**-0.5
    (out,), gradients = mx.vjp(lambda *inputs: attention(*inputs, scale), [q, k, v], [cotangent])
    expected_out, expected_gradients = causal_attention(host(q), host(k), host(v), host(cotangent), scale)
    yield "attention", row_error(out, expected_out)
    for gradient, expected in zip(gradients, expected_gradients, strict=True):
        yield "attention gradient", row_error(gradient, expected)


def causal_attention(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, cotangent: np.ndarray, scale: float
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Output and gradients of q, k, v in the dtype of the inputs: [B, H, L, K], keys [B, G, L, K] with G = 1."""
    length = q.shape[2]
    scores = np.where(np.tri(length, dtype=bool), q @ k.swapaxes(-1, -2) * scale, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    change = cotangent @ v.swapaxes(-1, -2)
    change = weights * (change - (change * weights).sum(axis=-1, keepdims=True)) * scale
    of_keys, of_values = change.swapaxes(-1, -2) @ q, weights.swapaxes(-1, -2) @ cotangent
    return weights @ v, (change @ k, of_keys.sum(axis=1, keepdims=True), of_values.sum(axis=1, keepdims=True))


def rounded(random: np.random.Generator, precision: str, shape: tuple[int, ...]) -> mx.array:
    """Normal numbers that `precision` holds exactly, so that the reference starts from the same ones."""
    return mx.array(random.standard_normal(shape, dtype=np.float32)).astype(DTYPES[precision])


def host(array: mx.array) -> np.ndarray:
    """The same numbers in float64."""
    return np.array(array.astype(mx.float32)).astype(np.float64)


def row_error(result: mx.array, expected: np.ndarray) -> float:
    """Largest norm of a row's error over the root mean square of the norms of the rows."""
    difference = np.linalg.norm(host(result) - expected, axis=-1)
    return largest(difference) / float(np.sqrt(np.mean(np.linalg.norm(expected, axis=-1) ** 2)))


def largest(values: np.ndarray) -> float:
    """Of the magnitudes; infinite when one of them is NaN."""
    return float(np.max(np.nan_to_num(np.abs(values), nan=np.inf)))
