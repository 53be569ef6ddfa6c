"""`python tools/benchmark.py SUITE [options]`: how fast and how large, on this machine, beside peers installed here.

Suites: step, memory, attention, loss, optimizer, newton-schulz, share, data, generate, all. Every variant is a process
of its own (tools/benchmark_workers/) and they take turns, so that ratios hold on a busy machine too. Printed: a table
for each case; as JSON, one row a line: every figure. What is measured and how to read it: docs/benchmarks.md. The
suites are in core/benchmark_suites.py, the turns in utils/benchmarking.py.
"""

import core  # noqa: F401 -- before MLX

# isort: split
import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from rich.console import Console
from rich.table import Table

from core.assembly import complete_model_config
from core.benchmark_suites import BARS, SHAPES, SUITES, Work
from core.config import Config, load, to_yaml
from core.precision import resolve_precision
from utils.benchmark_report import (
    Case,
    Outcome,
    Plan,
    append,
    judge,
    make_rows,
    markdown,
    notes,
    run_case,
    table,
    with_peak_above,
)
from utils.benchmarking import Row, load_warning
from utils.cli import Parser, run_command, warn
from utils.errors import ConfigError, DataError
from utils.machine import Machine, describe_machine
from utils.yaml_file import write_yaml

REPOSITORY = Path(__file__).resolve().parent.parent
PAGE = REPOSITORY / "docs" / "benchmarks.md"
ADAMW = "optimizer={type: adamw, learning_rate: 1e-3}"


def read_config(options: argparse.Namespace, folder: Path) -> tuple[Config, Path]:
    """The config asked for, with AdamW, its vocabulary known and one micro-batch a step; and the file it lies in."""
    source = options.config
    if source is None:
        source = folder / "shape.yaml"
        source.write_text(write_yaml(SHAPES[options.shape].values(options.shape)))
    config = load(source, [ADAMW, *options.overrides])
    num_tokens = config.model.vocab_size or config.data.expected_vocab_size()
    if num_tokens is None:
        raise ConfigError("model.vocab_size is not known before the tokenizer is: give model.vocab_size=N")
    if config.model.vocab_size is None:
        config = config.model_copy(update={"model": complete_model_config(config, num_tokens)})
    if config.given_micro_batch_size:
        training = {"batch_size": config.given_micro_batch_size, "batch_tokens": None, "micro_batch_size": None}
        config = config.model_copy(update={"training": config.training.model_copy(update=training)})
    path = folder / "config.yaml"
    path.write_text(to_yaml(config))
    return config, path


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = Parser("Measure this machine: training steps and their parts, beside the peers that are installed.")
    add = parser.add_argument
    add("suite", choices=[*SUITES, "all"], help="what to measure")
    add("--config", type=Path, help="whose model and batch (one micro-batch a step); default: --shape")
    add("--shape", choices=SHAPES, default="34m", help="a llama instead of a config (%(default)s)")
    add("--rounds", type=int, default=7, help="counted rounds of every variant (%(default)s)")
    add("--warmup", type=int, default=2, help="rounds before them (%(default)s)")
    add("--timeout", type=float, default=600.0, help="seconds a variant may take for a round (%(default)s)")
    add("--only", action="append", metavar="GLOB", help="these variants or cases only; may be repeated")
    add("--peer-blas", choices=("openblas", "as-installed", "both"), default="openblas", help="mlx-lm's (%(default)s)")
    add("--peer-python", default=sys.executable, metavar="PATH", help="the interpreter that has torch")
    add("--json", type=Path, metavar="PATH", help="write the rows there, one a line")
    add("--append", type=Path, nargs="?", const=PAGE, metavar="PATH", help="add the tables to docs/benchmarks.md")
    add("--bars", action="store_true", help="say of each bar whether it is met")
    add("overrides", nargs="*", metavar="section.key=value", help="values that win over the config")
    options = parser.parse_intermixed_args(arguments)
    for name, least in (("rounds", 1), ("warmup", 0), ("timeout", 1e-3)):
        if getattr(options, name) < least:
            parser.error(f"--{name} is {getattr(options, name)}, must be at least {least}")
    if shutil.which(options.peer_python) is None:
        parser.error(f"--peer-python: there is no program {options.peer_python}")
    if options.append is not None and not options.append.is_file():
        parser.error(f"--append: there is no file {options.append}")
    return options


def chosen(case: Case, globs: Sequence[str] | None) -> Case:
    """The case with the variants that a person asked for; all of them when it was the case that was named."""
    if globs is None or any(fnmatchcase(case.name, glob) for glob in globs):
        return case
    kept = [variant for variant in case.variants if any(fnmatchcase(variant.name, glob) for glob in globs)]
    return case._replace(variants=tuple(kept))


def measure(
    cases: Sequence[Case], options: argparse.Namespace, machine: Machine, console: Console
) -> tuple[list[Row], dict[str, dict[str, Outcome]]]:
    """Run every case and show its table as soon as it is there."""
    rows: list[Row] = []
    outcomes: dict[str, dict[str, Outcome]] = {}
    plan = Plan(options.rounds, options.warmup, options.timeout)
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    for case in cases:
        with Console(stderr=True).status("") as status:
            found = run_case(case, plan, environment, status.update)
        found = {name: with_peak_above(outcome) for name, outcome in found.items()}
        outcomes[f"{case.suite}/{case.name}"] = found
        new = make_rows(case, found, machine.row)
        console.print(table(new))
        for note in notes(new):
            console.print(note, markup=False, highlight=False)
        rows += new
        if not console.is_terminal:
            print("".join(json.dumps(row) + "\n" for row in new), end="", flush=True)
    return rows, outcomes


def bars_table(outcomes: dict[str, dict[str, Outcome]]) -> Table:
    """Each bar, its figure, met or missed."""
    result = Table(title="bars", title_justify="left")
    for header in ("bar", "asked", "measured", ""):
        result.add_column(header)
    for line in judge(BARS, outcomes):
        result.add_row(*line)
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    options = parse_arguments(arguments)
    console = Console(width=None if sys.stdout.isatty() else 180)
    if busy := load_warning():
        warn(busy)
    with tempfile.TemporaryDirectory() as folder:
        config, path = read_config(options, Path(folder))
        machine = describe_machine({"float32", resolve_precision(config.training.precision)})
        work = Work(config, path, Path(folder), machine, options.peer_blas, options.peer_python)
        names = SUITES if options.suite == "all" else [options.suite]
        cases = [chosen(case, options.only) for name in names for case in SUITES[name](work)]
        cases = [case for case in cases if case.variants]
        if not cases:
            asked = " ".join(options.only)
            raise ConfigError(f"--only {asked} matches no variant and no case of suite {options.suite}")
        rows, outcomes = measure(cases, options, machine, console)
    if options.bars:
        console.print(bars_table(outcomes))
    keep(rows, options, machine)
    return 0


def keep(rows: Sequence[Row], options: argparse.Namespace, machine: Machine) -> None:
    """Write the rows where they were asked for. Raises DataError."""
    try:
        if options.json is not None:
            options.json.write_text("".join(json.dumps(row) + "\n" for row in rows))
        if options.append is not None:
            append(options.append, markdown(machine.heading, rows))
    except OSError as error:
        raise DataError(f"cannot write the results: {error}") from error


if __name__ == "__main__":
    run_command(main)
