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
from data.shard_file import HEADER_BYTES, checksum, write_shard
from data.store import FORMAT
from data.tokenizer import Tokenizer
from utils.errors import DataError
from utils.files import sync

TOKENIZER_FOLDER = "tokenizer"
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
            if not (self.folder / file).is_file():
                self._tokenise(file, chunk.texts(chosen), chunk.ordinals[chosen], _rest(max_tokens, num_tokens))
            row = read_row(self.folder, file, source)
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

    def _tokenise(self, file: str, texts: list[str], ordinals: np.ndarray, max_tokens: int | None) -> None:
        """Write one shard; none when no document is left of it."""
        tokens, offsets = self.tokenizer.encode_to_array(texts, self.dtype)
        if max_tokens is not None:
            offsets = offsets[: np.searchsorted(offsets, max_tokens, side="right")]
        if len(offsets) < 2:
            return
        temporary = self.folder / f"{file}.{os.getpid()}"
        write_shard(temporary, tokens[: offsets[-1]], offsets, ordinals[: len(offsets) - 1])
        sync(temporary)
        temporary.rename(self.folder / file)

    def finish(
        self, sources: list[str], shards: list[dict[str, Any]], texts: list[str], facts: dict[str, Any]
    ) -> None:
        """Write the tokenizer, the held-out text and the manifest."""
        self.tokenizer.save(self.folder / TOKENIZER_FOLDER)
        self._tokenise("validation/00-00000.shard", texts, np.arange(len(texts)), None)
        row = read_row(self.folder, "validation/00-00000.shard", 0)
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


def read_row(folder: Path, file: str, source: int) -> dict[str, Any] | None:
    """The row of the manifest for a finished shard, from the file itself; None when there is none."""
    path = folder / file
    if not path.is_file():
        return None
    with open(path, "rb") as opened:
        num_documents, num_tokens = (int(word) for word in np.frombuffer(opened.read(HEADER_BYTES)[8:24], "<i8"))
    facts = {"documents": num_documents, "tokens": num_tokens, "bytes": path.stat().st_size, "crc32": checksum(path)}
    return {"file": file, "source": source, **facts}
