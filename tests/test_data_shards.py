"""Shards and the cache around them: exact content, built once, whole or not at all."""

import errno
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.cache import build_once, fingerprint
from data.shards import Item, choose_dtype, open_shards, write_shards
from data.tokenizer import BytesTokenizerConfig
from utils.errors import DataError

tokenizer = BytesTokenizerConfig().build()
EOS = 256


def silent(line: str) -> None:
    pass


def written(folder: Path, items, validation=("held", "out"), token_type: Any = "auto"):
    folder.mkdir(parents=True, exist_ok=True)
    write_shards(folder, items, list(validation), tokenizer, token_type, {}, silent)
    return folder


def texts_of(documents) -> list[str]:
    ranges = zip(documents.offsets[:-1], documents.offsets[1:], strict=True)
    found = [documents.tokens[start:stop].tolist() for start, stop in ranges]
    assert all(ids[0] == ids[-1] == EOS for ids in found)
    return [tokenizer.decode(ids[1:-1]) for ids in found]


@pytest.mark.parametrize("token_type", ["auto", "uint16", "uint32"])
def test_every_document_comes_back(tmp_path, token_type):
    texts = ["alpha", "b\0eta", "\u3042" * 3, "x" * 70_000]
    folder = written(tmp_path / "a", [Item(text, 0, 1, None) for text in texts], token_type=token_type)
    shards = open_shards(folder, tokenizer)
    assert texts_of(shards.train) == texts
    assert texts_of(shards.validation) == ["held", "out"]
    assert shards.validation_text == b"heldout"
    assert shards.train.tokens.dtype == ("uint32" if token_type == "uint32" else "uint16")
    assert shards.manifest["train_bytes"] == sum(len(text.encode()) for text in texts)
    assert shards.manifest["train_tokens"] == len(shards.train.tokens)


def test_copies_and_limits_of_each_source(tmp_path):
    items = [Item("aaaa", 0, 2, 14), Item("bbbb", 0, 0, 14), Item("cccc", 0, 1, 14), Item("d", 0, 1, 14)]
    items += [Item("eeee", 1, 3, None), Item("f" * 50, 2, 1, 51)]
    shards = open_shards(written(tmp_path / "a", items), tokenizer)
    assert texts_of(shards.train) == ["aaaa", "eeee"]
    assert shards.train.copies.tolist() == [2, 3]


def test_no_validation_and_no_training_documents_are_empty_arrays(tmp_path):
    shards = open_shards(written(tmp_path / "a", [], validation=()), tokenizer)
    assert texts_of(shards.train) == texts_of(shards.validation) == []


def test_the_token_type_holds_the_vocabulary():
    assert choose_dtype(65_536, "auto") == np.uint16
    assert choose_dtype(65_537, "auto") == np.uint32
    assert choose_dtype(65_536, "uint16") == np.uint16
    with pytest.raises(DataError, match=r"token_type uint16 cannot hold a vocabulary of 65537; use auto or uint32"):
        choose_dtype(65_537, "uint16")


def test_another_tokenizer_is_a_hard_stop(tmp_path):
    folder = written(tmp_path / "a", [Item("text", 0, 1, None)])
    other = BytesTokenizerConfig(special_tokens={"eos": "<eos>"}).build()
    with pytest.raises(DataError, match="made with tokenizer .*not with the given one"):
        open_shards(folder, other)


def test_damage_is_found(tmp_path):
    folder = written(tmp_path / "a", [Item("text", 0, 1, None)])
    content = (folder / "train.bin").read_bytes()
    (folder / "train.bin").write_bytes(content[:-2])
    with pytest.raises(DataError, match=r"train\.bin: damaged \(10 bytes where 12 were written\); delete"):
        open_shards(folder, tokenizer)
    (folder / "train.bin").write_bytes(bytes([content[0] ^ 1]) + content[1:])
    with pytest.raises(DataError, match="checksum differs"):
        open_shards(folder, tokenizer)
    (folder / "train.bin").unlink()
    with pytest.raises(DataError, match="missing"):
        open_shards(folder, tokenizer)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"format": 99}))
    with pytest.raises(DataError, match="format 99, this program reads 1"):
        open_shards(folder, tokenizer)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(DataError, match=r"manifest\.json: unreadable"):
        open_shards(folder, tokenizer)


def test_a_thing_is_built_once(tmp_path):
    calls = []

    def write(folder: Path) -> None:
        calls.append(folder)
        (folder / "content").write_text("x")

    for _ in range(2):
        build_once(tmp_path / "deep" / "thing", write, silent)
    assert len(calls) == 1
    assert [path.name for path in (tmp_path / "deep").iterdir() if not path.name.startswith(".lock")] == ["thing"]


@pytest.mark.parametrize(
    ("number", "message"),
    [(errno.ENOSPC, "the disk is full: .* MB left, nothing was kept"), (errno.EACCES, "Permission denied")],
)
def test_a_full_disk_or_no_permission_leaves_nothing_and_is_told(tmp_path, number, message):
    def write(folder: Path) -> None:
        (folder / "content").write_text("half")
        raise OSError(number, os.strerror(number), str(folder / "content"))

    with pytest.raises(DataError, match=message):
        build_once(tmp_path / "thing", write, silent)
    assert [path.name for path in tmp_path.iterdir()] == [".lock-thing"]


def test_an_interrupt_leaves_nothing(tmp_path):
    def write(folder: Path) -> None:
        (folder / "content").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_once(tmp_path / "thing", write, silent)
    assert [path.name for path in tmp_path.iterdir()] == [".lock-thing"]


def build_slowly(folder: str, started: str) -> None:
    def write(temporary: Path) -> None:
        (temporary / "half").write_text("x")
        Path(started).touch()
        time.sleep(60)

    build_once(Path(folder), write, silent)


def test_a_killed_build_is_done_again_and_its_rest_removed(tmp_path):
    folder, started = tmp_path / "thing", tmp_path / "started"
    process = multiprocessing.get_context("spawn").Process(target=build_slowly, args=(str(folder), str(started)))
    process.start()
    while not started.exists():
        assert process.is_alive()
        time.sleep(0.02)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not folder.exists()
    assert list(tmp_path.glob(".building-*"))
    build_once(folder, lambda temporary: (temporary / "whole").touch(), silent)
    assert [path.name for path in folder.iterdir()] == ["whole"]
    assert not list(tmp_path.glob(".building-*"))


def build_and_count(folder: str, gate: str, log: str) -> None:
    def write(temporary: Path) -> None:
        with open(log, "a") as file:
            file.write("built\n")
        time.sleep(0.1)
        (temporary / "whole").touch()

    while not Path(gate).exists():
        time.sleep(0.001)
    build_once(Path(folder), write, silent)
    assert (Path(folder) / "whole").exists()


def test_processes_at_once_build_it_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    arguments = (str(tmp_path / "thing"), str(tmp_path / "gate"), str(tmp_path / "log"))
    processes = [context.Process(target=build_and_count, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    (tmp_path / "gate").touch()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert (tmp_path / "log").read_text() == "built\n"


def test_without_file_locks_the_first_rename_wins(tmp_path, monkeypatch):
    def no_locks(file, operation) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    def write(folder: Path) -> None:
        (tmp_path / "thing").mkdir()
        (tmp_path / "thing" / "first").touch()
        (folder / "second").touch()

    monkeypatch.setattr("data.cache.fcntl.flock", no_locks)
    build_once(tmp_path / "thing", write, silent)
    assert [path.name for path in (tmp_path / "thing").iterdir()] == ["first"]
    assert not list(tmp_path.glob(".building-*"))


def test_fingerprint_ignores_the_order_of_keys_and_nothing_else():
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": "1"})
