"""Sections from nodes: the declared type decides, all problems come at once, and each names its line and path."""

import json
from typing import Any

import pytest

from tests.toy_sections import Apple, Basket, Pear
from utils.coercion import FAILED, build
from utils.schema import Misfits, json_schema
from utils.units import Duration
from utils.yaml_file import Place, parse_yaml


def basket(text: str) -> Basket:
    problems: list[str] = []
    section = build(Basket, parse_yaml(text or "{}", Place("b.yaml", 1)), problems)
    assert problems == []
    return section


def problems_of(text: str) -> list[str]:
    problems: list[str] = []
    assert build(Basket, parse_yaml(text, Place("b.yaml", 1)), problems) is FAILED or problems
    return problems


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("count: 1e3", "count", 1000),
        ("count: 16k", "count", 16000),
        ("count: '7'", "count", 7),
        ("count: 010", "count", 10),
        ("count: 2.0", "count", 2),
        ("share: 3e-4", "share", 3e-4),
        ("share: 1", "share", 1.0),
        ("name: no", "name", "no"),
        ("name: 1e6", "name", "1e6"),
        ("name: true", "name", "true"),
        ("name: 12:30", "name", "12:30"),
        ("name: 'null'", "name", "null"),
        ("owner: null", "owner", None),
        ("owner:", "owner", None),
        ("is_full: yes", "is_full", True),
        ("is_full: off", "is_full", False),
        ("limit: 3", "limit", 3),
        ("limit: 0.5", "limit", 0.5),
        ("limit: much", "limit", "much"),
        ("limit: 500M", "limit", 500_000_000),
        ("pair: [1e-1, 2]", "pair", (0.1, 2.0)),
        ("names: [on, 3, x]", "names", ("on", "3", "x")),
        ("prices: {a: 1k}", "prices", {"a": 1000.0}),
        ("every: 500M tokens", "every", Duration(500_000_000, "tokens")),
        ("every: null", "every", None),
        ("color: green", "color", "green"),
    ],
)
def test_the_declared_type_decides(text: str, field: str, value: Any) -> None:
    read = getattr(basket(text), field)
    assert read == value
    assert type(read) is type(value)


def test_a_polymorphic_section_takes_the_class_of_its_type() -> None:
    read = basket("count: 2\nfruit: {type: pear, neck: long}\nfruits: [{type: apple, seeds: 3}, {type: pear}]")
    assert read.fruit == Pear(neck="long")
    assert read.fruits == (Apple(seeds=3), Pear())


def test_a_section_without_type_takes_the_default_row() -> None:
    assert basket("").fruit == Apple()
    assert basket("fruit: {seeds: 2}").fruit == Apple(seeds=2)


def test_a_type_with_a_colon_is_a_class_of_ones_own() -> None:
    read = basket("fruit: {type: 'tests.toy_sections:Pear', neck: long}").fruit
    assert type(read) is Pear
    assert read.type == "tests.toy_sections:Pear"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("\ncuont: 1", "b.yaml:2: cuont: unknown key (did you mean 'count'?)"),
        ("core: {size: 1, colour: 2}", "b.yaml:1: core.colour: unknown key; there are: size"),
        ("core: {}", "b.yaml:1: core.size: is required, but missing"),
        ("count: many", "b.yaml:1: count: expected a whole number, got 'many'"),
        ("count: 1.5", "b.yaml:1: count: expected a whole number, got 1.5"),
        ("count: true", "b.yaml:1: count: expected a whole number, got true"),
        ("count: 1:30", "b.yaml:1: count: expected a whole number, got '1:30'"),
        ("count: -3", "b.yaml:1: count: must be greater than or equal to 0, got -3"),
        ("count: null", "b.yaml:1: count: expected a whole number, got null"),
        ("count:", "b.yaml:1: count: expected a whole number, got nothing"),
        ("share: .nan", "b.yaml:1: share: expected a number, got '.nan'"),
        ("share: yes", "b.yaml:1: share: expected a number, got 'yes'"),
        ("name: [a]", "b.yaml:1: name: expected text, got a list"),
        ("name: null", "b.yaml:1: name: expected text, got null"),
        ("is_full: 1", "b.yaml:1: is_full: expected true or false, got 1"),
        ("limit: [1]", "b.yaml:1: limit: expected a whole number or a number or text, got a list"),
        ("pair: [1]", "b.yaml:1: pair: expected a list of 2 values, got 1"),
        ("pair: 1", "b.yaml:1: pair: expected a list, got 1"),
        ("pair: [1, x]", "b.yaml:1: pair[1]: expected a number, got 'x'"),
        ("prices: {a: x}", "b.yaml:1: prices.a: expected a number, got 'x'"),
        ("every: often", "b.yaml:1: every: expected a length such as '2000 steps'"),
        ("color: gren", "b.yaml:1: color: expected red or green, got 'gren' (did you mean 'green'?)"),
        ("core: 3", "b.yaml:1: core: expected a section with keys of its own, got 3"),
        ("core:", "b.yaml:1: core: expected a section with keys of its own, got nothing"),
        ("fruit: pear", "b.yaml:1: fruit: expected a section such as {type: pear}, got 'pear'"),
        (
            "fruit: {type: aple}",
            "b.yaml:1: fruit.type: unknown fruit 'aple' (did you mean 'apple'?); there are: apple, pear",
        ),
        ("fruit: {type: [x]}", "b.yaml:1: fruit.type: expected one of apple, pear; got a list"),
        ("fruits: [{seeds: 3}]", "b.yaml:1: fruits[0].type: expected one of apple, pear; it is missing"),
        ("fruit:\n  type: pear\n  seeds: 3", "b.yaml:3: fruit.seeds: unknown key"),
        ("fruit: {type: 'nowhere:Thing'}", "b.yaml:1: fruit.type: cannot import 'nowhere:Thing'"),
        ("fruit: {type: 'tests.toy_sections:Plum'}", "b.yaml:1: fruit.type: cannot import 'tests.toy_sections:Plum'"),
        (
            "fruit: {type: 'tests.toy_sections:Vegetable'}",
            "b.yaml:1: fruit.type: expected a subclass of tests.toy_sections:Fruit, got 'tests.toy_sections:Vegetable'",
        ),
        ("name: x\nowner: x", "b.yaml:1: name and owner are both 'x'"),
    ],
)
def test_a_mistake_names_line_path_value_and_remedy(text: str, problem: str) -> None:
    (found,) = problems_of(text)
    assert found.startswith(problem)


def test_all_problems_come_at_once_also_inside_lists_and_rows() -> None:
    text = "count: x\nfruit:\n  type: pear\n  neck: longer\n  core: {size: big}\n"
    text += "fruits:\n  - {type: apple, weight: -1}\n  - {type: plum}"
    assert [problem.split(": ")[:2] for problem in problems_of(text)] == [
        ["b.yaml:1", "count"],
        ["b.yaml:4", "fruit.neck"],
        ["b.yaml:5", "fruit.core.size"],
        ["b.yaml:7", "fruits[0].weight"],
        ["b.yaml:8", "fruits[1].type"],
    ]


def test_misfits_name_each_key_in_its_own_line() -> None:
    assert problems_of("name: x\nfruits:\n  - {type: apple}\ncount: 0") == [
        "b.yaml:4: count: 0 is too few",
        "b.yaml:2: fruits: 1 are too many",
    ]
    assert problems_of("name: x\nfruits: [{type: apple}, {type: pear}]")[0] == "b.yaml:1: count: 1 is too few"
    assert str(Misfits(("a", "b"), ("c", "d"))) == "a: b; c: d"


def test_a_validator_does_not_run_on_what_is_already_wrong() -> None:
    assert problems_of("fruits: [{type: apple, weight: x}]\ncount: 0") == [
        "b.yaml:1: fruits[0].weight: expected a number, got 'x'"
    ]


def test_the_json_schema_knows_every_row_and_numbers_as_text() -> None:
    schema = json_schema(Basket)
    rows = schema["properties"]["fruit"]["anyOf"][0]["oneOf"]
    assert [row["properties"]["type"]["const"] for row in rows] == ["apple", "pear"]
    assert [row["required"] for row in rows] == [[], ["type"]]
    listed = schema["properties"]["fruits"]["items"]["anyOf"][0]["oneOf"]
    assert [row["required"] for row in listed] == [["type"], ["type"]]
    assert {"type": "integer"}.items() <= schema["properties"]["count"]["anyOf"][0].items()
    assert schema["properties"]["every"]["default"] == "10 steps"
    assert schema["properties"]["count"]["description"] == "A whole number."
    assert schema["additionalProperties"] is False
    assert "Core" in schema["$defs"]
    json.dumps(schema)
