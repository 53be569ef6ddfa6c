"""YAML read into nodes that remember file and line, and written back so that it reads equal.

Nothing is guessed here: a scalar keeps the text as written, and the declared type of the field decides what it is
(`utils/coercion.py`). That is why `3e-4` and `500M` are numbers, `name: no` stays a name, and an error can name its
line. Only where no type is declared do the rules of YAML 1.2 apply (`Scalar.value`). Refused: duplicate keys, tags such
as `!!python/object`, merge keys, and files that unfold beyond `MAX_NODES`.
"""

import math
import re
from collections.abc import Mapping as AnyMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from utils.errors import ConfigError

MAX_BYTES = 1_000_000
MAX_NODES = 20_000
MAX_DEPTH = 40

CONSTANTS = {"": None, "~": None, "null": None, "Null": None, "NULL": None} | {
    text: word == "true" for word in ("true", "false") for text in (word, word.capitalize(), word.upper())
}
INTEGER = re.compile(r"[-+]?[0-9]+")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
PLAIN_TAGS = {"tag:yaml.org,2002:str", "tag:yaml.org,2002:seq", "tag:yaml.org,2002:map"}


class Place(NamedTuple):
    """Where something was written; `line` counts from 1, None for what has no lines (the command line)."""

    file: str
    line: int | None = None

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Scalar:
    """One value: its text as written, and what YAML 1.2 makes of it."""

    text: str
    value: Any
    place: Place


@dataclass(frozen=True)
class Sequence:
    """A list."""

    items: tuple["Node", ...]
    place: Place


@dataclass(frozen=True)
class Mapping:
    """Keys to nodes. The place of an entry's key is the place of the entry's node."""

    entries: dict[str, "Node"]
    place: Place

    def get(self, path: str) -> "Node | None":
        """The node at a dotted path, or None."""
        node: Node | None = self
        for key in path.split("."):
            node = node.entries.get(key) if isinstance(node, Mapping) else None
        return node


Node = Scalar | Sequence | Mapping


class _Loader(yaml.SafeLoader):
    """Leaves every scalar a text: types are decided elsewhere."""


_Loader.yaml_implicit_resolvers = {}


def read_yaml(path: str | Path) -> Mapping:
    """The file's nodes. Raises ConfigError that names the file and line of everything wrong with it."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{path}: has {len(content)} bytes; a config has at most {MAX_BYTES}")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}:{line}: is not UTF-8 text: byte 0x{content[error.start]:02x}") from error
    root = parse_yaml(text, Place(str(path), 1))
    if isinstance(root, Scalar) and root.value is None:
        return Mapping({}, Place(str(path), 1))
    if not isinstance(root, Mapping):
        raise ConfigError(f"{root.place}: expected 'key: value' lines, got {describe(root)}")
    return root


def parse_yaml(text: str, place: Place) -> Node:
    """The nodes of a text that starts at `place`. Raises ConfigError."""
    try:
        loader = _Loader(text)
        try:
            composed = loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise ConfigError(_syntax_problem(error, place)) from error
    except RecursionError as error:
        raise ConfigError(f"{place}: nested deeper than {MAX_DEPTH} levels") from error
    if composed is None:
        return Scalar("", None, place)
    reader = _Reader(place)
    node = reader.read(composed, 0)
    if reader.problems:
        raise ConfigError(*reader.problems)
    return node


def _syntax_problem(error: yaml.YAMLError, place: Place) -> str:
    mark = getattr(error, "problem_mark", None)
    where = place._replace(line=mark.line + 1) if mark and place.line else place
    reason = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    context = getattr(error, "context", None)
    return f"{where}: is not readable YAML: {reason}" + (f" ({context})" if context else "")


class _Reader:
    """Turns PyYAML's graph into our tree, counting nodes (aliases may unfold without end) and collecting problems."""

    def __init__(self, start: Place) -> None:
        self.start = start
        self.num_nodes = 0
        self.problems: list[str] = []

    def place(self, node: yaml.Node) -> Place:
        return self.start._replace(line=node.start_mark.line + 1) if self.start.line else self.start

    def read(self, node: yaml.Node, depth: int, place: Place | None = None) -> Node:
        place = place or self.place(node)
        self.num_nodes += 1
        if self.num_nodes > MAX_NODES:
            raise ConfigError(f"{place}: more than {MAX_NODES} values; aliases that unfold like this are refused")
        if depth > MAX_DEPTH:
            raise ConfigError(f"{place}: nested deeper than {MAX_DEPTH} levels")
        if node.tag not in PLAIN_TAGS:
            self.problems.append(f"{place}: tags are refused, got '{_short_tag(node.tag)}'; write the plain value")
        if isinstance(node, yaml.SequenceNode):
            return Sequence(tuple(self.read(item, depth + 1) for item in node.value), place)
        if isinstance(node, yaml.MappingNode):
            return Mapping(self.entries(node, depth), place)
        assert isinstance(node, yaml.ScalarNode)
        return Scalar(node.value, natural_value(node.value) if node.style is None else node.value, place)

    def entries(self, mapping: yaml.MappingNode, depth: int) -> dict[str, Node]:
        entries: dict[str, Node] = {}
        for key, value in mapping.value:
            place = self.place(key)
            if not isinstance(key, yaml.ScalarNode):
                self.problems.append(f"{place}: a key must be a word, got a list or mapping")
            elif key.value == "<<" and key.style is None:
                self.problems.append(f"{place}: merge keys ('<<') are refused; use 'extends'")
            elif key.value in entries:
                first = entries[key.value].place
                self.problems.append(f"{place}: duplicate key '{key.value}', already given in line {first.line or 1}")
            else:
                entries[key.value] = self.read(value, depth + 1, place)
        return entries


def _short_tag(tag: str) -> str:
    return tag.replace("tag:yaml.org,2002:", "!!")


def natural_value(text: str) -> Any:
    """What an unquoted scalar is by the core rules of YAML 1.2: null, true, false, a finite number or text."""
    if text in CONSTANTS:
        return CONSTANTS[text]
    if INTEGER.fullmatch(text) and len(text) < 100:
        return int(text)
    if FLOAT.fullmatch(text) and math.isfinite(float(text)):
        return float(text)
    return text


def node_of(value: Any, place: Place) -> Node:
    """Nodes of plain Python values, all at one place."""
    if isinstance(value, Scalar | Sequence | Mapping):
        return value
    if isinstance(value, AnyMapping):
        return Mapping({str(key): node_of(child, place) for key, child in value.items()}, place)
    if isinstance(value, list | tuple):
        return Sequence(tuple(node_of(item, place) for item in value), place)
    return Scalar(scalar_text(value), value, place)


def value_of(node: Node) -> Any:
    """Plain Python values of nodes."""
    if isinstance(node, Mapping):
        return {key: value_of(child) for key, child in node.entries.items()}
    if isinstance(node, Sequence):
        return [value_of(item) for item in node.items]
    return node.value


def scalar_text(value: Any) -> str:
    """A value as YAML spells it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value) if isinstance(value, float) else str(value)


def describe(node: Node) -> str:
    """What an error calls a node: the value seen, shortened."""
    if isinstance(node, Mapping):
        return "a mapping"
    if isinstance(node, Sequence):
        return "a list"
    if isinstance(node.value, str):
        return f"'{node.text}'" if len(node.text) <= 60 else f"'{node.text[:57]}...'"
    return "nothing" if node.text == "" else node.text


class _Dumper(yaml.SafeDumper):
    """Quotes every text that would read back as something else."""


def _write_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = None if natural_value(text) == text else "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _write_text)


def write_yaml(value: Any, *, flow: bool | None = False) -> str:
    """YAML text that reads back to an equal value. `flow=True`: on one line, as `{a: [1, 2]}`."""
    width = math.inf if flow else 110
    text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, default_flow_style=flow, allow_unicode=True, width=width)
    return text.removesuffix("...\n")
