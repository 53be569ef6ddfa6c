"""`python tools/compare-optimizers.py --config X.yaml OPTIMIZER.yaml ... [options]`: optimizers side by side.

One model, one corpus, the same seeds, token budget and number of learning rates for each; the first optimizer is the
baseline. Runs that are done are kept, so the same command goes on where it was stopped, and one with further optimizers
adds only theirs. At the end every optimizer's step is timed in turns with the others', and report.md and comparison.png
are written; `--into` puts them into a page. Which runs are made is decided in core/comparison.py, what the report says
in core/comparison_report.py.
"""

import core  # noqa: F401 -- before MLX

# isort: split
import argparse
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from core.comparison import Settings, Summary, num_runs, summarise
from core.comparison_report import Cost, draw, measure_costs, put_into, read_costs, read_page, save_costs, text_of
from core.comparison_runs import Comparison, find_foreign_keys, find_missing_evaluation
from core.config import load
from utils.benchmark_report import Plan
from utils.cli import Parser, run_command
from utils.errors import ConfigError
from utils.machine import describe_machine

PROJECT = Path(__file__).resolve().parent.parent
SECONDS_OF_A_ROUND = 600.0


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line. Raises DataError when the page for the report has no place for it."""
    parser = Parser("Train one model with several optimizers, each with the same number of learning rates.")
    add = parser.add_argument
    add("optimizers", nargs="+", type=Path, metavar="OPTIMIZER", help="YAML: optimizer, schedule; the first: baseline")
    add("--config", required=True, type=Path, help="model, data, schedule and token budget of all runs")
    add("--out", type=Path, default=Path("runs/compare-optimizers"), metavar="DIR", help="(%(default)s)")
    add("--center", action="append", default=[], metavar="NAME=RATE", help="where a grid starts; default: the YAML's")
    add("--trials", type=int, default=5, help="learning rates for each optimizer (%(default)s)")
    add("--factor", type=float, default=2.0, help="between neighbouring learning rates (%(default)s)")
    add("--seeds", type=int, default=3, help="runs at each best learning rate (%(default)s)")
    add("--share", type=float, action="append", default=[], help="also runs of this share of the tokens; repeatable")
    add("--jobs", type=int, default=1, help="runs at once (%(default)s)")
    add("--rounds", type=int, default=5, help="rounds in which the steps are timed; 0: not at all (%(default)s)")
    add("--into", type=Path, metavar="PAGE", help="a Markdown page to put the report into, the picture beside it")
    options = parser.parse_intermixed_args(arguments)
    for name, least in (("trials", 3), ("seeds", 1), ("jobs", 1), ("rounds", 0)):
        if getattr(options, name) < least:
            parser.error(f"--{name} is {getattr(options, name)}, must be at least {least}")
    if not options.factor > 1:
        parser.error(f"--factor is {options.factor}, must be above 1")
    if not all(0 < share < 1 for share in options.share):
        parser.error("--share must be between 0 and 1, for example 0.75")
    if options.into is not None and not options.into.is_file():
        parser.error(f"--into: there is no page {options.into}")
    if options.into is not None:
        read_page(options.into)
    return options


def read_settings(options: argparse.Namespace) -> Settings:
    """What is asked for. Raises ConfigError listing everything that is wrong with it."""
    optimizers = {path.stem: path for path in options.optimizers}
    problems = []
    if len(optimizers) < len(options.optimizers):
        problems.append("two optimizers have one name: give files whose names differ")
    centers: dict[str, float] = {}
    for text in options.center:
        name, _, rate = text.partition("=")
        try:
            centers[name] = float(rate)
        except ValueError:
            problems.append(f"--center {text}: expected NAME=RATE, for example adamw=4e-3")
        if name not in optimizers:
            problems.append(f"--center {text}: no optimizer is called '{name}'; there are: {', '.join(optimizers)}")
        elif not 0 < centers.get(name, 1.0) < float("inf"):
            problems.append(f"--center {text}: a learning rate is above 0")
    if problems:
        raise ConfigError(*problems)
    config = load(options.config)
    for name, path in optimizers.items():
        optimizer = load(path).optimizer
        centers.setdefault(name, optimizer.learning_rate)
        if optimizer.ignores_learning_rate:
            problems.append(
                f"{path}: every group states its own learning_rate, so a grid of rates would change nothing"
            )
        problems += find_foreign_keys(options.config, path)
    problems += find_missing_evaluation(config)
    if problems:
        raise ConfigError(*problems)
    seeds = tuple(config.seed + index for index in range(options.seeds))
    shares = tuple(sorted(set(options.share)))
    return Settings(options.config, optimizers, centers, seeds, options.trials, options.factor, shares)


def costs_of(options: argparse.Namespace, settings: Settings, summaries: Sequence[Summary]) -> dict[str, Cost]:
    """Measured now, or what was measured before when `--rounds` is 0."""
    path = options.out / "costs.json"
    if not options.rounds:
        return read_costs(path)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])}
    plan = Plan(options.rounds, 1, SECONDS_OF_A_ROUND)
    costs = measure_costs(settings, summaries, options.out, plan, environment, lambda text: None)
    save_costs(path, costs)
    return costs


def command_line(arguments: Sequence[str] | None) -> str:
    """What was typed."""
    return shlex.join(["python", "tools/compare-optimizers.py", *(sys.argv[1:] if arguments is None else arguments)])


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the runs that are missing, time the steps, write the report."""
    options = parse_arguments(arguments)
    options.out = options.out.resolve()
    settings = read_settings(options)
    comparison = Comparison(settings, options.out, lambda line: print(line, flush=True))
    print(f"{num_runs(settings)} runs in {options.out}, less those that are there already", flush=True)
    comparison.run(options.jobs)
    summaries = summarise(settings, comparison.results)
    costs = costs_of(options, settings, summaries)
    picture = options.out / "comparison.png"
    draw(settings, summaries, comparison.results, picture)
    machine = describe_machine(set()).heading
    text = text_of(settings, summaries, comparison.results, costs, command_line(arguments), machine)
    (options.out / "report.md").write_text(text, encoding="utf-8")
    print(text.split("<details>")[0])
    print(f"wrote {options.out / 'report.md'} and {picture}")
    if options.into is not None:
        beside = options.into.with_name(f"{options.into.stem}-{settings.config.stem}.png")
        shutil.copyfile(picture, beside)
        put_into(options.into, f"{text}\n![{settings.config.stem}]({beside.name})\n")
        print(f"put into {options.into}, with {beside.name}")


if __name__ == "__main__":
    run_command(main)
