"""`--dry-run`: check everything that can be checked and print the plan, allocating nothing.

Models are counted by formula; MLX is lazy, so parameters and optimizer state are described but never made. Data or a
tokenizer that is not there yet is a warning here, because a config is often checked before its corpus is downloaded.
"""

from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from core.assembly import complete_model_config, count_optimizer_bytes, kernel_warnings
from core.config import Config
from core.memory_remedies import check_fits
from core.plan import Plan, chosen_step, disk_warning, make_plan, rows
from core.precision import precision_warning, resolve_precision
from core.progress import show_rows
from core.run import run_folder
from utils.cli import warn
from utils.errors import ConfigError


def dry_run(config: Config) -> int:
    """Print the plan of `config`; 0. Raises ConfigError for what cannot work on any machine."""
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
    plan = make_plan(
        config,
        model_config,
        precision=precision,
        optimizer_bytes=count_optimizer_bytes(config, parameters),
        rows_per_epoch=config.rows_per_batch if counts_epochs else None,
        steps_are_known=not counts_epochs,
        must_fit=config.training.memory_limit is not None,
    )
    vocabulary = [("vocabulary", f"{model_config.vocab_size:,} ({num_tokens:,} of the tokenizer)")]
    print(f"plan of {run_folder(config)} (dry run: nothing is allocated or written)")
    print(show_rows([*vocabulary, *rows(plan, Path(config.out_dir))]))
    slow = precision_warning(config.training.precision, precision)
    if plan.memory.peak > plan.memory_limit:
        warnings.append(too_large(config, model_config, plan))
    warnings += kernel_warnings(config, model_config, precision)
    for line in (*warnings, slow, disk_warning(plan, Path(config.out_dir))):
        if line:
            warn(line)
    return 0


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
    schedules = (config.schedule, *config.optimizer.schedules())
    return {length.unit for length in lengths if length is not None}.union(*(each.units() for each in schedules))
