"""Checkpoints: written whole or not at all, whatever is killed, filled up or flipped in between."""

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from core import checkpoint
from core.checkpoint import (
    BackgroundWriter,
    Snapshot,
    best_checkpoint,
    find_damage,
    list_checkpoints,
    newest_valid,
    read_checkpoint,
    write_checkpoint,
)
from utils.errors import CheckpointError

FILES = ["model.safetensors", "optimizer.safetensors", "ema.safetensors", "state.json", "config.json", "tokenizer.json"]


def snapshot(step: int, *, is_best: bool = False) -> Snapshot:
    weights = {"model.norm.weight": np.full((3, 5), step, np.float32)}
    moments = {"optimizer.step": np.array(step, np.uint64)}
    return Snapshot(
        step, weights, moments, weights, {"step": step, "data": {"row": 8 * step}}, {"model_type": "llama"}, is_best
    )


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Path) -> Path:
    folder = tmp_path / "checkpoints"
    for step in (1, 2):
        write_checkpoint(folder, snapshot(step), tokenizer, keep_last=2)
    return folder


def newest(folder: Path) -> tuple[int, list[str]]:
    warnings: list[str] = []
    found = newest_valid(folder, warnings.append)
    assert found is not None
    return read_checkpoint(found).state["step"], warnings


def test_what_was_written_comes_back(folder: Path) -> None:
    restored = read_checkpoint(folder / "step_00000002")
    np.testing.assert_array_equal(restored.model["model.norm.weight"], np.full((3, 5), 2))
    assert restored.optimizer["optimizer.step"] == 2
    assert restored.ema is not None
    assert restored.state == {"step": 2, "data": {"row": 16}}
    assert (folder / "LATEST").read_text().strip() == "step_00000002"


def test_only_the_newest_and_the_best_are_kept(folder: Path, tokenizer: Path) -> None:
    write_checkpoint(folder, snapshot(3, is_best=True), tokenizer, keep_last=2)
    for step in (4, 5, 6):
        write_checkpoint(folder, snapshot(step), tokenizer, keep_last=2)
    assert [path.name for path in list_checkpoints(folder)] == ["step_00000003", "step_00000005", "step_00000006"]
    best = best_checkpoint(folder)
    assert best is not None
    assert best.name == "step_00000003"


@pytest.mark.parametrize("name", [*FILES, "MANIFEST.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "empty"])
def test_damage_is_found_and_the_one_before_is_taken(folder: Path, name: str, damage: str) -> None:
    path = folder / "step_00000002" / name
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 4
        path.write_bytes(content)
    elif damage == "truncate":
        path.write_bytes(content[:-1])
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
    step, warnings = newest(folder)
    assert step == 1
    assert warnings
    assert all("step_00000002" in line for line in warnings)


def test_no_whole_checkpoint_is_an_error(folder: Path) -> None:
    for path in list_checkpoints(folder):
        (path / "MANIFEST.json").unlink()
    with pytest.raises(CheckpointError, match="no checkpoint in .* is whole"):
        newest_valid(folder, lambda line: None)


def test_nothing_saved_yet_is_no_error(tmp_path: Path) -> None:
    assert newest_valid(tmp_path / "checkpoints", lambda line: None) is None


OPERATIONS = [
    (os, "rename"),
    (os, "replace"),
    (os, "fsync"),
    (shutil, "rmtree"),
    (checkpoint, "save_file"),
    (json, "dumps"),
]


def interrupt_at(count: int, monkeypatch: pytest.MonkeyPatch, *, before: bool, how) -> None:
    """Make the `count`-th file operation call `how`, before or after it is done."""
    seen = [0]

    def counting(original):
        def operation(*arguments, **keywords):
            seen[0] += 1
            if seen[0] == count and before:
                how()
            result = original(*arguments, **keywords)
            if seen[0] == count and not before:
                how()
            return result

        return operation

    for module, name in OPERATIONS:
        monkeypatch.setattr(module, name, counting(getattr(module, name)))


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("count", range(1, 24))
def test_a_kill_at_any_point_of_a_save_loses_nothing(
    folder: Path, tokenizer: Path, count: int, before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "step_00000003").mkdir()  # a damaged one of the same step, which the save replaces
    pid = os.fork()
    if pid == 0:
        interrupt_at(count, monkeypatch, before=before, how=lambda: os._exit(9))
        write_checkpoint(folder, snapshot(3), tokenizer, keep_last=2)
        os._exit(0)
    killed = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    step, _ = newest(folder)
    assert step in ((2, 3) if killed else (3,))
    write_checkpoint(folder, snapshot(4), tokenizer, keep_last=2)
    assert newest(folder)[0] == 4
    assert not list(folder.glob(".tmp-*"))


@pytest.mark.parametrize("count", range(1, 12))
def test_a_full_disk_is_one_line_and_keeps_what_was_there(
    folder: Path, tokenizer: Path, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        interrupt_at(count, patch, before=True, how=full)
        with pytest.raises(CheckpointError, match="disk is full"):
            write_checkpoint(folder, snapshot(3), tokenizer, keep_last=2)
    assert newest(folder)[0] in (2, 3)
    assert not list(folder.glob(".tmp-step*"))


def test_an_error_of_the_background_surfaces_at_the_next_call(tmp_path: Path) -> None:
    def fail(snapshot: Snapshot) -> None:
        raise CheckpointError("full")

    writer = BackgroundWriter(fail)
    writer.submit(snapshot(1))
    with pytest.raises(CheckpointError, match="full"):
        writer.submit(snapshot(2))
    writer.wait()


def test_find_damage_names_file_and_sizes(folder: Path) -> None:
    path = folder / "step_00000002" / "state.json"
    path.write_text("{}")
    (line,) = find_damage(folder / "step_00000002")
    assert "state.json has 2 bytes" in line


def test_no_damage_of_a_manifest_is_a_traceback(folder: Path) -> None:
    """A bit of any byte may flip, and it may be any other JSON."""
    path = folder / "step_00000002" / "MANIFEST.json"
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ (1 << place % 7)]) + content[place + 1 :])
        find_damage(path.parent)
    for other in ("[]", "3", "null", '{"files": {}}', '{"format_version": 1, "files": {"a": 3}}'):
        path.write_text(other)
        assert find_damage(path.parent)
