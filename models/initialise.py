"""The initial weights: a function of the seed and of each parameter's name, and of nothing else.

Each parameter has a random key of its own, so that adding a layer leaves the others as they were and no other random
stream is used or moved. Matrices and embeddings: normal(0, initializer_range). The projections that write to the
residual stream: the same over sqrt(2 * layers), so that its variance does not grow with depth (GPT-2, Radford et al.
2019, section 2.3). An output layer of its own: zero, so that the first loss is exactly ln(vocab_size). Norms one,
biases zero, as built. To change any of this edit `initial_value`.
"""

import hashlib

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

RESIDUAL_PROJECTIONS = ("o_proj.weight", "down_proj.weight")
OUTPUT_LAYER = "lm_head.weight"


def initialise(model: nn.Module, seed: int, initializer_range: float, num_layers: int) -> None:
    """Set every matrix of `model`; nothing is computed until it is used. Vectors stay as built."""
    parameters: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
    values = [
        (name, initial_value(name, array.shape, seed, initializer_range, num_layers))
        for name, array in parameters.items()
        if array.ndim == 2
    ]
    model.update(tree_unflatten(values))


def initial_value(name: str, shape: tuple[int, ...], seed: int, initializer_range: float, num_layers: int) -> mx.array:
    """The initial float32 matrix of this name."""
    if name == OUTPUT_LAYER:
        return mx.zeros(shape)
    depth = (2 * num_layers) ** -0.5 if name.endswith(RESIDUAL_PROJECTIONS) else 1.0
    return mx.random.normal(shape, scale=initializer_range * depth, key=parameter_key(seed, name))


def parameter_key(seed: int, name: str) -> mx.array:
    """A random key for one parameter: 64 bits of a hash of the seed and the name."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return mx.random.key(int.from_bytes(digest[:8], "little"))
