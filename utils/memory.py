"""How much memory this device lets a run use, and how much of it MLX keeps for the next step.

The limit: what Metal recommends, 0.95 of an NVIDIA card (MLX's own limit there), and on a CPU 0.9 of the machine's
memory, or of what its container was given, since the kernel kills who takes it all. MLX's cache of freed buffers is
set once, because shapes are static and a step's buffers fit the next: the CPU backend's default of 32 MB gives them
back to the kernel and asks for them again: 1.4 million page faults in 30 steps of the quickstart's model, 0.1 million
with this. On a GPU the default is nearly all of the memory, which leaves other programs none (not measured there). To
change the shares, edit `CUDA_SHARE`, `CPU_SHARE` and `CACHE_SHARE`.
"""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import mlx.core as mx

from utils.launcher import ranks_here

CUDA_SHARE = 0.95
CPU_SHARE = 0.9
CACHE_SHARE = 0.5
CGROUP_MEMBERSHIP = Path("/proc/self/cgroup")
CGROUP_MOUNT = Path("/sys/fs/cgroup")


def memory_limit(device: mx.Device | None = None) -> int:
    """Bytes that this process may use on `device`, by default MLX's own choice; ranks on one machine share them."""
    device = device or mx.default_device()
    info: dict[str, Any] = mx.device_info(device)
    if info.get("max_recommended_working_set_size"):
        return int(info["max_recommended_working_set_size"]) // ranks_here()
    if info.get("total_memory") and device.type != mx.DeviceType.cpu:
        return int(info["total_memory"] * CUDA_SHARE)  # A card of its own for each rank.
    physical = int(info.get("memory_size") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    whole = min([physical, *container_limits(CGROUP_MEMBERSHIP, CGROUP_MOUNT)])
    return int(CPU_SHARE * whole) // ranks_here()


def container_limits(membership: Path, mount: Path) -> list[int]:
    """Every memory limit of the control groups this process is in, theirs and their parents', in bytes.

    `membership`: lines `id:controllers:/path`; version 2 has the id 0 and no controllers, version 1 a tree of its own
    for memory. Empty where there are none, as on macOS.
    """
    limits = []
    for tree, path in memory_groups(membership):
        name = "memory.max" if tree == "." else "memory.limit_in_bytes"
        # Inside a container the path may be the host's, which is not mounted: the root then is the container's own.
        for folder in (PurePosixPath(path), *PurePosixPath(path).parents):
            file = mount / tree / str(folder).lstrip("/") / name
            text = file.read_text().strip() if file.is_file() else "max"
            if text.isdecimal():
                limits.append(int(text))
    return limits


def memory_groups(membership: Path) -> Iterator[tuple[str, str]]:
    """(tree below the mount, path in it) for each hierarchy that accounts for memory."""
    lines = membership.read_text().splitlines() if membership.is_file() else []
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            yield ".", path
        elif "memory" in controllers.split(","):
            yield "memory", path


def cache_bytes(limit: int, peak: int = 0) -> int:
    """Most that MLX keeps of freed buffers when a step takes `peak` of `limit` bytes: half, or what the step leaves."""
    return max(0, min(int(limit * CACHE_SHARE), limit - peak))


def set_cache_limit() -> None:
    """Let MLX keep freed buffers, where no plan says what the work itself takes."""
    mx.set_cache_limit(cache_bytes(memory_limit()))


def set_limits(limit: int, peak: int) -> None:
    """Make MLX wait for the device rather than take more than `limit` bytes, and keep what a step does not need.

    The CPU backend never gives its cache back for want of memory, so step and cache together must fit. It also issues
    kernels far ahead of their turn and holds their arrays: a step limited to 0.7 of the peak it had without a limit
    took the same time (docs/log.md). Below what the step needs, MLX goes over the limit.
    """
    mx.set_memory_limit(limit)
    mx.set_cache_limit(cache_bytes(limit, peak))


def format_bytes(count: float) -> str:
    """`1.5 GB`, in powers of ten."""
    for suffix, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {suffix}"
    return f"{count:.0f} bytes"
