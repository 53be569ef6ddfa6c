"""The device's limit, containers included; the cache limit: a share of it, and in force."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest

from utils import memory

GPU: Any = SimpleNamespace(type=mx.DeviceType.gpu)
UNLIMITED_1 = "9223372036854771712"


def test_the_cache_is_half_of_the_limit_and_in_force() -> None:
    memory.set_cache_limit()
    kept = memory.memory_limit() // 2
    assert mx.set_cache_limit(kept) == kept


@pytest.mark.parametrize(("peak", "kept"), [(0, 50), (30, 50), (70, 30), (100, 0), (130, 0)])
def test_cache_and_step_fit_together(peak: int, kept: int) -> None:
    assert memory.cache_bytes(100, peak) == kept


def test_limits_are_in_force() -> None:
    before = mx.set_memory_limit(1 << 40)
    try:
        memory.set_limits(1 << 31, 3 << 29)
        assert mx.set_memory_limit(1 << 31) == 1 << 31
        assert mx.set_cache_limit(1 << 30) == 1 << 29
    finally:
        mx.set_memory_limit(before)
        memory.set_cache_limit()


def test_bytes_for_people() -> None:
    texts = {0: "0 bytes", 999: "999 bytes", 1500: "1.5 kB", 2.5e9: "2.5 GB", 3e12: "3 TB"}
    assert {count: memory.format_bytes(count) for count in texts} == texts


def test_freed_buffers_are_kept() -> None:
    memory.set_cache_limit()
    mx.clear_cache()
    mx.eval(mx.zeros((50 << 20,), mx.uint8))
    assert mx.get_cache_memory() >= 50 << 20


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        ({"memory_size": 64 << 30, "max_recommended_working_set_size": 48 << 30}, 48 << 30),
        ({"memory_size": 64 << 30}, int(0.9 * (64 << 30))),
        ({"total_memory": 80 << 30, "architecture": "sm_80"}, int((80 << 30) * 0.95)),
    ],
)
def test_a_gpu_says_its_own_limit(info: dict[str, int], expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx, "device_info", lambda device: info)
    monkeypatch.setattr(memory, "container_limits", lambda *paths: [])
    assert memory.memory_limit(GPU) == expected


def write(mount: Path, file: str, text: str) -> None:
    (mount / file).parent.mkdir(parents=True, exist_ok=True)
    (mount / file).write_text(text + "\n")


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/a/b\n", {"a/b/memory.max": "max", "a/memory.max": "4096", "memory.max": "9000"}, [4096, 9000]),
        ("0::/\n", {"memory.max": "8192"}, [8192]),
        ("0::/../host/path\n", {"memory.max": "8192"}, [8192]),
        ("4:cpu:/x\n3:memory:/x\n", {"memory/x/memory.limit_in_bytes": "77"}, [77]),
        ("3:memory,cpu:/y\n0::/\n", {"memory/memory.limit_in_bytes": UNLIMITED_1}, [int(UNLIMITED_1)]),
        ("2:cpu:/\n", {"memory/memory.limit_in_bytes": "5"}, []),
    ],
)
def test_containers(tmp_path: Path, membership: str, files: dict[str, str], expected: list[int]) -> None:
    write(tmp_path, "cgroup", membership.rstrip("\n"))
    for file, text in files.items():
        write(tmp_path / "mount", file, text)
    assert memory.container_limits(tmp_path / "cgroup", tmp_path / "mount") == expected


def test_a_machine_without_control_groups(tmp_path: Path) -> None:
    assert memory.container_limits(tmp_path / "cgroup", tmp_path) == []


def test_a_container_lowers_the_limit_of_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = mx.Device(mx.cpu, 0)
    monkeypatch.setattr(memory, "container_limits", lambda *paths: [1 << 30, int(UNLIMITED_1)])
    assert memory.memory_limit(cpu) == int(0.9 * (1 << 30))
    monkeypatch.setattr(memory, "container_limits", lambda *paths: [int(UNLIMITED_1)])
    assert 1 << 30 < memory.memory_limit(cpu) < 1 << 50
