"""Folders of prepared data made by hand, without text: documents given as lengths, and no two tokens alike."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from data.fill_in_the_middle import FillInTheMiddleConfig
from data.loader import Dataset
from data.mixture import MixtureConfig
from data.packing import PackingConfig
from data.shard_file import checksum, write_shard
from data.store import FORMAT, Store, open_store
from data.tokenizer import BytesTokenizerConfig, Tokenizer

tokenizer = BytesTokenizerConfig().build()
FIM_TOKENS = {f"fim_{part}": f"<{part}>" for part in ("prefix", "middle", "suffix")}
fim_tokenizer = BytesTokenizerConfig(special_tokens={"eos": "<eos>", **FIM_TOKENS}).build()


def write_store(
    folder: Path,
    sources: list[list[int]],
    validation: tuple[int, ...] = (),
    per_shard: int = 3,
    token_type: Any = np.uint32,
    by: Tokenizer = tokenizer,
) -> Path:
    """Write documents of so many pairs each (stored tokens: one more), the tokens being 1000, 1001, ... throughout.

    The ordinal of document number i is 2 i + 1, as if every other one had been dropped.
    """
    shards: dict[str, list[dict[str, Any]]] = {"train": [], "validation": []}
    next_token = 1000
    for split, documents_by_source in (("train", sources), ("validation", [list(validation)])):
        (folder / split).mkdir(parents=True)
        for source, lengths in enumerate(documents_by_source):
            for first in range(0, len(lengths), per_shard):
                offsets = np.cumsum([0, *(n + 1 for n in lengths[first : first + per_shard])])
                tokens = np.arange(next_token, next_token + offsets[-1]).astype(token_type)
                next_token += len(tokens)
                name = f"{split}/{source:02}-{first // per_shard:05}.shard"
                ordinals = 2 * np.arange(first, first + len(offsets) - 1) + 1
                facts = write_shard(folder / name, tokens, offsets, ordinals)
                shards[split].append({"file": name, "source": source, "text_bytes": 3 * len(tokens), **facts})
    (folder / "validation.txt").write_bytes(b"held out")
    manifest = {
        "format": FORMAT,
        "tokenizer_hash": by.hash,
        "vocab_size": by.vocab_size,
        "sources": [f"source{number}" for number in range(len(sources))],
        "shards": shards,
        "validation_text": {"bytes": 8, "crc32": checksum(folder / "validation.txt")},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def dataset_over(store: Store | Path, row_length: int = 8, seed: int = 3, **settings: Any) -> Dataset:
    """A dataset with small windows."""
    store = open_store(store) if isinstance(store, Path) else store
    values = {
        "sequence_length": row_length,
        "seed": seed,
        "mixture": MixtureConfig(window_tokens=40),
        "packing": PackingConfig(),
        "workers": 0,
        "weights": [1.0] * len(store.source_names),
        "names": store.source_names,
    }
    by = settings.pop("by", tokenizer)
    return Dataset(store, by, **(values | settings))


def with_fim(**rates: float) -> dict[str, Any]:
    """Settings of `dataset_over` that turn filling in the middle on."""
    return {"fill_in_the_middle": FillInTheMiddleConfig(**rates), "by": fim_tokenizer}


def pairs_in(batch: Any) -> list[tuple[int, int]]:
    """The real (input, target) pairs of a batch."""
    real = batch.weights > 0
    return list(zip(batch.tokens[real].tolist(), batch.targets[real].tolist(), strict=True))


def expected_pairs(sources: list[list[int]], first_token: int = 1000) -> list[tuple[int, int]]:
    """All pairs of documents of these lengths as `write_store` writes them: t follows t - 1 inside a document."""
    edges = first_token + np.cumsum([0, *(n + 1 for lengths in sources for n in lengths)])
    return [(token, token + 1) for begin, end in pairwise(edges.tolist()) for token in range(begin, end - 1)]
