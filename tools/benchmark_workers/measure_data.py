"""A worker of tools/benchmark.py: batches from the loader, on a corpus made up here; a round reads some of them.

Document lengths are log-normal, as in real text: many short ones, few very long. Preparing the corpus (tokenizer,
shards, packing) happens once, in a temporary folder, and is reported beside the rate.
"""

import atexit
import json
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from data.file_sources import JSONLSourceConfig
from data.text import TextDataConfig
from data.tokenizer import BPETokenizerConfig
from utils.benchmarking import Row, serve

NUM_WORDS = 2000
READ_AHEAD = 4
"""Batches that may lie ready from the pause between two rounds; they are not counted."""


def write_corpus(path: Path, num_documents: int) -> None:
    """JSON lines of made-up words, log-normal lengths with a median of 150 words."""
    draw = random.Random(0)
    letters = "etaoinshrdlu"
    words = ["".join(draw.choices(letters, k=draw.randint(1, 9))) for _ in range(NUM_WORDS)]
    with path.open("w", encoding="utf-8") as file:
        for _ in range(num_documents):
            count = max(1, round(draw.lognormvariate(5.0, 1.0)))
            file.write(json.dumps({"text": " ".join(draw.choices(words, k=count))}) + "\n")


def prepare(spec: Row) -> tuple[Row, Callable[[], Row]]:
    """Prepare the corpus; a round reads `num_batches` batches."""
    start = time.perf_counter()
    # Shards are opened as they are needed, so the folder lives as long as the process.
    temporary = tempfile.TemporaryDirectory()
    atexit.register(temporary.cleanup)
    corpus = Path(temporary.name) / "corpus.jsonl"
    write_corpus(corpus, spec["num_documents"])
    config = TextDataConfig(
        sources=(JSONLSourceConfig(path=str(corpus)),),
        tokenizer=BPETokenizerConfig(vocab_size=spec["vocab_size"]),
        sequence_length=spec["length"],
        cache_dir=str(Path(temporary.name) / "cache"),
    )
    dataset = config.build(0, report=lambda line: None)
    summary = dataset.summary()
    facts = {
        "prepare_seconds": time.perf_counter() - start,
        "packed_fraction": summary["packed_fraction"],
        "corpus_bytes": summary["train_bytes"],
    }
    batches = dataset.batches(spec["rows"])

    def measure() -> Row:
        for _ in range(READ_AHEAD):
            next(batches)
        start = time.perf_counter()
        for _ in range(spec["num_batches"]):
            next(batches)
        return {"seconds": time.perf_counter() - start}

    return facts, measure


if __name__ == "__main__":
    serve(prepare)
