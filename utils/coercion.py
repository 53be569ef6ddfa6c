"""Fills config sections from YAML nodes and collects every problem at once, each with file, line and dotted path.

The declared type decides what a text is: `3e-4` is a number for a float field and a name for a str field. Sections are
walked here, not handed to pydantic whole, because only the walker knows the lines, the tables of `type:` names, and how
to go on after a problem; pydantic then checks bounds and runs each section's validators. To support a new kind of
annotation: a branch in `_coerce`.
"""

import types
from collections.abc import Sequence as AnySequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from utils.registry import import_object, look_up, suggestion
from utils.schema import Misfits, OneOf, Section, fields_by_key
from utils.units import parse_number
from utils.yaml_file import Mapping, Node, Scalar, Sequence, describe, scalar_text, value_of

FAILED = object()
"""What a value becomes once its problem has been reported. Pydantic refuses it, so no validator sees it."""

FLAGS: dict[str, bool] = {word: word in ("true", "yes", "on") for word in ("true", "yes", "on", "false", "no", "off")}


def build(annotation: Any, node: Node, problems: list[str], path: str = "") -> Any:
    """The value `annotation` declares, from `node`; adds to `problems` and returns FAILED when it cannot be made."""
    return _coerce(annotation, (), node, path, problems)


def _coerce(annotation: Any, metadata: AnySequence[Any], node: Node, path: str, problems: list[str]) -> Any:
    origin, arguments = get_origin(annotation), get_args(annotation)
    one_of = next((mark for mark in metadata if isinstance(mark, OneOf)), None)
    if origin is Annotated:
        return _coerce(arguments[0], annotation.__metadata__, node, path, problems)
    if origin in (Union, types.UnionType):
        return _coerce_union(arguments, metadata, node, path, problems)
    if one_of is not None:
        return _build_one_of(one_of, annotation, node, path, problems)
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return _build_section(annotation, node, path, problems)
    if origin is Literal:
        return _coerce_literal(arguments, node, path, problems)
    if origin in (tuple, list) or annotation in (tuple, list):
        return _coerce_list(arguments, node, path, problems)
    if origin is dict and arguments[1] is not Any:
        return _coerce_dict(arguments[1], node, path, problems)
    if annotation in (bool, int, float, str):
        return _coerce_scalar(annotation, node, path, problems)
    return value_of(node)


def _fail(problems: list[str], node: Node, path: str, message: str) -> Any:
    problems.append(f"{node.place}: {path}: {message}" if path else f"{node.place}: {message}")
    return FAILED


def _coerce_union(choices: tuple, metadata: AnySequence[Any], node: Node, path: str, problems: list[str]) -> Any:
    if types.NoneType in choices and isinstance(node, Scalar) and node.value is None:
        return None
    others = [choice for choice in choices if choice is not types.NoneType]
    if len(others) == 1:
        return _coerce(others[0], metadata, node, path, problems)
    # Text is the last resort: `500M` is a number wherever one is declared.
    written = type(node.value) if isinstance(node, Scalar) else None
    for choice in sorted(others, key=lambda choice: (choice is str, choice is not written)):
        attempt: list[str] = []
        value = _coerce(choice, metadata, node, path, attempt)
        if not attempt:
            return value
    return _fail(problems, node, path, f"expected {' or '.join(map(_name, others))}, got {describe(node)}")


def _name(choice: Any) -> str:
    if get_origin(choice) is Literal:
        return _any_of([scalar_text(value) for value in get_args(choice)])
    name = {int: "a whole number", float: "a number", str: "text"}.get(_bare(choice))
    return name or getattr(choice, "__name__", str(choice))


def _bare(choice: Any) -> Any:
    return get_args(choice)[0] if get_origin(choice) is Annotated else choice


def _coerce_literal(choices: tuple, node: Node, path: str, problems: list[str]) -> Any:
    text = node.text if isinstance(node, Scalar) else None
    for choice in choices:
        if text == scalar_text(choice):
            return choice
    names = [scalar_text(choice) for choice in choices]
    near = suggestion(text, names) if text else ""
    return _fail(problems, node, path, f"expected {_any_of(names)}, got {describe(node)}{near}")


def _any_of(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def _coerce_list(arguments: tuple, node: Node, path: str, problems: list[str]) -> Any:
    if not isinstance(node, Sequence):
        one = isinstance(node, Scalar) and node.value is not None and arguments[:1] == (str,)
        hint = f"; try [{describe(node)}]" if one else ""
        return _fail(problems, node, path, f"expected a list, got {describe(node)}{hint}")
    repeated = len(arguments) < 2 or arguments[1] is Ellipsis
    if not repeated and len(node.items) != len(arguments):
        return _fail(problems, node, path, f"expected a list of {len(arguments)} values, got {len(node.items)}")
    kinds = [arguments[0] if arguments else Any] * len(node.items) if repeated else arguments
    values = [
        _coerce(kind, (), item, f"{path}[{index}]", problems)
        for index, (kind, item) in enumerate(zip(kinds, node.items, strict=True))
    ]
    return FAILED if FAILED in values else values


def _coerce_dict(kind: Any, node: Node, path: str, problems: list[str]) -> Any:
    if not isinstance(node, Mapping):
        return _fail(problems, node, path, f"expected a mapping, got {describe(node)}")
    values = {key: _coerce(kind, (), child, _join(path, key), problems) for key, child in node.entries.items()}
    return FAILED if FAILED in values.values() else values


def _coerce_scalar(kind: type, node: Node, path: str, problems: list[str]) -> Any:
    expected = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[kind]
    if isinstance(node, Scalar):
        if kind is str and node.value is not None:
            return node.text
        if kind is bool and node.text.lower() in FLAGS:
            return FLAGS[node.text.lower()]
        if kind in (int, float) and (number := _number(kind, node)) is not None:
            return number
    return _fail(problems, node, path, f"expected {expected}, got {describe(node)}")


def _number(kind: type, node: Scalar) -> float | None:
    try:
        number = parse_number(node.text)
    except ValueError:
        return None
    return float(number) if kind is float else number if isinstance(number, int) else None


def _build_one_of(one_of: OneOf, base: type, node: Node, path: str, problems: list[str]) -> Any:
    table = import_object(one_of.table)
    if not isinstance(node, Mapping):
        name = node.text if isinstance(node, Scalar) and node.text in table else one_of.default or next(iter(table))
        return _fail(problems, node, path, f"expected a section such as {{type: {name}}}, got {describe(node)}")
    kind = node.entries.get("type")
    name = value_of(kind) if kind else one_of.default
    if not isinstance(name, str):
        got = f"got {describe(kind)}" if kind else "it is missing"
        there = ", ".join(sorted(table))
        return _fail(problems, kind or node, _join(path, "type"), f"expected one of {there}; {got}")
    try:
        chosen = look_up(table, name, one_of.kind)
    except ValueError as error:
        return _fail(problems, kind or node, _join(path, "type"), str(error))
    if not (isinstance(chosen, type) and issubclass(chosen, base)):
        wanted = f"a subclass of {base.__module__}:{base.__name__}"
        return _fail(problems, kind or node, _join(path, "type"), f"expected {wanted}, got '{name}'")
    return _build_section(chosen, node, path, problems, given={"type": name})


def _build_section(
    section: type[Section], node: Node, path: str, problems: list[str], given: dict[str, Any] | None = None
) -> Any:
    if not isinstance(node, Mapping):
        return _fail(problems, node, path, f"expected a section with keys of its own, got {describe(node)}")
    values, fields = dict(given or {}), fields_by_key(section)
    for key, child in node.entries.items():
        field = fields.get(key)
        if field is None:
            near = suggestion(key, fields) or f"; there are: {', '.join(fields)}"
            _fail(problems, child, _join(path, key), f"unknown key{near}")
        elif key not in values:
            values[key] = _coerce(field.annotation, field.metadata, child, _join(path, key), problems)
    for key, field in fields.items():
        marks = [mark for mark in field.metadata if isinstance(mark, OneOf) and mark.default]
        if key not in values and field.is_required() and marks:
            values[key] = _coerce(field.annotation, marks, Mapping({}, node.place), _join(path, key), problems)
    return _validate(section, values, node, path, problems)


def _validate(section: type[Section], values: dict[str, Any], node: Mapping, path: str, problems: list[str]) -> Any:
    try:
        return section.model_validate(values)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            if not detail["loc"] or values.get(str(detail["loc"][0])) is not FAILED:
                _report(detail, node, path, problems)
        return FAILED


def _report(detail: ErrorDetails, node: Mapping, path: str, problems: list[str]) -> None:
    cause = detail.get("ctx", {}).get("error")
    seen, _ = _nearest(node, path, list(detail["loc"]))
    for below, reason in cause.misfits if isinstance(cause, Misfits) else [("", _reason(detail, seen))]:
        steps = [*detail["loc"], *(below.split(".") if below else [])]
        nearest, where = _nearest(node, path, steps)
        if below or detail["type"] == "missing":
            where = ".".join([path, *map(str, steps)] if path else map(str, steps))
        _fail(problems, nearest, where, reason)


def _nearest(node: Node, path: str, steps: list[Any]) -> tuple[Node, str]:
    """The deepest node that was written down along `steps`; unions add steps that are no keys, so the rest is cut."""
    for step in steps:
        if isinstance(node, Mapping) and step in node.entries:
            node, path = node.entries[step], _join(path, step)
        elif isinstance(node, Sequence) and isinstance(step, int) and step < len(node.items):
            node, path = node.items[step], f"{path}[{step}]"
        else:
            break
    return node, path


def _reason(detail: ErrorDetails, seen: Node) -> str:
    if detail["type"] == "missing":
        return "is required, but missing"
    if detail["type"] in ("value_error", "assertion_error"):
        return str(detail.get("ctx", {}).get("error", detail["msg"]))
    if detail["type"] == "none_required":
        return f"expected null, got {describe(seen)}"
    if detail["type"] == "too_short" and isinstance(seen, Sequence):
        least = detail.get("ctx", {}).get("min_length", 1)
        return f"expected at least {least} {'entry' if least == 1 else 'entries'}, got {len(seen.items) or 'none'}"
    message = detail["msg"].removeprefix("Input ").replace("should be", "must be")
    return f"{message}, got {describe(seen) if isinstance(seen, Scalar) else scalar_text(detail['input'])}"


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
