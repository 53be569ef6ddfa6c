"""Prepare the data of a config ahead of training: the same work, with a bar, a report of every document, and checks.

`python tools/prepare-data.py --config X.yaml [--out DIR] [--jobs N] [section.key=value ...]`: without `--out` the
result lies where a run with this config finds it; with it, the folder can be carried to another machine and trained on
with `data: {type: shards, path: DIR}`. Stopped, even by kill -9, it goes on behind the last finished piece of work.
To show more of what happened to the documents, edit `data/preparation_report.py`.
"""

import core  # noqa: F401  # isort: skip
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from core.config import load
from data.preparation import Preparation
from data.preparation_report import describe, read_report
from data.progress import Lines
from data.store import Store, open_store
from data.text import TextDataConfig
from utils.cli import Parser, at_least, run_command
from utils.errors import ConfigError, DataError
from utils.units import format_count


class Bar:
    """A bar for each stage on a terminal, lines elsewhere; `say` writes above it."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.lines = Lines(self.say)
        self.stage: str | None = None
        columns = (
            TextColumn("{task.description}"),
            BarColumn(24),
            TextColumn("{task.fields[size]}"),
            TimeElapsedColumn(),
        )
        self.bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        """See `data.progress.Progress`."""
        if not self.console.is_terminal:
            self.lines(stage, done, total)
            return
        if stage != self.stage:
            for task in self.bar.task_ids:
                self.bar.remove_task(task)
            self.task, self.stage = self.bar.add_task(stage, total=total, size=""), stage
        size = f"{done / 1e6:,.0f} MB" if total is None else f"{done / 1e6:,.0f} of {total / 1e6:,.0f} MB"
        self.bar.update(self.task, completed=done, total=total, size=size)

    def say(self, line: str) -> None:
        """One line for a person."""
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


def main(arguments: Sequence[str] | None = None, console: Console | None = None) -> None:
    """Prepare, or only download or verify. Raises ConfigError or DataError."""
    options = make_parser().parse_intermixed_args(arguments)
    bar = Bar(console or Console(highlight=False))
    data = load(Path(options.config), options.settings).data
    if not isinstance(data, TextDataConfig):
        raise ConfigError(f"{options.config}: data.type is {data.type}; only text is prepared")
    if problems := data.find_problems():
        raise DataError(*problems)
    if options.download_only:
        download(data, bar.say)
        return
    with bar.bar:
        preparation = data.preparation(bar.say, bar, options.jobs)
        folder = prepare(preparation, Path(options.out) if options.out else None)
        store = open_store(folder)
        if options.verify:
            store.verify(lambda done, total: bar("verifying", done, total))
    for line in summary(store, options.verify, options.out):
        bar.say(line)


def make_parser() -> Parser:
    """The command line."""
    parser = Parser("Prepare the data of a config: read, clean, filter, deduplicate, split, tokenise, shard.")
    parser.add_argument("--config", required=True, help="a training config")
    parser.add_argument("--out", help="folder to write to (default: the cache, where a run with this config looks)")
    parser.add_argument(
        "--jobs", type=at_least(1), help="processes that clean and compare (default: one for each core)"
    )
    parser.add_argument("--verify", action="store_true", help="read every shard again and compare its checksum")
    parser.add_argument("--download-only", action="store_true", help="only fetch what data.sources need from the Hub")
    parser.add_argument("settings", nargs="*", help="section.key=value, as for core.training")
    return parser


def prepare(preparation: Preparation, out: Path | None) -> Path:
    """All stages; the folder of shards."""
    return preparation.shards(preparation.tokenizer(), out)


def download(data: TextDataConfig, say: Callable[[str], None]) -> None:
    """Fetch the files of every source that has some elsewhere."""
    sources: list[Any] = [each for each in (*data.sources, *data.validation_sources) if hasattr(each, "download_all")]
    if not sources:
        say("no source of this config is on the Hub: nothing to download")
    for source in sources:
        paths = source.download_all(say)
        say(f"{source.label()}: {len(paths)} files, {sum(path.stat().st_size for path in paths) / 1e6:,.1f} MB")


def summary(store: Store, verified: bool, out: str | None) -> list[str]:
    """What happened, and what to do next."""
    tokens = sum(store.train.num_tokens)
    lines = [*describe(read_report(store.folder)), f"{format_count(tokens)} tokens in {store.folder}"]
    if verified:
        lines.append("every checksum is right")
    next_step = (
        f"to train on it: data: {{type: shards, path: {out}}}" if out else "a run with this config finds it there"
    )
    return [*lines, next_step]


if __name__ == "__main__":
    run_command(main)
