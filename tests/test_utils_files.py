"""Flushing: past the drive's cache where the system can, and everything that a rename publishes."""

import fcntl
import os
from pathlib import Path

import pytest

from data.cache import build_once
from utils.files import sync

FULL_SYNC = 51


@pytest.fixture(params=[True, False], ids=["macos", "linux"])
def calls(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What is flushed, as (call, inode), on a system that has F_FULLFSYNC and on one that has not."""
    calls: list[tuple[str, int]] = []

    def full_sync(descriptor: int, command: int) -> None:
        assert command == FULL_SYNC
        calls.append(("full", os.fstat(descriptor).st_ino))

    if request.param:
        monkeypatch.setattr(fcntl, "F_FULLFSYNC", FULL_SYNC, raising=False)
    else:
        monkeypatch.delattr(fcntl, "F_FULLFSYNC", raising=False)
    monkeypatch.setattr(fcntl, "fcntl", full_sync)
    monkeypatch.setattr(os, "fsync", lambda descriptor: calls.append(("plain", os.fstat(descriptor).st_ino)))
    return calls


def flushed_file(path: Path) -> tuple[str, int]:
    return ("full" if hasattr(fcntl, "F_FULLFSYNC") else "plain", path.stat().st_ino)


def test_a_file_is_flushed_past_the_cache_where_the_system_can(tmp_path: Path, calls: list) -> None:
    path = tmp_path / "file"
    path.write_text("text")
    sync(path)
    sync(tmp_path)
    assert calls == [flushed_file(path), ("plain", tmp_path.stat().st_ino)]


def test_prepared_data_is_flushed_before_and_after_it_gets_its_name(tmp_path: Path, calls: list) -> None:
    folder = tmp_path / "prepared"
    build_once(folder, lambda temporary: (temporary / "file").touch(), lambda line: None)
    folders = [("plain", path.stat().st_ino) for path in (folder, tmp_path)]
    assert calls == [flushed_file(folder / "file"), *folders]


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        sync(tmp_path / "missing")
