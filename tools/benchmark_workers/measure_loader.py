"""A worker of tools/benchmark.py: batches straight from token shards, without text; a round reads some of them.

Shards of random tokens in two sources, documents of log-normal length with a mean of about 500 tokens, are written
into a temporary folder. `workers`: threads of the loader, 0: none. Facts, measured once, each with a newly opened
store: the share of useful pairs in packed rows, the seconds to the first batch, and the seconds to the first batch of a
run that goes on at step 1,000,000, hundreds of epochs on, checksums included. Rounds read what the page cache holds.
"""

import atexit
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from data.loader import Dataset
from data.mixture import MixtureConfig
from data.packing import PackingConfig
from data.shard_file import checksum, write_shard
from data.store import FORMAT, open_store
from data.tokenizer import BytesTokenizerConfig
from utils.benchmarking import Row, serve

FAR_STEP = 1_000_000
READ_AHEAD = 8
"""Batches that may lie ready from the pause between two rounds; they are not counted."""
DOCUMENTS_PER_SHARD = 16_000


def write_corpus(folder: Path, num_documents: int, seed: int = 0) -> None:
    """A prepared folder: two sources of half the documents each, those of the second shorter by a factor of three."""
    draw, shards = np.random.default_rng(seed), []
    (folder / "train").mkdir()
    for source, mean in enumerate((6.15, 5.05)):
        for number, first in enumerate(range(0, num_documents // 2, DOCUMENTS_PER_SHARD)):
            count = min(DOCUMENTS_PER_SHARD, num_documents // 2 - first)
            offsets = np.cumsum([0, *np.maximum(2, draw.lognormal(mean, 1.0, count).astype(np.int64))])
            tokens = draw.integers(0, 256, offsets[-1]).astype(np.uint16)
            name = f"train/{source:02}-{number:05}.shard"
            facts = write_shard(folder / name, tokens, offsets, np.arange(first, first + count))
            shards.append({"file": name, "source": source, "text_bytes": len(tokens), **facts})
    (folder / "validation.txt").touch()
    manifest = {
        "format": FORMAT,
        "tokenizer_hash": "none",
        "vocab_size": 256,
        "sources": ["long", "short"],
        "shards": {"train": shards, "validation": []},
        "validation_text": {"bytes": 0, "crc32": checksum(folder / "validation.txt")},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def open_dataset(folder: Path, spec: Row) -> Dataset:
    """As a run opens it."""
    return Dataset(
        open_store(folder),
        BytesTokenizerConfig().build(),
        sequence_length=spec["length"],
        seed=0,
        mixture=MixtureConfig(),
        packing=PackingConfig(),
        workers=spec["workers"],
        weights=[1.0, 1.0],
        names=["long", "short"],
    )


def far_state(dataset: Dataset, rows: int) -> dict[str, Any]:
    """The place of a run after `FAR_STEP` steps of `rows` rows: whole epochs of the mixture, and a window and a bit."""
    stored, row = dataset.store.train, FAR_STEP * rows
    epoch = row // dataset.rows_per_epoch
    documents, tokens = ([epoch * each for each in counts] for counts in (stored.num_documents, stored.num_tokens))
    _, start = next(dataset.mixture().windows())
    window = start | {"epoch": epoch, "documents": documents, "tokens": tokens}
    return {"row": row, "epoch": epoch, "tokens": tokens, "window": window, "within": 17}


def first_batch_seconds(folder: Path, spec: Row, state: dict[str, Any] | None) -> float:
    """From opening the folder to the first batch behind `state`."""
    began = time.perf_counter()
    batches = open_dataset(folder, spec).batches(spec["rows"], start=state)
    next(batches)
    seconds = time.perf_counter() - began
    batches.close()
    return seconds


def prepare(spec: Row) -> tuple[Row, Callable[[], Row]]:
    """Write the corpus (`num_documents`); a round reads `num_batches` batches of `rows` rows of `length`."""
    # Shards are opened as they are needed, so the folder lives as long as the process.
    temporary = tempfile.TemporaryDirectory()
    atexit.register(temporary.cleanup)
    folder = Path(temporary.name)
    write_corpus(folder, spec["num_documents"])
    dataset = open_dataset(folder, spec)
    began = time.perf_counter()
    num_rows = dataset.rows_per_epoch
    facts = {
        "plan_epoch_seconds": time.perf_counter() - began,
        "rows_per_epoch": num_rows,
        "packed_fraction": dataset.summary()["packed_fraction"],
        "corpus_tokens": sum(dataset.store.train.num_tokens),
        "first_batch_seconds": first_batch_seconds(folder, spec, None),
        "resume_seconds": first_batch_seconds(folder, spec, far_state(dataset, spec["rows"])),
    }
    batches = open_dataset(folder, spec).batches(spec["rows"])
    return facts, lambda: measure(batches, spec["num_batches"])


def measure(batches: Any, num_batches: int) -> Row:
    """One round."""
    for _ in range(READ_AHEAD):
        next(batches)
    began = time.perf_counter()
    for _ in range(num_batches):
        next(batches)
    return {"seconds": time.perf_counter() - began}


if __name__ == "__main__":
    serve(prepare)
