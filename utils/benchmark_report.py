"""From workers to figures: cases of rival variants, their rows, the table, bars met or missed, Markdown to keep.

A case is a few variants of one piece of work. All of them are started and take turns (`utils/benchmarking.py`); each
becomes one flat JSON row, of which the printed and the Markdown table are views. Ratios are medians over rounds of
neighbours, never ratios of medians. Knows nothing of models: what a case is about arrives as plain values. To add a
column, add a line to `COLUMNS`; to add a figure to the rows, `make_row`.
"""

import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from utils.benchmarking import Row, Worker, is_installed, paired_ratio, spread, take_turns, utilisation

LEAST_SHARE = 0.01


class Variant(NamedTuple):
    """One of the rivals."""

    name: str
    command: tuple[str, ...]
    """What starts its worker."""
    needs: tuple[str, str] | None = None
    """(interpreter, package) without which it is absent."""
    skip: str | None = None
    """Why it cannot be measured here; None when it can."""


class Case(NamedTuple):
    """One piece of work, done by several variants; the first is what the others are compared with."""

    suite: str
    name: str
    variants: tuple[Variant, ...]
    about: Row
    """Columns that all its rows share: model, batch, length, precision and so on."""
    tokens: int | None = None
    """Tokens of one round; None where they mean nothing."""
    flops: float | None = None
    """Operations of one round, for utilisation."""
    peak_flops: float | None = None
    """What `flops` a second are divided by."""
    tolerance: float | None = None
    """How far the variants' values may differ, relative to the first one's, before it is said; None: not compared."""


class Outcome(NamedTuple):
    """What came of a variant."""

    status: str
    """ok, failed, absent or skipped"""
    reason: str
    facts: Row
    answers: list[Row | None]

    def column(self, key: str) -> list[float | None]:
        """One measure over the rounds."""
        return [None if row is None else row.get(key) for row in self.answers]

    def largest(self, key: str) -> float | None:
        """The most over the rounds; None where it was not measured."""
        return max((value for value in self.column(key) if value is not None), default=None)

    def worst(self, key: str, relation: str) -> float | None:
        """Of the rounds, or the worker's fact of that name, the value that meets a bar least; None without any."""
        values = [value for value in (*self.column(key), self.facts.get(key)) if value is not None]
        return (max if relation == "<=" else min)(values, default=None)


class Plan(NamedTuple):
    """How everything is measured."""

    num_rounds: int
    num_warmups: int
    timeout: float
    """Seconds a worker may take for its set-up, and for each round."""


class Bar(NamedTuple):
    """A figure to reach: the paired ratio of one measure of two variants, or the measure of one."""

    text: str
    case: str
    """Name of the case, with its suite: `loss/2048 tokens`."""
    key: str
    over: str
    """Variant above the line, ..."""
    under: str | None
    """... and below it; None: the worst value of `over` itself."""
    relation: str
    """`>=` or `<=`"""
    limit: float

    def measure(self, outcomes: Mapping[str, Outcome]) -> float | None:
        """The figure, from the outcomes of its case; None where it was not measured."""
        if self.over not in outcomes or self.under not in (None, *outcomes):
            return None
        over = outcomes[self.over]
        if self.under is None:
            return over.worst(self.key, self.relation)
        return paired_ratio(over.column(self.key), outcomes[self.under].column(self.key))


def run_case(case: Case, plan: Plan, environment: Mapping[str, str], say: Callable[[str], None]) -> dict[str, Outcome]:
    """Start every variant that can run, let them take turns, end them all."""
    outcomes: dict[str, Outcome] = {}
    workers: list[Worker] = []
    try:
        for variant in case.variants:
            missing = variant.needs is not None and not is_installed(*variant.needs)
            if variant.skip is not None or missing:
                reason = variant.skip or f"{variant.needs[1] if variant.needs else ''} is not installed"
                outcomes[variant.name] = Outcome("skipped" if variant.skip else "absent", reason, {}, [])
                continue
            say(f"{case.name}: starting {variant.name}")
            workers.append(Worker(variant.name, variant.command, environment))
            workers[-1].await_ready(plan.timeout)
        answers = take_turns(
            workers, plan.num_rounds, plan.num_warmups, plan.timeout, lambda line: say(f"{case.name}: {line}")
        )
    finally:
        for worker in workers:
            worker.stop()
    for worker in workers:
        status = "ok" if worker.failure is None else "failed"
        outcomes[worker.name] = Outcome(status, worker.failure or "", worker.facts, answers[worker.name])
    return {variant.name: outcomes[variant.name] for variant in case.variants}


def with_peak_above(outcome: Outcome) -> Outcome:
    """The outcome with `peak_above_bytes` where the worker said what it held."""
    answers = [
        row | {"peak_above_bytes": row["peak_bytes"] - row["held_bytes"]} if row and "held_bytes" in row else row
        for row in outcome.answers
    ]
    return outcome._replace(answers=answers)


def make_rows(case: Case, outcomes: Mapping[str, Outcome], machine: Row) -> list[Row]:
    """One flat row for each variant."""
    first = outcomes[case.variants[0].name]
    return [make_row(case, name, outcome, first, machine) for name, outcome in outcomes.items()]


def make_row(case: Case, name: str, outcome: Outcome, first: Outcome, machine: Row) -> Row:
    """Every figure of one variant. Keys that do not apply are left out; a failed one keeps what it measured."""
    row: Row = {"suite": case.suite, "case": case.name, "variant": name, "status": outcome.status}
    notes = [outcome.reason] if outcome.reason else []
    seconds = [value for value in outcome.column("seconds") if value is not None]
    versions = machine.get("versions", {}) | outcome.facts.get("versions", {})
    facts = {key: value for key, value in outcome.facts.items() if key != "versions"}
    row |= machine | {"versions": versions} | case.about | facts
    if seconds:
        times = spread(seconds)
        row |= {"rounds": len(seconds), "seconds": times._asdict()}
        if case.tokens:
            row["tokens_per_second"] = case.tokens / times.median
        if case.flops:
            row["mfu"] = utilisation(case.flops, times.median, case.peak_flops)
        row |= peaks(outcome)
        row |= ratios(outcome, first)
        row |= phase_rates(outcome, case)
        notes += odd_values(case, outcome, first)
        if (row.get("mfu") or 0) > 1:
            notes.append("MFU above 100 %: the peak was measured while the machine did something else as well")
    return row | {"note": "; ".join(notes)}


def ratios(outcome: Outcome, first: Outcome) -> Row:
    """Time and peaks over the first variant's; no ratio to a peak that is hardly above what was held before."""
    keys = ["seconds", "peak_bytes"]
    if (first.largest("peak_above_bytes") or 0) > LEAST_SHARE * (first.largest("peak_bytes") or 0):
        keys.append("peak_above_bytes")
    found = {f"{key}_ratio": paired_ratio(outcome.column(key), first.column(key)) for key in keys}
    return {key: ratio for key, ratio in found.items() if ratio is not None}


def peaks(outcome: Outcome) -> Row:
    """The largest of each figure that is not a time, where it was measured."""
    keys = (
        "peak_bytes",
        "peak_above_bytes",
        "active_bytes",
        "cache_bytes",
        "max_rss_growth_bytes",
        "compiled_variants",
        "plan_error",
    )
    return {key: value for key in keys if (value := outcome.largest(key)) is not None}


def phase_rates(outcome: Outcome, case: Case) -> Row:
    """Tokens a second of reading and of writing, for workers that tell the two apart."""
    rates = {}
    for phase in ("prefill", "decode"):
        seconds = [value for value in outcome.column(f"{phase}_seconds") if value]
        if seconds:
            rates[f"{phase}_tokens_per_second"] = case.about[f"{phase}_tokens"] / statistics.median(seconds)
    return rates


def odd_values(case: Case, outcome: Outcome, first: Outcome) -> list[str]:
    """A line when this variant did not compute what the first one did."""
    value, expected = (next((v for v in of.column("value") if v is not None), None) for of in (outcome, first))
    if case.tolerance is None or value is None or expected is None:
        return []
    if abs(value - expected) <= case.tolerance * abs(expected):
        return []
    return [f"computed {value:.6g} where the first computed {expected:.6g}"]


def megabytes(count: float) -> str:
    """Powers of ten, one unit for a column: figures compare at a glance."""
    return f"{count / 1e6:,.0f}" if count >= 10e6 else f"{count / 1e6:.2f}"


def milliseconds(seconds: float) -> str:
    """Three digits or so."""
    return f"{seconds * 1e3:,.0f}" if seconds >= 0.1 else f"{seconds * 1e3:.2f}"


def middle(times: Row) -> str:
    """10th to 90th percentile."""
    return f"{milliseconds(times['p10'])}-{milliseconds(times['p90'])}"


COLUMNS: dict[str, tuple[tuple[str, ...], Callable[[Any], str]]] = {
    "ms": (("seconds", "median"), milliseconds),
    "least": (("seconds", "min"), milliseconds),
    "p10-p90": (("seconds",), middle),
    "tokens/s": (("tokens_per_second",), "{:,.0f}".format),
    "prefill/s": (("prefill_tokens_per_second",), "{:,.0f}".format),
    "decode/s": (("decode_tokens_per_second",), "{:,.1f}".format),
    "MFU": (("mfu",), "{:.1%}".format),
    "peak MB": (("peak_bytes",), megabytes),
    "above MB": (("peak_above_bytes",), megabytes),
    "active MB": (("active_bytes",), megabytes),
    "cache MB": (("cache_bytes",), megabytes),
    "RSS MB": (("max_rss_growth_bytes",), megabytes),
    "state MB": (("state_bytes",), megabytes),
    "nodes": (("nodes",), "{:,}".format),
    "kernels": (("kernels",), "{:,}".format),
    "packed": (("packed_fraction",), "{:.2%}".format),
    "plan off": (("plan_error",), "{:.1%}".format),
    "graphs": (("compiled_variants",), "{}".format),
    "time x": (("seconds_ratio",), "{:.3f}".format),
    "peak x": (("peak_bytes_ratio",), "{:.3f}".format),
    "above x": (("peak_above_bytes_ratio",), "{:.3f}".format),
}
"""Header -> where in a row, and how it is written. A column that no row of a case has is left out."""


def cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Headers and texts of a case's table."""
    found = {header: [look_up(row, path) for row in rows] for header, (path, _) in COLUMNS.items()}
    used = {header: column for header, column in found.items() if any(value not in (None, "") for value in column)}
    lines = [
        ["-" if column[index] in (None, "") else COLUMNS[header][1](column[index]) for header, column in used.items()]
        for index in range(len(rows))
    ]
    names = [row["variant"] if row["status"] == "ok" else f"{row['variant']} ({row['status']})" for row in rows]
    return ["variant", *used], [[name, *line] for name, line in zip(names, lines, strict=True)]


def notes(rows: Sequence[Row]) -> list[str]:
    """What is to be said of single variants, below their table."""
    return [f"{row['variant']}: {row['note']}" for row in rows if row["note"]]


def look_up(row: Row, path: Sequence[str]) -> Any:
    """A value inside nested mappings; None where there is none."""
    value: Any = row
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def table(rows: Sequence[Row]) -> Table:
    """The rows of one case for a terminal."""
    headers, lines = cells(rows)
    result = Table(title=f"{rows[0]['suite']}: {rows[0]['case']}", title_justify="left")
    for header in headers:
        result.add_column(header, justify="left" if header == "variant" else "right", no_wrap=True)
    for line in lines:
        result.add_row(*line)
    return result


def markdown(heading: str, rows: Sequence[Row]) -> str:
    """A section with one table for each case, to be kept."""
    cases: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        cases.setdefault((row["suite"], row["case"]), []).append(row)
    parts = [f"### {heading}\n"]
    for (suite, case), members in cases.items():
        headers, lines = cells(members)
        lines = [[text.replace("|", "/") for text in line] for line in lines]
        body = [headers, ["---"] * len(headers), *lines]
        parts.append(f"{suite}: {case}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in body))
        parts += [f"- {note}\n" for note in notes(members)]
    return "\n".join(parts)


def append(path: Path, text: str) -> None:
    """Add a section at the end of a file that is there already. Raises OSError."""
    with path.open("r+", encoding="utf-8") as file:
        old = file.read()
        file.write(("" if old.endswith("\n") else "\n") + "\n" + text)


def judge(bars: Sequence[Bar], outcomes: Mapping[str, Mapping[str, Outcome]]) -> list[tuple[str, str, str, str]]:
    """(bar, at least or at most, measured, met or missed or why not) for each; `outcomes` by `suite/case`."""
    lines = []
    for bar in bars:
        figure = bar.measure(outcomes.get(bar.case, {}))
        bound = f"{bar.relation} {bar.limit:g}"
        if figure is None:
            names = " and ".join(name for name in (bar.over, bar.under) if name)
            lines.append((bar.text, bound, "-", f"not measured: {names} of {bar.case}"))
        else:
            is_met = figure >= bar.limit if bar.relation == ">=" else figure <= bar.limit
            lines.append((bar.text, bound, f"{figure:.3f}", "met" if is_met else "MISSED"))
    return lines


def command_of(worker: Path, spec: Row, python: str = sys.executable) -> tuple[str, ...]:
    """How a worker is started."""
    return python, str(worker), json.dumps(spec)
