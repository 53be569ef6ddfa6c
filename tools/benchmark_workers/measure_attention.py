"""A worker of tools/benchmark.py: attention forward and backward, compiled, one call a round.

The gradient with respect to queries, keys and values of sum(out * cotangent), so that forward and backward both run.
Queries, keys and values are held before the call; its memory is the peak above them. Without a section of the config:
`mx.fast.scaled_dot_product_attention`, with an array for a mask that it has no name for.
"""

import core  # noqa: F401 -- before MLX

# isort: split
from collections.abc import Callable
from typing import Annotated, Any

import mlx.core as mx

from core.config import build_section
from core.precision import DTYPES
from models.attention.base import AttentionConfig
from models.attention.mask import Mask
from utils.benchmarking import Row, serve, time_on_mlx
from utils.memory import set_cache_limit
from utils.schema import OneOf

Section = Annotated[AttentionConfig, OneOf("models.attention:ATTENTION", "attention")]


def mlx_attend(q_BHLK: mx.array, k_BGSK: mx.array, v_BGSK: mx.array, mask: Mask, scale: float) -> mx.array:
    """MLX's own operation."""
    L = q_BHLK.shape[2]
    named = "causal" if mask.window is None else mask.array(L, L)
    return mx.fast.scaled_dot_product_attention(q_BHLK, k_BGSK, v_BGSK, scale=scale, mask=named)


def prepare(spec: Row) -> tuple[Row, Callable[[], Row]]:
    """Draw the inputs; a round is one value and gradient."""
    set_cache_limit()
    attend: Any = mlx_attend
    about = "mx.fast.scaled_dot_product_attention"
    if spec["attention"] is not None:
        config: AttentionConfig = build_section(Section, spec["attention"])
        attend, about = config.build(training=True), config.explain()
    mask = Mask("causal", window=spec["window"])
    B, H, G, L, K = (spec[name] for name in ("rows", "heads", "groups", "length", "head_dim"))
    dtype = DTYPES[spec["precision"]]
    shapes = ((B, H, L, K), (B, G, L, K), (B, G, L, K), (B, H, L, K))
    keys = mx.random.split(mx.random.key(0), 4)
    inputs = [mx.random.normal(shape, dtype, key=key) for shape, key in zip(shapes, keys, strict=True)]
    mx.eval(inputs)
    num_traces = 0

    def total(q_BHLK: mx.array, k_BGSK: mx.array, v_BGSK: mx.array, cotangent_BHLK: mx.array) -> mx.array:
        nonlocal num_traces
        num_traces += 1
        out_BHLK = attend(q_BHLK, k_BGSK, v_BGSK, mask, K**-0.5)
        return (out_BHLK * cotangent_BHLK).astype(mx.float32).sum()

    step = mx.compile(mx.value_and_grad(total, argnums=(0, 1, 2)))
    values: list[Any] = []

    def run() -> None:
        value, gradients = step(*inputs)
        mx.eval(value, gradients)
        values.append(value.item())

    def measure() -> Row:
        row = time_on_mlx(run)
        return row | {"compiled_variants": num_traces, "value": values.pop()}

    return {"attention": about}, measure


if __name__ == "__main__":
    serve(prepare)
