"""How much freed memory MLX keeps for the next step, set once: shapes are static, so a step's buffers fit the next.

The default of the CPU backend, 32 MB, gives a step's buffers back to the kernel and asks for them again: 1.4 million
page faults in 30 steps of the quickstart's model, 0.1 million with this. On a GPU the default is nearly all of the
memory, which leaves other programs none (not measured there). To change the share, edit `CACHE_SHARE`.
"""

import os
from typing import Any

import mlx.core as mx

CACHE_SHARE = 0.5


def memory_bytes() -> int:
    """Memory of the default device: a GPU's own, or what it shares with the machine."""
    info: dict[str, Any] = mx.device_info(mx.default_device())
    for key in ("memory_size", "total_memory"):
        if info.get(key):
            return int(info[key])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def set_cache_limit() -> int:
    """Let MLX keep up to half of the device's memory; returns the limit in bytes."""
    limit = int(memory_bytes() * CACHE_SHARE)
    mx.set_cache_limit(limit)
    return limit
