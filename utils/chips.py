"""What is known of the chip at hand: its name, its peak rate for each precision, the precision it should compute in.

The one place that knows chips: MFU, the default precision, the self-test and the benchmarks all read this table. Rates
are the vendors' dense figures for the largest variant of a chip, so an MFU is never flattered by choosing a smaller
peak. A chip that is not listed is not guessed: its matrix product is measured, and the figure says so. To add a chip,
add a row to `APPLE` or `CUDA`.
"""

import platform
import re
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import mlx.core as mx

from utils.matmul import matmul_gflops

Kind = Literal["metal", "cuda", "cpu"]
Origin = Literal["published", "estimated", "measured"]

FIRST_APPLE_BFLOAT16 = 3  # M1 and M2 emulate bfloat16.
FIRST_CUDA_BFLOAT16 = 80
TERA = 1e12

# TFLOP/s of float32 by generation: base, Pro, Max, Ultra. Source: huggingface.js, packages/tasks/src/hardware-apple.ts.
# Up to M4 the shader cores issue float16 as fast as float32 (dougallj/applegpu, issue 21).
APPLE: dict[int, dict[str, float]] = {
    1: {"": 2.6, "Pro": 5.2, "Max": 10.4, "Ultra": 21.0},
    2: {"": 3.6, "Pro": 6.8, "Max": 13.49, "Ultra": 27.2},
    3: {"": 4.1, "Pro": 7.4, "Max": 14.2, "Ultra": 28.4},
    4: {"": 4.6, "Pro": 9.2, "Max": 18.4},
    5: {"": 5.7, "Pro": 11.4, "Max": 22.8},
}

# TFLOP/s of half precision in M5's neural accelerators: an estimate, 1024 FLOP a cycle in each of 10, 20 and 40 cores
# at about 1.75 GHz (tzakharko.github.io/apple-neural-accelerators-benchmark). Apple publishes none.
APPLE_NEURAL: dict[int, dict[str, float]] = {5: {"": 17.5, "Pro": 35.0, "Max": 70.0}}

# (part of the name, TFLOP/s of bfloat16 and float16, of float32 as TF32), dense; the first that matches counts.
# Sources: NVIDIA's data sheets of A100, H100, H200 and HGX B200; bfloat16 also in nanochat/common.py. MLX multiplies
# float32 as TF32 unless MLX_ENABLE_TF32=0.
CUDA: tuple[tuple[str, float, float], ...] = (
    ("B200", 2250.0, 1125.0),
    ("H200 NVL", 835.0, 417.5),
    ("H200", 989.0, 494.5),
    ("H100 NVL", 835.0, 417.5),
    ("H100 PCIe", 756.0, 378.0),
    ("H100", 989.0, 494.5),
    ("A100", 312.0, 156.0),
)

VENDOR_NOISE = re.compile(r"\((?:R|TM|C)\)|\bCPU\b|\bProcessor\b|\b\d+-Core\b|@.*$|\bwith Radeon.*$", re.IGNORECASE)


class Chip(NamedTuple):
    """A device, as far as the table knows it."""

    name: str
    """`Apple M3 Max`, `NVIDIA H200`, `AMD EPYC 7763`."""
    kind: Kind
    """Which of MLX's backends runs on it."""
    default_precision: str
    """What `precision: auto` means here."""
    peaks: dict[str, float]
    """FLOP/s by precision; empty for a chip that is not in the table."""
    estimated: frozenset[str] = frozenset()
    """Precisions whose peak nobody published."""


class Peak(NamedTuple):
    """The most operations a second that a utilisation is divided by."""

    flops: float
    """FLOP/s."""
    origin: Origin
    """Where the figure comes from."""


def this_chip(device: mx.Device | None = None) -> Chip:
    """The chip behind `device`, by default MLX's own choice."""
    device = device or mx.default_device()
    info: dict[str, Any] = mx.device_info(device)
    if device.type == mx.DeviceType.cpu:
        return cpu_chip(info)
    return cuda_chip(info) if "sm" in str(info.get("architecture", "")) else apple_chip(info)


def cpu_chip(info: dict[str, Any]) -> Chip:
    """A processor: never in the table, float32 because half-precision products do not reach BLAS."""
    name = clean_name(str(info.get("device_name") or platform.processor() or platform.machine()))
    return Chip(name or "CPU", "cpu", "float32", {})


def apple_chip(info: dict[str, Any]) -> Chip:
    """Apple's GPUs, from a device name such as `Apple M3 Max`."""
    name = str(info.get("device_name") or "unknown GPU")
    found = re.search(r"\bM(\d+)(?: (Pro|Max|Ultra))?", name)
    if found is None:
        return Chip(name, "metal", "float32", {})
    generation, tier = int(found.group(1)), found.group(2) or ""
    has_bfloat16 = generation >= FIRST_APPLE_BFLOAT16
    single = APPLE.get(generation, {}).get(tier)
    half = APPLE_NEURAL.get(generation, {}).get(tier)
    if single is None:
        peaks = {}
    else:
        halves = ("float16", "bfloat16") if has_bfloat16 else ("float16",)
        peaks = {"float32": single * TERA, **dict.fromkeys(halves, (half or single) * TERA)}
    estimated = frozenset(("float16", "bfloat16")) if half else frozenset()
    return Chip(name, "metal", "bfloat16" if has_bfloat16 else "float32", peaks, estimated)


def cuda_chip(info: dict[str, Any]) -> Chip:
    """NVIDIA's GPUs, from a device name such as `NVIDIA A100-SXM4-80GB` and an architecture such as `sm_80`."""
    name, found = str(info.get("device_name") or "unknown GPU"), re.search(r"sm_?(\d+)", str(info["architecture"]))
    has_bfloat16 = found is not None and int(found.group(1)) >= FIRST_CUDA_BFLOAT16
    peaks = {}
    for part, half, single in CUDA:
        if re.search(rf"\bG?{part}\b", name):
            peaks = {"float32": single * TERA, "bfloat16": half * TERA, "float16": half * TERA}
            break
    return Chip(name, "cuda", "bfloat16" if has_bfloat16 else "float32", peaks)


def clean_name(name: str) -> str:
    """A processor's name without trade marks, core counts and clocks: `Intel Xeon Platinum 8480+`."""
    return " ".join(VENDOR_NOISE.sub(" ", name).split())


def peak_of(chip: Chip, precision: str, measure: Callable[[str], float] | None = None) -> Peak:
    """The table's figure, or what this machine reaches in a large matrix product of that precision.

    `measure(precision) -> FLOP/s` is called only for a chip or a precision that is not listed.
    """
    if precision in chip.peaks:
        return Peak(chip.peaks[precision], "estimated" if precision in chip.estimated else "published")
    return Peak((measure or measured_on(chip))(precision), "measured")


def measured_on(chip: Chip) -> Callable[[str], float]:
    """A product large enough to fill the chip, small enough to take a second at most."""
    size = 1024 if chip.kind == "cpu" else 4096
    return lambda precision: matmul_gflops(size, num_repeats=3, precision=precision) * 1e9
