"""Files as pieces of bytes, whether plain, gzip or Zstandard, and pieces cut at a separator: in bounded memory.

A place in a file is (block, offset): the byte of the file at which a gzip member or zstd frame begins, and the number
of unpacked bytes of it that lie before. Going on there unpacks that block only, and nothing before it (plain files
have one block, at 0, and are simply sought). Cutting the text is left to the caller, so the price of going on inside
a file that is one large block is unpacking alone. Suffix and first bytes decide together: a `.gz` that holds no gzip
data is refused. zstd frames are walked block by block (RFC 8878, 3.1.1), which bounds memory and finds where they end.
To add a compression, give a generator of (block, bytes) and its row in `FORMATS`.
"""

import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from utils.errors import DataError
from utils.optional import optional

PIECE_BYTES = 1 << 20
READ_BYTES = 1 << 18
LARGEST_WINDOW = 1 << 31
GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
ZSTD_LONGEST_HEADER = 18
SUFFIXES = ("", ".gz", ".zst")
FOREIGN = {
    b"BZh91AY": "bzip2; unpack it",
    b"\xfd7zXZ": "xz; unpack it",
    b"PK\x03\x04": "a zip archive; unpack it",
    b"PAR1": "Parquet; use `type: parquet`",
}
"""First bytes of files that a person may take for one of ours, and what to do."""
Chunks = Iterator[tuple[int, bytes]]


class Broken(Exception):
    """Compressed data that does not go on: the reason."""


class Piece(NamedTuple):
    """Bytes of one block."""

    data: bytes
    block: int
    offset: int
    """Unpacked bytes of the block before these."""


class Cut(NamedTuple):
    """What lies before a separator or the end of a file, and the place behind it."""

    data: bytearray | None
    """None when it is longer than was asked for."""
    num_bytes: int
    block: int
    offset: int


def read_pieces(path: Path, block: int = 0, offset: int = 0) -> Iterator[Piece]:
    """The bytes of a file from a place on, unpacked, about a megabyte at a time.

    Raises DataError for a file that cannot be read, is cut short, damaged, or has changed so that the place is gone.
    """
    try:
        with open(path, "rb") as file:
            unpack = FORMATS.get(format_of(path, file))
            yield from place(path, unpack(file, block), block, offset) if unpack else plain(path, file, offset)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def format_of(path: Path, file: BinaryIO) -> str:
    """`.gz`, `.zst` or nothing. Raises DataError when the suffix says otherwise, and for formats that are not read."""
    head = file.read(8)
    found = ".gz" if head.startswith(GZIP_MAGIC) else ".zst" if head.startswith(ZSTD_MAGIC) or skippable(head) else ""
    if path.suffix in FORMATS and path.suffix != found:
        what = f"begins with {head!r}" if head else "is empty"
        raise DataError(f"{path}: its name says {path.suffix}, but it {what}; fetch it again or rename it")
    for magic, remedy in FOREIGN.items():
        if head.startswith(magic):
            raise DataError(f"{path}: binary: this is {remedy}")
    return found


def plain(path: Path, file: BinaryIO, offset: int) -> Iterator[Piece]:
    """A file as it is. Raises DataError when it becomes shorter."""
    size = os.fstat(file.fileno()).st_size
    file.seek(offset)
    while offset < size and (data := file.read(PIECE_BYTES)):
        yield Piece(data, 0, offset)
        offset += len(data)
    if offset != size:
        raise DataError(f"{path}: changed while it was read; start again when it is complete")


def place(path: Path, chunks: Chunks, block: int, offset: int) -> Iterator[Piece]:
    """Chunks with their places, those before `offset` of the first block left out. Raises DataError as above."""
    within = 0
    try:
        for begin, data in chunks:
            if begin != block:
                _check_reached(path, within, offset)
                block, within, offset = begin, 0, 0
            if within + len(data) > offset:
                cut = max(0, offset - within)
                yield Piece(data[cut:], block, within + cut)
            within += len(data)
    except (Broken, zlib.error) as error:
        readable = f"the first {within:,} unpacked bytes of the block at byte {block:,} are readable"
        raise DataError(f"{path}: cut short or damaged ({error}): {readable}; fetch or pack it again") from error
    _check_reached(path, within, offset)


def _check_reached(path: Path, within: int, offset: int) -> None:
    if within < offset:
        raise DataError(f"{path}: changed while it was read; start again when it is complete")


def unpack_gzip(file: BinaryIO, block: int) -> Chunks:
    """The members of a gzip file from byte `block` on (RFC 1952; zeros may follow the last)."""
    file.seek(block)
    held = file.read(READ_BYTES)
    while held:
        begin = file.tell() - len(held)
        engine = zlib.decompressobj(wbits=31)
        while not engine.eof:
            data = engine.decompress(held, PIECE_BYTES)
            held = engine.unused_data if engine.eof else engine.unconsumed_tail
            if data:
                yield begin, data
            if not held and not engine.eof and not (held := file.read(READ_BYTES)):
                raise Broken("the gzip data ends in the middle")
        held = held.lstrip(b"\0")
        while not held and (held := file.read(READ_BYTES)):
            held = held.lstrip(b"\0")


def unpack_zstd(file: BinaryIO, block: int) -> Chunks:
    """The frames of a zstd file from byte `block` on. Raises BackendError when the package is not there."""
    zstandard = optional("zstandard", "data")
    unpacker = zstandard.ZstdDecompressor(max_window_size=LARGEST_WINDOW)
    file.seek(block)
    while head := file.read(4):
        begin = file.tell() - len(head)
        if skippable(head):
            file.seek(int.from_bytes(_need(file, 4), "little") - 1, os.SEEK_CUR)
            _need(file, 1)
            continue
        if head != ZSTD_MAGIC:
            raise Broken(f"no zstd frame at byte {begin:,}")
        file.seek(begin)
        try:
            for data in _unpack_frame(file, unpacker.decompressobj(), zstandard):
                if data:
                    yield begin, data
        except zstandard.ZstdError as error:
            raise Broken(str(error)) from error


def _unpack_frame(file: BinaryIO, engine: Any, zstandard: Any) -> Iterator[bytes]:
    """One frame: header, blocks of at most 128 KB, and a checksum if the header says so."""
    begin = file.tell()
    head = file.read(ZSTD_LONGEST_HEADER)
    has_checksum = zstandard.get_frame_parameters(head).has_checksum
    file.seek(begin)
    yield engine.decompress(_need(file, zstandard.frame_header_size(head)))
    is_last = False
    while not is_last:
        head = _need(file, 3)
        bits = int.from_bytes(head, "little")
        is_last, is_repeated, size = bool(bits & 1), bits >> 1 & 3 == 1, bits >> 3
        yield engine.decompress(head + _need(file, 1 if is_repeated else size))
    if has_checksum:
        yield engine.decompress(_need(file, 4))


def skippable(head: bytes) -> bool:
    """Whether a zstd frame that holds no data begins here."""
    return head[1:4] == b"\x2a\x4d\x18" and head[0] >> 4 == 5


def _need(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    if len(data) < count:
        raise Broken("the zstd data ends in the middle")
    return data


FORMATS: dict[str, Callable[[BinaryIO, int], Chunks]] = {".gz": unpack_gzip, ".zst": unpack_zstd}


def cut_pieces(pieces: Iterable[Piece], separator: bytes, max_bytes: int) -> Iterator[Cut]:
    """What lies between separators, and behind the last one; at most about `max_bytes` are ever held."""
    held, dropped, width = bytearray(), 0, len(separator)
    block = offset = 0
    for data, block, begin in pieces:
        shift, searched, first = begin - len(held), max(0, len(held) - width + 1), 0
        held += data
        while (found := held.find(separator, searched)) >= 0:
            num_bytes = dropped + found - first
            first, cut, dropped = found + width, slice(first, found), 0
            searched = first
            yield Cut(held[cut] if num_bytes <= max_bytes else None, num_bytes, block, first + shift)
        del held[:first]
        offset = begin + len(data)
        if dropped or len(held) > max_bytes + width:
            surplus = max(0, len(held) - width + 1)
            dropped += surplus
            del held[:surplus]
    num_bytes = dropped + len(held)
    yield Cut(held if num_bytes <= max_bytes else None, num_bytes, block, offset)


def read_whole(path: Path, max_bytes: int) -> bytearray | None:
    """The unpacked bytes of a file; None when there are more than `max_bytes`. Raises DataError as `read_pieces`."""
    whole = bytearray()
    for piece in read_pieces(path):
        whole += piece.data
        if len(whole) > max_bytes:
            return None
    return whole
