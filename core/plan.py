"""The plan of a run: what will happen, in numbers, before anything is spent.

Parameters, tokens and steps are exact: the loop takes them from here. Memory (core/memory_plan.py) and time are
estimates and say so. The disk a run needs is checked against what is free. To add a line, add a field to `Plan` and a
row to `rows`.
"""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

from core.config import Config
from core.memory_plan import (
    MemoryEstimate,
    Step,
    choose_micro_batch_size,
    estimate_memory,
    explain,
    limit_of,
    step_of,
)
from core.memory_remedies import check_fits
from optimizers.schedules import Timeline
from utils.errors import ConfigError
from utils.memory import cache_bytes, format_bytes
from utils.units import Duration, format_count

POORLY_PACKED = 0.95


class Periods(NamedTuple):
    """How often each periodic thing happens, in steps; None: never."""

    log: int
    evaluate: int | None
    sample: int | None
    checkpoint: int | None
    layers: int | None


class Plan(NamedTuple):
    """Everything the loop counts by."""

    num_params: int
    sequence_length: int
    batch_size: int
    micro_batch_size: int
    world_size: int
    total_steps: int
    timeline: Timeline
    """What the schedules count by."""
    warmup_steps: int
    periods: Periods
    rows_per_epoch: int | None
    flops_per_token: int
    optimizer_bytes: int
    checkpoint_bytes: int
    num_checkpoints: int
    precision: str
    attention: str | None
    """Which attention runs on this machine, and why."""
    memory: MemoryEstimate
    """The peak of a step."""
    memory_limit: int
    """Bytes the run may take."""
    chose_micro_batch: bool
    """Whether `micro_batch_size` is the largest that fits, as `auto` asks."""

    @property
    def tokens_per_step(self) -> int:
        """Positions of one update over all ranks, padding (under 1 %) among them."""
        return self.batch_size * self.sequence_length

    @property
    def total_tokens(self) -> int:
        """Positions of the whole run."""
        return self.total_steps * self.tokens_per_step

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches one rank sums for one update."""
        return self.batch_size // self.world_size // self.micro_batch_size

    @property
    def disk_bytes(self) -> int:
        """Most that checkpoints take: all kept ones, the best, and the one being written."""
        return self.checkpoint_bytes * (self.num_checkpoints + 1)

    @property
    def total_flops(self) -> int:
        """Forward and backward, without recomputation."""
        return self.flops_per_token * self.total_tokens


def due(period: int | None, step: int) -> bool:
    """Whether something that happens every `period` steps happens after update `step` (counted from 1)."""
    return period is not None and step % period == 0


def make_plan(
    config: Config,
    model_config: Any,
    *,
    precision: str,
    optimizer_bytes: int,
    world_size: int = 1,
    rows_per_epoch: int | None = None,
    keeps_average: bool = False,
    steps_are_known: bool = True,
    must_fit: bool = True,
) -> Plan:
    """Count steps, periods and memory.

    Args:
        keeps_average: whether the optimizer has averaged weights, which checkpoints hold as they hold weight_ema's.
        steps_are_known: False for a dry run in epochs, whose real length only the data tells.
        must_fit: False for a dry run of what another machine is to train.

    Raises:
        ConfigError: a batch does not divide, warm-up fills the run, or a step does not fit into the memory.
    """
    length = config.data.sequence_length
    num_params = model_config.num_params()
    batch_size = config.rows_per_batch

    steps = step_counter(config, num_params, rows_per_epoch)
    total = steps("training.duration", config.training.duration) or 0
    if total < 1:
        raise ConfigError(f"training.duration: {config.training.duration} is no update at all; give at least 1 step")
    timeline = Timeline(total, batch_size * length, num_params, rows_per_epoch, batch_size)
    warmup = check_schedules(config, timeline, steps_are_known)
    model_bytes = 4 * num_params
    ema_bytes = model_bytes if config.training.weight_ema or keeps_average else 0
    step = chosen_step(config, model_config, optimizer_bytes, precision, world_size)
    limit = limit_of(config)
    return Plan(
        num_params=num_params,
        sequence_length=length,
        batch_size=batch_size,
        micro_batch_size=step.micro_batch_size,
        world_size=world_size,
        total_steps=total,
        timeline=timeline,
        warmup_steps=warmup,
        periods=periods_of(config, steps, total),
        rows_per_epoch=rows_per_epoch,
        flops_per_token=model_config.flops_per_token(length),
        optimizer_bytes=optimizer_bytes,
        checkpoint_bytes=model_bytes + optimizer_bytes + ema_bytes,
        num_checkpoints=config.checkpoint.keep_last + config.checkpoint.keep_best,
        precision=precision,
        attention=model_config.explain_kernels(length),
        memory=check_fits(step, limit) if must_fit else estimate_memory(step),
        memory_limit=limit,
        chose_micro_batch=config.training.micro_batch_size == "auto",
    )


def chosen_step(config: Config, model_config: Any, optimizer_bytes: int, precision: str, world_size: int) -> Step:
    """What decides the memory of a step, with the micro-batch that `auto` stands for."""
    step = step_of(
        config,
        model_config,
        micro_batch_size=config.micro_batch_size_of(world_size),
        optimizer_bytes=optimizer_bytes,
        precision=precision,
        world_size=world_size,
    )
    if config.training.micro_batch_size != "auto":
        return step
    return step._replace(micro_batch_size=choose_micro_batch_size(step, limit_of(config)))


def step_counter(config: Config, num_params: int, rows_per_epoch: int | None) -> Callable[..., int | None]:
    """A function `(key, length, total_steps=None) -> steps` that names the key in its ConfigError."""

    def steps(key: str, duration: Duration | None, total_steps: int | None = None) -> int | None:
        if duration is None:
            return None
        try:
            return duration.to_steps(
                tokens_per_step=config.rows_per_batch * config.data.sequence_length,
                num_params=num_params,
                rows_per_epoch=rows_per_epoch,
                batch_size=config.rows_per_batch,
                total_steps=total_steps,
            )
        except ValueError as error:
            raise ConfigError(f"{key}: {error}") from error

    return steps


def check_schedules(config: Config, timeline: Timeline, steps_are_known: bool) -> int:
    """Updates of the run's warm-up. Raises ConfigError when a schedule's parts do not fit into the run."""
    schedules = {"": config.schedule, **config.optimizer.schedules()}
    for where, schedule in schedules.items() if steps_are_known else ():
        try:
            schedule.multiplier(0, timeline)
        except ValueError as error:
            raise ConfigError(f"{where}{error}") from error
    try:
        return config.schedule.warmup_steps(timeline)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def periods_of(config: Config, steps: Callable[..., int | None], total_steps: int) -> Periods:
    """How often the config wants each thing, in steps, of which there is at least one between two times."""

    def period(key: str, duration: Duration | None) -> int | None:
        found = steps(key, duration, total_steps)
        return None if found is None else max(1, found)

    return Periods(
        log=period("logging.every", config.logging.every) or 1,
        evaluate=period("evaluation.every", config.evaluation.every),
        sample=period("evaluation.samples.every", config.evaluation.samples.every),
        checkpoint=period("checkpoint.every", config.checkpoint.every),
        layers=period("logging.layers_every", config.logging.layers_every),
    )


def rows(
    plan: Plan, out_dir: Path, summary: dict[str, Any] | None = None, gflops: float | None = None
) -> list[tuple[str, str]]:
    """What is printed before training; `summary` describes the data."""
    batch = f"{plan.batch_size} x {plan.sequence_length} tokens"
    if plan.num_micro_batches > 1 or plan.world_size > 1:
        batch += f" = {plan.world_size} rank(s) x {plan.num_micro_batches} x {plan.micro_batch_size}"
    if plan.chose_micro_batch:
        batch += f"; {plan.micro_batch_size} at once is the largest divisor of the batch that fits"
    lines = [
        *(data_rows(summary) if summary else []),
        ("parameters", f"{plan.num_params:,} ({format_count(plan.num_params)})"),
        ("batch", batch),
        ("steps", f"{plan.total_steps:,}, {plan.warmup_steps:,} of them warm-up"),
        ("tokens", f"{plan.total_tokens:,} ({plan.total_tokens / plan.num_params:.2g} per parameter)"),
    ]
    if plan.rows_per_epoch:
        lines.append(("epochs", f"{plan.total_steps * plan.batch_size / plan.rows_per_epoch:.2f}"))
    lines += [
        ("precision", plan.precision),
        *([("attention", plan.attention)] if plan.attention else []),
        *memory_rows(plan),
        ("disk", f"{format_bytes(plan.disk_bytes)} for checkpoints, {format_bytes(free_bytes(out_dir))} free"),
        ("compute", f"{plan.total_flops:.2e} FLOP"),
    ]
    if gflops:
        lines.append(("time", f"about {format_duration(estimate_seconds(plan, gflops))}, a rough estimate"))
    return lines


def memory_rows(plan: Plan) -> list[tuple[str, str]]:
    """The peak of a step, what it is made of, and what may come on top."""
    peak, limit, cache = (
        format_bytes(n) for n in (plan.memory.peak, plan.memory_limit, cache_bytes(plan.memory_limit, plan.memory.peak))
    )
    return [
        ("memory", f"about {peak} of {limit} at the peak of a step, {plan.memory.moment}"),
        ("", explain(plan.memory)),
        ("", f"MLX keeps up to {cache} of freed memory for the next step, while nothing else needs it"),
    ]


def data_rows(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """The corpus, from `Dataset.summary()`."""
    packed = f"{summary['rows_per_epoch']:,} rows, {summary['packed_fraction']:.2%} of their positions are text"
    if summary["packed_fraction"] < POORLY_PACKED:
        packed += "; data.packing={method: concat} fills them, a longer data.sequence_length wastes less"
    names = ["mixture", *[""] * len(summary["mixture"])]
    return [
        (
            "training text",
            f"{summary['train_documents']:,} documents, {format_bytes(summary['train_bytes'])}, "
            f"{summary['train_tokens']:,} tokens an epoch",
        ),
        (
            "held-out text",
            f"{summary['validation_documents']:,} documents, {format_bytes(summary['validation_bytes'])}",
        ),
        ("tokenizer", f"{summary['vocab_size']:,} tokens, {summary['bytes_per_token']:.2f} bytes per token"),
        ("packed rows", packed),
        *zip(names, summary["mixture"], strict=False),
    ]


def disk_warning(plan: Plan, out_dir: Path) -> str | None:
    """A line when the disk cannot hold the run's checkpoints."""
    free = free_bytes(out_dir)
    if free >= plan.disk_bytes:
        return None
    return (
        f"checkpoints need {format_bytes(plan.disk_bytes)} in {out_dir}, {format_bytes(free)} are free: "
        "lower checkpoint.keep_last or choose another out_dir"
    )


def compiler_warning(compiles: bool) -> str | None:
    """A line when MLX cannot compile for this CPU: it then runs every operation by itself."""
    if not compiles or mx.default_device().type != mx.DeviceType.cpu or shutil.which("g++"):
        return None
    return (
        "no C++ compiler (g++) found, so training runs uncompiled and slower: install one, for example apt install g++"
    )


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk that will hold `folder`."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free


def estimate_seconds(plan: Plan, gflops: float) -> float:
    """Time at half of the measured matrix-product rate, which is what small models reach."""
    return plan.total_flops / (gflops * 1e9 * plan.world_size * 0.5)


def format_duration(seconds: float) -> str:
    """`3 minutes`, `2.5 hours`, `4.1 days`."""
    for name, scale in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 1.5 * scale:
            return f"{seconds / scale:.2g} {name}" if seconds / scale < 100 else f"{seconds / scale:,.0f} {name}"
    return "1 second" if seconds <= 1 else f"{math.ceil(seconds)} seconds"
