"""How many ranks share a machine, from what `mlx.launch` leaves in the environment; what each may then use."""

import json
from pathlib import Path

import mlx.core as mx
import pytest

from utils import memory
from utils.launcher import ranks_here


def launched(monkeypatch: pytest.MonkeyPatch, hostfile: Path, rank: str = "0") -> None:
    """As `mlx.launch` starts a rank."""
    monkeypatch.setenv("MLX_RANK", rank)
    monkeypatch.setenv("MLX_HOSTFILE", str(hostfile))


def test_ranks_of_one_address_share_a_machine_and_its_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLX_RANK", raising=False)
    assert ranks_here() == 1
    alone = memory.memory_limit(mx.Device(mx.cpu, 0))
    hostfile = tmp_path / "hosts.json"
    hostfile.write_text(json.dumps([["10.0.0.1:1"], ["10.0.0.1:2"], ["10.0.0.2:1"]]))
    for rank, count in (("0", 2), ("1", 2), ("2", 1)):
        launched(monkeypatch, hostfile, rank)
        assert ranks_here() == count
        assert memory.memory_limit(mx.Device(mx.cpu, 0)) == alone // count


@pytest.mark.parametrize("text", ["", "{}", "[]", "[1]", "not json"])
def test_a_broken_hostfile_is_not_told_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    hostfile = tmp_path / "hosts.json"
    hostfile.write_text(text)
    launched(monkeypatch, hostfile)
    assert ranks_here() == 1
    launched(monkeypatch, tmp_path / "missing.json")
    assert ranks_here() == 1
