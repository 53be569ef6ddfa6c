"""Activation checkpointing: a block keeps its input only, and computes the rest again when its gradient is due.

The saving is real only when blocks are differentiated one after the other, last block first. MLX would otherwise start
the recomputation of several at once, since it needs nothing but their inputs. So each recomputation waits for the
gradient that comes from above, and hands its own down only when the gradients of all its weights are done.
Source: Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost". To change which blocks are recomputed, edit
`Backbone.__call__` in models/decoder.py.
"""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from models.noise import drawn_from


def recomputed(block: nn.Module, x: mx.array, *context: Any) -> mx.array:
    """`block(x, *context)`: the same output and gradients, with `x` and the weights alone kept for the backward pass.

    `x` and the result are arrays of one shape. No gradient flows into arrays inside `context` (a mask's segments), nor
    into frozen weights. Dropout draws other values than in `block(x, *context)`, the same ones both times.
    """
    flat: Any = tree_flatten(block.trainable_parameters())
    names, weights = [name for name, _ in flat], [array for _, array in flat]
    key = mx.random.randint(0, 2**31 - 1, (2,)).astype(mx.uint32)

    def forward(x: mx.array, *weights: mx.array) -> mx.array:
        with drawn_from(key):
            return call_with(block, dict(zip(names, weights, strict=True)), x, *context)

    def backward(primals: Any, cotangent: mx.array, _output: mx.array) -> tuple[mx.array, ...]:
        # A block whose weights are all frozen has one input, which MLX hands over bare.
        primals = [primals] if isinstance(primals, mx.array) else list(primals)
        primals = mx.depends(primals, [cotangent])
        _, (x_gradient, *gradients) = mx.vjp(forward, primals, [cotangent])
        return (*mx.depends([x_gradient], gradients), *gradients)

    function: Any = mx.custom_function(forward)
    function.vjp(backward)
    return function(x, *weights)


def call_with(block: nn.Module, weights: dict[str, mx.array], x: mx.array, *context: Any) -> mx.array:
    """`block(x, *context)` with these weights by dotted name; the block keeps its own."""
    before = block.trainable_parameters()
    block.update(tree_unflatten(list(weights.items())))
    try:
        return block(x, *context)
    finally:
        block.update(before)
