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
from core.comparison_runs import with_optimizer
from core.config import dump, load
from core.precision import resolve_precision
from optimizers.schedules import ScheduleConfig
from utils.benchmark_report import Case, Outcome, Plan, Variant, command_of, run_case
from utils.benchmarking import paired_ratio
from utils.comparison_plot import Rival, plot_comparison
from utils.errors import ConfigError, DataError
from utils.memory import format_bytes
from utils.units import format_count

BEGIN, END = "<!-- comparison: begin -->", "<!-- comparison: end -->"
BETWEEN = re.compile(f"{re.escape(BEGIN)}.*{re.escape(END)}", re.DOTALL)
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


def row(summary: Summary, base: Summary, cost: Cost | None) -> list[str]:
    """The cells of an optimizer; `base`: the baseline's."""
    times = ["-", "-", "-"]
    if cost is not None:
        times = [f"{cost.seconds * 1e3:,.0f} ms", f"{cost.ratio:.2f}", format_bytes(cost.state_bytes)]
    is_finite = math.isfinite(summary.bits_per_byte)
    return [
        summary.name,
        rate_cell(summary),
        loss_cell(summary),
        f"{summary.bits_per_byte:.3f}" if is_finite else "-",
        reached_cell(summary, base),
        *times,
    ]


def rate_cell(summary: Summary) -> str:
    """The best learning rate among those tried, and whether it can be trusted to be it."""
    rates = [rate for rate, _ in summary.grid]
    tried = f"{len(rates)} of {min(rates):g} to {max(rates):g}"
    if not any(math.isfinite(loss) for _, loss in summary.grid):
        return f"none ({tried}, **all diverged**)"
    return f"{summary.learning_rate:g} ({tried}{'' if summary.is_interior else ', **best at the edge**'})"


def loss_cell(summary: Summary) -> str:
    """Mean and spread, when there are such."""
    if summary.num_diverged:
        return f"**diverged** ({summary.num_diverged} of {count_seeds(len(summary.losses))})"
    spread = "" if math.isnan(summary.spread) else f" \u00b1 {summary.spread:.4f}"
    return f"{summary.mean:.4f}{spread}"


def reached_cell(summary: Summary, base: Summary) -> str:
    """When the baseline's final loss was reached; a run that diverged has none and reaches none."""
    if summary.num_diverged or base.num_diverged:
        return "-"
    return "not reached" if summary.tokens_to_baseline is None else f"{summary.tokens_to_baseline:.2f}x"


def count_seeds(number: int) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{number} seed{'s' * (number != 1)}"


def loss_text(loss: float) -> str:
    """A loss, or that there is none."""
    return f"{loss:.4f}" if math.isfinite(loss) else "diverged"


def share_lines(summaries: Sequence[Summary]) -> list[str]:
    """What the shorter runs ended with, beside the baseline's whole ones."""
    base = summaries[0]
    lines = []
    for summary in summaries:
        for share, losses in summary.shares.items():
            mean = statistics.fmean(losses)
            pairs = zip(losses, base.losses, strict=True)
            better = sum(math.isfinite(one) and one <= other for one, other in pairs)
            each = ", ".join(map(loss_text, losses))
            difference = f": {mean - base.mean:+.4f}" if math.isfinite(mean) and not base.num_diverged else ""
            lines.append(
                f"- **{summary.name}, a whole run of {share:g} of the tokens**: {loss_text(mean)} ({each}); "
                f"{base.name} with all of them {loss_text(base.mean)}{difference}, at or below for {better} of "
                f"{count_seeds(len(losses))}"
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
            result.note or loss_text(result.loss),
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
    first, *others = settings.seeds
    seeds = f"seed{'s' * bool(others)} {', '.join(map(str, settings.seeds))}"
    spread = "\u00b1 the standard deviation over the seeds" if others else "of one seed, so without a spread"
    return (
        f"{settings.config.name}: {size}{config.training.duration} of {config.rows_per_batch} x "
        f"{config.data.sequence_length} tokens, schedule {schedules(settings)}; {settings.num_trials} learning rates "
        f"for each optimizer, neighbours {settings.factor:g}x apart, judged with seed {first}; the best "
        f"one with {seeds}. Losses in nats per token on the held-out text, {spread}. *Tokens to baseline*: share of "
        "the baseline's tokens after which its final loss of the same seed was reached, read off the curve, on a "
        "schedule made for all of them. "
        f"{machine}"
    )


def schedules(settings: Settings) -> str:
    """The schedule of all runs, and of those optimizers whose file says another."""
    common = load(settings.config).schedule
    own = {name: with_optimizer(settings.config, path).schedule for name, path in settings.optimizers.items()}
    others = [f"{name}: {schedule_text(schedule)}" for name, schedule in own.items() if schedule != common]
    return f"{schedule_text(common)} (but {'; '.join(others)})" if others else common.type


def schedule_text(schedule: ScheduleConfig) -> str:
    """Its type and settings."""
    return " ".join([schedule.type, *(f"{key}={value}" for key, value in dump(schedule).items() if key != "type")])


def text_of(
    settings: Settings,
    summaries: Sequence[Summary],
    results: Results,
    costs: Mapping[str, Cost],
    command: str,
    machine: str,
) -> str:
    """The whole report, in Markdown."""
    base = summaries[0]
    table = markdown_table(HEADERS, [row(summary, base, costs.get(summary.name)) for summary in summaries])
    shares = "\n".join(share_lines(summaries))
    runs = f"<details><summary>All {len(results)} runs</summary>\n\n{all_runs(results)}\n</details>\n"
    parts = [about(settings, machine), f"```bash\n{command}\n```", table, shares, runs]
    return "\n\n".join(part.rstrip("\n") for part in parts if part) + "\n"


def draw(settings: Settings, summaries: Sequence[Summary], results: Results, path: Path) -> None:
    """The picture; a line ends where the first of its seeds diverged."""
    rivals = {}
    for summary in summaries:
        runs = [results[Trial(summary.name, summary.learning_rate, seed)] for seed in settings.seeds]
        rivals[summary.name] = Rival([run.curve for run in runs], summary.losses, summary.grid, summary.learning_rate)
    seeds = count_seeds(len(settings.seeds)) + ": mean and range" * (len(settings.seeds) > 1)
    plot_comparison(rivals, f"{settings.config.stem}, {seeds}", path)


def read_page(page: Path) -> str:
    """A page that a report can be put into. Raises DataError when it lacks the two marks, in this order."""
    text = page.read_text(encoding="utf-8")
    if not BETWEEN.search(text):
        raise DataError(f"{page} lacks the lines '{BEGIN}' and '{END}', between which the report goes")
    return text


def put_into(page: Path, text: str) -> None:
    """Replace what stands between the two marks of a page. Raises DataError when it has none."""
    new = BETWEEN.sub(lambda _: f"{BEGIN}\n\n{text}\n{END}", read_page(page))
    page.write_text(new, encoding="utf-8")


def save_costs(path: Path, costs: Mapping[str, Cost]) -> None:
    """As JSON, for a report that is made again."""
    path.write_text(json.dumps({name: cost._asdict() for name, cost in costs.items()}, indent=1))


def read_costs(path: Path) -> dict[str, Cost]:
    """What was measured before; {} when nothing was."""
    return {name: Cost(**cost) for name, cost in json.loads(path.read_text()).items()} if path.is_file() else {}
