"""The command that prepares data: what it says, where it puts things, what it refuses."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from core.config import load
from data.store import open_store
from tests.prepared_data import TEXTS, write_jsonl
from tests.tool_files import load_tool
from utils.errors import ConfigError, DataError

tool: Any = load_tool("prepare-data")


def config_file(folder: Path, **data: Any) -> Path:
    write_jsonl(folder / "corpus.jsonl", [*TEXTS, TEXTS[3]])
    section = {
        "type": "text",
        "sources": [{"type": "jsonl", "path": str(folder / "corpus.jsonl"), "name": "fables"}],
        "tokenizer": {"type": "bytes"},
        "deduplicate": {},
        "cache_dir": str(folder / "cache"),
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({"data": section | data}))
    return path


def run(*arguments: object, terminal: bool = False) -> str:
    text = io.StringIO()
    tool.main([str(each) for each in arguments], Console(file=text, force_terminal=terminal, width=100))
    return text.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_it_says_what_happened_and_a_run_finds_it(tmp_path: Path, terminal: bool) -> None:
    path = config_file(tmp_path)
    said = run("--config", path, "--verify", "--jobs", "1", terminal=terminal)
    for words in ("fables: 301 documents", "duplicate: 1 (", "kept: ", "held-out text: ", "every checksum is right"):
        assert words in said
    assert "a run with this config finds it there" in said
    lines: list[str] = []
    load(path).data.build(0, report=lines.append)
    assert lines == []


def test_a_folder_of_its_own_can_be_trained_on_without_the_sources(tmp_path: Path) -> None:
    path, out = config_file(tmp_path), tmp_path / "elsewhere"
    said = run("--config", path, "--out", out)
    assert f"data: {{type: shards, path: {out}}}" in said
    there = load(path).data.build(5, report=lambda line: None)
    (tmp_path / "corpus.jsonl").unlink()
    path.write_text(f"data: {{type: shards, path: {out}}}")
    shards = load(path).data
    assert shards.find_problems() == []
    assert shards.expected_vocab_size() == 257
    here = shards.build(5)
    first, second = next(there.batches(4)), next(here.batches(4))
    assert first[1] == second[1]
    assert all((one == other).all() for one, other in zip(first[0], second[0], strict=True))


def test_a_flipped_byte_is_found(tmp_path: Path) -> None:
    path, out = config_file(tmp_path), tmp_path / "out"
    run("--config", path, "--out", out)
    shard = next((out / "train").iterdir())
    content = bytearray(shard.read_bytes())
    content[-5] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match=f"{shard.name}: damaged"):
        run("--config", path, "--out", out, "--verify")


def test_nothing_to_download_is_said_and_nothing_prepared(tmp_path: Path) -> None:
    assert "nothing to download" in run("--config", config_file(tmp_path), "--download-only")
    assert not (tmp_path / "cache").exists()


def test_what_cannot_be_prepared_is_refused(tmp_path: Path) -> None:
    path = config_file(tmp_path)
    with pytest.raises(DataError, match="no such file"):
        run("--config", path, f"data.sources=[{{type: jsonl, path: {tmp_path}/none.jsonl}}]")
    with pytest.raises(ConfigError, match="only text is prepared"):
        run("--config", path, f"data={{type: shards, path: {tmp_path}}}")
    for jobs in ("0", "two"):
        with pytest.raises(SystemExit) as caught:
            run("--config", path, "--jobs", jobs)
        assert caught.value.code == 2


def test_the_manifest_names_the_sources(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run("--config", config_file(tmp_path), "--out", out)
    assert open_store(out).source_names == ["fables"]
    assert json.loads((out / "report.json").read_text())["sources"][0]["name"] == "fables"
