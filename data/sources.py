"""Where documents come from: JSON lines, text files, or the source code of the installed Python.

Each source is a generator of `(document, state)`; `state` is JSON and exactly what is needed to go on behind that
document: `source.documents(state)` yields what never stopping would have yielded. Text is taken as it is: UTF-8,
nothing normalised, nothing stripped. A few broken lines or files are counted and named, more than 1 % stop.
To add a source, write a `SourceConfig` subclass with `walk` and `origin`, and add its row to `data/__init__.py`.
"""

import glob
import json
import os
import platform
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from data.cache import Report
from utils.errors import DataError
from utils.schema import TypedSection

MAX_BAD_FRACTION = 0.01
JUDGE_AFTER = 1000
NUM_NAMED = 5
NOT_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
State = dict[str, Any]
Documents = Iterator[tuple[str, State]]


class SourceConfig(TypedSection):
    """What all sources have in common."""

    remedy: ClassVar[str] = "check data.sources"

    weight: float = Field(default=1.0, gt=0)
    """How often its training documents come in an epoch. 2 is twice each; 2.5 adds a third time for that half of them
    that a hash of the text chooses, the same half in every epoch; 0.5 keeps such a half."""
    max_documents: int | None = Field(default=None, gt=0)
    """Read no more than the first so many documents; null: all."""
    max_tokens: int | None = Field(default=None, gt=0)
    """Stop before the training document that would take this source past so many tokens, weight not counted."""

    def documents(self, state: State | None = None, report: Report = print) -> Documents:
        """The documents that follow `state` (None: all), each with the state behind it. Empty ones are left out."""
        begin = state or {"documents": 0}
        if begin["documents"] == self.max_documents:
            self.judge(begin, report)
            return
        state = begin
        for text, state in self.walk(begin, report):
            yield text, state
            if state["documents"] == self.max_documents:
                self.judge(state, report)
                return
        if not state["documents"]:
            raise DataError(f"{self.name()}: holds no documents; check data.sources")

    def walk(self, state: State, report: Report) -> Documents:
        """The documents behind `state`; `state["documents"]` counts those before. A subclass gives it."""
        raise NotImplementedError

    def judge(self, state: State, report: Report) -> None:
        """At the end: name what was broken. Raises DataError when it was more than 1 % of what was read."""
        if not state.get("bad"):
            return
        if state["bad"] > MAX_BAD_FRACTION * state["seen"]:
            raise DataError(*_bad_lines(state), self.remedy)
        for line in _bad_lines(state):
            report(f"left out: {line}")

    def name(self) -> str:
        """What a message calls this source."""
        return self.type

    def origin(self) -> dict[str, Any]:
        """JSON that changes when the documents may have: part of the name of what is prepared from them."""
        raise NotImplementedError

    def find_problems(self) -> list[str]:
        """What is missing, found without reading documents."""
        raise NotImplementedError


class FileSourceConfig(SourceConfig):
    """A source that reads files."""

    path: str
    """A file, a folder (all files of it that fit, at any depth) or a glob such as `corpus/**/*.txt`."""

    suffixes: ClassVar[tuple[str, ...]] = ()

    def name(self) -> str:
        """See `SourceConfig.name`."""
        return self.path

    def find_problems(self) -> list[str]:
        """See `SourceConfig.find_problems`."""
        return _problems_of(self.paths)

    def paths(self) -> list[Path]:
        """The files, sorted by name. Raises DataError when there are none."""
        given = Path(self.path).expanduser()
        if given.is_file():
            return [given]
        if given.is_dir():
            found = [path for path in given.rglob("*") if path.suffix in self.suffixes]
        else:
            found = [Path(name) for name in glob.glob(str(given), recursive=True)]
        found = sorted(path for path in found if path.is_file())
        if found:
            return found
        if given.is_dir():
            kinds = " or ".join(self.suffixes)
            raise DataError(f"{given}: no {kinds} file in this folder; data.sources.path can be a glob")
        raise DataError(f"{given}: no such file or folder; check data.sources.path (seen from {Path.cwd()})")


class JSONLSourceConfig(FileSourceConfig):
    """One JSON object a line, `{"text": "..."}`."""

    suffixes: ClassVar[tuple[str, ...]] = (".jsonl", ".ndjson")
    remedy: ClassVar[str] = "each line must be a JSON object with the text under data.sources.key; repair or drop them"

    type: str = "jsonl"
    """Row of data.SOURCES."""
    key: str = "text"
    """The key that holds the document."""

    def walk(self, state: State, report: Report) -> Documents:
        """See `SourceConfig.walk`; lines are the unit of what may be broken."""
        state = {"file": 0, "offset": 0, "line": 0, "seen": 0, "bad": 0, "named": []} | state
        paths = self.paths()
        for number in range(state["file"], len(paths)):
            for raw, offset in _lines(paths[number], state["offset"]):
                state = state | {"file": number, "offset": offset, "line": state["line"] + 1}
                if not raw.strip():
                    continue
                text, reason = parse_line(raw, self.key)
                state = _count(state, f"{paths[number]}:{state['line']}: {reason}" if reason else None, self.remedy)
                if text:
                    state = state | {"documents": state["documents"] + 1}
                    yield text, state
            state = state | {"file": number + 1, "offset": 0, "line": 0}
        self.judge(state, report)

    def origin(self) -> dict[str, Any]:
        """See `SourceConfig.origin`."""
        return {"files": _stamps(self.paths()), "key": self.key}


class TextSourceConfig(FileSourceConfig):
    """Plain text files; each is one document unless a separator cuts it."""

    suffixes: ClassVar[tuple[str, ...]] = (".txt", ".text", ".md")
    remedy: ClassVar[str] = "convert them to UTF-8 text or narrow data.sources.path to text files"

    type: str = "text"
    """Row of data.SOURCES."""
    separator: str | None = Field(default=None, min_length=1)
    """Cut files into documents at this string and leave it out, for example `<|endoftext|>`; null: do not cut."""

    def walk(self, state: State, report: Report) -> Documents:
        """See `SourceConfig.walk`; files are the unit of what may be broken."""
        state = {"file": 0, "part": 0, "seen": 0, "bad": 0, "named": []} | state
        paths = self.paths()
        for number in range(state["file"], len(paths)):
            text, reason = read_text(paths[number])
            if state["part"] == 0:
                state = _count(state, f"{paths[number]}: {reason}" if reason else None, self.remedy)
            parts = text.split(self.separator) if self.separator else [text]
            for part in range(state["part"], len(parts)):
                if parts[part]:
                    state = state | {"file": number, "part": part + 1, "documents": state["documents"] + 1}
                    yield parts[part], state
            state = state | {"file": number + 1, "part": 0}
        self.judge(state, report)

    def origin(self) -> dict[str, Any]:
        """See `SourceConfig.origin`."""
        return {"files": _stamps(self.paths()), "separator": self.separator}


class StdlibSourceConfig(SourceConfig):
    """The standard library of the running Python without its tests: about 12 MB of source, on every machine."""

    type: str = "stdlib"
    """Row of data.SOURCES."""

    def walk(self, state: State, report: Report) -> Documents:
        """See `SourceConfig.walk`; the few files in another encoding are left out."""
        paths = library_files()
        for number in range(state.get("file", 0), len(paths)):
            text, _ = read_text(paths[number])
            if text:
                state = state | {"file": number + 1, "documents": state["documents"] + 1}
                yield text, state

    def origin(self) -> dict[str, Any]:
        """See `SourceConfig.origin`."""
        return {"python": platform.python_version(), "files": _stamps(library_files())}

    def find_problems(self) -> list[str]:
        """See `SourceConfig.find_problems`."""
        return _problems_of(library_files)


def library_files() -> list[Path]:
    """The modules of the standard library, sorted, without tests and installed packages."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found: list[Path] = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in NOT_LIBRARY]
        found += [Path(folder, name) for name in names if name.endswith(".py")]
    if not found:
        raise DataError(f"{root}: no source files of the standard library; name a corpus in data.sources")
    return sorted(found)


def parse_line(raw: bytes, key: str) -> tuple[str, str | None]:
    """The document of one JSON line, and None; or an empty text and what is wrong with the line."""
    try:
        value = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError:
        return "", "not UTF-8"
    except (ValueError, RecursionError) as error:
        return "", f"not JSON ({error})"
    if not isinstance(value, dict):
        return "", f"not an object but {type(value).__name__}"
    if key not in value:
        return "", f"no key '{key}' (there are: {', '.join(list(value)[:8]) or 'none'})"
    if not isinstance(value[key], str):
        return "", f"'{key}' is not text but {type(value[key]).__name__}"
    return _without_surrogates(value[key])


def _without_surrogates(text: str) -> tuple[str, str | None]:
    """JSON may spell half of a UTF-16 pair (`\\ud800`), which is no character and has no UTF-8 bytes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "", "holds half of a surrogate pair"
    return text, None


def read_text(path: Path) -> tuple[str, str | None]:
    """The text of a file, and None; or an empty text and what is wrong with it. Raises DataError if unreadable."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    if b"\0" in raw:
        return "", "binary (holds NUL bytes)"
    try:
        return raw.decode("utf-8"), None
    except UnicodeDecodeError as error:
        return "", f"not UTF-8 (byte {error.start})"


def _lines(path: Path, offset: int) -> Iterator[tuple[bytes, int]]:
    """The lines from byte `offset` on, each with the offset behind it. Raises DataError for a binary file."""
    try:
        with open(path, "rb") as file:
            if b"\0" in file.read(8192):
                raise DataError(f"{path}: binary, not JSON lines (is it compressed? unpack it first)")
            file.seek(offset)
            for raw in file:
                start, offset = offset, offset + len(raw)
                yield raw.removeprefix(b"\xef\xbb\xbf") if start == 0 else raw, offset
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _count(state: State, problem: str | None, remedy: str) -> State:
    """Count one line or file; stop early when, after the first thousand, more than 1 % are broken."""
    state = state | {"seen": state["seen"] + 1}
    if problem:
        state = state | {"bad": state["bad"] + 1, "named": [*state["named"], problem][:NUM_NAMED]}
        if state["seen"] >= JUDGE_AFTER and state["bad"] > MAX_BAD_FRACTION * state["seen"]:
            raise DataError(*_bad_lines(state), remedy)
    return state


def _bad_lines(state: State) -> list[str]:
    """What was broken: how many lines or files of those read so far, and the first few by name."""
    unit = "line" if "line" in state else "file"
    head = f"{state['bad']} of {state['seen']} {unit}s read are broken; {MAX_BAD_FRACTION:.0%} may be"
    more = state["bad"] - len(state["named"])
    return [head, *state["named"], *([f"... and {more} more"] if more else [])]


def _stamps(paths: list[Path]) -> list[list[str | int]]:
    """Path, size and time of change of each file: what tells that a file is not the one it was."""
    stats = [(path, path.stat()) for path in paths]
    return [[str(path.resolve()), stat.st_size, stat.st_mtime_ns] for path, stat in stats]


def _problems_of(check: Callable[[], Any]) -> list[str]:
    try:
        check()
    except DataError as error:
        return error.problems
    return []
