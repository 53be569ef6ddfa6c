"""Token shards on disk: the tokens of all documents in one memory-mapped file, and where each document begins.

A document of tokens t_1 .. t_n is stored as [bos] t_1 .. t_n [eos], so its n + 1 (input, target) pairs are two views
of one slice. The manifest holds the tokenizer's hash, sizes and checksums, and opening checks them: a model must never
be fed the ids of another tokenizer. To change what is stored, edit `write_shards` and count `FORMAT` up.
"""

import json
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np

from data.cache import Report
from data.tokenizer import Tokenizer
from utils.errors import DataError

FORMAT = 1
BATCH_CHARACTERS = 4_000_000
CHECKED_BYTES = 256_000_000
SECONDS_BETWEEN_REPORTS = 5.0
TokenType = Literal["auto", "uint16", "uint32"]


class Documents(NamedTuple):
    """Tokenised documents of one split."""

    tokens: np.ndarray
    """[T] uint16 or uint32: all documents, one behind the other, bos and eos included."""
    offsets: np.ndarray
    """[D + 1] int64: the first token of each document, and T."""
    copies: np.ndarray
    """[D] int64: how often each comes in an epoch."""


class Shards(NamedTuple):
    """An open shard folder."""

    train: Documents
    validation: Documents
    validation_text: bytes
    """The original text of the validation documents, one behind the other."""
    manifest: dict[str, Any]


class Item(NamedTuple):
    """One training document on its way to disk."""

    text: str
    source: int
    """Which source it comes from."""
    copies: int
    """How often it comes in an epoch; 0: not at all, but its source was read that far."""
    max_tokens: int | None
    """Tokens its source may give."""


def choose_dtype(vocab_size: int, token_type: TokenType) -> np.dtype:
    """uint16 when the vocabulary fits or uint32. Raises DataError when it does not fit into a forced type."""
    dtype = np.dtype(token_type if token_type != "auto" else "uint16" if vocab_size <= 1 << 16 else "uint32")
    if vocab_size - 1 > np.iinfo(dtype).max:
        raise DataError(f"data.token_type {token_type} cannot hold a vocabulary of {vocab_size}; use auto or uint32")
    return dtype


def write_shards(
    folder: Path,
    items: Iterable[Item],
    validation: list[str],
    tokenizer: Tokenizer,
    token_type: TokenType,
    origin: dict[str, Any],
    report: Report,
) -> None:
    """Tokenise and write everything into the empty `folder`."""
    dtype = choose_dtype(tokenizer.vocab_size, token_type)
    num_train_bytes = 0
    with open(folder / "train.bin", "wb") as file:
        train = ShardWriter(file, dtype)
        for item, tokens in _progress(within_limits(encoded(items, tokenizer)), report):
            train.add(tokens, item.copies)
            num_train_bytes += len(item.text.encode("utf-8"))
    with open(folder / "validation.bin", "wb") as file:
        held_out = ShardWriter(file, dtype)
        for text in validation:
            held_out.add(surround(tokenizer.encode(text), tokenizer), 1)
    (folder / "validation.txt").write_bytes("".join(validation).encode("utf-8"))
    for name, writer in (("train", train), ("validation", held_out)):
        np.save(folder / f"{name}_offsets.npy", np.cumsum([0, *writer.lengths], dtype=np.int64))
        np.save(folder / f"{name}_copies.npy", np.array(writer.copies, dtype=np.int64))
    paths = sorted(folder.iterdir())
    manifest = {
        "format": FORMAT,
        "dtype": dtype.name,
        "tokenizer_hash": tokenizer.hash,
        "vocab_size": tokenizer.vocab_size,
        "train_documents": len(train.lengths),
        "train_tokens": sum(train.lengths),
        "train_bytes": num_train_bytes,
        "origin": origin,
        "files": {path.name: {"bytes": path.stat().st_size, "crc32": checksum(path)} for path in paths},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


class ShardWriter:
    """Appends documents to one token file and remembers their lengths."""

    def __init__(self, file: BinaryIO, dtype: np.dtype) -> None:
        self.file, self.dtype = file, dtype
        self.lengths: list[int] = []
        self.copies: list[int] = []

    def add(self, tokens: list[int], copies: int) -> None:
        """Append one document."""
        self.file.write(np.array(tokens, dtype=self.dtype).tobytes())
        self.lengths.append(len(tokens))
        self.copies.append(copies)


def surround(ids: list[int], tokenizer: Tokenizer) -> list[int]:
    """[bos] ids [eos]."""
    return [tokenizer.bos_id, *ids, tokenizer.eos_id]


def encoded(items: Iterable[Item], tokenizer: Tokenizer) -> Iterator[tuple[Item, list[int]]]:
    """Each item with its tokens, bos and eos around them; a few MB of text are encoded at once, on all cores."""
    batch, size = [], 0
    for item in items:
        batch.append(item)
        size += len(item.text)
        if size >= BATCH_CHARACTERS:
            yield from _encode(batch, tokenizer)
            batch, size = [], 0
    yield from _encode(batch, tokenizer)


def _encode(batch: list[Item], tokenizer: Tokenizer) -> Iterator[tuple[Item, list[int]]]:
    for item, ids in zip(batch, tokenizer.encode_batch([item.text for item in batch]), strict=True):
        yield item, surround(ids, tokenizer)


def within_limits(items: Iterable[tuple[Item, list[int]]]) -> Iterator[tuple[Item, list[int]]]:
    """Only what each source's `max_tokens` allows (the first document too many ends it), and what is wanted at all."""
    used: dict[int, int] = {}
    ended: set[int] = set()
    for item, tokens in items:
        total = used.get(item.source, 0) + len(tokens)
        if item.max_tokens is not None and total > item.max_tokens:
            ended.add(item.source)
        if item.source not in ended:
            used[item.source] = total
            if item.copies:
                yield item, tokens


def _progress(items: Iterable[tuple[Item, list[int]]], report: Report) -> Iterator[tuple[Item, list[int]]]:
    """Pass on, and say every few seconds how far it is."""
    num_documents, num_tokens, due = 0, 0, time.monotonic() + SECONDS_BETWEEN_REPORTS
    for item, tokens in items:
        yield item, tokens
        num_documents, num_tokens = num_documents + 1, num_tokens + len(tokens)
        if time.monotonic() >= due:
            report(f"tokenising: {num_documents:,} documents, {num_tokens:,} tokens")
            due = time.monotonic() + SECONDS_BETWEEN_REPORTS


def checksum(path: Path) -> str:
    """CRC-32 of a file as 8 hexadecimal digits."""
    value = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            value = zlib.crc32(block, value)
    return f"{value:08x}"


def open_shards(folder: Path, tokenizer: Tokenizer) -> Shards:
    """Map a shard folder. Raises DataError when it is damaged or was made with another tokenizer.

    Sizes are always compared, checksums for files up to 256 MB.
    """
    manifest = _read_manifest(folder)
    if manifest["tokenizer_hash"] != tokenizer.hash:
        raise DataError(
            f"{folder}: made with tokenizer {manifest['tokenizer_hash'][:12]}, not with the given one "
            f"{tokenizer.hash[:12]}; use the tokenizer the data was prepared with, or delete the folder"
        )
    for name, facts in manifest["files"].items():
        if damage := _find_damage(folder / name, facts):
            raise DataError(f"{folder / name}: damaged ({damage}); delete {folder} to rebuild it")
    text = (folder / "validation.txt").read_bytes()
    return Shards(_open(folder, "train", manifest), _open(folder, "validation", manifest), text, manifest)


def _find_damage(path: Path, facts: dict[str, Any]) -> str | None:
    if not path.is_file():
        return "missing"
    size = path.stat().st_size
    if size != facts["bytes"]:
        return f"{size} bytes where {facts['bytes']} were written"
    if size <= CHECKED_BYTES and checksum(path) != facts["crc32"]:
        return "its checksum differs from what was written"
    return None


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version = manifest["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: unreadable ({error}); delete {folder} to rebuild it") from error
    if version != FORMAT:
        raise DataError(f"{path}: format {version}, this program reads {FORMAT}; delete {folder} to rebuild it")
    return manifest


def _open(folder: Path, name: str, manifest: dict[str, Any]) -> Documents:
    path, dtype = folder / f"{name}.bin", np.dtype(manifest["dtype"])
    tokens = np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.zeros(0, dtype)
    return Documents(tokens, np.load(folder / f"{name}_offsets.npy"), np.load(folder / f"{name}_copies.npy"))
