"""From files and command-line values to one tree of nodes: `extends`, merging, overrides.

The order is field default < `extends` (later parents win) < the file < the command line. Mappings merge, scalars and
lists replace, and a changed `type:` drops what the parent said in that section, since it spoke of another class. Every
node keeps its place, so errors and provenance name the line that really decided. A forerunner's file is translated the
moment it is read (`core/forerunner.py`), so everything after sees one schema.
"""

import os
from collections.abc import Sequence as AnySequence
from pathlib import Path
from typing import NamedTuple

from core.forerunner import is_forerunner, translate
from utils.errors import ConfigError
from utils.registry import suggestion
from utils.yaml_file import Mapping, Node, Place, Scalar, Sequence, describe, parse_yaml, read_yaml

COMMAND_LINE = "command line"


class Layers(NamedTuple):
    """All files and command-line values merged, not yet checked against the sections."""

    root: Mapping
    notes: tuple[str, ...] = ()
    """How a forerunner's keys were read, and which were ignored."""
    overwrite: bool = False
    """A forerunner's `overwrite: true`."""
    problems: tuple[str, ...] = ()
    """What of a forerunner's file cannot be translated."""


def read_layers(path: str | Path, overrides: AnySequence[str] = ()) -> Layers:
    """Read the file, what it extends and the `section.key=value` overrides. Raises ConfigError."""
    layers = _read_file(os.path.normpath(path), ())
    return layers._replace(root=_merge_mappings(layers.root, parse_overrides(overrides)))


def _read_file(path: str, chain: tuple[str, ...]) -> Layers:
    root = read_yaml(path)
    if is_forerunner(root):
        translation = translate(root)
        return Layers(translation.root, translation.notes, translation.overwrite, translation.problems)
    merged = Layers(Mapping({}, root.place))
    for parent, place in _parents(root):
        found = os.path.normpath(os.path.join(os.path.dirname(path), parent))
        _check_parent(found, place, (*chain, path))
        layers = _read_file(found, (*chain, path))
        merged = Layers(
            _merge_mappings(merged.root, layers.root),
            tuple(dict.fromkeys(merged.notes + layers.notes)),
            merged.overwrite or layers.overwrite,
            tuple(dict.fromkeys(merged.problems + layers.problems)),
        )
    own = {key: node for key, node in root.entries.items() if key != "extends"}
    return merged._replace(root=_merge_mappings(merged.root, Mapping(own, root.place)))


def _parents(root: Mapping) -> list[tuple[str, Place]]:
    node = root.entries.get("extends")
    items = node.items if isinstance(node, Sequence) else (node,) if node else ()
    names = []
    for item in items:
        if not (isinstance(item, Scalar) and isinstance(item.value, str) and item.value):
            raise ConfigError(f"{item.place}: extends: expected a file name or a list of them, got {describe(item)}")
        names.append((item.value, item.place))
    return names


def _check_parent(path: str, place: Place, chain: tuple[str, ...]) -> None:
    files = [os.path.realpath(file) for file in chain]
    if os.path.realpath(path) in files:
        start = files.index(os.path.realpath(path))
        raise ConfigError(f"{place}: extends: goes in a circle: {' -> '.join([*chain[start:], path])}")
    if not os.path.isfile(path):
        folder = os.path.dirname(path) or "."
        files = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
        near = suggestion(os.path.basename(path), [name for name in files if name.endswith((".yaml", ".yml"))])
        raise ConfigError(f"{place}: extends: there is no file '{path}'{near}")


def merge(parent: Node, child: Node) -> Node:
    """The child over the parent."""
    if isinstance(parent, Mapping) and isinstance(child, Mapping) and not _changes_type(parent, child):
        return _merge_mappings(parent, child)
    return child


def _merge_mappings(parent: Mapping, child: Mapping) -> Mapping:
    entries = dict(parent.entries)
    for key, node in child.entries.items():
        entries[key] = merge(entries[key], node) if key in entries else node
    return Mapping(entries, child.place if child.place.line else parent.place)


def _changes_type(parent: Mapping, child: Mapping) -> bool:
    before, after = parent.entries.get("type"), child.entries.get("type")
    return isinstance(before, Scalar) and isinstance(after, Scalar) and before.text != after.text


def parse_overrides(overrides: AnySequence[str]) -> Mapping:
    """`section.key=value` texts as one tree; each value is YAML. Raises ConfigError that names every bad one."""
    place = Place(COMMAND_LINE)
    root, problems = Mapping({}, place), []
    for text in overrides:
        path, equals, value = text.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            problems.append(f"{COMMAND_LINE}: expected section.key=value, got '{text}'")
            continue
        try:
            node = parse_yaml(value, place)
        except ConfigError as error:
            problems += [
                f"{COMMAND_LINE}: {path}: {problem.removeprefix('command line: ')}" for problem in error.problems
            ]
            continue
        for key in reversed(keys):
            node = Mapping({key: node}, place)
        root = _merge_mappings(root, node) if isinstance(node, Mapping) else root
    if problems:
        raise ConfigError(*problems)
    return root
