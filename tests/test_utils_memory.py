"""The cache limit: a share of the machine's memory, and in force."""

import mlx.core as mx
import pytest

from utils import memory


def test_the_limit_is_half_of_the_memory_and_in_force() -> None:
    limit = memory.set_cache_limit()
    assert limit == memory.memory_bytes() // 2
    assert mx.set_cache_limit(limit) == limit


def test_freed_buffers_are_kept() -> None:
    memory.set_cache_limit()
    mx.clear_cache()
    mx.eval(mx.zeros((50 << 20,), mx.uint8))
    assert mx.get_cache_memory() >= 50 << 20


@pytest.mark.parametrize("key", ["memory_size", "total_memory"])
def test_a_gpu_says_its_own_memory(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx, "device_info", lambda device: {key: 64 << 30})
    assert memory.memory_bytes() == 64 << 30
