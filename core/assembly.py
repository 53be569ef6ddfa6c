"""From a config to the parts of a run, and from a checkpoint back into them.

`build_parts` wires dataset, model, objective and optimizer in the order in which they need each other: the tokenizer
gives the vocabulary, the vocabulary the model, the model the optimizer's groups. `take_snapshot` and `restore` are
each other's inverse. To make something else part of a checkpoint, add it to both.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from core.agreement import together
from core.checkpoint import Restored, Snapshot
from core.config import Config
from core.guard import Guard, initial_guard
from core.initial_weights import initial_folder, initial_tokenizer, initialise_from
from core.memory_plan import limit_of
from core.memory_remedies import check_fits
from core.objectives.base import Objective, ObjectiveConfig
from core.plan import Plan, chosen_step, make_plan
from core.precision import precision_warning, resolve_precision
from core.self_test import check_device, fused_head_dim
from data.file_sources import TextSourceConfig
from data.mixture import Budget, Mixture
from data.shard_writer import TOKENIZER_FOLDER
from data.text import TextDataConfig
from data.tokenizer import Tokenizer
from models.weights import load_weights
from optimizers.base import Group
from optimizers.schedules import ScheduleConfig
from utils.cli import warn
from utils.errors import CheckpointError, ConfigError, DataError
from utils.fast_blas import fit_threads
from utils.units import format_count

GUARD_PREFIX = "guard."
OPTIMIZER_PREFIX = "optimizer."


class Parts(NamedTuple):
    """What the loop works with."""

    dataset: Any
    model_config: Any
    model: nn.Module
    objective: Objective
    optimizer: Any
    guard: Guard
    ema: dict[str, Any] | None
    """A tree like the model's parameters, or None."""
    plan: Plan


class Progress(NamedTuple):
    """Counters of a run: JSON, and together with `Parts` all that resuming needs."""

    step: int = 0
    tokens: int = 0
    data: dict[str, Any] | None = None
    """The loader's state: where the next batch begins."""
    reported: list[int] | None = None
    """Pairs of each source up to the last row of training in metrics.jsonl."""
    best_loss: float | None = None
    best_step: int | None = None
    """The checkpoint BEST names."""
    evaluations_since_best: int = 0
    evaluated_step: int = -1
    """The step of the last evaluation, so that a resumed run neither skips nor repeats one."""
    skipped_updates: int = 0
    seconds: float = 0.0
    """Time spent training so far, over all starts."""


class Supplies(NamedTuple):
    """Where this machine holds what the config names by paths of another one; None: where the config says."""

    data: Path | None = None
    """A folder of prepared data, made from `data` there."""
    init_from: Path | None = None
    """A copy of the folder that `init_from` means."""


HERE = Supplies()


def build_parts(
    config: Config,
    group: Any,
    tokenizer: Tokenizer | None,
    say: Callable[[str], None],
    *,
    initialise: bool = True,
    supplies: Supplies = HERE,
) -> Parts:
    """All parts of a run at step 0. `tokenizer`: the run's own, when it is resumed; `initialise`: use `init_from`.

    Raises:
        UserError: what can be found out cheaply is found out before the data is prepared.
    """
    with together(group):
        precision = resolve_precision(config.training.precision)
        check_device(precision, fused_head_dim(config.model))
        config.micro_batch_size_of(group.size)
        origin = supplies.init_from or (Path(config.init_from) if config.init_from is not None else None)
        source = initial_folder(origin) if initialise and origin is not None else None
        if tokenizer is None and supplies.data is not None:
            tokenizer = Tokenizer.load(supplies.data / TOKENIZER_FOLDER)
        elif tokenizer is None and origin is not None:
            tokenizer = initial_tokenizer(origin, say)
        refuse_too_large(config, tokenizer, precision, group.size)
    dataset = build_dataset(config, group, tokenizer, say, supplies.data)
    model_config = complete_model_config(config, dataset.tokenizer.vocab_size)
    model = model_config.build(seed=config.seed)
    parameters: dict[str, mx.array] = dict(tree_flatten(model.trainable_parameters()))
    groups = optimizer_groups(config, parameters)
    plan = make_plan(
        config,
        model_config,
        precision=precision,
        optimizer_bytes=count_optimizer_bytes(groups, parameters),
        keeps_average=any(each.average for each in groups),
        world_size=group.size,
        rows_per_epoch=dataset.rows_per_epoch,
    )
    budget = Budget(model_config.num_params(), plan.total_steps * plan.tokens_per_step)
    dataset.set_budget(budget)
    refuse_too_little_data(dataset.mixture(), budget)
    set_recomputation(model, config)
    if source is not None:
        initialise_from(source, model, model_config)
        say(f"weights from {source}")
    objective = config.objective.build(dataset.tokenizer.vocab_size)
    optimizer = config.optimizer.build(model.trainable_parameters())
    if group.is_main and (warning := precision_warning(config.training.precision, precision)):
        warn(warning)
    refuse_blind_patience(config, dataset)
    fit_threads(plan.flops_per_token * plan.micro_batch_size * plan.sequence_length)
    ema = copy_tree(model.trainable_parameters()) if config.training.weight_ema else None
    return Parts(dataset, model_config, model, objective, optimizer, initial_guard(precision), ema, plan)


def refuse_too_little_data(mixture: Mixture, budget: Budget) -> None:
    """Raise ConfigError when all sources stop long before the run ends."""
    held, wanted = mixture.num_tokens(), budget.total_tokens or 0
    if held is not None and held < 0.9 * wanted:
        raise ConfigError(
            f"the sources hold {format_count(held)} tokens and stop (data.mixture.exhausted), the run wants "
            f"{format_count(wanted)}: shorten training.duration, or let them repeat"
        )


def refuse_too_large(config: Config, tokenizer: Tokenizer | None, precision: str, world_size: int) -> None:
    """Raise ConfigError for a step that cannot fit, before the data is prepared, where the vocabulary is known by then.

    A model is described here, not made: its weights are lazy and dropped.
    """
    num_tokens = config.data.expected_vocab_size() if tokenizer is None else tokenizer.vocab_size
    if num_tokens is None:
        return
    model_config = complete_model_config(config, num_tokens)
    parameters = dict(tree_flatten(model_config.build(seed=config.seed).trainable_parameters()))
    optimizer_bytes = count_optimizer_bytes(optimizer_groups(config, parameters), parameters)
    check_fits(chosen_step(config, model_config, optimizer_bytes, precision, world_size), limit_of(config))


def optimizer_groups(config: Config, parameters: dict[str, mx.array]) -> list[Group]:
    """Groups of the optimizer, from arrays that are never evaluated. Raises ConfigError for two averages of weights."""
    groups = config.optimizer.groups({name: array.shape for name, array in parameters.items()})
    averaging = next((group.name for group in groups if group.average), None)
    if averaging is not None and config.training.weight_ema:
        raise ConfigError(
            f"training.weight_ema is {config.training.weight_ema}, but the optimizer's group '{averaging}' keeps an "
            "average of its own, which is what is evaluated and kept: leave training.weight_ema out"
        )
    return groups


def count_optimizer_bytes(groups: Iterable[Group], parameters: dict[str, mx.array]) -> int:
    """Bytes of the optimizer's state, from arrays that are never evaluated."""
    starts = [group.start(parameters[name].shape) for group in groups for name in group.decay]
    return sum(array.nbytes for start in starts for array in start.values())


def average_warnings(groups: Iterable[Group], schedule: ScheduleConfig) -> list[str]:
    """A line when an optimizer that averages in place of a decay gets a schedule that decays."""
    falling = {(group.schedule or schedule).type for group in groups if group.average} - {"constant"}
    return [
        f"schedule {kind} under an optimizer that averages its weights instead: schedule={{type: constant}} suits it"
        for kind in sorted(falling)
    ]


def set_recomputation(model: nn.Module, config: Config) -> None:
    """Activation checkpointing as the config asks. Raises ConfigError when a model of one's own has none."""
    every = config.training.recompute_every
    recompute: Callable[[int], None] | None = getattr(model, "recompute", None)
    if recompute is not None:
        recompute(every)
    elif every:
        asked, kind = config.training.activation_checkpointing, config.model.type
        raise ConfigError(
            f"training.activation_checkpointing is '{asked}', and model type '{kind}' has no `recompute(every)`: "
            "set it to none, or add the method (models/decoder.py shows how)"
        )


def kernel_warnings(config: Config, model_config: Any, precision: str) -> list[str]:
    """Why the model will be slower than it need be on this machine, one line for each cause."""
    document_mask = bool(getattr(config.objective, "document_mask", False))
    return model_config.warnings(config.data.sequence_length, precision, document_mask)


def refuse_blind_patience(config: Config, dataset: Any) -> None:
    """Raise ConfigError when early stopping has nothing to go by."""
    if config.training.early_stopping and not (dataset.validation_bytes and config.evaluation.every):
        raise ConfigError("training.early_stopping needs held-out text and evaluation.every: it counts evaluations")


def build_dataset(
    config: Config, group: Any, tokenizer: Tokenizer | None, say: Callable[[str], None], prepared: Path | None
) -> Any:
    """The dataset on every rank; the main one prepares it, the others find it in the cache."""
    dataset = None
    for is_turn in (group.is_main, not group.is_main):
        with together(group):
            if is_turn:
                dataset = config.data.build(config.seed, tokenizer=tokenizer, report=say, prepared=prepared)
    return dataset


def complete_model_config(config: Config, num_tokens: int) -> Any:
    """The model section with its vocabulary filled in: the tokenizer's, and what the objective reserves.

    Raises:
        ConfigError: `model.vocab_size` is given and too small.
    """
    objective: ObjectiveConfig = config.objective
    needed = num_tokens + objective.num_reserved_tokens
    given = config.model.vocab_size
    if given is None:
        return config.model.model_copy(update={"vocab_size": needed})
    if given < needed:
        raise ConfigError(
            f"model.vocab_size is {given}, and tokenizer and objective need {needed}: raise it, or leave it out"
        )
    return config.model


def averaged_weights(parts: Parts) -> Any | None:
    """What evaluation and generation use, and checkpoints keep beside the raw weights; None: the raw ones."""
    return parts.optimizer.averaged(parts.model.trainable_parameters()) if parts.ema is None else parts.ema


def copy_tree(tree: Any) -> Any:
    """The same arrays in new containers."""
    return tree_map(lambda array: array, tree)


def host_arrays(flat: Any) -> dict[str, np.ndarray]:
    """Views on the host, by name, of (name, array) pairs that nothing changes any more; evaluates them."""
    pairs: list[tuple[str, mx.array]] = list(flat)
    mx.eval([array for _, array in pairs])
    return {name: np.asarray(array) for name, array in pairs}


def take_snapshot(parts: Parts, progress: Progress, *, seed: int, is_best: bool) -> Snapshot:
    """Everything of the run at this step. The arrays are views: MLX arrays never change, they are replaced."""
    state = {OPTIMIZER_PREFIX + name: array for name, array in parts.optimizer.state_dict().items()}
    state |= {GUARD_PREFIX + name: array for name, array in parts.guard.items()}
    averaged = averaged_weights(parts)
    ema = None if averaged is None else host_arrays(tree_flatten(averaged))
    tokenizer: Tokenizer = parts.dataset.tokenizer
    special = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    return Snapshot(
        step=progress.step,
        model=host_arrays(tree_flatten(parts.model.parameters())),
        optimizer=host_arrays(state.items()),
        ema=ema,
        state=progress._asdict()
        | {
            "seed": seed,
            "tokenizer_hash": tokenizer.hash,
            "data_fingerprint": parts.dataset.fingerprint,
            "precision": parts.plan.precision,
        },
        hf_config=parts.model_config.to_hf() | special,
        is_best=is_best,
    )


def restore(parts: Parts, restored: Restored) -> Progress:
    """Put a checkpoint into `parts`, in place.

    Raises:
        CheckpointError: names or shapes do not fit the config.
        DataError: the checkpoint was trained with another tokenizer, or on another corpus.
    """
    tokenizer_hash = restored.state["tokenizer_hash"]
    if tokenizer_hash != parts.dataset.tokenizer.hash:
        raise DataError(
            f"the checkpoint was trained with tokenizer {tokenizer_hash[:12]}, the data has "
            f"{parts.dataset.tokenizer.hash[:12]}: put the run's tokenizer folder back (every checkpoint holds a copy)"
        )
    refuse_other_data(parts.dataset, restored.state)
    load_weights(parts.model, {name: mx.array(array) for name, array in restored.model.items()})
    parts.optimizer.load_state(_without_prefix(restored.optimizer, OPTIMIZER_PREFIX))
    if restored.state["precision"] == parts.plan.precision:
        parts.guard.update(_without_prefix(restored.optimizer, GUARD_PREFIX))
    if parts.ema is not None:
        if restored.ema is None:
            raise CheckpointError("the checkpoint holds no averaged weights, and training.weight_ema asks for them")
        ema = tree_unflatten([(name, mx.array(array)) for name, array in restored.ema.items()])
        parts.ema.update(ema)
    return Progress(**{name: restored.state[name] for name in Progress._fields})


def refuse_other_data(dataset: Any, state: dict[str, Any]) -> None:
    """Raise DataError unless the corpus is the checkpoint's: rows have another order else, and another split."""
    if state["data_fingerprint"] != dataset.fingerprint:
        raise DataError(
            "the corpus has changed since the checkpoint was written, or how it is read (sequence_length, mixture, "
            "packing, weights): put the old files and settings back to resume, or start a new run from these weights "
            "(init_from)"
        )


def _without_prefix(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, mx.array]:
    return {name[len(prefix) :]: mx.array(array) for name, array in arrays.items() if name.startswith(prefix)}


def evaluation_dataset(config: Config, tokenizer: Tokenizer, text: Path | None) -> Any:
    """A run's dataset, or one whose held-out text is the file `text`. Raises DataError when that is missing."""
    data = config.data
    if text is not None:
        if not text.is_file():
            raise DataError(f"there is no file {text} to evaluate on")
        kept = {name: getattr(data, name) for name in ("sequence_length", "cache_dir")}
        most = getattr(data, "validation_max_bytes", TextDataConfig().validation_max_bytes)
        source = TextSourceConfig(path=str(text))
        data = TextDataConfig(sources=(source,), validation_fraction=1.0, validation_max_bytes=most, **kept)
    return data.build(config.seed, tokenizer=tokenizer, report=lambda line: None)
