"""What `tools/benchmark.py` measures of the data pipeline: tokenising, near-duplicates, preparing, reading rows.

Nothing here needs a model. To add a case, write a function that gives its cases and a row in `SUITES`;
figures to reach stand in `BARS`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from utils.benchmark_report import Bar, Case, Variant, command_of

WORKERS = Path(__file__).parents[1] / "tools" / "benchmark_workers"
TOKENISE, PLANTED = "tokenise/the standard library", "duplicates/planted"
PREPARE, SHARDS = "prepare/near-duplicates dropped", "loader/rows of 1024"
LENGTH, ROWS, NUM_BATCHES = 1024, 64, 64
LOADED = LENGTH * ROWS * NUM_BATCHES
"""Tokens of a round of the loader."""
BARS = (
    Bar("tokenise and shard: bytes/s of encode_batch alone", TOKENISE, "seconds", "encode_batch", "shards", ">=", 0.85),
    Bar("near-duplicates at 0.8: recall", PLANTED, "recall", "ours", None, ">=", 0.95),
    Bar("the same: precision", PLANTED, "precision", "ours", None, ">=", 0.95),
    Bar("preparing 2 GB, near-duplicates dropped: peak bytes", PREPARE, "peak_bytes", "2 GB", None, "<=", 1.5e9),
    Bar(
        "loader, one worker, 20M tokens/s: seconds of a round", SHARDS, "seconds", "1 worker", None, "<=", LOADED / 20e6
    ),
    Bar("first batch after resume at step 1,000,000: seconds", SHARDS, "resume_seconds", "1 worker", None, "<=", 1.0),
    Bar("packed rows, short and long documents: useful share", SHARDS, "packed_fraction", "1 worker", None, ">=", 0.99),
)


def rows_suite(is_tiny: bool) -> list[Case]:
    """Text to batches on a made-up corpus, at two row lengths."""
    spec = {"num_documents": 200, "num_batches": 4} if is_tiny else {"num_documents": 5000, "num_batches": 64}
    spec |= {"vocab_size": 2048, "rows": 8}
    cases = []
    for length in (256, 1024):
        command = command_of(WORKERS / "measure_data.py", spec | {"length": length})
        tokens = spec["rows"] * spec["num_batches"] * length
        about = {"model": "loader", "batch": spec["rows"], "length": length}
        cases.append(Case("data", f"rows of {length}", (Variant("loader", command),), about, tokens=tokens))
    return cases


def loader_suite(is_tiny: bool) -> list[Case]:
    """Batches straight from shards, with and without threads."""
    spec: dict[str, Any] = {"num_documents": 100_000, "length": LENGTH, "rows": ROWS, "num_batches": NUM_BATCHES}
    spec |= {"num_documents": 400, "rows": 4, "num_batches": 2} if is_tiny else {}
    variants = [
        Variant(
            f"{workers} worker{'' if workers == 1 else 's'}",
            command_of(WORKERS / "measure_loader.py", spec | {"workers": workers}),
        )
        for workers in (1, 0, 2)
    ]
    tokens = spec["rows"] * spec["num_batches"] * spec["length"]
    return [Case("loader", "rows of 1024", tuple(variants), {"batch": spec["rows"], "length": 1024}, tokens=tokens)]


def tokenise_suite(is_tiny: bool) -> list[Case]:
    """Tokenising the standard library, with everything around it and without."""
    spec = {"max_documents": 30, "vocab_size": 512} if is_tiny else {"max_documents": None, "vocab_size": 8192}
    kinds = {"encode_batch": "encode", "encode_batch_fast": "encode_fast", "shards": "shards"}
    command = WORKERS / "measure_tokenising.py"
    variants = tuple(Variant(name, command_of(command, spec | {"kind": kind})) for name, kind in kinds.items())
    return [Case("tokenise", "the standard library", variants, {})]


def duplicates_suite(is_tiny: bool) -> list[Case]:
    """Recall and precision on planted near-duplicates, and the index with very many documents."""
    worker = WORKERS / "measure_duplicates.py"
    planted = {"kind": "planted", "num_pairs": 40 if is_tiny else 3000, "num_perm": 256, "seed": 0}
    index = {"kind": "index", "num_documents": 2000 if is_tiny else 500_000, "num_perm": 256}
    return [
        Case("duplicates", "planted", (Variant("ours", command_of(worker, planted)),), {}),
        Case("duplicates", "index", (Variant("ours", command_of(worker, index)),), {}),
    ]


def prepare_suite(is_tiny: bool) -> list[Case]:
    """The whole preparation, with the memory of all processes; `--rounds 1` is enough."""
    size = 400_000 if is_tiny else 2_000_000_000
    spec = {"num_bytes": size, "num_stories": 100 if is_tiny else 40_000}
    variant = Variant("2 GB", command_of(WORKERS / "measure_preparation.py", spec))
    return [Case("prepare", "near-duplicates dropped", (variant,), {})]


SUITES: dict[str, Callable[[bool], list[Case]]] = {
    "data": rows_suite,
    "loader": loader_suite,
    "tokenise": tokenise_suite,
    "duplicates": duplicates_suite,
    "prepare": prepare_suite,
}
"""Each is told whether it is only to be tried out."""
