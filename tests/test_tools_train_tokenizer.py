"""tools/train-tokenizer.py: our sections and a forerunner's YAML, true measurements, clear refusals."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import normalizers

from data.tokenizer import BPETokenizerConfig, BytesTokenizerConfig, Tokenizer
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
    assert "gives the text back" in said
    assert " is lossy" not in said
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
    measured = tool.measure(tokenizer, ["aab c", "\u00e9"])
    assert (measured.num_bytes, measured.num_words, measured.num_tokens, measured.num_used) == (7, 3, 7, 6)
    assert (measured.vocab_size, measured.lengths, measured.lost) == (257, (7, 0, 0, 0), None)
    lines = dict(line.rsplit("  ", 1) for line in tool.describe({"x": tokenizer}, ["aab c", "\u00e9"])[1:-1])
    assert {label.strip(): value.strip() for label, value in lines.items()} == {
        "tokens": "7",
        "bytes per token": "1.000",
        "tokens per word": "2.333",
        "vocabulary": "257",
        "used there": "6 (2.3%)",
        "unused there": "251",
        "tokens of 1 byte": "100.0%",
        "of 2 to 3 bytes": "0.0%",
        "of 4 to 7 bytes": "0.0%",
        "of 8 bytes or more": "0.0%",
        "gives the text back": "yes",
    }
    assert "nothing was measured" in tool.describe({"x": tokenizer}, [])[-1]


def test_lengths_and_longest_tokens_are_those_of_the_tokens_that_occur():
    tokenizer = BPETokenizerConfig(vocab_size=300).build(["abcdefghij abcd ab " * 50])
    ids = tokenizer.encode("abcdefghij abcd zz")
    sizes = [len(tokenizer.decode([token])) for token in ids]
    measured = tool.measure(tokenizer, ["abcdefghij abcd zz"])
    expected = [sum(1 for size in sizes if low <= size < high) for low, high in ((1, 2), (2, 4), (4, 8), (8, 99))]
    assert list(measured.lengths) == expected
    assert expected[3] > 0
    assert [len(token) for token in measured.longest] == sorted(sizes, reverse=True)[: len(measured.longest)]


def test_a_lossy_tokenizer_is_said_to_be_lossy_beside_ours(folder):
    lossy = BytesTokenizerConfig().build().backend
    lossy.normalizer = normalizers.Lowercase()
    lossy.save("lossy.json")
    lossy = tool.load_other(Path("lossy.json"))
    assert tool.measure(lossy, ["all is well", "the Cat sat"]).lost == ("the Cat sat", "the cat sat")
    assert tool.find_loss("a" * 50 + "bcd", "a" * 50) == ("a" * 10 + "bcd", "a" * 10)
    (folder / "train.jsonl").write_text("".join(json.dumps({"text": "A" + text}) + "\n" for text in TEXTS))
    said = run(folder, OURS, "--compare", "lossy.json").splitlines()
    (header,) = [line for line in said if "this one" in line and "lossy.json" in line]
    (row,) = [line for line in said if line.startswith("gives the text back")]
    assert row.split()[-2:] == ["yes", "NO"]
    assert len(header) == len(row)
    assert any(line.startswith("lossy.json is lossy: 'Ad") for line in said)
    (row,) = [line for line in said if line.startswith("bytes per token")]
    assert float(row.split()[-2]) > float(row.split()[-1]) == 1.0


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
    with pytest.raises(DataError, match=r"gone/tokenizer: no such tokenizer file"):
        run(folder, OURS, "--compare", "gone/tokenizer")
    (folder / "broken.model").write_bytes(b"\xff" * 20)
    with pytest.raises(DataError, match=r"broken\.model: not a SentencePiece model"):
        run(folder, OURS, "--compare", "broken.model")
    with pytest.raises(ConfigError, match=r"config\.yaml: data\.type is shards; a tokenizer is trained on text only"):
        run(folder, f"data: {{type: shards, path: {folder}}}")
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
