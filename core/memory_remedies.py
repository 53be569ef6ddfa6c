"""A step that does not fit into the memory: refused before anything is allocated, with the settings that make it fit.

Every setting named is tried in the planner first, and is named with the estimate it gives. Those that change time and
memory only come before those that change what is trained; where none suffices alone, the cheapest set that does is
found by adding them in that order and then leaving out, from the dearest on, what turns out not to be needed. To offer
another way out, write a `Way` and put it into `WAYS`.
"""

from collections.abc import Callable
from typing import NamedTuple

from core.memory_plan import (
    FLOAT32,
    MemoryEstimate,
    Step,
    choose_micro_batch_size,
    chunk_size_of,
    estimate_memory,
    explain,
    fits,
    work_of,
)
from models.activation_memory import attention_path
from models.attention.flash_attention import FlashAttentionConfig
from models.attention.flex_attention import FlexAttentionConfig
from models.decoder_config import DecoderConfig
from utils.errors import ConfigError
from utils.memory import format_bytes

CHUNK = 256
"""Tokens of a chunk of the loss that a person is advised."""
SHORTEST_ROW = 128


def check_fits(step: Step, limit: int) -> MemoryEstimate:
    """The estimate. Raises ConfigError when it is above `limit` bytes, with the settings that would make it fit."""
    masters = FLOAT32 * step.model_config.num_params()
    if limit < masters:
        name = "training.memory_limit" if step.config.training.memory_limit else "the memory of this machine"
        raise ConfigError(
            f"{name}, {format_bytes(limit)}, is less than the weights alone, {format_bytes(masters)}; "
            "give more, or choose a smaller model"
        )
    estimate = estimate_memory(step)
    if estimate.peak > limit:
        raise ConfigError(
            f"a step needs about {format_bytes(estimate.peak)}, {estimate.moment} ({explain(estimate)}), and the limit "
            f"is {format_bytes(limit)}; {ways_out(step, limit)}"
        )
    return estimate


class Remedy(NamedTuple):
    """A setting that saves memory, and the step under it."""

    name: str
    step: Step


Way = Callable[[Step, int], Remedy | None]


def chunked_loss(step: Step, limit: int) -> Remedy | None:
    """Never all logits at once: the same numbers in the same time."""
    num_tokens = step.micro_batch_size * step.config.data.sequence_length
    if "chunk_size" not in type(step.config.objective).model_fields or (chunk_size_of(step) or num_tokens) <= CHUNK:
        return None
    return Remedy(f"objective.chunk_size: {CHUNK}", step.with_changes("objective", chunk_size=CHUNK))


def smaller_micro_batch(step: Step, limit: int) -> Remedy | None:
    """The same numbers, a little slower."""
    size = choose_micro_batch_size(step, limit)
    if size >= step.micro_batch_size:
        return None
    changed = step.with_changes("training", micro_batch_size=size)
    return Remedy(f"training.micro_batch_size: {size}", changed._replace(micro_batch_size=size))


def linear_attention(step: Step, limit: int) -> Remedy | None:
    """The same numbers without the square of the length; None where the scores are not held, or flex makes them."""
    model_config = step.model_config
    if not isinstance(model_config, DecoderConfig) or isinstance(model_config.attention, FlexAttentionConfig):
        return None
    changed = step._replace(model_config=model_config.model_copy(update={"attention": FlashAttentionConfig()}))
    # What drops weights holds them with any type, and flash writes few queries out.
    if not has_scores(step) or has_scores(changed):
        return None
    return Remedy("model.attention.type: flash", changed)


def has_scores(step: Step) -> bool:
    """Whether attention holds the scores of whole rows."""
    return attention_path(step.model_config, work_of(step)) in ("square", "triangle")


def recomputation(every: int, text: str) -> Way:
    """The same numbers for up to a third more time."""

    def way(step: Step, limit: int) -> Remedy | None:
        if not isinstance(step.model_config, DecoderConfig) or 0 < step.config.training.recompute_every <= every:
            return None
        changed = step.with_changes("training", activation_checkpointing=text)
        return Remedy(f"training.activation_checkpointing: {text}", changed)

    return way


def shorter_rows(step: Step, limit: int) -> Remedy | None:
    """Half the length, or a quarter, and so on: the model sees less context."""
    length, remedy = step.config.data.sequence_length // 2, None
    while length >= SHORTEST_ROW:
        remedy = Remedy(f"data.sequence_length: {length}", step.with_changes("data", sequence_length=length))
        if fits(remedy.step, limit):
            break
        length //= 2
    return remedy


def half_precision(step: Step, limit: int) -> Remedy | None:
    """Where the device computes in it by itself."""
    if step.precision != "float32" or step.device_precision == "float32":
        return None
    return Remedy(f"training.precision: {step.device_precision}", step._replace(precision=step.device_precision))


def no_averaged_weights(step: Step, limit: int) -> Remedy | None:
    """A model without them."""
    if not step.config.training.weight_ema:
        return None
    return Remedy("training.weight_ema: null", step.with_changes("training", weight_ema=None))


SAME_NUMBERS: tuple[Way, ...] = (
    chunked_loss,
    smaller_micro_batch,
    linear_attention,
    recomputation(2, "every 2"),
    recomputation(1, "all"),
)
"""Ways that change time and memory only, in order of the time they cost."""
WAYS: tuple[Way, ...] = (*SAME_NUMBERS, shorter_rows, half_precision, no_averaged_weights)
"""All, in order of what they cost a person."""


def ways_out(step: Step, limit: int) -> str:
    """The settings that alone make it fit, cheapest first, or those that do together; each with its estimate."""
    alone = [remedy for way in WAYS if (remedy := way(step, limit)) and fits(remedy.step, limit)]
    listed = "; ".join(f"{name} ({size_of(changed)})" for name, changed in alone)
    if any(way(step, limit) in alone for way in SAME_NUMBERS):
        return f"each of these makes it fit, the cheapest first: {listed}"
    names, changed = together(step, limit)
    if fits(changed, limit) and names != [name for name, _ in alone][:1]:
        return f"these make it fit together ({size_of(changed)}): {'; '.join(names)}" + (
            f"; each of these alone: {listed}" if alone else ""
        )
    if alone:
        return f"each of these makes it fit, the cheapest first: {listed}"
    return (
        f"with all that saves memory ({'; '.join(names)}) it would still be {size_of(changed)}: "
        "choose a smaller model or a larger device"
    )


def size_of(step: Step) -> str:
    """The estimated peak, for a person."""
    return format_bytes(estimate_memory(step).peak)


def together(step: Step, limit: int) -> tuple[list[str], Step]:
    """The cheapest ways that fit together, without those that turn out not to be needed, and the step with them."""
    ways: list[Way] = []
    for way in WAYS:
        if fits(applied(step, ways, limit)[1], limit):
            break
        ways.append(way)
    for way in reversed(tuple(ways)):  # What costs most is left out first.
        others = [other for other in ways if other is not way]
        if fits(applied(step, others, limit)[1], limit):
            ways = others
    return applied(step, ways, limit)


def applied(step: Step, ways: list[Way], limit: int) -> tuple[list[str], Step]:
    """Names of the settings that `ways` change one after the other, and the step under all of them.

    The micro-batch is chosen last, under all the others, so that it is no smaller than it must be.
    """
    names = {}
    for way in sorted(ways, key=lambda way: way is smaller_micro_batch):
        if remedy := way(step, limit):
            # `activation_checkpointing: all` replaces `every 2`.
            names[remedy.name.split(":")[0]], step = remedy
    return list(names.values()), step
