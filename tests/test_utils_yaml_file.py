"""YAML: what is read and refused, with lines, and text that reads back equal."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.errors import ConfigError
from utils.yaml_file import MAX_BYTES, Mapping, Place, Scalar, parse_yaml, read_yaml, value_of, write_yaml

START = Place("file.yaml", 1)

BOMB = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("null", None),
        ("~", None),
        ("true", True),
        ("False", False),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("off", "off"),
        ("3e-4", 3e-4),
        ("1.0e-5", 1e-5),
        ("010", 10),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("500M", "500M"),
        (".nan", ".nan"),
        ("1e999", "1e999"),
        ("'3'", "3"),
        ('"null"', "null"),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: Any) -> None:
    read = value_of(parse_yaml(f"key: {text}", START))["key"]
    assert read == value
    assert type(read) is type(value)


def test_every_key_and_item_knows_its_line() -> None:
    root = parse_yaml("a: 1\nb:\n  c: [1,\n      2]\n  d:\n    - x\n    - y\n", START)
    assert isinstance(root, Mapping)
    places = {path: root.get(path).place.line for path in ("a", "b", "b.c", "b.d")}  # pyright: ignore[reportOptionalMemberAccess]
    assert places == {"a": 1, "b": 2, "b.c": 3, "b.d": 5}
    assert [item.place.line for item in root.get("b.c").items] == [3, 4]  # pyright: ignore
    assert [item.place.line for item in root.get("b.d").items] == [6, 7]  # pyright: ignore
    assert str(root.place) == "file.yaml:1"
    assert root.get("b.missing.deeper") is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\nb: 2\na: 3", "file.yaml:3: duplicate key 'a', already given in line 1"),
        ("a:\n  b: 1\n  b: 2", "file.yaml:3: duplicate key 'b', already given in line 2"),
        ("a: !!python/object/apply:os.system [ls]", "file.yaml:1: tags are refused, got '!!python/object/apply:os"),
        ("a: !!int 3", "file.yaml:1: tags are refused, got '!!int'"),
        ("a: !own {b: 1}", "file.yaml:1: tags are refused, got '!own'"),
        ("a: 1\nb: [1", "file.yaml:2: is not readable YAML"),
        ("a:\n\t- 1", "file.yaml:2: is not readable YAML: found character '\\t'"),
        ("a: b: c", "file.yaml:1: is not readable YAML: mapping values are not allowed here"),
        ("a: 1\n---\nb: 1", "file.yaml:2: is not readable YAML"),
        ("a: \x01", "file.yaml:1: is not readable YAML: special characters are not allowed"),
        ("a: *b", "file.yaml:1: is not readable YAML: found undefined alias"),
        ("b: 1\n<<: {a: 1}", "file.yaml:2: merge keys ('<<') are refused; use 'extends'"),
        ("? [a]\n: 1", "file.yaml:1: a key must be a word"),
        ("a: &x [*x]", "file.yaml:1: nested deeper than"),
        ("[" * 600, "file.yaml:1: nested deeper than"),
        (BOMB, "aliases that unfold like this are refused"),
    ],
)
def test_what_is_broken_is_refused_with_its_line(text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_yaml(text, START)
    assert problem in raised.value.problems[0]
    assert len(raised.value.problems) == 1


def test_several_problems_of_a_file_are_reported_together() -> None:
    with pytest.raises(ConfigError) as raised:
        parse_yaml("a: 1\na: 2\nb: !x 1\nc:\n  d: 1\n  d: 2", START)
    lines = [problem.split(": ")[0] for problem in raised.value.problems]
    assert lines == ["file.yaml:2", "file.yaml:3", "file.yaml:6"]


def test_aliases_that_stay_small_are_read() -> None:
    assert value_of(parse_yaml("a: &x {b: 1}\nc: *x", START)) == {"a": {"b": 1}, "c": {"b": 1}}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"a: 1\nb: \xff\n", ":2: is not UTF-8 text: byte 0xff"),
        (b"- 1\n- 2\n", ":1: expected 'key: value' lines, got a list"),
        (b"just text", ":1: expected 'key: value' lines, got 'just text'"),
        (b"#" * (MAX_BYTES + 1), "a config has at most"),
    ],
)
def test_files_that_are_no_configs(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as raised:
        read_yaml(path)
    assert f"{path}" in raised.value.problems[0]
    assert problem in raised.value.problems[0]


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.yaml", tmp_path):
        with pytest.raises(ConfigError, match="cannot be read"):
            read_yaml(path)


@pytest.mark.parametrize("content", ["", "# only a comment\n", "---\n", "\ufeff"])
def test_an_empty_file_says_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.yaml").write_text(content, encoding="utf-8")
    assert read_yaml(tmp_path / "x.yaml").entries == {}


TEXTS = st.one_of(
    st.text(st.characters(blacklist_categories=["Cs", "Cc"]), max_size=12),
    st.sampled_from(["1e6", "no", "null", "~", "", " a", "a: b", "#x", "'", "500M", "010", "true", "- a", "a\nb"]),
)
NUMBERS = st.integers(-(2**64), 2**64) | st.floats(allow_nan=False, allow_infinity=False)
PLAIN = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
TREES = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=8
)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(TEXTS.filter(lambda key: key != "<<"), TREES, max_size=4), st.booleans())
def test_what_is_written_reads_back_equal(values: dict, flow: bool) -> None:
    read = value_of(parse_yaml(write_yaml(values, flow=flow), START)) or {}
    assert _typed(read) == _typed(values)


def _typed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _typed(child) for key, child in value.items()}
    if isinstance(value, list):
        return [_typed(child) for child in value]
    return type(value), value


def test_written_text_on_one_line_stays_on_one_line() -> None:
    assert write_yaml(["word " * 60, 1], flow=True).count("\n") == 1
    assert isinstance(parse_yaml("500M tokens", START), Scalar)
