"""`--dry-run`: check everything that can be checked and print the plan, allocating nothing; draw the schedule if asked.

Models are counted by formula; MLX is lazy, so parameters and optimizer state are described but never made. Data or a
tokenizer that is not there yet is a warning here, because a config is often checked before its corpus is downloaded.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from core.assembly import (
    average_warnings,
    complete_model_config,
    count_optimizer_bytes,
    kernel_warnings,
    optimizer_groups,
)
from core.config import Config
from core.memory_remedies import check_fits
from core.plan import Plan, chosen_step, disk_warning, make_plan, rows
from core.precision import precision_warning, resolve_precision
from core.progress import show_rows
from core.run import run_folder
from optimizers.base import Group
from optimizers.schedules import ScheduleConfig, Timeline
from utils.cli import warn
from utils.errors import ConfigError

MAX_POINTS = 4000
NO_PICTURE = (
    "the steps of an epoch are known once the data is prepared, so the schedule cannot be drawn yet; "
    "give training.duration in steps or tokens, for example training.duration='2000 steps'"
)


def dry_run(config: Config, picture: Path | None = None) -> int:
    """Print the plan of `config`; 0. `picture`: a PNG to draw its learning rates into.

    Raises ConfigError for what cannot work on any machine.
    """
    warnings = [*config.data.find_problems()]
    if config.init_from is not None and not Path(config.init_from).is_dir():
        warnings.append(f"init_from: there is no folder {config.init_from}")
    num_tokens = config.data.expected_vocab_size()
    if num_tokens is None:
        guess = config.model.vocab_size or 32000
        num_tokens = guess - config.objective.num_reserved_tokens
        warnings.append(f"the tokenizer is not there yet: counting with a vocabulary of {guess:,}")
    model_config = complete_model_config(config, num_tokens)
    parameters: dict[str, mx.array] = dict(tree_flatten(model_config.build(seed=config.seed).trainable_parameters()))
    counted = sum(array.size for array in parameters.values())
    assert counted == model_config.num_params(), (counted, model_config.num_params())
    config.objective.build(num_tokens)
    counts_epochs = "epochs" in used_units(config)
    if counts_epochs:
        warnings.append("the steps of an epoch are known once the data is prepared: the plan counts one step for each")
    precision = resolve_precision(config.training.precision)
    groups = optimizer_groups(config, parameters)
    plan = make_plan(
        config,
        model_config,
        precision=precision,
        optimizer_bytes=count_optimizer_bytes(groups, parameters),
        keeps_average=any(group.average for group in groups),
        rows_per_epoch=config.rows_per_batch if counts_epochs else None,
        steps_are_known=not counts_epochs,
        must_fit=config.training.memory_limit is not None,
    )
    vocabulary = [("vocabulary", f"{model_config.vocab_size:,} ({num_tokens:,} of the tokenizer)")]
    written = "nothing is allocated or written" if picture is None else f"nothing is allocated, only {picture} written"
    print(f"plan of {run_folder(config)} (dry run: {written})")
    print(show_rows([*vocabulary, *rows(plan, Path(config.out_dir))]))
    slow = precision_warning(config.training.precision, precision)
    if plan.memory.peak > plan.memory_limit:
        warnings.append(too_large(config, model_config, plan))
    warnings += [*kernel_warnings(config, model_config, precision), *average_warnings(groups, config.schedule)]
    for line in (*warnings, slow, disk_warning(plan, Path(config.out_dir))):
        if line:
            warn(line)
    if picture is not None:
        if counts_epochs:
            raise ConfigError(f"--plot-schedule: {NO_PICTURE}")
        draw_schedule(config, plan, parameters, picture)
    return 0


def draw_schedule(config: Config, plan: Plan, parameters: dict[str, mx.array], path: Path) -> None:
    """Draw the learning rate of every group over the run, and say where. Raises ConfigError where it cannot write."""
    from utils.plotting import plot_learning_rates  # Every training imports this file, and matplotlib takes its time.

    groups = config.optimizer.groups({name: array.shape for name, array in parameters.items()})
    steps = spread(plan.total_steps, MAX_POINTS)
    rates = learning_rates(groups, config.schedule, plan.timeline, steps)
    try:
        plot_learning_rates(rates, [step + 1 for step in steps], path, plan.tokens_per_step, plan.warmup_steps)
    except OSError as error:
        raise ConfigError(f"--plot-schedule: cannot write {path}: {error.strerror}") from error
    print(f"wrote {path}")


def learning_rates(
    groups: Iterable[Group], schedule: ScheduleConfig, timeline: Timeline, steps: Sequence[int]
) -> dict[str, list[float]]:
    """Learning rate of each group, by name, at each of `steps` (from 0): what `Optimizer.follow` sets."""
    return {
        group.name: [group.learning_rate * (group.schedule or schedule).multiplier(step, timeline) for step in steps]
        for group in groups
    }


def spread(total_steps: int, most: int) -> list[int]:
    """At most so many of the updates of a run (from 0), evenly spread, the first and the last among them."""
    return np.unique(np.linspace(0, total_steps - 1, min(total_steps, most)).round().astype(int)).tolist()


def too_large(config: Config, model_config: Any, plan: Plan) -> str:
    """Why this machine will refuse the run: not an error here, since another machine may be meant."""
    try:
        check_fits(chosen_step(config, model_config, plan.optimizer_bytes, plan.precision, 1), plan.memory_limit)
    except ConfigError as error:
        return f"this machine will not train it: {error}"
    raise AssertionError(plan)


def used_units(config: Config) -> set[str]:
    """Units of every length that the plan turns into steps."""
    evaluation = config.evaluation
    lengths = (config.training.duration, config.logging.every, config.logging.layers_every, config.checkpoint.every)
    lengths = (*lengths, evaluation.every, evaluation.samples.every)
    schedules = (config.schedule, *config.optimizer.schedules().values())
    return {length.unit for length in lengths if length is not None}.union(*(each.units() for each in schedules))
