"""Packed files against gzip and zstandard themselves, cutting against `bytes.split`; places, damage, memory."""

import gzip
import io
import random
import tracemalloc
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from data import compressed
from data.compressed import Piece, cut_pieces, read_pieces, read_whole
from tests.source_oracles import pack
from utils.errors import DataError

PACKINGS = ("", ".gz", ".zst")


def whole_by_others(raw: bytes, packing: str) -> bytes:
    """Unpacked by the libraries' own readers of whole files."""
    if packing == ".gz":
        return gzip.decompress(raw)
    if packing == ".zst":
        return zstandard.ZstdDecompressor().stream_reader(io.BytesIO(raw), read_across_frames=True).read()
    return raw


def noise(num_bytes: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(num_bytes)


@pytest.mark.parametrize("packing", PACKINGS)
@settings(max_examples=15, deadline=None)
@given(blocks=st.lists(st.binary(max_size=40), max_size=4), sizes=st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_pieces_are_the_file_and_every_place_can_be_gone_on_from(tmp_path_factory, packing, blocks, sizes):
    blocks = [b"not a magic number", *blocks]
    raw = pack(blocks, packing)
    path = tmp_path_factory.mktemp("packed") / "a.bin"
    path.write_bytes(raw)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compressed, "PIECE_BYTES", sizes[0])
        patch.setattr(compressed, "READ_BYTES", sizes[1])
        pieces = list(read_pieces(path))
        data = b"".join(piece.data for piece in pieces)
        assert data == whole_by_others(raw, packing) == b"".join(blocks)
        before = 0
        for piece in pieces:
            for inside in range(len(piece.data)):
                rest = read_pieces(path, piece.block, piece.offset + inside)
                assert b"".join(each.data for each in rest) == data[before + inside :]
            before += len(piece.data)


@pytest.mark.parametrize("packing", [".gz", ".zst"])
def test_large_blocks_come_in_small_pieces(tmp_path, packing):
    blocks = [noise(300_000), b"x" * 5_000_000, noise(2_000_000, 1) + bytes(1_000_000)]
    path = tmp_path / f"a{packing}"
    path.write_bytes(pack(blocks, packing))
    pieces = list(read_pieces(path))
    assert b"".join(piece.data for piece in pieces) == b"".join(blocks)
    assert max(len(piece.data) for piece in pieces) <= compressed.PIECE_BYTES
    assert len({piece.block for piece in pieces}) == 3


@pytest.mark.parametrize("packing", [".gz", ".zst"])
def test_going_on_touches_no_earlier_block(tmp_path, packing):
    path = tmp_path / f"a{packing}"
    first, second = pack([b"first " * 99], packing), pack([b"second " * 99], packing)
    path.write_bytes(first + second)
    place = next(piece for piece in read_pieces(path) if piece.block)
    head = 4
    path.write_bytes(first[:head] + bytes(len(first) - head) + second)
    rest = read_pieces(path, place.block, 7)
    assert b"".join(piece.data for piece in rest) == b"second " * 98
    with pytest.raises(DataError, match="cut short or damaged"):
        list(read_pieces(path))


@pytest.mark.parametrize("packing", [".gz", ".zst"])
def test_every_truncation_and_every_flipped_byte_is_told(tmp_path, packing):
    path = tmp_path / f"a{packing}"
    blocks = [b"one two three " * 3, noise(30)]
    raw = pack(blocks, packing)
    boundary = len(pack(blocks[:1], packing))
    for length in range(1, len(raw)):
        path.write_bytes(raw[:length])
        if length == boundary:
            assert b"".join(piece.data for piece in read_pieces(path)) == blocks[0]
            continue
        with pytest.raises(DataError, match=r"a\.(gz|zst): ") as caught:
            list(read_pieces(path))
        assert "\n" not in str(caught.value)
    told = 0
    for place in range(len(raw)):
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :])
        try:
            found = b"".join(piece.data for piece in read_pieces(path))
            assert found == b"".join(blocks)
        except DataError:
            told += 1
    assert told > 0.8 * len(raw)


def test_how_far_a_cut_file_is_readable_is_said(tmp_path):
    path = tmp_path / "a.gz"
    raw = pack([noise(2000), noise(3000)], ".gz")
    path.write_bytes(raw[:-1])
    with pytest.raises(DataError, match="ends in the middle.*first 3,000 unpacked bytes of the block at byte 2,0"):
        list(read_pieces(path))


def test_zeros_may_follow_gzip_and_other_bytes_may_not(tmp_path, monkeypatch):
    path = tmp_path / "a.gz"
    raw = pack([b"text"], ".gz")
    for read_bytes in (7, 8, len(raw), 1000):
        monkeypatch.setattr(compressed, "READ_BYTES", read_bytes)
        path.write_bytes(raw + bytes(50))
        assert read_whole(path, 10) == b"text"
        path.write_bytes(raw + bytes(50) + raw)
        assert read_whole(path, 10) == b"texttext"
    path.write_bytes(raw + b"garbage")
    with pytest.raises(DataError, match="damaged"):
        read_whole(path, 10)


def test_zstd_frames_without_data_are_passed_over(tmp_path):
    path = tmp_path / "a.zst"
    skippable = b"\x53\x2a\x4d\x18\x05\0\0\0hello"
    frame = pack([b"text"], ".zst")
    path.write_bytes(skippable + frame + skippable + frame)
    assert read_whole(path, 10) == b"texttext"
    path.write_bytes(frame + skippable[:-1])
    with pytest.raises(DataError, match="ends in the middle"):
        read_whole(path, 10)
    path.write_bytes(frame + b"garbage")
    with pytest.raises(DataError, match="no zstd frame at byte"):
        read_whole(path, 10)


def test_the_first_bytes_decide_and_a_false_name_is_told(tmp_path):
    for packing in PACKINGS:
        (tmp_path / "a.jsonl").write_bytes(pack([b"text"], packing))
        assert read_whole(tmp_path / "a.jsonl", 10) == b"text"
    for name, content in (("a.gz", b"<html>"), ("a.zst", pack([b"x"], ".gz")), ("b.gz", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=r"its name says \.(gz|zst), but it"):
            read_whole(tmp_path / name, 10)
    for head, word in ((b"PK\x03\x04", "zip"), (b"BZh91AY&SY", "bzip2"), (b"\xfd7zXZ\0", "xz"), (b"PAR1", "Parquet")):
        (tmp_path / "x").write_bytes(head * 3)
        with pytest.raises(DataError, match=f"binary: this is .*{word}"):
            read_whole(tmp_path / "x", 10)


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_place_that_is_gone_is_told(tmp_path, packing):
    path = tmp_path / "a"
    path.write_bytes(pack([b"text" * 9], packing))
    assert list(read_pieces(path, 0, 36)) == []
    with pytest.raises(DataError, match="changed while it was read"):
        list(read_pieces(path, 0, 37))
    path.write_bytes(pack([b"text" * 9, b"and more"], packing))
    if packing:
        with pytest.raises(DataError, match="changed while it was read"):
            list(read_pieces(path, 0, 37))


def test_a_file_that_shrinks_while_it_is_read_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(compressed, "PIECE_BYTES", 10)
    path = tmp_path / "a"
    path.write_bytes(b"x" * 100_000)
    pieces = read_pieces(path)
    next(pieces)
    path.write_bytes(b"x" * 15)
    with pytest.raises(DataError, match="changed while it was read"):
        list(pieces)


def test_what_cannot_be_opened_is_told(tmp_path):
    with pytest.raises(DataError, match="cannot be read: No such file"):
        list(read_pieces(tmp_path / "nothing"))
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        list(read_pieces(tmp_path))


@settings(max_examples=60, deadline=None)
@given(
    data=st.lists(st.sampled_from([b"a", b"#", b"##", b"bcd"]), max_size=30).map(b"".join),
    width=st.integers(1, 3),
    step=st.integers(1, 7),
    most=st.integers(0, 12),
)
def test_cutting_is_splitting_whatever_the_pieces(data, width, step, most):
    separator = b"#" * width
    pieces = [Piece(data[i : i + step], 0, i) for i in range(0, len(data), step)]
    parts, end = data.split(separator), 0
    for part, cut in zip(parts, cut_pieces(pieces, separator, most), strict=True):
        assert cut.data == (part if len(part) <= most else None)
        assert cut.num_bytes == len(part)
        end += len(part) + width
        assert cut.offset == min(end, len(data))


def test_places_of_cuts_belong_to_the_block_the_separator_ends_in():
    pieces = [Piece(b"ab#c", 0, 0), Piece(b"d", 9, 0), Piece(b"e#f#", 9, 1)]
    cuts = [(bytes(cut.data or b""), cut.block, cut.offset) for cut in cut_pieces(pieces, b"#", 99)]
    assert cuts == [(b"ab", 0, 3), (b"cde", 9, 3), (b"f", 9, 5), (b"", 9, 5)]


def test_an_endless_line_is_never_held():
    size = 1 << 16

    def pieces():
        for number in range(400):
            yield Piece(b"x" * size, 0, number * size)
        yield Piece(b"\nshort\n", 0, 400 * size)

    tracemalloc.start()
    found = [(cut.data, cut.num_bytes) for cut in cut_pieces(pieces(), b"\n", 100_000)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == [(None, 400 * size), (b"short", 5), (b"", 0)]
    assert peak < 10 * size


def test_a_whole_file_that_is_too_long_is_not_held(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"x" * 10)
    assert read_whole(tmp_path / "a", 10) == b"x" * 10
    assert read_whole(tmp_path / "a", 9) is None
