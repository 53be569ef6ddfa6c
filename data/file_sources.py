"""JSON lines and plain text, packed or not: parts of files between newlines or another separator.

A line or part is never held when it is longer than `max_document_bytes`; it is counted as broken instead, so memory
stays bounded whatever the file. Resuming seeks the place behind the last document (see `data/compressed.py`) and
parses nothing again. To read another format of lines, edit `parse_line`.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from data.cache import Report
from data.compressed import SUFFIXES, Cut, cut_pieces, read_pieces, read_whole
from data.folders import find_files, stamps
from data.sources import Documents, Part, SourceConfig, State
from utils.errors import DataError

HEAD_BYTES = 8192
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
JSONL_SUFFIXES = tuple(f"{name}{packed}" for name in (".jsonl", ".ndjson") for packed in SUFFIXES) + (
    ".json.gz",
    ".json.zst",
)


class FileSourceConfig(SourceConfig):
    """A source that reads files."""

    path: str
    """A file, a folder (all files of it that fit, at any depth) or a glob such as `corpus/**/*.txt`."""
    max_document_bytes: int = Field(default=128_000_000, gt=0)
    """A longer line, part or file is not read into memory but left out, counted as broken."""

    known_suffixes: ClassVar[tuple[str, ...]] = ()

    def label(self) -> str:
        """See `SourceConfig.label`."""
        return self.name or self.path

    def find_problems(self) -> list[str]:
        """See `SourceConfig.find_problems`."""
        try:
            self.paths()
        except DataError as error:
            return error.problems
        return []

    def paths(self) -> list[Path]:
        """The files, sorted by name. Raises DataError when there are none."""
        return find_files(Path(self.path).expanduser(), self.known_suffixes, " or ".join(self.known_suffixes))

    def walk(self, state: State, report: Report) -> Documents:
        """See `SourceConfig.walk`."""
        return self.walk_files(self.paths(), state, report)

    def origin(self) -> dict[str, Any]:
        """See `SourceConfig.origin`: the files, and the settings that decide what is a document of them."""
        settings = self.model_dump(mode="json", exclude=set(FileSourceConfig.model_fields) - {"max_document_bytes"})
        return {"files": stamps(self.paths()), **settings}


class JSONLSourceConfig(FileSourceConfig):
    """One JSON object a line, `{"text": "..."}`; plain, `.gz` or `.zst`."""

    known_suffixes: ClassVar[tuple[str, ...]] = JSONL_SUFFIXES
    unit: ClassVar[str] = "line"
    remedy: ClassVar[str] = "each line must be a JSON object with the text under data.sources.key; repair or drop them"

    type: str = "jsonl"
    """Row of data.SOURCES."""
    key: str = "text"
    """The key that holds the document; `meta.text` is the key `text` inside the object `meta`."""

    def parts(self, file: Path, state: State) -> Iterator[Part]:
        """See `SourceConfig.parts`."""
        return json_lines(file, state, self.key, self.max_document_bytes)


class TextSourceConfig(FileSourceConfig):
    """Plain text files, `.gz` or `.zst` or not; each is one document unless a separator cuts it."""

    known_suffixes: ClassVar[tuple[str, ...]] = tuple(
        f"{name}{packed}" for name in (".txt", ".text") for packed in SUFFIXES
    )
    remedy: ClassVar[str] = (
        "convert them to UTF-8 text, narrow data.sources.path to text files, or cut large files with "
        "data.sources.separator"
    )

    type: str = "text"
    """Row of data.SOURCES."""
    separator: str | None = Field(default=None, min_length=1)
    """Cut files into documents at this string and leave it out, for example `<|endoftext|>`; null: do not cut."""

    def parts(self, file: Path, state: State) -> Iterator[Part]:
        """See `SourceConfig.parts`; a file that is not cut has one part."""
        if self.separator is None:
            if state["part"] == 0:
                text, problem = read_text(file, self.max_document_bytes)
                yield Part(text, {"part": 1}, problem and f"{file}: {problem}")
            return
        number = state["part"]
        for cut in cuts(file, state, self.separator.encode("utf-8"), self.max_document_bytes):
            number += 1
            if cut.num_bytes:
                text, problem = decode(cut.data, self.max_document_bytes)
                where = f"{file}: part {number}, up to byte {cut.offset:,}: {problem}"
                yield Part(text, _behind(cut, number), problem and where)


def cuts(path: Path, state: State, separator: bytes, max_bytes: int) -> Iterator[Cut]:
    """What lies between separators from the place in `state` on."""
    return cut_pieces(read_pieces(path, state["block"], state["offset"]), separator, max_bytes)


def _behind(cut: Cut, number: int) -> State:
    return {"block": cut.block, "offset": cut.offset, "part": number}


def json_lines(path: Path, state: State, key: str, max_bytes: int) -> Iterator[Part]:
    """The lines of a file of JSON objects from the place in `state` on; blank ones are no part."""
    if not (number := state["part"]):
        refuse_binary(path)
    for cut in cuts(path, state, b"\n", max_bytes):
        number += 1
        data = cut.data
        if data is not None and number == 1:
            data = data.removeprefix(BYTE_ORDER_MARK)
        if data is None or (data and not data.isspace()):
            text, problem = parse_line(data, key) if data is not None else decode(None, max_bytes)
            yield Part(text, _behind(cut, number), problem and f"{path}:{number}: {problem}")


def refuse_binary(path: Path) -> None:
    """Raises DataError when more than 1 % of the first bytes are NUL: no text has that, UTF-16 and archives do."""
    piece = next(read_pieces(path), None)
    head = piece.data[:HEAD_BYTES] if piece else b""
    if head.count(0) > len(head) // 100:
        raise DataError(
            f"{path}: binary, not JSON lines (UTF-16, or packed in another way? unpack or convert it first)"
        )


def parse_line(raw: bytes | bytearray, key: str) -> tuple[str, str | None]:
    """The document of one JSON line, and None; or an empty text and what is wrong with the line."""
    try:
        value = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError:
        return "", "not UTF-8"
    except (ValueError, RecursionError) as error:
        return "", f"not JSON ({error})"
    if not isinstance(value, dict):
        return "", f"not an object but {type(value).__name__}"
    if key not in value and "." in key:
        return _nested(value, key)
    return _text_of(value, key, key)


def _nested(value: dict[str, Any], key: str) -> tuple[str, str | None]:
    """The text under a dotted key."""
    *outer, last = key.split(".")
    for name in outer:
        inner = value.get(name)
        if not isinstance(inner, dict):
            return "", f"no key '{key}': '{name}' is not an object (there are: {_keys(value)})"
        value = inner
    return _text_of(value, last, key)


def _text_of(value: dict[str, Any], key: str, full_key: str) -> tuple[str, str | None]:
    if key not in value:
        return "", f"no key '{full_key}' (there are: {_keys(value)})"
    if not isinstance(value[key], str):
        return "", f"'{full_key}' is not text but {type(value[key]).__name__}"
    return _without_surrogates(value[key])


def _keys(value: dict[str, Any]) -> str:
    return ", ".join(list(value)[:8]) or "none"


def _without_surrogates(text: str) -> tuple[str, str | None]:
    """JSON may spell half of a UTF-16 pair (`\\ud800`), which is no character and has no UTF-8 bytes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "", "holds half of a surrogate pair"
    return text, None


def decode(raw: bytes | bytearray | None, max_bytes: int) -> tuple[str, str | None]:
    """The text of some bytes, and None; or an empty text and what is wrong with them. None: there were too many."""
    if raw is None:
        return "", f"longer than data.sources.max_document_bytes ({max_bytes:,})"
    if b"\0" in raw:
        return "", "binary (holds NUL bytes)"
    try:
        return raw.decode("utf-8"), None
    except UnicodeDecodeError as error:
        return "", f"not UTF-8 (byte {error.start})"


def read_text(path: Path, max_bytes: int) -> tuple[str, str | None]:
    """The text of a file, and None; or an empty text and what is wrong with it. Raises DataError if unreadable."""
    return decode(read_whole(path, max_bytes), max_bytes)
