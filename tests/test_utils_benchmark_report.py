"""Rows, tables and bars from made-up answers, by exact numbers; cases with workers that are absent or skipped."""

import os
import sys
from pathlib import Path

import pytest
from rich.console import Console

from utils.benchmark_report import (
    Bar,
    Case,
    Outcome,
    Plan,
    Variant,
    append,
    cells,
    judge,
    make_rows,
    markdown,
    notes,
    run_case,
    table,
    with_peak_above,
)

OURS, PEER = Variant("ours", ("ours",)), Variant("peer", ("peer",))
CASE = Case("step", "one step", (OURS, PEER), {"model": "m"}, tokens=1000, flops=6e9, peak_flops=12e9, tolerance=1e-3)
MACHINE = {"chip": "C", "versions": {"mlx": "1"}}


def answer(seconds: float, peak: int, held: int, value: float) -> dict:
    return {"seconds": seconds, "peak_bytes": peak, "held_bytes": held, "value": value, "compiled_variants": 1}


@pytest.fixture
def outcomes() -> dict[str, Outcome]:
    ours = Outcome("ok", "", {}, [answer(1.0, 900, 400, 2.0), answer(3.0, 1000, 400, 2.5)])
    peer = Outcome("ok", "", {"versions": {"torch": "2"}}, [answer(2.0, 2000, 400, 2.001), answer(3.0, 2000, 400, 9.0)])
    return {"ours": with_peak_above(ours), "peer": with_peak_above(peer)}


def test_rows_hold_every_figure(outcomes: dict[str, Outcome]) -> None:
    ours, peer = make_rows(CASE, outcomes, MACHINE)
    assert ours == {
        "suite": "step",
        "case": "one step",
        "variant": "ours",
        "status": "ok",
        "chip": "C",
        "versions": {"mlx": "1"},
        "model": "m",
        "rounds": 2,
        "seconds": {"median": 2.0, "min": 1.0, "p10": 1.2, "p90": 2.8},
        "tokens_per_second": 500.0,
        "mfu": 0.25,
        "peak_bytes": 1000,
        "peak_above_bytes": 600,
        "compiled_variants": 1,
        "seconds_ratio": 1.0,
        "peak_bytes_ratio": 1.0,
        "peak_above_bytes_ratio": 1.0,
        "note": "",
    }
    assert peer["versions"] == {"mlx": "1", "torch": "2"}
    assert peer["seconds_ratio"] == 1.5
    assert peer["peak_bytes_ratio"] == pytest.approx((2000 / 900 + 2) / 2)
    assert peer["peak_above_bytes_ratio"] == pytest.approx((1600 / 500 + 1600 / 600) / 2)
    assert peer["note"] == ""


def test_a_variant_that_computed_something_else_is_told(outcomes: dict[str, Outcome]) -> None:
    case = CASE._replace(tolerance=1e-4)
    rows = make_rows(case, outcomes, MACHINE)
    assert notes(rows) == ["peer: computed 2.001 where the first computed 2"]
    assert notes(make_rows(case._replace(tolerance=None), outcomes, MACHINE)) == []


def test_more_than_the_peak_is_told(outcomes: dict[str, Outcome]) -> None:
    ours, _ = make_rows(CASE._replace(peak_flops=2e9), outcomes, MACHINE)
    assert ours["mfu"] == 1.5
    assert ours["note"].startswith("MFU above 100 %")


def test_no_ratio_to_a_peak_that_is_nothing(outcomes: dict[str, Outcome]) -> None:
    first = Outcome("ok", "", {}, [answer(1.0, 1000, 999, 0.0)])
    _, peer = make_rows(CASE, {"ours": with_peak_above(first), "peer": outcomes["peer"]}, MACHINE)
    assert "peak_above_bytes_ratio" not in peer
    assert peer["peak_bytes_ratio"] == 2.0


def test_one_that_failed_keeps_what_it_measured(outcomes: dict[str, Outcome]) -> None:
    failed = Outcome("failed", "ended with code 7", {}, [answer(2.0, 10, 0, 2.0), None])
    dead = Outcome("failed", "no such backend", {}, [None, None])
    rows = make_rows(CASE, outcomes | {"peer": failed, "dead": dead}, MACHINE)
    assert (rows[1]["status"], rows[1]["rounds"], rows[1]["seconds_ratio"]) == ("failed", 1, 2.0)
    assert rows[2]["note"] == "no such backend"
    assert "seconds" not in rows[2]


def test_reading_and_writing_have_rates_of_their_own() -> None:
    case = CASE._replace(about={"prefill_tokens": 100, "decode_tokens": 9}, variants=(OURS,))
    rounds = [{"seconds": 1.0, "prefill_seconds": 0.5, "decode_seconds": 0.1}]
    (row,) = make_rows(case, {"ours": Outcome("ok", "", {}, list(rounds))}, MACHINE)
    assert row["prefill_tokens_per_second"] == 200
    assert row["decode_tokens_per_second"] == pytest.approx(90)


def test_the_table_leaves_out_empty_columns_and_marks_who_failed(outcomes: dict[str, Outcome]) -> None:
    absent = Outcome("absent", "torch is not installed", {}, [])
    rows = make_rows(CASE, outcomes | {"torch": absent}, MACHINE)
    headers, lines = cells(rows)
    assert headers == [
        *("variant", "ms", "least", "p10-p90", "tokens/s", "MFU", "peak MB", "above MB", "graphs"),
        *("time x", "peak x", "above x"),
    ]
    assert lines[0][:7] == ["ours", "2,000", "1,000", "1,200-2,800", "500", "25.0%", "0.00"]
    assert lines[2] == ["torch (absent)", *["-"] * 11]
    console = Console(width=200)
    with console.capture() as capture:
        console.print(table(rows))
    assert "torch (absent)" in capture.get()
    assert notes(rows) == ["torch: torch is not installed"]


def test_markdown_is_added_at_the_end(outcomes: dict[str, Outcome], tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Figures")
    failed = Outcome("failed", "a|b", {}, [])
    append(page, markdown("Apple M9, today", make_rows(CASE, outcomes | {"peer": failed}, MACHINE)))
    lines = page.read_text().splitlines()
    assert lines[:5] == ["# Figures", "", "### Apple M9, today", "", "step: one step"]
    body = [line for line in lines if line.startswith("|")]
    assert {line.count("|") for line in body} == {body[0].count("|")}
    assert body[2].startswith("| ours | 2,000 | 1,000 |")
    assert lines[-1] == "- peer: a|b"
    with pytest.raises(OSError, match="nowhere"):
        append(tmp_path / "nowhere", "x")


@pytest.mark.parametrize(
    ("bar", "line"),
    [
        (Bar("slower", "s/c", "seconds", "peer", "ours", "<=", 1.5), ("<= 1.5", "1.500", "met")),
        (Bar("slower", "s/c", "seconds", "peer", "ours", "<=", 1.4), ("<= 1.4", "1.500", "MISSED")),
        (Bar("less", "s/c", "peak_bytes", "peer", "ours", ">=", 2.2), (">= 2.2", "2.111", "MISSED")),
        (Bar("graphs", "s/c", "compiled_variants", "ours", None, "<=", 1), ("<= 1", "1.000", "met")),
        (Bar("gone", "s/x", "seconds", "a", "b", "<=", 1), ("<= 1", "-", "not measured: a and b of s/x")),
        (Bar("gone", "s/c", "seconds", "a", None, "<=", 1), ("<= 1", "-", "not measured: a of s/c")),
        (Bar("no", "s/c", "cache_bytes", "ours", "peer", "<=", 1), ("<= 1", "-", "not measured: ours and peer of s/c")),
    ],
)
def test_bars_are_met_or_missed(outcomes: dict[str, Outcome], bar: Bar, line: tuple[str, str, str]) -> None:
    assert judge([bar], {"s/c": outcomes}) == [(bar.text, *line)]


def test_absent_and_skipped_variants_start_no_process(tmp_path: Path) -> None:
    worker = "from utils.benchmarking import serve; serve(lambda spec: ({}, lambda: {'seconds': 1.0}))"
    here = Variant("here", (sys.executable, "-c", worker, "{}"), (sys.executable, "json"))
    variants = (
        Variant("skipped", ("/nowhere",), skip="too large"),
        here,
        Variant("absent", ("/nowhere",), (sys.executable, "a_package_that_nobody_wrote")),
        Variant("breaks", (sys.executable, "-c", "raise ValueError('no')"), (sys.executable, "json")),
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    case = CASE._replace(variants=variants)
    outcomes = run_case(case, Plan(2, 0, 30.0), environment, lambda line: None)
    assert list(outcomes) == [variant.name for variant in variants]
    assert [outcome.status for outcome in outcomes.values()] == ["skipped", "ok", "absent", "failed"]
    assert outcomes["absent"].reason == "a_package_that_nobody_wrote is not installed"
    assert outcomes["here"].column("seconds") == [1.0, 1.0]
    assert outcomes["breaks"].reason == "ended with code 1: ValueError: no"
