"""The table of chips: names as devices give them, peaks and precision; what is not listed is measured and says so."""

from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest

from utils import chips
from utils.chips import Chip, Peak, apple_chip, clean_name, cpu_chip, cuda_chip, peak_of, this_chip

T = 1e12


@pytest.mark.parametrize(
    ("name", "default", "single", "half"),
    [
        ("Apple M1", "float32", 2.6, None),
        ("Apple M1 Ultra", "float32", 21.0, None),
        ("Apple M2 Max", "float32", 13.49, None),
        ("Apple M3 Max", "bfloat16", 14.2, 14.2),
        ("Apple M4 Pro", "bfloat16", 9.2, 9.2),
        ("Apple M5 Max", "bfloat16", 22.8, 70.0),
        ("Apple M4 Ultra", "bfloat16", None, None),
        ("Apple M10", "bfloat16", None, None),
        ("Paravirtual device", "float32", None, None),
    ],
)
def test_apple(name: str, default: str, single: float | None, half: float | None) -> None:
    chip = apple_chip({"device_name": name, "architecture": "applegpu_g15s"})
    assert (chip.name, chip.kind, chip.default_precision) == (name, "metal", default)
    assert chip.peaks.get("float32") == (None if single is None else single * T)
    assert chip.peaks.get("bfloat16") == (None if half is None else half * T)
    assert chip.peaks.get("float16") == (chip.peaks.get("bfloat16") or chip.peaks.get("float32"))


@pytest.mark.parametrize(
    ("name", "architecture", "default", "half"),
    [
        ("NVIDIA A100-SXM4-40GB", "sm_80", "bfloat16", 312),
        ("NVIDIA A100 80GB PCIe", "sm_80", "bfloat16", 312),
        ("NVIDIA H100 80GB HBM3", "sm_90", "bfloat16", 989),
        ("NVIDIA H100 PCIe", "sm_90", "bfloat16", 756),
        ("NVIDIA H200", "sm_90a", "bfloat16", 989),
        ("NVIDIA GH200 480GB", "sm_90", "bfloat16", 989),
        ("NVIDIA B200", "sm_100", "bfloat16", 2250),
        ("NVIDIA L4", "sm_89", "bfloat16", None),
        ("Tesla V100-SXM2-16GB", "sm_70", "float32", None),
    ],
)
def test_cuda(name: str, architecture: str, default: str, half: float | None) -> None:
    chip = cuda_chip({"device_name": name, "architecture": architecture})
    assert (chip.name, chip.kind, chip.default_precision) == (name, "cuda", default)
    assert chip.peaks.get("bfloat16") == chip.peaks.get("float16") == (None if half is None else half * T)
    if half is not None:
        assert 0.49 * half * T < chip.peaks["float32"] < 0.51 * half * T


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("Intel(R) Xeon(R) Platinum 8480+ CPU @ 2.00GHz", "Intel Xeon Platinum 8480+"),
        ("AMD EPYC 7763 64-Core Processor", "AMD EPYC 7763"),
        ("AMD Ryzen 7 5800H with Radeon Graphics", "AMD Ryzen 7 5800H"),
        ("Apple M2", "Apple M2"),
        ("", "CPU"),
    ],
)
def test_names_of_processors(raw: str, clean: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chips, "platform", SimpleNamespace(processor=lambda: "", machine=lambda: ""))
    assert cpu_chip({"device_name": raw}).name == clean
    assert clean_name(raw) == clean_name(clean_name(raw))


@pytest.mark.parametrize(
    ("info", "kind"),
    [
        ({"device_name": "NVIDIA H200", "architecture": "sm_90"}, "cuda"),
        ({"device_name": "Apple M3", "architecture": "applegpu_g15g"}, "metal"),
        ({}, "metal"),
    ],
)
def test_a_device_is_told_by_its_architecture(info: Any, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx, "device_info", lambda device: info)
    gpu: Any = SimpleNamespace(type=mx.DeviceType.gpu)
    assert this_chip(gpu).kind == kind
    cpu = this_chip(mx.Device(mx.cpu, 0))
    assert (cpu.kind, cpu.default_precision, cpu.peaks) == ("cpu", "float32", {})


def test_a_listed_peak_is_never_measured() -> None:
    def fail(precision: str) -> float:
        raise AssertionError(precision)

    m5 = apple_chip({"device_name": "Apple M5"})
    assert peak_of(m5, "float32", fail) == Peak(5.7 * T, "published")
    assert peak_of(m5, "bfloat16", fail) == Peak(17.5 * T, "estimated")
    assert peak_of(apple_chip({"device_name": "Apple M3"}), "bfloat16", fail) == Peak(4.1 * T, "published")


def test_an_unknown_chip_is_measured_in_the_precision_asked_for() -> None:
    unknown = Chip("AMD EPYC", "cpu", "float32", {})
    asked = []
    assert peak_of(unknown, "bfloat16", lambda precision: asked.append(precision) or 7.0) == Peak(7.0, "measured")
    assert asked == ["bfloat16"]
    # M2 emulates bfloat16: its table holds none.
    assert peak_of(apple_chip({"device_name": "Apple M2"}), "bfloat16", lambda precision: 1.0).origin == "measured"


def test_measuring_multiplies_matrices_of_that_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(chips, "matmul_gflops", lambda size, **options: calls.append((size, options)) or 2.0)
    assert peak_of(Chip("x", "cpu", "float32", {}), "float32") == Peak(2e9, "measured")
    peak_of(Chip("x", "cuda", "float32", {}), "float16")
    assert [size for size, _ in calls] == [1024, 4096]
    assert calls[1][1]["precision"] == "float16"
