"""Show what a run trains on: the batch of any update as text, the corpus in numbers, and all of it as one picture.

`python tools/inspect-data.py --config X.yaml [--step N] [--rows 2] [--tokens] [--picture FILE.png] [section.key=x ...]`
reads the data as a run with this config would, preparing it if need be; `--run runs/NAME` takes the config and the
tokenizer of a run that was started. Nothing is trained. Numbers come from `data/inspection.py`, lines from
`data/inspection_report.py`, the picture from `utils/data_plot.py`; to show something else, edit those.
"""

import core  # noqa: F401  # isort: skip
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from core.assembly import complete_model_config
from core.checkpoint import list_checkpoints
from core.config import Config, load
from core.initial_weights import initial_tokenizer
from core.plan import step_counter
from data.inspection import Course, Inspected, Survey, asked_of, follow, inspect_batch, survey
from data.inspection_report import LEGEND, batch_lines, course_lines, plural, row_lines, survey_lines, token_lines
from data.loader import Dataset
from data.mixture import Budget
from data.preparation_report import REPORT_FILE, describe, read_report
from data.row_stream import State
from data.tokenizer import Tokenizer
from utils.cli import Parser, at_least, run_command
from utils.errors import CheckpointError, ConfigError, DataError


class Subject(NamedTuple):
    """The run that is looked at."""

    config: Config
    dataset: Dataset
    num_steps: int
    """Updates of the whole run."""
    near: State | None
    """A position before the batch, saved by the run."""


def main(arguments: Sequence[str] | None = None, say: Callable[[str], None] = print) -> None:
    """Read, count, show. Raises ConfigError, DataError or CheckpointError."""
    options = make_parser().parse_intermixed_args(arguments)
    picture = None if options.picture is None else Path(options.picture)
    if picture is not None:
        refuse_unwritable(picture)
    subject = open_subject(options)
    config, dataset = subject.config, subject.dataset
    inspected = inspect_batch(dataset, config.rows_per_batch, options.step - 1, subject.near)
    show_rows(subject, inspected, options, say)
    found = survey(dataset.store.train)
    say("\ncorpus")
    for line in survey_lines(found, dataset.store.train, dataset.tokenizer, dataset.source_names):
        say(f"  {line}")
    courses = follow(dataset, subject.num_steps, config.rows_per_batch)
    say(f"\nmixture over the {subject.num_steps:,} updates")
    for line in [*dataset.mixture().describe(), *course_lines(*courses, dataset.source_names)]:
        say(f"  {line}")
    say("\npreparation")
    report = read_report(dataset.store.folder) if (dataset.store.folder / REPORT_FILE).exists() else None
    for line in describe(report) if report else [f"{dataset.store.folder} holds no {REPORT_FILE}"]:
        say(f"  {line}")
    if picture is not None:
        draw(picture, subject, options.step, inspected, found, courses, report)
        say(f"\nwrote {picture}")


def make_parser() -> Parser:
    """The command line."""
    parser = Parser("Show what a run trains on: the batch of an update, the corpus, the mixture.")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--config", help="a training config")
    which.add_argument("--run", help="the folder of a run, as in runs/quickstart")
    parser.add_argument("--step", type=int, default=1, help="the update whose batch is shown (%(default)s: the first)")
    parser.add_argument("--rows", type=at_least(0), default=2, help="rows of it that are shown as text (%(default)s)")
    parser.add_argument("--tokens", action="store_true", help="show these rows token by token as well")
    parser.add_argument("--picture", metavar="FILE", help="PNG to draw all of it into")
    parser.add_argument("settings", nargs="*", help="section.key=value, as for core.training")
    return parser


def refuse_unwritable(path: Path) -> None:
    """Raise DataError now and not after all the work when the picture cannot be written."""
    is_new = not path.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("ab").close()
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}") from error
    if is_new:
        path.unlink()


def open_subject(options: Any) -> Subject:
    """The data of a config or run as training sees it. Raises UserError."""
    run = None if options.run is None else Path(options.run)
    if run is not None and not (run / "config.yaml").is_file():
        raise CheckpointError(f"{run} is no run: it holds no config.yaml; give a run folder, as in runs/quickstart")
    config = load(Path(options.config) if run is None else run / "config.yaml", options.settings)
    tokenizer = find_tokenizer(config, run)
    if problems := config.data.find_problems():
        raise DataError(*problems)
    dataset = config.data.build(config.seed, tokenizer=tokenizer, report=tell)
    if not isinstance(dataset, Dataset):
        raise ConfigError(f"data.type {config.data.type} builds a {type(dataset).__name__}, whose rows are not known")
    num_params, num_steps = count_steps(config, dataset)
    if not 1 <= options.step <= num_steps:
        remedy = "; training.duration=... makes it longer" if options.step > num_steps else ""
        raise ConfigError(f"--step {options.step}: the run has updates 1 to {num_steps:,}{remedy}")
    dataset.set_budget(Budget(num_params, num_steps * config.rows_per_batch * config.data.sequence_length))
    near = None if run is None else nearest(run, (options.step - 1) * config.rows_per_batch, dataset.fingerprint)
    return Subject(config, dataset, num_steps, near)


def tell(line: str) -> None:
    """What preparation says; the results alone go to stdout."""
    print(line, file=sys.stderr)


def find_tokenizer(config: Config, run: Path | None) -> Tokenizer | None:
    """The tokenizer of the run, or of the weights it starts from; None: that of the data section."""
    if run is not None and (run / "tokenizer" / "tokenizer.json").is_file():
        return Tokenizer.load(run / "tokenizer")
    return None if config.init_from is None else initial_tokenizer(Path(config.init_from), tell)


def count_steps(config: Config, dataset: Dataset) -> tuple[int, int]:
    """Parameters of the model and updates of the run. Raises ConfigError."""
    num_params = complete_model_config(config, dataset.tokenizer.vocab_size).num_params()
    duration = config.training.duration
    rows_per_epoch = dataset.rows_per_epoch if duration.unit == "epochs" else None
    steps = step_counter(config, num_params, rows_per_epoch)("training.duration", duration)
    return num_params, steps or 0


def nearest(run: Path, row: int, fingerprint: str) -> State | None:
    """The last position at or before the global row that a checkpoint of the run holds.

    Raises DataError when the data is not what the run was trained on.
    """
    found = None
    for checkpoint in list_checkpoints(run / "checkpoints"):
        try:
            state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
            data, trained_on = state["data"], state["data_fingerprint"]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # Only a short cut: the batch is found without it.
        if trained_on != fingerprint:
            raise DataError(
                f"the data is not what {checkpoint} was trained on: a file or a setting has changed since, so its "
                "batches cannot be shown; put the old ones back"
            )
        if data is not None and data["row"] <= row:
            found = data
    return found


def show_rows(subject: Subject, inspected: Inspected, options: Any, say: Callable[[str], None]) -> None:
    """The batch: some rows as text, then all of it in numbers."""
    dataset, names = subject.dataset, subject.dataset.source_names
    say(f"batch of update {options.step:,} of {subject.num_steps:,}, epoch {inspected.before['epoch']}")
    for line in LEGEND:
        say(f"  {line}")
    if subject.config.objective.type != "causal":
        say(f"  objective {subject.config.objective.type} chooses anew which of the positions that count it predicts")
    for row in range(min(options.rows, subject.config.rows_per_batch)):
        say("")
        for line in row_lines(inspected, row, dataset.tokenizer, names):
            say(line)
        for line in token_lines(inspected, row, dataset.tokenizer) if options.tokens else []:
            say(line)
    say("\nthe whole batch")
    for line in batch_lines(inspected, names, asked_of(dataset, inspected)):
        say(f"  {line}")


def draw(
    path: Path,
    subject: Subject,
    step: int,
    inspected: Inspected,
    found: Survey,
    courses: tuple[Course, Course],
    report: dict[str, Any] | None,
) -> None:
    """The picture. Raises DataError when it cannot be written."""
    from utils.data_plot import DataPicture, plot_data  # It takes its time, and not everybody wants a picture.

    dataset, weights = subject.dataset, inspected.batch.weights
    num_documents = plural(sum(dataset.store.train.num_documents), "document")
    picture = DataPicture(
        title=f"{subject.config.name}: {num_documents}, {sum(dataset.store.train.num_tokens):,} tokens",
        names=dataset.source_names,
        lengths=[(each.values, each.counts) for each in found.lengths],
        row_length=dataset.sequence_length,
        batch_title=f"batch of update {step:,}: {weights.mean():.1%} of its positions count",
        sources=np.where(weights > 0, inspected.sources(), -1),
        segments=inspected.batch.segments,
        step=step,
        asked=courses[0],
        observed=courses[1],
        left_out=None if report is None else left_out(report, dataset.source_names),
        num_read=0 if report is None else sum(source["read"]["documents"] for source in report["sources"]),
    )
    try:
        plot_data(picture, path)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}") from error


def left_out(report: dict[str, Any], names: Sequence[str]) -> dict[str, list[int]]:
    """How many documents of each source were left out, by reason."""
    dropped = {source["name"]: source["dropped"] for source in report["sources"]}
    reasons = sorted({reason for each in dropped.values() for reason in each})
    return {reason: [dropped.get(name, {}).get(reason, 0) for name in names] for reason in reasons}


if __name__ == "__main__":
    run_command(main)
