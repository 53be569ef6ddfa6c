"""Files that are documents by themselves: Markdown pages and the source files of a project.

Each file is read whole (its size is capped) and may be cut into parts; resuming reads again no more than the file it
stands in. What a source tree holds besides text (binaries, other encodings, huge generated files) is left out by rule
and counted. To cut pages in another way, edit `cut_at_headings`; to change what a tree leaves alone, `IGNORED`.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from data.compressed import SUFFIXES
from data.file_sources import FileSourceConfig, decode, read_text
from data.folders import distinct, search
from data.sources import Part, State
from utils.errors import DataError

FRONT_MATTER = re.compile(r"\A\ufeff?(---|\+\+\+)[ \t]*\r?\n(?:.*\n){0,200}?\1[ \t]*(?:\r?\n|\Z)(?:[ \t]*\r?\n)*")
FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
IGNORED = ("node_modules", "build", "dist", "target", "__pycache__", "site-packages", "venv")
CODE_SUFFIXES = (
    *(".c", ".cc", ".cpp", ".cs", ".css", ".cu", ".cuh", ".go", ".h", ".hpp", ".hs", ".html", ".java", ".jl", ".js"),
    *(".jsx", ".kt", ".lua", ".m", ".md", ".metal", ".ml", ".php", ".pl", ".py", ".pyi", ".r", ".rb", ".rs", ".rst"),
    *(".scala", ".sh", ".sql", ".swift", ".toml", ".ts", ".tsx", ".yaml", ".yml", ".zig"),
)


class MarkdownSourceConfig(FileSourceConfig):
    """Pages of Markdown or reStructuredText, one document each."""

    known_suffixes: ClassVar[tuple[str, ...]] = tuple(
        f"{name}{packed}" for name in (".md", ".markdown", ".rst") for packed in SUFFIXES
    )
    remedy: ClassVar[str] = "convert them to UTF-8 text or narrow data.sources.path"

    type: str = "markdown"
    """Row of data.SOURCES."""
    cut_at_headings: bool = False
    """Begin a document at each `# ` heading outside code; reStructuredText is not cut."""
    keep_front_matter: bool = False
    """Keep the settings that some pages begin with, between two lines of `---` or `+++`."""

    def parts(self, file: Path, state: State) -> Iterator[Part]:
        """See `SourceConfig.parts`; a page that is not cut has one part."""
        text, problem = read_text(file, self.max_document_bytes)
        if problem:
            if state["part"] == 0:
                yield Part("", {"part": 1}, f"{file}: {problem}")
            return
        text = text if self.keep_front_matter else FRONT_MATTER.sub("", text)
        pages = cut_at_headings(text) if self.cut_at_headings and ".rst" not in file.suffixes else [text]
        for number in range(state["part"], len(pages)):
            yield Part(pages[number], {"part": number + 1})


def cut_at_headings(text: str) -> list[str]:
    """A page cut before each heading of the first level; put together again, the parts are the page."""
    parts: list[list[str]] = [[]]
    fence = ""
    for line in re.split(r"(?<=\n)", text):
        mark = FENCE.match(line)
        if mark and not fence:
            fence = mark[1]
        elif mark and mark[1].startswith(fence):
            fence = ""
        elif not fence and line.startswith("# ") and parts[-1]:
            parts.append([])
        parts[-1].append(line)
    return ["".join(lines) for lines in parts]


class TreeSourceConfig(FileSourceConfig):
    """The source files of a project or of a folder of projects, one document each."""

    type: str = "tree"
    """Row of data.SOURCES."""
    suffixes: tuple[str, ...] = Field(default=CODE_SUFFIXES, min_length=1)
    """Ends of the names of files that are read."""
    ignored: tuple[str, ...] = IGNORED
    """Names of folders that are left alone at any depth; so is what begins with a dot, and links."""
    max_document_bytes: int = Field(default=1_000_000, gt=0)
    """Larger files are left out and counted: most are generated, or data."""
    path_header: bool = False
    """Begin each document with a line `File: path/in/the/tree.py`."""

    def paths(self) -> list[Path]:
        """See `FileSourceConfig.paths`."""
        root = Path(self.path).expanduser()
        if not root.is_dir():
            raise DataError(f"{root}: no such folder; check data.sources.path (seen from {Path.cwd()})")
        found = search(root, self.suffixes, self.ignored)
        found = distinct([path for path in found if path.is_file() and not path.is_symlink()])
        if not found:
            raise DataError(f"{root}: no source file in this folder; check data.sources.suffixes")
        return found

    def parts(self, file: Path, state: State) -> Iterator[Part]:
        """See `SourceConfig.parts`; a file has one part. Raises DataError for one that cannot be read."""
        if state["part"]:
            return
        text, rule = read_source(file, self.max_document_bytes)
        header = f"File: {file.relative_to(Path(self.path).expanduser()).as_posix()}\n" if self.path_header else ""
        yield Part(header + text if text else "", {"part": 1}, left_out=rule)


def read_source(path: Path, max_bytes: int) -> tuple[str, str | None]:
    """The text of a source file, and None; or an empty text and the rule by which it is left out.

    Nothing is unpacked: what begins like an archive is binary here. Raises DataError if unreadable.
    """
    try:
        with open(path, "rb") as file:
            raw = file.read(max_bytes + 1)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    if len(raw) > max_bytes:
        return "", f"more than {max_bytes:,} bytes"
    text, problem = decode(raw, max_bytes)
    return text, problem and problem.split(" (")[0]
