"""Parquet files: one column, one row group at a time, in batches small enough that memory stays bounded.

A state holds the row group and the row in it; going on decodes that column of that group from its beginning, nothing
before it. Text is taken as bytes and decoded here, because Parquet's own strings may hold anything. Checksums of pages
are checked where the writer stored some. To read more than one column, edit `_values`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from data.file_sources import FileSourceConfig, decode
from data.sources import Part, State
from utils.errors import DataError
from utils.optional import optional

BATCH_BYTES = 1 << 23
MOST_ROWS = 4096
READ_BYTES = 1 << 20


class ParquetSourceConfig(FileSourceConfig):
    """Parquet files with a column of text."""

    known_suffixes: ClassVar[tuple[str, ...]] = (".parquet",)
    unit: ClassVar[str] = "row"
    remedy: ClassVar[str] = "each row must hold UTF-8 text in data.sources.column; repair or drop them"

    type: str = "parquet"
    """Row of data.SOURCES."""
    column: str = "text"
    """The column that holds the document; `meta.text` is the field `text` of the struct `meta`."""

    def parts(self, file: Path, state: State) -> Iterator[Part]:
        """See `SourceConfig.parts`."""
        return parquet_rows(file, state, self.column, self.max_document_bytes)


def parquet_rows(path: Path, state: State, column: str, max_bytes: int) -> Iterator[Part]:
    """The rows of a file from row group `state["block"]`, row `state["offset"]` on.

    Raises DataError for a file that is cut short or damaged, has no such column, or one that is not text, and
    BackendError when pyarrow is not installed.
    """
    pyarrow, parquet = optional("pyarrow", "data"), optional("pyarrow.parquet", "data")
    try:
        with parquet.ParquetFile(
            path, buffer_size=READ_BYTES, pre_buffer=False, page_checksum_verification=True
        ) as file:
            _check_column(path, file.schema_arrow, column, pyarrow)
            for group in range(state["block"], file.num_row_groups):
                first = state["offset"] if group == state["block"] else 0
                for row, value in _values(file, group, first, column, pyarrow):
                    yield _part(path, group, row, value, max_bytes)
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: cut short, damaged or not Parquet: {reason}; fetch or write it again") from error


def _check_column(path: Path, schema: Any, column: str, pyarrow: Any) -> None:
    """Raises DataError, naming what there is, when the column is missing or of another type."""
    first, *inner = column.split(".") if column not in schema.names else [column]
    if first not in schema.names:
        raise DataError(f"{path}: no column '{column}' (data.sources.column); there are: {', '.join(schema.names)}")
    kind = schema.field(first).type
    for name in inner:
        names = [kind.field(i).name for i in range(kind.num_fields)] if pyarrow.types.is_struct(kind) else []
        if name not in names:
            there = ", ".join(names) or f"none, it is {kind}"
            raise DataError(f"{path}: no field '{name}' of column '{column}' (data.sources.column); there are: {there}")
        kind = kind.field(name).type
    kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    text_types = (pyarrow.string(), pyarrow.large_string(), pyarrow.binary(), pyarrow.large_binary())
    if kind not in text_types:
        raise DataError(f"{path}: column '{column}' holds {kind}, not text; name another in data.sources.column")


def _values(file: Any, group: int, first: int, column: str, pyarrow: Any) -> Iterator[tuple[int, bytes | None]]:
    """Number and bytes of each row of a group from row `first` on; None for a null."""
    row = 0
    for batch in file.iter_batches(_batch_rows(file, group, column), [group], [column], use_threads=False):
        if row + batch.num_rows > first:
            skipped = max(0, first - row)
            values = _as_bytes(batch.column(0), column, batch.schema.names[0], pyarrow).slice(skipped)
            yield from enumerate(values.to_pylist(), row + skipped)
        row += batch.num_rows


def _batch_rows(file: Any, group: int, column: str) -> int:
    """Rows that take about `BATCH_BYTES`, by what the group says of its column."""
    found = file.metadata.row_group(group)
    columns = [found.column(i) for i in range(found.num_columns)]
    size = sum(each.total_uncompressed_size for each in columns if each.path_in_schema == column)
    return max(1, min(MOST_ROWS, BATCH_BYTES * found.num_rows // max(1, size)))


def _as_bytes(array: Any, column: str, first: str, pyarrow: Any) -> Any:
    """A column as binary, the field of a struct taken out of it."""
    compute = optional("pyarrow.compute", "data")
    for name in column.split(".")[1:] if first != column else []:
        array = compute.struct_field(array, name)
    if pyarrow.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    return array.cast(pyarrow.large_binary())


def _part(path: Path, group: int, row: int, value: bytes | None, max_bytes: int) -> Part:
    place = {"block": group, "offset": row + 1}
    if value is None:
        return Part("", place, left_out="null")
    text, problem = _decoded(value, max_bytes)
    return Part(text, place, problem and f"{path}: row group {group}, row {row}: {problem}")


def _decoded(value: bytes, max_bytes: int) -> tuple[str, str | None]:
    """A NUL is text here, as it is in JSON."""
    if len(value) > max_bytes:
        return decode(None, max_bytes)
    try:
        return value.decode("utf-8"), None
    except UnicodeDecodeError as error:
        return "", f"not UTF-8 (byte {error.start})"
