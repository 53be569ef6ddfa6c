"""`python tools/find-learning-rate.py --config X.yaml [--steps 100] [--min 1e-6] [--max 1] [--out DIR] [key=value ...]`

A short training with a rising learning rate, a picture of the loss against it, and a suggested value with its reason.
Nothing is saved but the picture and the numbers: `<out_dir>/<name>-learning-rate/` without --out, never in a run. What
is done and how the curve is read: core/learning_rate_finder.py. A hybrid whose groups have learning rates of their own
is told what to multiply them all by; the rates are then those of its fastest group.
"""

import core  # noqa: F401  # isort: skip
import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

from core.assembly import Parts, build_parts
from core.config import Config, dump, load_with_notes
from core.learning_rate_finder import (
    Curve,
    Range,
    Reference,
    Suggestion,
    check_memory,
    check_range,
    find,
    reference_of,
    smoothed,
    suggest,
)
from core.progress import TrainingProgress
from core.run import OWN_FILES, run_folder
from distributed.group import SingleConfig
from utils.cli import Parser, run_command
from utils.errors import ConfigError, DataError
from utils.learning_rate_plot import plot_rates
from utils.memory import set_limits


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = Parser("Find a learning rate: train a few steps while it rises, until the loss diverges.")
    parser.add_argument("--config", required=True, type=Path, help="the YAML file of the training")
    parser.add_argument("--steps", type=int, default=100, help="updates at most (%(default)s)")
    parser.add_argument("--min", type=float, default=1e-6, help="the first learning rate (%(default)s)")
    parser.add_argument("--max", type=float, default=1.0, help="the last one (%(default)s)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where picture and numbers go")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="values that win over the file")
    return parser.parse_intermixed_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Find, write, say."""
    options = parse_arguments(arguments)
    tried = Range(options.min, options.max, options.steps)
    check_range(tried)
    loaded = load_with_notes(options.config, options.overrides)
    for note in loaded.notes:
        print(f"note: {note}", flush=True)
    config: Config = loaded.config
    # One process computes the whole batch: the loss is the same.
    config = config.model_copy(update={"distributed": SingleConfig()})
    run = run_folder(config)
    folder = make_folder(options.out or run.with_name(f"{run.name}-learning-rate"))
    parts = build_parts(config, config.distributed.build(), None, print)
    set_limits(parts.plan.memory_limit, check_memory(parts))
    curve = search(parts, config, tried)
    suggestion, reference = suggest(curve), reference_of(parts, config)
    write(folder, config, curve, suggestion, reference)
    for line in describe(parts, suggestion, reference):
        print(line)
    print(f"wrote {folder / 'learning-rate.png'} and {folder / 'learning-rate.json'}")


def make_folder(folder: Path) -> Path:
    """The folder, made. Raises ConfigError when it is a run, DataError when it cannot be made."""
    if any((folder / name).exists() for name in OWN_FILES - {"plots"}):
        raise ConfigError(f"{folder} is a run: name another folder with --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot make {folder}: {error.strerror}; name another with --out") from error
    return folder


def search(parts: Parts, config: Config, tried: Range) -> Curve:
    """The curve, with a progress bar."""
    show = TrainingProgress(tried.num_steps, 0, enabled=True)
    try:
        return find(
            parts, config.distributed.build(), config, tried, lambda s, loss: show.update(s, {"train/loss": loss})
        )
    finally:
        show.close()


def write(folder: Path, config: Config, curve: Curve, suggestion: Suggestion, reference: Reference) -> None:
    """The picture and the numbers. Raises DataError when they cannot be written."""
    rates, losses = [point.learning_rate for point in curve.points], [point.loss for point in curve.points]
    averages = smoothed(curve)
    marks = {} if suggestion.learning_rate is None else {"suggested:": suggestion.learning_rate}
    points = [
        {"learning_rate": rate, "loss": loss if math.isfinite(loss) else None, "smoothed": average}
        for rate, loss, average in zip(rates, losses, averages, strict=True)
    ]
    found = {
        "optimizer": dump(config.optimizer),
        "learning_rate": suggestion.learning_rate,
        "group": reference.group,
        "reason": suggestion.reason,
        "first_loss": curve.first_loss,
        "diverged": curve.diverged,
        "points": points,
    }
    try:
        (folder / "learning-rate.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        title = f"{config.name}: {config.optimizer.type}"
        plot_rates(rates, losses, averages, marks, folder / "learning-rate.png", title, reference.group or "")
    except OSError as error:
        raise DataError(f"cannot write to {folder}: {error.strerror}; name another folder with --out") from error


def describe(parts: Parts, suggestion: Suggestion, reference: Reference) -> list[str]:
    """The suggestion for a person; where groups have learning rates of their own, of each."""
    if suggestion.learning_rate is None:
        return [f"no suggestion: {suggestion.reason}"]
    multiplier = suggestion.learning_rate / reference.learning_rate
    groups = parts.optimizer.groups
    each = ", ".join(f"{group.name} {group.learning_rate * multiplier:.2g}" for group in groups)
    if reference.group is not None:
        return [
            f"multiply the learning rate of every group by {multiplier:.2g}: {each}",
            f"where, in learning rates of {reference.group}, {suggestion.reason}",
        ]
    lines = [f"optimizer.learning_rate: {suggestion.learning_rate:g}, where {suggestion.reason}"]
    if any(group.learning_rate != reference.learning_rate for group in groups):
        lines.append(f"all groups times {multiplier:.2g}: {each}")
    return lines


if __name__ == "__main__":
    run_command(main)
