"""One shard file: documents of one source as token ids, with where each begins and its number in the source.

Little-endian: the magic, the numbers of documents D, tokens T and bytes of a token, offsets [D + 1], ordinals [D],
tokens [T]. Everything that grows with the corpus lies in the file and is read through a memory map, so a run needs the
memory of what it looks at. A document is stored as [bos] t_1 .. t_n [eos]: its n + 1 (input, target) pairs are two
views of one slice. Which files make a corpus stands in `data/store.py`; to change what is stored, edit both functions
and change the magic.
"""

import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from utils.errors import DataError

MAGIC = b"PIPPIN02"
HEADER_BYTES = 32
TOKEN_TYPES = {2: np.dtype("<u2"), 4: np.dtype("<u4")}
BLOCK_BYTES = 1 << 20


class Shard(NamedTuple):
    """A mapped shard file. The arrays are read-only views of the map; they keep it open."""

    offsets: np.ndarray
    """[D + 1] int64: the first token of each document, and T."""
    ordinals: np.ndarray
    """[D] int64: the number of each document in its source as read, from 0."""
    tokens: np.ndarray
    """[T] uint16 or uint32."""


def write_shard(path: Path, tokens: np.ndarray, offsets: np.ndarray, ordinals: np.ndarray) -> dict[str, Any]:
    """Write a shard file and return its part of the manifest: `documents`, `tokens`, `bytes`, `crc32`.

    `tokens` [T] is uint16 or uint32, `offsets` [D + 1] and `ordinals` [D] are integers. Neither synced nor renamed
    here. Raises OSError.
    """
    assert offsets[0] == 0
    assert offsets[-1] == len(tokens)
    assert len(offsets) == len(ordinals) + 1
    itemsize = tokens.dtype.itemsize
    header = np.array([len(ordinals), len(tokens), itemsize], "<i8")
    parts = [MAGIC, header, offsets.astype("<i8"), ordinals.astype("<i8"), tokens.astype(TOKEN_TYPES[itemsize])]
    num_bytes, check = 0, 0
    with open(path, "wb") as file:
        for part in map(memoryview, parts):
            file.write(part)
            num_bytes, check = num_bytes + part.nbytes, zlib.crc32(part, check)
    return {"documents": len(ordinals), "tokens": len(tokens), "bytes": num_bytes, "crc32": f"{check:08x}"}


def map_shard(path: Path, facts: dict[str, Any]) -> Shard:
    """Map the file at `path`. Raises DataError when it is not the one of `facts` (its row of the manifest)."""
    try:
        content = np.memmap(path, np.uint8, mode="r").view(np.ndarray)
    except (OSError, ValueError) as error:
        raise damaged(path, str(error)) from error
    if len(content) != facts["bytes"]:
        raise damaged(path, f"{len(content)} bytes where {facts['bytes']} were written")
    num_documents, num_tokens, itemsize = (int(word) for word in content[8:HEADER_BYTES].view("<i8"))
    fits = (num_documents, num_tokens) == (facts["documents"], facts["tokens"]) and itemsize in TOKEN_TYPES
    middle = HEADER_BYTES + 8 * (num_documents + 1)
    last = middle + 8 * num_documents
    if bytes(content[:8]) != MAGIC or not fits or last + itemsize * num_tokens != len(content):
        raise damaged(path, "its header does not fit the manifest")
    offsets, ordinals = content[HEADER_BYTES:middle].view("<i8"), content[middle:last].view("<i8")
    return Shard(offsets, ordinals, content[last:].view(TOKEN_TYPES[itemsize]))


def check_file(path: Path, facts: dict[str, Any]) -> None:
    """Read the whole file. Raises DataError when its size or checksum is not what `facts` (`bytes`, `crc32`) say."""
    check_size(path, facts)
    if checksum(path) != facts["crc32"]:
        raise damaged(path, "its checksum differs from what was written")


def check_size(path: Path, facts: dict[str, Any]) -> None:
    """Raises DataError when the file is missing or has not the size that `facts` say; reads nothing."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise damaged(path, error.strerror or "unreadable") from error
    if size != facts["bytes"]:
        raise damaged(path, f"{size} bytes where {facts['bytes']} were written")


def checksum(path: Path) -> str:
    """CRC-32 of a file as 8 hexadecimal digits. Raises DataError when it cannot be read."""
    value = 0
    try:
        with open(path, "rb") as file:
            while block := file.read(BLOCK_BYTES):
                value = zlib.crc32(block, value)
    except OSError as error:
        raise damaged(path, error.strerror or "unreadable") from error
    return f"{value:08x}"


def damaged(path: Path, reason: str) -> DataError:
    """The error for a file that is not what was written, and what to do."""
    return DataError(f"{path}: damaged ({reason}); delete its folder of prepared data to have it prepared again")
