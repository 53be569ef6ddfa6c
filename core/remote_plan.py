"""The plan of a run on a rented GPU: what it takes there, how long about, and what that costs, before anything is sent.

Parameters, steps and tokens are exact, memory is counted for the card asked for, not for the machine this runs on. Time
is a range, since nobody has measured MLX's training on these cards: the share of a card's peak that training reaches
falls with the card's speed and rises with the model's size, as `share / (1 + scale / (parameters per TFLOP/s))`. The
slower end lies a fifth or more below the three figures there are of MLX on CUDA (mlx #2762: 596M parameters, 25 % of an
A100; #2838: 0.6B, 17 % of a B200; #3130: 3.7B, 25 % of a B200; from before its fused attention backward), the faster
one where llm.c and compiled PyTorch are (124M: 35 % of an A100 and of an H100; nanochat: 50 % of an H100; TinyLlama,
1.1B: 56 % of an A100). Cards with little bandwidth for their peak (L4, L40S) will be nearer to the slower end. To
replace assumptions by measurements, edit `SLOWER`, `FASTER` and `STARTING`.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
from mlx.utils import tree_flatten

from core.assembly import (
    complete_model_config,
    count_optimizer_bytes,
    optimizer_groups,
    refuse_blind_patience,
    refuse_too_little_data,
)
from core.config import Config
from core.memory_plan import MemoryEstimate, Step, choose_micro_batch_size, fits, step_of
from core.memory_remedies import check_fits
from core.plan import Plan, format_duration, make_plan
from core.plan import rows as plan_rows
from core.remote import ATTEMPT_HOURS, CORES, GIB, MOST_RETRIES
from data.mixture import Budget
from utils.chips import TERA
from utils.errors import ConfigError
from utils.gpus import GPUS, PRICES_OF, Gpu, format_dollars, hourly_price
from utils.memory import format_bytes


class Efficiency(NamedTuple):
    """How much of a card's peak training reaches."""

    share: float
    """Of a model that is large for the card."""
    scale: float
    """Millions of parameters for each TFLOP/s at which it is half of that."""

    def of(self, num_params: int, peak: float) -> float:
        """Share of `peak` FLOP/s with so many parameters."""
        return self.share / (1 + self.scale * 1e6 * (peak / TERA) / num_params)


SLOWER, FASTER = Efficiency(0.20, 0.16), Efficiency(0.58, 0.082)
STARTING = 30.0, 300.0
"""Seconds of an attempt before it trains: the container, the test of a new image, the run folder. Assumed."""


class RemotePlan(NamedTuple):
    """What a run takes on a GPU."""

    plan: Plan
    """As the container will make it."""
    gpu: Gpu
    summary: dict[str, Any]
    """Of the data."""
    first_step: int
    """Where it goes on."""
    flops: float
    """What is left: training, recomputation and evaluation."""
    hourly: float | None
    """Dollars for an hour of the container; None: not known."""
    max_hours: float | None
    """`--max-hours`."""
    attempt_hours: float = ATTEMPT_HOURS
    """What one container may take."""
    most_attempts: int = MOST_RETRIES + 1
    """Containers that fail or run out of time, one after the other; those that Modal interrupts are not counted."""

    @property
    def peak(self) -> float | None:
        """FLOP/s of the card; None: not known in this precision."""
        return self.gpu.chip.peaks.get(self.plan.precision)

    @property
    def shares(self) -> tuple[float, float] | None:
        """Of the peak, that it is assumed to reach: slower, faster."""
        if self.peak is None:
            return None
        return SLOWER.of(self.plan.num_params, self.peak), FASTER.of(self.plan.num_params, self.peak)

    @property
    def seconds(self) -> tuple[float, float] | None:
        """From the first container's start to the last one's end, at best and at worst; None: cannot be said."""
        if self.peak is None or self.shares is None:
            return None
        slower, faster = (self.flops / (self.peak * share) for share in self.shares)
        quick, slow = STARTING
        return faster + quick * self.attempts_of(faster), slower + slow * self.attempts_of(slower)

    @property
    def dollars(self) -> tuple[float, float] | None:
        """What that costs."""
        if self.seconds is None or self.hourly is None:
            return None
        return self.seconds[0] / 3600 * self.hourly, self.seconds[1] / 3600 * self.hourly

    def attempts_of(self, seconds: float) -> int:
        """Containers one after the other that so long takes."""
        return max(1, math.ceil(seconds / (self.attempt_hours * 3600)))


def plan_remote(
    config: Config,
    dataset: Any,
    gpu: Gpu,
    *,
    max_hours: float | None = None,
    first_step: int = 0,
    region: str | None = None,
    cores: float = CORES,
    gib: float = GIB,
    attempt_hours: float = ATTEMPT_HOURS,
    most_attempts: int = MOST_RETRIES + 1,
) -> RemotePlan:
    """Plan `config` on `gpu`, from `first_step` on, with the prepared data.

    Raises:
        ConfigError: a step does not fit the card, or what a training would refuse here as well.
    """
    model_config, optimizer_bytes, keeps_average = described(config, dataset.tokenizer.vocab_size)
    step = step_on(gpu, config, model_config, optimizer_bytes)
    memory = check_gpu(step, gpu)
    plan = make_plan(
        config,
        model_config,
        precision=step.precision,
        optimizer_bytes=optimizer_bytes,
        rows_per_epoch=dataset.rows_per_epoch,
        keeps_average=keeps_average,
        must_fit=False,
    )
    # The rest of it holds for any machine.
    plan = plan._replace(
        micro_batch_size=step.micro_batch_size,
        memory=memory,
        memory_limit=limit_on(gpu, config),
        attention=None,
    )
    budget = Budget(plan.num_params, plan.total_tokens)
    dataset.set_budget(budget)
    refuse_too_little_data(dataset.mixture(), budget)
    refuse_blind_patience(config, dataset)
    summary = dataset.summary()
    flops = flops_left(plan, config.training.recompute_every, summary["validation_tokens"], first_step)
    hourly = hourly_price(gpu, cores, gib, region)
    return RemotePlan(plan, gpu, summary, first_step, flops, hourly, max_hours, attempt_hours, most_attempts)


def described(config: Config, num_tokens: int) -> tuple[Any, int, bool]:
    """The model with its vocabulary, bytes of the optimizer's state, whether it averages weights; nothing is made."""
    model_config = complete_model_config(config, num_tokens)
    parameters: dict[str, mx.array] = dict(tree_flatten(model_config.build(seed=config.seed).trainable_parameters()))
    groups = optimizer_groups(config, parameters)
    return model_config, count_optimizer_bytes(groups, parameters), any(group.average for group in groups)


def check_before_data(config: Config, gpu: Gpu, num_tokens: int | None = None) -> None:
    """Raise ConfigError for a step that cannot fit `gpu`, where the vocabulary is known before the data is prepared.

    `num_tokens`: of a tokenizer that is there already.
    """
    num_tokens = num_tokens or config.data.expected_vocab_size()
    if num_tokens is not None:
        model_config, optimizer_bytes, _ = described(config, num_tokens)
        check_gpu(step_on(gpu, config, model_config, optimizer_bytes), gpu)


def limit_on(gpu: Gpu, config: Config) -> int:
    """Bytes that the run may take there: the config's limit, or what the card lets it, whichever is less."""
    return min(config.training.memory_limit or gpu.memory_limit, gpu.memory_limit)


def step_on(gpu: Gpu, config: Config, model_config: Any, optimizer_bytes: int) -> Step:
    """A step as training makes it on `gpu`, whatever this machine is."""
    step = step_of(
        config,
        model_config,
        micro_batch_size=config.micro_batch_size_of(1),
        optimizer_bytes=optimizer_bytes,
        precision=gpu.precision(config.training.precision),
        chip=gpu.chip,
    )
    if config.training.micro_batch_size != "auto":
        return step
    # A limit above what the card has is what training chooses by, all the same.
    limit = config.training.memory_limit or gpu.memory_limit
    return step._replace(micro_batch_size=choose_micro_batch_size(step, limit))


def check_gpu(step: Step, gpu: Gpu) -> MemoryEstimate:
    """The memory of a step on `gpu`. Raises ConfigError when it is too much, with settings and cards that would do."""
    limit, config = limit_on(gpu, step.config), step.config
    of_card = step.with_changes("training", memory_limit=None) if limit == gpu.memory_limit else step
    try:
        return check_fits(of_card, limit)
    except ConfigError as error:
        roomier = cheapest_that_fits(config, step.model_config, step.optimizer_bytes)
        other = "" if roomier is None else f"; as it is, it fits --gpu {roomier.name}"
        raise ConfigError(f"--gpu {gpu.name}: {error}{other}") from error


def cheapest_that_fits(config: Config, model_config: Any, optimizer_bytes: int) -> Gpu | None:
    """The card with the lowest price that a step fits; those without a price come last."""
    cards = sorted(GPUS.values(), key=lambda gpu: gpu.dollars_per_hour or math.inf)
    for gpu in cards:
        if fits(step_on(gpu, config, model_config, optimizer_bytes), limit_on(gpu, config)):
            return gpu
    return None


def flops_left(plan: Plan, recompute_every: int, validation_tokens: int, first_step: int) -> float:
    """Work from `first_step` on. The forward pass is a third of a step: what recomputed blocks and evaluations take."""
    steps = max(0, plan.total_steps - first_step)
    again = 1 / (3 * recompute_every) if recompute_every else 0.0
    training = plan.flops_per_token * plan.tokens_per_step * steps * (1 + again)
    period = plan.periods.evaluate
    evaluations = 0 if period is None else plan.total_steps // period - min(first_step, plan.total_steps) // period
    return training + evaluations * validation_tokens * plan.flops_per_token / 3


def rows(remote: RemotePlan) -> list[tuple[str, str]]:
    """What is printed before anything is sent; the rows of a plan but for those that describe this machine."""
    plan, gpu = remote.plan, remote.gpu
    here = [row for row in plan_rows(plan, Path(), remote.summary) if row[0] != "disk"]
    if remote.first_step:
        left = max(0, plan.total_steps - remote.first_step)
        here.append(("left", f"{left:,} steps from step {remote.first_step:,} on"))
    return [
        *here,
        ("volume", f"up to {format_bytes(plan.disk_bytes)} for checkpoints"),
        ("GPU", f"{gpu.name}, {format_bytes(gpu.memory)}" + (f"; {gpu.note}" if gpu.note else "")),
        ("time", time_of(remote)),
        ("cost", cost_of(remote)),
        ("at most", most_of(remote)),
    ]


def time_of(remote: RemotePlan) -> str:
    """The range, and what it assumes."""
    if remote.seconds is None or remote.shares is None or remote.peak is None:
        return f"not known: {remote.gpu.name} has no peak in {remote.plan.precision} to reckon with"
    low, high = (format_duration(seconds) for seconds in remote.seconds)
    slower, faster = (f"{100 * share:.2g} %" for share in remote.shares)
    return (
        f"{low} to {high} with starting, if training reaches {faster} to {slower} of {remote.peak / TERA:,g} TFLOP/s: "
        "assumed, nobody has measured it"
    )


def cost_of(remote: RemotePlan) -> str:
    """The range in dollars."""
    if remote.hourly is None:
        return f"not known: no price of {remote.gpu.name}; see modal.com/pricing"
    hourly = f"{format_dollars(remote.hourly)} an hour with cores and memory, list price of {PRICES_OF}"
    if remote.dollars is None:
        return hourly
    low, high = (format_dollars(dollars) for dollars in remote.dollars)
    return f"{low} to {high}, at {hourly}"


def most_of(remote: RemotePlan) -> str:
    """Where it stops whatever happens, and what has been spent then."""
    every_attempt = remote.attempt_hours * remote.most_attempts
    hours = min(remote.max_hours or every_attempt, every_attempt)
    low, high = (seconds / 3600 for seconds in remote.seconds or (0, math.inf))
    text = "1 hour" if hours == 1 else f"{hours:g} hours"
    if hours > remote.attempt_hours:
        text += f" in {remote.attempts_of(hours * 3600)} attempts of {remote.attempt_hours:g} or less"
    if remote.max_hours is None:
        text += ", those that Modal interrupts not counted,"
    if remote.hourly is not None:
        text += f" = {format_dollars(hours * remote.hourly)}"
    if hours < low:
        return text + "; the run takes longer: what it has saved by then stays, and --resume goes on from it"
    if hours < high < math.inf:
        return text + "; should the run take longer, --resume goes on from what it has saved"
    if remote.max_hours is None:
        limit = "" if math.isinf(high) else f" {math.ceil(high)}"
        return text + f"; --max-hours{limit} stops it earlier"
    return text
