"""The desk on which a forerunner's file is translated: its nodes, the nodes made so far, notes and problems."""

from typing import Any

from utils.units import parse_number
from utils.yaml_file import Mapping, Node, Place, Scalar, describe, node_of


class Work:
    """Reads old dotted paths, puts new ones. Every new node keeps the place of the old one it came from."""

    def __init__(self, root: Mapping) -> None:
        self.root = root
        self.made: dict[str, Any] = {}
        self.notes: list[str] = []
        self.problems: list[str] = []

    def node(self, path: str) -> Node | None:
        """What stands at an old path; None when nothing or null does."""
        node = self.root.get(path)
        return None if node is None or (isinstance(node, Scalar) and node.value is None) else node

    def optimizer_node(self, *keys: str) -> Node | None:
        """The first of several spellings of a key of `training.optimization`."""
        found = (self.node(f"training.optimization.{key}") for key in keys)
        return next((node for node in found if node is not None), None)

    def flag(self, path: str) -> bool:
        """A switch; false when it is not given. What is neither true nor false is a problem."""
        node = self.node(path)
        if node is None:
            return False
        if isinstance(node, Scalar) and node.text.lower() in ("true", "yes", "on", "false", "no", "off"):
            return node.text.lower() in ("true", "yes", "on")
        self.problem(node, path, f"expected true or false, got {describe(node)}")
        return False

    def count(self, path: str) -> int | None:
        """A whole number of at least 1; None when it is not given. Anything else is a problem."""
        node = self.node(path)
        if node is None:
            return None
        try:
            number = parse_number(node.text if isinstance(node, Scalar) else "")
        except ValueError:
            number = 0
        if isinstance(number, int) and number > 0:
            return number
        self.problem(node, path, f"expected a whole number of at least 1, got {describe(node)}")
        return None

    def put(self, path: str, value: Any, where: Node) -> None:
        """Set a new path to plain values or to a node, moved to the place of `where`."""
        node = node_of(value, where.place)
        section = self.made
        *parents, last = path.split(".")
        for key in parents:
            section = section.setdefault(key, {})
        section[last] = node

    def note(self, where: Node | None, text: str) -> None:
        """Say once how something was read."""
        if not any(text == said.partition(": ")[2] for said in self.notes):
            self.notes.append(f"{self._place(where)}: {text}")

    def problem(self, where: Node | None, path: str, text: str) -> None:
        """Something that cannot be translated."""
        line = f"{self._place(where)}: {path}: {text}"
        if line not in self.problems:
            self.problems.append(line)

    def _place(self, where: Node | None) -> Place:
        return (where or self.root).place

    def result(self) -> Mapping:
        """The new tree. A section stands where its first entry stood."""
        return _section(self.made, self.root.place)


def _section(made: dict[str, Any], place: Place) -> Mapping:
    entries: dict[str, Node] = {}
    for key, value in made.items():
        entries[key] = _section(value, place) if isinstance(value, dict) else value
    places = [node.place for node in entries.values() if node.place.line]
    return Mapping(entries, min(places) if places else place)
