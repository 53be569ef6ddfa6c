"""Writes the folder of token shards: one shard for each chunk of text, then the held-out text, then the manifest.

A shard is written under another name and renamed, so those that are there are whole, and a preparation that was stopped
does not write them again; the manifest comes last. To change what a shard holds, see `data/shard_file.py`.
"""

import json
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data.cache import Report
from data.chunks import num_bytes_of, open_chunk
from data.deduplication import KEEP
from data.progress import Progress
from data.shard_file import check_file, checksum, write_shard
from data.store import FORMAT
from data.tokenizer import Tokenizer
from utils.errors import DataError
from utils.files import sync

TOKENIZER_FOLDER = "tokenizer"
ROW = ".row"
"""Beside a finished shard until the manifest is written."""
TokenType = Literal["auto", "uint16", "uint32"]


def choose_dtype(vocab_size: int, token_type: TokenType) -> np.dtype:
    """uint16 when the vocabulary fits or uint32. Raises DataError when it does not fit into a forced type."""
    dtype = np.dtype(token_type if token_type != "auto" else "uint16" if vocab_size <= 1 << 16 else "uint32")
    if vocab_size - 1 > np.iinfo(dtype).max:
        raise DataError(f"data.token_type {token_type} cannot hold a vocabulary of {vocab_size}; use auto or uint32")
    return dtype


class ShardWriter:
    """Writes into one folder with one tokenizer."""

    def __init__(self, folder: Path, tokenizer: Tokenizer, dtype: np.dtype, report: Report, progress: Progress) -> None:
        self.folder, self.tokenizer, self.dtype, self.report, self.progress = folder, tokenizer, dtype, report, progress
        for split in ("train", "validation"):
            (folder / split).mkdir(exist_ok=True)

    def train(
        self, source: int, name: str, chunks: list[Path], verdicts: list[np.ndarray], max_tokens: int | None
    ) -> list[dict[str, Any]]:
        """The kept documents of a source; their rows of the manifest.

        `max_tokens` ends the source before the document that would take it past so many tokens.
        """
        rows: list[dict[str, Any]] = []
        num_tokens, done, total = 0, 0, num_bytes_of(chunks)
        for number, path in enumerate(chunks):
            chunk, file = open_chunk(path), f"train/{source:02}-{number:05}.shard"
            chosen = np.flatnonzero(verdicts[number] == KEEP)
            row = read_row(self.folder, file)
            if row is None:
                rest = _rest(max_tokens, num_tokens)
                row = self._tokenise(file, source, chunk.texts(chosen), chunk.ordinals[chosen], rest)
            num_written = row["documents"] if row else 0
            if row:
                sizes = np.diff(chunk.offsets)[chosen[:num_written]]
                rows.append(row | {"text_bytes": int(sizes.sum())})
                num_tokens += row["tokens"]
            done += path.stat().st_size
            self.progress(f"tokenising {name}", done, total)
            if num_written < len(chosen):
                return rows
        return rows

    def _tokenise(
        self, file: str, source: int, texts: list[str], ordinals: np.ndarray, max_tokens: int | None
    ) -> dict[str, Any] | None:
        """Write one shard and what is to be known of it; none when no document is left of it."""
        tokens, offsets = self.tokenizer.encode_to_array(texts, self.dtype)
        if max_tokens is not None:
            offsets = offsets[: np.searchsorted(offsets, max_tokens, side="right")]
        if len(offsets) < 2:
            return None
        temporary = self.folder / f"{file}.{os.getpid()}"
        facts = write_shard(temporary, tokens[: offsets[-1]], offsets, ordinals[: len(offsets) - 1])
        row = {"file": file, "source": source, **facts}
        (self.folder / f"{file}{ROW}").write_text(json.dumps(row), encoding="utf-8")
        sync(self.folder / f"{file}{ROW}")
        sync(temporary)
        temporary.rename(self.folder / file)
        return row

    def finish(self, sources: list[str], shards: list[dict[str, Any]], texts: list[str], facts: dict[str, Any]) -> None:
        """Write the tokenizer, the held-out text and the manifest."""
        self.tokenizer.save(self.folder / TOKENIZER_FOLDER)
        row = self._tokenise("validation/00-00000.shard", 0, texts, np.arange(len(texts)), None)
        path, text = self.folder / "validation.txt", "".join(texts).encode("utf-8")
        path.write_bytes(text)
        manifest = {
            "format": FORMAT,
            "dtype": self.dtype.name,
            "tokenizer_hash": self.tokenizer.hash,
            "vocab_size": self.tokenizer.vocab_size,
            "sources": sources,
            "shards": {"train": shards, "validation": [row | {"text_bytes": len(text)}] if row else []},
            "validation_text": {"bytes": len(text), "crc32": checksum(path)},
            **facts,
        }
        for leftover in self.folder.rglob("*.shard.*"):
            leftover.unlink()
        (self.folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def _rest(limit: int | None, used: int) -> int | None:
    return None if limit is None else limit - used


def read_row(folder: Path, file: str) -> dict[str, Any] | None:
    """What is to be known of a shard that an earlier call wrote; None when it is not there as it was written."""
    try:
        row = json.loads((folder / f"{file}{ROW}").read_text(encoding="utf-8"))
        check_file(folder / file, row)
    except (OSError, ValueError, DataError):
        return None
    return row
