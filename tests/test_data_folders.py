"""Finding files: each once, in one order, nothing lost without a word."""

import os
from pathlib import Path

import pytest

from data.folders import distinct, find_files, search, stamps
from utils.errors import DataError


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)


def names(root: Path, paths: list[Path]) -> list[str]:
    return [path.relative_to(root).as_posix() for path in paths]


def test_a_folder_is_searched_at_any_depth_and_hidden_things_are_left_alone(tmp_path):
    touch(tmp_path, "b.txt", "a/z.TXT", "a.txt", "a/y.jsonl", ".git/x.txt", "c/._b.txt", "skip/d.txt", "c/skip/e.txt")
    assert names(tmp_path, find_files(tmp_path, [".txt"], "text")) == [
        "a/z.TXT",
        "a.txt",
        "b.txt",
        "c/skip/e.txt",
        "skip/d.txt",
    ]
    assert names(tmp_path, distinct(search(tmp_path, [".txt"], {"skip"}))) == ["a/z.TXT", "a.txt", "b.txt"]


def test_a_file_reached_by_several_names_is_read_once(tmp_path):
    touch(tmp_path, "b/real.txt")
    (tmp_path / "a.txt").symlink_to(tmp_path / "b/real.txt")
    (tmp_path / "c.txt").symlink_to(tmp_path / "b/real.txt")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    assert names(tmp_path, find_files(tmp_path, [".txt"], "text")) == ["a.txt"]
    assert names(tmp_path, find_files(tmp_path / "*" / "*.txt", [".txt"], "text")) == ["b/real.txt"]


def test_a_folder_named_like_a_file_is_a_folder(tmp_path):
    touch(tmp_path, "x.jsonl/inside.jsonl")
    inside = [tmp_path / "x.jsonl/inside.jsonl"]
    assert find_files(tmp_path / "x.jsonl", [".jsonl"], "") == find_files(tmp_path, [".jsonl"], "") == inside
    with pytest.raises(DataError, match="no such file or folder"):
        find_files(tmp_path / "*.jsonl", [".jsonl"], "")


def test_nothing_found_is_told(tmp_path):
    with pytest.raises(DataError, match=r"no \.txt file in this folder"):
        find_files(tmp_path, [".txt"], ".txt")
    with pytest.raises(DataError, match="no such file or folder"):
        find_files(tmp_path / "nothing", [".txt"], ".txt")


def test_a_folder_that_cannot_be_listed_is_an_error_and_not_a_shorter_corpus(tmp_path, monkeypatch):
    touch(tmp_path, "a/b.txt", "c/d.txt")
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("c"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match="c: this folder cannot be listed: Permission denied"):
        find_files(tmp_path, [".txt"], "text")


def test_stamps_change_with_name_size_and_time(tmp_path):
    touch(tmp_path, "a", "b")
    first = stamps([tmp_path / "a", tmp_path / "b"])
    assert (first["num_files"], first["num_bytes"]) == (2, 2)
    assert stamps([tmp_path / "a", tmp_path / "b"]) == first
    os.utime(tmp_path / "a", ns=(1, 1))
    second = stamps([tmp_path / "a", tmp_path / "b"])
    assert second["digest"] != first["digest"]
    (tmp_path / "b").rename(tmp_path / "c")
    assert stamps([tmp_path / "a", tmp_path / "c"])["digest"] != second["digest"]
    with pytest.raises(DataError, match="b: cannot be read: No such file"):
        stamps([tmp_path / "b"])
