"""tools/train-tokenizer.py: our sections and a forerunner's YAML, true measurements, clear refusals."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from data.tokenizer import BytesTokenizerConfig, Tokenizer
from tests.tool_files import load_tool
from utils.errors import ConfigError, DataError

ROOT = Path(__file__).resolve().parent.parent
TEXTS = [f"document {number} holds the number {number * 7} and caf\u00e9s " * 3 for number in range(200)]


tool: Any = load_tool("train-tokenizer")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with a corpus."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return tmp_path


def run(folder: Path, text: str, *flags: str) -> str:
    (folder / "config.yaml").write_text(text)
    lines: list[str] = []
    tool.main(["--config", "config.yaml", *flags], say=lines.append)
    return "\n".join(lines)


OURS = """
data:
  sources: [{type: jsonl, path: train.jsonl}]
  tokenizer: {type: bpe, vocab_size: 320, special_tokens: {eos: <|eos|>, pad: <|pad|>}}
"""
FORERUNNER = """
name: "BPE Tokenizer Training"
data:
  input_file: "train.jsonl"
  max_texts_to_train_on: 150
  tokenizer: {special_tokens: {pad: "<pad>", bos: "<bos>", eos: "<eos>"}}
tokenizer: {vocab_size: 300, output_dir: "theirs/tokenizer"}
"""


def test_a_data_section_is_trained_measured_and_written(folder):
    said = run(folder, OURS, "--out", "mine")
    tokenizer = Tokenizer.load("mine")
    assert tokenizer.vocab_size == 320
    assert tokenizer.special_tokens == {"bos": "<|eos|>", "eos": "<|eos|>", "pad": "<|pad|>"}
    assert "vocabulary: 320 tokens; special ones: " in said
    assert "decoding gives the text back: yes" in said
    assert "wrote mine" in said


def test_a_forerunners_yaml_is_trained_as_it_is(folder):
    run(folder, FORERUNNER)
    tokenizer = Tokenizer.load("theirs/tokenizer")
    assert tokenizer.vocab_size == 300
    ids = [tokenizer.special_id(role) for role in ("pad", "bos", "eos")]
    assert [tokenizer.backend.id_to_token(token) for token in ids] == ["<pad>", "<bos>", "<eos>"]
    assert json.loads((folder / "theirs/tokenizer/tokenizer_config.json").read_text())["bos_token"] == "<bos>"


def test_measurements_are_those_of_the_text():
    tokenizer = BytesTokenizerConfig().build()
    measured = tool.measure(tokenizer, ["aab", "\u00e9"])
    assert measured == tool.Measured(num_bytes=5, num_tokens=5, num_used=4, is_lossless=True)
    assert "bytes per token: 1.000" in tool.describe(tokenizer, measured)
    assert "nothing was measured" in tool.describe(tokenizer, tool.measure(tokenizer, []))[-1]
    broken = measured._replace(is_lossless=False)
    assert tool.describe(tokenizer, broken)[-1] == "decoding gives the text back: NO"


def test_a_run_with_the_same_section_finds_the_tokenizer_in_the_cache(folder):
    run(folder, OURS)
    data, _ = tool.read_recipe(Path("config.yaml"))
    said: list[str] = []
    assert data.build_tokenizer(report=said.append)[0].hash == Tokenizer.load("tokenizer").hash
    assert not [line for line in said if "training the tokenizer" in line]


def test_what_is_missing_is_told(folder):
    with pytest.raises(DataError, match="no such file or folder"):
        run(folder, OURS.replace("train.jsonl", "gone.jsonl"))
    with pytest.raises(ConfigError, match="vocab_sise"):
        run(folder, OURS.replace("vocab_size", "vocab_sise"))
    with pytest.raises(ConfigError, match=r"gone\.yaml"):
        tool.main(["--config", "gone.yaml"])
    (folder / "file").touch()
    with pytest.raises(DataError, match=r"cannot write the tokenizer to file/x: .*--out"):
        run(folder, OURS, "--out", "file/x")


def test_the_command_ends_with_2_and_one_error_line(folder):
    (folder / "config.yaml").write_text(OURS.replace("train.jsonl", "gone.jsonl"))
    command = [sys.executable, str(ROOT / "tools/train-tokenizer.py"), "--config", "config.yaml"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert done.stderr.startswith("error: gone.jsonl: no such file or folder")
    assert len(done.stderr.splitlines()) == 1
