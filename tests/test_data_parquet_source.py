"""Parquet: pyarrow writes it in every way, and damage, wrong columns and nulls are told or counted."""

import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import parquet_source
from data.parquet_source import ParquetSourceConfig
from tests.source_oracles import assert_resumes, read, write_parquet
from utils.errors import DataError

TEXTS = ["one", "", "caf\u00e9", "two\0three", "\U0001f600" * 5, "six", "seven"]


@pytest.mark.parametrize("group_rows", [1, 3, 99])
@pytest.mark.parametrize("batch_bytes", [1, 1 << 23])
def test_rows_are_those_of_the_table_and_resume_inside_a_group(tmp_path, monkeypatch, group_rows, batch_bytes):
    monkeypatch.setattr(parquet_source, "BATCH_BYTES", batch_bytes)
    path = write_parquet(tmp_path / "a.parquet", TEXTS, group_rows)
    source = ParquetSourceConfig(path=str(path))
    assert read(source)[0] == [text for text in pq.read_table(path)["text"].to_pylist() if text]
    assert_resumes(source)


@pytest.mark.parametrize(
    "kind", [pa.large_string(), pa.binary(), pa.large_binary(), pa.dictionary(pa.int32(), pa.string())], ids=str
)
def test_text_is_read_from_every_type_that_holds_it(tmp_path, kind):
    values = ["a", "b", "a", None, "c"]
    array = pa.array(values, type=pa.string())
    array = array.dictionary_encode() if pa.types.is_dictionary(kind) else array.cast(kind)
    pq.write_table(pa.table({"text": array}), tmp_path / "a.parquet", row_group_size=2)
    texts, reports = read(ParquetSourceConfig(path=str(tmp_path)))
    assert texts == ["a", "b", "a", "c"]
    assert reports == [f"{tmp_path}: left out: 1 rows of 5: null"]


def test_a_dotted_column_goes_into_a_struct_unless_there_is_such_a_column(tmp_path):
    inner = [{"text": "a", "n": 1}, None, {"text": None, "n": 2}, {"text": "d", "n": 3}]
    pq.write_table(pa.table({"meta": inner, "meta.flat": list("wxyz")}), tmp_path / "a.parquet", row_group_size=3)
    source = ParquetSourceConfig(path=str(tmp_path), column="meta.text")
    texts, reports = read(source)
    assert texts == ["a", "d"]
    assert reports == [f"{tmp_path}: left out: 2 rows of 4: null"]
    assert_resumes(source)
    assert read(ParquetSourceConfig(path=str(tmp_path), column="meta.flat"))[0] == list("wxyz")
    for column, message in (
        ("meta.x", r"no field 'x' of column 'meta\.x' .*; there are: n, text|text, n"),
        ("meta.n", r"column 'meta\.n' holds int64, not text"),
        ("meta.text.x", r"no field 'x' of column 'meta\.text\.x' .*; there are: none, it is string"),
        ("meta", "column 'meta' holds struct"),
        ("body", r"no column 'body' \(data\.sources\.column\); there are: meta, meta\.flat"),
    ):
        with pytest.raises(DataError, match=message):
            read(ParquetSourceConfig(path=str(tmp_path), column=column))


def test_rows_that_are_not_utf8_or_too_long_are_broken_and_counted(tmp_path):
    values = [b"good %d" % number for number in range(200)]
    values[7], values[150] = b"\xff", b"x" * 100
    write_parquet(tmp_path / "a.parquet", values, 60, kind=pa.binary())
    source = ParquetSourceConfig(path=str(tmp_path), max_document_bytes=99)
    texts, reports = read(source)
    assert len(texts) == 198
    assert f"left out: {tmp_path}/a.parquet: row group 0, row 7: not UTF-8 (byte 0)" in reports
    assert any("row group 2, row 30: longer than data.sources.max_document_bytes (99)" in line for line in reports)
    assert_resumes(source, every=23)


def test_truncated_damaged_and_foreign_files_are_told(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", ["some text to compress " * 9] * 20, 5)
    raw = path.read_bytes()
    source = ParquetSourceConfig(path=str(path))
    for content in (raw[:-1], raw[: len(raw) // 2], raw[:3], b"", b"not parquet at all", raw[:-9] + bytes(9)):
        path.write_bytes(content)
        with pytest.raises(
            DataError, match=r"a\.parquet: cut short, damaged or not Parquet: .*fetch or write it"
        ) as caught:
            read(source)
        assert len(caught.value.problems) == 1
    data_page = raw.index(b"some text")
    path.write_bytes(raw[:data_page] + b"S" + raw[data_page + 1 :])
    with pytest.raises(DataError, match="cut short, damaged"):
        read(source)


def test_no_rows_and_only_nulls_are_no_documents(tmp_path):
    write_parquet(tmp_path / "a.parquet", [])
    with pytest.raises(DataError, match="holds no documents"):
        read(ParquetSourceConfig(path=str(tmp_path)))
    write_parquet(tmp_path / "a.parquet", [None, None])
    with pytest.raises(DataError, match="holds no documents"):
        read(ParquetSourceConfig(path=str(tmp_path)))


def test_a_group_is_read_in_batches_of_bounded_bytes(tmp_path, monkeypatch):
    """Another column, however large, costs nothing: it is not read."""
    values = [chr(97 + number % 26) * 10_000 for number in range(400)]
    other = pa.array([os.urandom(50) for _ in values])
    pq.write_table(pa.table({"text": values, "other": other}), tmp_path / "a.parquet", use_dictionary=False)
    monkeypatch.setattr(parquet_source, "BATCH_BYTES", 100_000)
    sizes = []
    as_bytes = parquet_source._as_bytes
    monkeypatch.setattr(
        parquet_source, "_as_bytes", lambda array, *rest: sizes.append(len(array)) or as_bytes(array, *rest)
    )
    assert read(ParquetSourceConfig(path=str(tmp_path)))[0] == values
    assert max(sizes) == 9
