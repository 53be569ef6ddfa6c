"""Corpora written in every form that a source reads, and the check that going on equals never having stopped."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard


def read(source, state=None) -> tuple[list[str], list[str]]:
    """The documents behind a state, and what was reported."""
    lines: list[str] = []
    return [text for text, _ in source.documents(state, lines.append)], lines


def assert_resumes(source, every: int = 1) -> None:
    """Going on behind any document gives what never stopping gave, warnings included; states survive JSON."""
    reports: list[str] = []
    whole = list(source.documents(None, reports.append))
    assert whole
    for number in range(0, len(whole), every):
        again: list[str] = []
        state = json.loads(json.dumps(whole[number][1]))
        assert list(source.documents(state, again.append)) == whole[number + 1 :]
        assert again == reports


def pack(blocks: list[bytes], packing: str) -> bytes:
    """Blocks as gzip members or zstd frames one after another, or just one after another."""
    if packing == ".gz":
        return b"".join(gzip.compress(block, mtime=0) for block in blocks)
    if packing == ".zst":
        return b"".join(zstandard.ZstdCompressor(write_checksum=True).compress(block) for block in blocks)
    return b"".join(blocks)


def json_line(text, key: str = "text") -> bytes:
    return json.dumps({key: text}).encode() + b"\n"


def write_jsonl(path: Path, lines: list) -> Path:
    path.write_bytes(b"".join(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines))
    return path


def write_parquet(path: Path, values: list, group_rows: int = 2, column: str = "text", kind=None) -> Path:
    """A column of values in row groups of a few rows, with another column beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = pa.array(values, type=kind or pa.string())
    table = pa.table({"id": pa.array(range(len(values)), type=pa.int64()), column: array})
    pq.write_table(table, path, row_group_size=group_rows, write_page_checksum=True)
    return path
