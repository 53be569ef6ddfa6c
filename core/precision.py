"""Arithmetic of the forward and backward pass: chosen for the device, applied by casting inside the loss.

The masters are the model's float32 parameters; compute runs in a copy cast inside the differentiated function, so
gradients come back float32. `auto` is what the table of chips says (utils/chips.py): bfloat16 where the hardware has
it, else float32, as half-precision products do not reach BLAS on a CPU. float16 on request, with a loss scale that
adapts (core/guard.py).
"""

from typing import Any

import mlx.core as mx
from mlx.utils import tree_map

from utils.chips import this_chip

DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}


def resolve_precision(asked: str, device: mx.Device | None = None) -> str:
    """The precision to compute in on this device: a CPU always takes float32, `precision_warning` says so."""
    device = device or mx.default_device()
    if device.type == mx.DeviceType.cpu:
        return "float32"
    return this_chip(device).default_precision if asked == "auto" else asked


def precision_warning(asked: str, used: str) -> str | None:
    """A line for a person whose choice this device does not take."""
    if asked in ("auto", used):
        return None
    return f"training.precision {asked} is about 40 times slower than float32 on a CPU: computing in {used} here"


def cast(parameters: Any, precision: str) -> Any:
    """The tree with every floating array in `precision`; the same tree for float32."""
    if precision == "float32":
        return parameters
    dtype = DTYPES[precision]
    return tree_map(lambda array: array.astype(dtype) if mx.issubdtype(array.dtype, mx.floating) else array, parameters)
