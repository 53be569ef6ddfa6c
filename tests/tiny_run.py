"""A run small enough for a test: a made-up corpus, a llama of some thousand parameters, a few dozen updates.

`tiny_config(folder, **sections)` gives its config; values are merged over the defaults below as a YAML file's would be.
"""

import json
import os
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.checkpoint import Restored, list_checkpoints, read_checkpoint
from core.config import Config, build_section
from core.plan import compiler_warning
from core.session import Session
from core.training import Result, train

WORDS = ("the", "red", "blue", "small", "old", "dog", "cat", "tree", "house", "runs", "sees", "finds", "under", "and")

TINY_LLAMA: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}

TINY_QWEN3 = {name: value for name, value in TINY_LLAMA.items() if name != "tie_word_embeddings"} | {
    "type": "qwen3",
    "head_dim": 16,
}

needs_compiler = pytest.mark.skipif(
    compiler_warning(compiles=True) is not None, reason="MLX compiles for a CPU with g++, which is not installed"
)


def write_corpus(path: Path, num_documents: int = 80, seed: int = 0, most_words: int = 120) -> Path:
    """JSON lines of made-up sentences, of one to `most_words` words."""
    random_words = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(num_documents):
            words = random_words.choices(WORDS, k=random_words.randint(1, most_words))
            file.write(json.dumps({"text": " ".join(words)}) + "\n")
    return path


def write_sources(folder: Path, num_documents: int = 80, **weights: float) -> list[dict[str, Any]]:
    """`data.sources` of different corpora, one for each name."""
    sources = []
    for seed, (name, weight) in enumerate(weights.items(), start=1):
        path = write_corpus(folder / f"{name}.jsonl", num_documents, seed, most_words=12)
        sources.append({"type": "jsonl", "name": name, "path": str(path), "weight": weight})
    return sources


def tiny_values(folder: Path) -> dict[str, Any]:
    """The values of a tiny run whose corpus, cache and output lie in `folder`."""
    corpus = folder / "corpus.jsonl"
    if not corpus.exists():
        write_corpus(corpus)
    return {
        "name": "tiny",
        "out_dir": str(folder / "runs"),
        "model": {"type": "llama", **TINY_LLAMA},
        "optimizer": {"type": "adamw", "learning_rate": 1e-2},
        "schedule": {"type": "cosine", "warmup": "2 steps"},
        "data": {
            "type": "text",
            "sources": [{"type": "jsonl", "path": str(corpus)}],
            "tokenizer": {"type": "bpe", "vocab_size": 300},
            "sequence_length": 32,
            "validation_fraction": 0.1,
            "cache_dir": str(folder / "cache"),
        },
        "training": {"duration": "20 steps", "batch_size": 8, "compile": False},
        "evaluation": {"every": "10 steps"},
        "checkpoint": {"every": "10 steps"},
        "logging": {"every": "1 steps"},
    }


def merge(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Nested mappings merged; a changed `type` replaces the section."""
    merged = dict(values)
    for key, change in changes.items():
        old = merged.get(key)
        same_kind = (
            isinstance(old, dict)
            and isinstance(change, dict)
            and change.get("type", old.get("type")) == old.get("type")
        )
        merged[key] = merge(old, change) if same_kind and isinstance(old, dict) else change
    return merged


def tiny_config(folder: Path, **changes: Any) -> Config:
    """The tiny run with some sections changed."""
    return build_section(Config, merge(tiny_values(folder), changes))


def quiet_train(config: Config, **flags: Any) -> Result:
    """Train without printing the plan."""
    return train(config, say=lambda line: None, **flags)


def metric_rows(run_folder: Path) -> list[dict[str, Any]]:
    """All rows of metrics.jsonl."""
    return [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]


def losses(run_folder: Path) -> list[float]:
    """The training losses in order."""
    return [row["train/loss"] for row in metric_rows(run_folder) if "train/loss" in row]


def last_checkpoint(run_folder: Path) -> Restored:
    """What was saved last."""
    return read_checkpoint(list_checkpoints(run_folder / "checkpoints")[-1])


def assert_same_run(one: Path, other: Path) -> None:
    """Bitwise: parameters, optimizer state, averaged weights, loader position, every logged figure but times."""
    a, b = last_checkpoint(one), last_checkpoint(other)
    for left, right in ((a.model, b.model), (a.optimizer, b.optimizer), (a.ema or {}, b.ema or {})):
        assert left.keys() == right.keys()
        for name, array in left.items():
            np.testing.assert_array_equal(array, right[name], err_msg=name)
    assert {**a.state, "seconds": 0} == {**b.state, "seconds": 0}
    timed = ("time", "speed/tokens_per_second", "memory/peak_bytes")
    rows_a, rows_b = (
        [{key: value for key, value in row.items() if key not in timed} for row in metric_rows(run)]
        for run in (one, other)
    )
    assert rows_a == rows_b


def interrupt_after(config: Config, step: int, **flags: bool) -> Result:
    """Train, and send this process SIGINT when update `step` is counted."""
    advance = Session.advance

    def advance_and_interrupt(self: Session, *arguments: Any) -> None:
        advance(self, *arguments)
        if self.progress.step == step:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "advance", advance_and_interrupt)
        result = quiet_train(config, **flags)
    assert result.exit_code == 130
    return result
