"""The report of a comparison: costs measured in turns, the table, every run, the picture, and where they are kept.

Losses come from runs that share the machine with others; times do not: each optimizer's step is a process of its own,
they take turns, and ratios are medians over neighbouring rounds. To add a column, add it to `HEADERS` and `row`.
"""

import json
import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from core.benchmark_suites import WORKERS
from core.comparison import Results, Settings, Summary, Trial
from core.config import load
from core.precision import resolve_precision
from utils.benchmark_report import Case, Outcome, Plan, Variant, command_of, run_case
from utils.benchmarking import paired_ratio
from utils.comparison_plot import Rival, plot_comparison
from utils.errors import ConfigError, DataError
from utils.memory import format_bytes
from utils.units import format_count

BEGIN, END = "<!-- comparison: begin -->", "<!-- comparison: end -->"
HEADERS = ("optimizer", "learning rate", "final loss", "bits/byte", "tokens to baseline", "step", "time x", "state")


class Cost(NamedTuple):
    """What a step of an optimizer takes."""

    seconds: float
    """Median of a whole step."""
    ratio: float
    """Of the time to the baseline's, median over rounds of neighbours."""
    state_bytes: int


def measure_costs(
    settings: Settings,
    summaries: Sequence[Summary],
    folder: Path,
    plan: Plan,
    environment: Mapping[str, str],
    say: Callable[[str], None],
) -> dict[str, Cost]:
    """Time a step of every optimizer at its best learning rate, in turns. Raises ConfigError when one fails."""
    variants = []
    for summary in summaries:
        path = folder / "configs" / f"{Trial(summary.name, summary.learning_rate, settings.seeds[0]).name}.yaml"
        config = load(path)
        vocab_size = config.model.vocab_size or config.data.expected_vocab_size()
        precision = resolve_precision(config.training.precision)
        spec = {"config": str(path), "overrides": [], "vocab_size": vocab_size, "precision": precision, "kind": "ours"}
        variants.append(Variant(summary.name, command_of(WORKERS / "measure_step.py", spec)))
    outcomes = run_case(Case("comparison", "step", tuple(variants), {}), plan, environment, say)
    failed = [f"{name}: {outcome.reason}" for name, outcome in outcomes.items() if outcome.status != "ok"]
    if failed:
        raise ConfigError(*failed)
    first = outcomes[summaries[0].name]
    return {name: cost_of(outcome, first) for name, outcome in outcomes.items()}


def cost_of(outcome: Outcome, first: Outcome) -> Cost:
    """Medians over the rounds; a worker's round is as long as an optimizer's period, so nothing is left out."""
    seconds = [value for value in outcome.column("seconds") if value is not None]
    ratio = paired_ratio(outcome.column("seconds"), first.column("seconds"))
    return Cost(statistics.median(seconds), ratio if ratio is not None else math.nan, outcome.facts["state_bytes"])


def row(summary: Summary, cost: Cost | None) -> list[str]:
    """The cells of an optimizer."""
    rates = [rate for rate, _ in summary.grid]
    where = "" if summary.is_interior else ", **best at the edge**"
    reached = "not reached" if summary.tokens_to_baseline is None else f"{summary.tokens_to_baseline:.2f}x"
    times = ["-", "-", "-"]
    if cost is not None:
        times = [f"{cost.seconds * 1e3:,.0f} ms", f"{cost.ratio:.2f}", format_bytes(cost.state_bytes)]
    return [
        summary.name,
        f"{summary.learning_rate:g} ({len(rates)} of {min(rates):g} to {max(rates):g}{where})",
        f"{summary.mean:.4f} \u00b1 {summary.spread:.4f}",
        f"{summary.bits_per_byte:.3f}",
        reached,
        *times,
    ]


def share_lines(summaries: Sequence[Summary]) -> list[str]:
    """What the shorter runs ended with, beside the baseline's whole ones."""
    base = summaries[0]
    lines = []
    for summary in summaries:
        for share, losses in summary.shares.items():
            mean = statistics.fmean(losses)
            better = sum(one <= other for one, other in zip(losses, base.losses, strict=True))
            each = ", ".join(f"{loss:.4f}" for loss in losses)
            lines.append(
                f"- **{summary.name}, a whole run of {share:g} of the tokens**: {mean:.4f} ({each}); {base.name} with "
                f"all of them {base.mean:.4f}: {mean - base.mean:+.4f}, at or below for {better} of {len(losses)} seeds"
            )
    return lines


def markdown_table(headers: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    body = [headers, ["---"] * len(headers), *lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in body)


def all_runs(results: Results) -> str:
    """Every run, the losing ones too."""
    lines = [
        [
            trial.optimizer,
            f"{trial.learning_rate:g}",
            str(trial.seed),
            f"{trial.share:g}",
            f"{result.loss:.4f}" if math.isfinite(result.loss) else result.note or "diverged",
            f"{result.bits_per_byte:.3f}" if math.isfinite(result.bits_per_byte) else "-",
        ]
        for trial, result in sorted(results.items())
    ]
    return markdown_table(("optimizer", "learning rate", "seed", "share", "final loss", "bits/byte"), lines)


def about(settings: Settings, machine: str) -> str:
    """What was compared, and how."""
    config = load(settings.config)
    model = config.model
    size = f"{format_count(model.num_params())} parameters, " if model.vocab_size else ""
    return (
        f"{settings.config.name}: {size}{config.training.duration} of {config.rows_per_batch} x "
        f"{config.data.sequence_length} tokens, schedule {config.schedule.type}; {settings.num_trials} learning rates "
        f"for each optimizer, neighbours {settings.factor:g}x apart, judged with seed {settings.seeds[0]}; the best "
        f"one with seeds {', '.join(map(str, settings.seeds))}. Losses in nats per token on the held-out text, "
        "\u00b1 the standard deviation over the seeds. *Tokens to baseline*: share of the baseline's tokens after "
        "which its final loss of the same seed was reached, read off the curve, on a schedule made for all of them. "
        f"{machine}"
    )


def text_of(
    settings: Settings,
    summaries: Sequence[Summary],
    results: Results,
    costs: Mapping[str, Cost],
    command: str,
    machine: str,
) -> str:
    """The whole report, in Markdown."""
    table = markdown_table(HEADERS, [row(summary, costs.get(summary.name)) for summary in summaries])
    shares = "\n".join(share_lines(summaries))
    runs = f"<details><summary>All {len(results)} runs</summary>\n\n{all_runs(results)}\n</details>\n"
    parts = [about(settings, machine), f"```bash\n{command}\n```", table, shares, runs]
    return "\n\n".join(part.rstrip("\n") for part in parts if part) + "\n"


def draw(settings: Settings, summaries: Sequence[Summary], results: Results, path: Path) -> None:
    """The picture."""
    rivals = {}
    for summary in summaries:
        runs = [results[Trial(summary.name, summary.learning_rate, seed)] for seed in settings.seeds]
        rivals[summary.name] = Rival([run.curve for run in runs], summary.grid, summary.learning_rate)
    seeds = f"{len(settings.seeds)} seeds: mean and range"
    plot_comparison(rivals, f"{settings.config.stem}, {seeds}", path)


def put_into(page: Path, text: str) -> None:
    """Replace what stands between the two marks of a page. Raises DataError when it has none."""
    old = page.read_text(encoding="utf-8")
    if BEGIN not in old or END not in old:
        raise DataError(f"{page} lacks the lines '{BEGIN}' and '{END}', between which the report goes")
    between = re.compile(f"{re.escape(BEGIN)}.*{re.escape(END)}", re.DOTALL)
    page.write_text(between.sub(lambda _: f"{BEGIN}\n\n{text}\n{END}", old), encoding="utf-8")


def save_costs(path: Path, costs: Mapping[str, Cost]) -> None:
    """As JSON, for a report that is made again."""
    path.write_text(json.dumps({name: cost._asdict() for name, cost in costs.items()}, indent=1))


def read_costs(path: Path) -> dict[str, Cost]:
    """What was measured before; {} when nothing was."""
    return {name: Cost(**cost) for name, cost in json.loads(path.read_text()).items()} if path.is_file() else {}
