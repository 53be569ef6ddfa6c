"""How much memory a training step takes at its peak, from the config alone.

A step has moments that can be its peak: what the optimizer makes anew before it, now and then; the loss (all
activations and the logits); the gradient of the first block that gets one (all activations and what passes there); that
of the last one (all gradients); the optimizer's update. The peak is the largest of them, never their sum. Activations
come from models/activation_memory.py; the rest is here, with the reason beside each count. The test holds it within
15 % of MLX's own counter on a CPU; on GPUs and in half precision it is derived, not measured. What to do when it is too
much: core/memory_remedies.py.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from core.config import Config
from core.objectives.denoise import DenoiseConfig
from core.objectives.linear_cross_entropy import MAX_PIECES, PIECE, auto_chunk_size
from models.activation_memory import ActivationMemory, Work, activation_memory
from models.decoder_config import DecoderConfig, parameter_shapes
from utils.chips import Chip, this_chip
from utils.memory import format_bytes, memory_limit

FLOAT32 = 4
LOGITS_ON_CPU = 8
"""Arrays of all logits that the plain loss makes on a CPU, where nothing is fused: the product, exp in parts forward
and backward, the target's scatter, the gradient and its sum. All are alive at once (models/activation_memory.py).
Measured: 7.9 to 8.0 with vocabularies of 2,048, 8,192 and 16,384 and 512 to 2,048 tokens."""
CHUNK_ON_CPU = 2.75
"""Arrays of one chunk's logits: the product, of which the first pieces are gone at the end, the gradient in pieces, and
joined. Measured: 2.7 with one chunk of 16 and of 32 pieces."""
PIECES_AHEAD = 12
"""Arrays of a piece among the last fifty kernels that belong to the chunk before. Measured: 8 to 18 with chunks of 2 to
32 pieces, vocabularies of 2,048 to 32,768."""
KERNELS_OF_UPDATE = 21
"""Arrays of a parameter's size among the last fifty kernels of an update; the other kernels make scalars."""


class MemoryEstimate(NamedTuple):
    """Bytes alive at the peak of a step, by what they are for; 0 for what is not alive then."""

    moment: str
    """When the peak is."""
    weights: int
    """Float32 masters, and the copy that half precision computes with."""
    optimizer: int
    """Its state, and what it makes anew beside the step."""
    ema: int
    """Averaged weights."""
    gradients: int
    """Float32, those summed over micro-batches among them."""
    activations: int
    """Of the model's blocks; 0 for a model that cannot be counted."""
    logits: int
    """Of the loss."""
    workspace: int
    """What the update makes on its way."""

    @property
    def peak(self) -> int:
        """The sum. MLX's cache of freed buffers comes on top, and goes when memory is short."""
        return sum(self[1:])


class Step(NamedTuple):
    """What decides the memory of a step."""

    config: Config
    model_config: Any
    micro_batch_size: int
    optimizer_bytes: int
    precision: str
    world_size: int = 1
    on_cpu: bool = True
    device_precision: str = "float32"
    """What `training.precision: auto` is on the device."""

    @property
    def itemsize(self) -> int:
        """Bytes of a number of the compute precision."""
        return FLOAT32 if self.precision == "float32" else 2

    @property
    def rows(self) -> int:
        """Sequences of one rank's update."""
        return self.config.rows_per_batch // self.world_size

    def with_changes(self, section: str, **changes: Any) -> "Step":
        """The same step under another config."""
        changed = getattr(self.config, section).model_copy(update=changes)
        return self._replace(config=self.config.model_copy(update={section: changed}))


def step_of(
    config: Config,
    model_config: Any,
    *,
    micro_batch_size: int,
    optimizer_bytes: int,
    precision: str,
    world_size: int = 1,
    chip: Chip | None = None,
) -> Step:
    """The step of a run on `chip`, by default this machine's. `model_config` knows its vocabulary."""
    chip = chip or this_chip()
    known = (config, model_config, micro_batch_size, optimizer_bytes, precision, world_size)
    return Step(*known, on_cpu=chip.kind == "cpu", device_precision=chip.default_precision)


def limit_of(config: Config) -> int:
    """Bytes that the run may take: `training.memory_limit`, or the device's own limit."""
    return config.training.memory_limit or memory_limit()


def estimate_memory(step: Step) -> MemoryEstimate:
    """The largest of the moments of a step."""
    return max(moments(step), key=lambda estimate: estimate.peak)


def moments(step: Step) -> Iterator[MemoryEstimate]:
    """Each moment that can be the peak."""
    masters = FLOAT32 * step.model_config.num_params()
    itemsize = step.itemsize
    weights = masters + (0 if itemsize == FLOAT32 else masters * itemsize // FLOAT32)
    always = {
        "weights": weights,
        "optimizer": step.optimizer_bytes + refresh_bytes(step, on_its_own=False),
        "ema": masters if step.config.training.weight_ema else 0,
    }
    renewal = refresh_bytes(step, on_its_own=True)
    alone = always | {"optimizer": step.optimizer_bytes, "gradients": 0, "activations": 0, "logits": 0}
    yield MemoryEstimate("in a refresh of the optimizer", **alone, workspace=renewal)
    summed = masters if step.micro_batch_size < step.rows else 0
    blocks = activations_of(step)
    loss = loss_memory(step)
    none = {"activations": 0, "logits": 0, "workspace": 0}
    yield MemoryEstimate(
        "in the loss",
        **always,
        **none | {"activations": blocks.kept + (0 if loss.is_chunked else blocks.beside_loss), "logits": loss.logits},
        gradients=summed + loss.gradients,
    )
    # A recomputed block comes on top of what was kept.
    recomputed = blocks.block if step.config.training.recompute_every else 0
    yield MemoryEstimate(
        "in the last block's gradient",
        **always,
        **none | {"activations": blocks.kept + recomputed + blocks.in_backward},
        gradients=summed + loss.gradients,
    )
    yield MemoryEstimate(
        "in the first block's gradient",
        **always,
        **none | {"activations": blocks.block + blocks.in_backward},
        gradients=summed + masters,
    )
    workspace = update_bytes(step, masters)
    yield MemoryEstimate("in the update", **always, **none | {"workspace": workspace}, gradients=masters)


def activations_of(step: Step) -> ActivationMemory:
    """See `activation_memory`; zeros for a model of one's own, which says nothing about its inside."""
    if not isinstance(step.model_config, DecoderConfig):
        return ActivationMemory(0, 0, 0, 0)
    return activation_memory(step.model_config, work_of(step), step.config.training.recompute_every)


def work_of(step: Step) -> Work:
    """One micro-batch of it."""
    objective = step.config.objective
    return Work(
        step.micro_batch_size,
        step.config.data.sequence_length,
        step.itemsize,
        step.on_cpu,
        is_causal=not isinstance(objective, DenoiseConfig),
        has_segments=getattr(objective, "document_mask", False) or step.model_config.attention.needs_segments,
    )


def chunk_size_of(step: Step) -> int | None:
    """Tokens of a chunk of the loss; None: all at once."""
    chunk_size = getattr(step.config.objective, "chunk_size", None)
    num_tokens = step.micro_batch_size * step.config.data.sequence_length
    if chunk_size == "auto":
        return auto_chunk_size(num_tokens, step.model_config.known_vocab_size(), on_gpu=not step.on_cpu)
    return chunk_size


class LossMemory(NamedTuple):
    """Bytes at the loss."""

    logits: int
    """And all that is made of them."""
    gradients: int
    """Of the head, where the loss computes it on its way."""
    is_chunked: bool
    """Chunks take so many kernels that nothing of the blocks passes beside them."""


def loss_memory(step: Step) -> LossMemory:
    """Zeros for a model of one's own, whose vocabulary is not known to be the size of its logits."""
    if not isinstance(step.model_config, DecoderConfig):
        return LossMemory(0, 0, False)
    vocab_size, hidden = step.model_config.known_vocab_size(), step.model_config.hidden_size
    num_tokens = step.micro_batch_size * step.config.data.sequence_length
    itemsize = step.itemsize
    # On a GPU: the product, its float32 copy, the gradient in float32 and in the compute precision.
    fused = 2 * (itemsize + FLOAT32)
    chunk = chunk_size_of(step)
    if chunk is None:
        return LossMemory(num_tokens * vocab_size * (LOGITS_ON_CPU * FLOAT32 if step.on_cpu else fused), 0, False)
    logits = min(chunk, num_tokens) * vocab_size
    alive = FLOAT32 * logits_alive(num_tokens * vocab_size, logits) if step.on_cpu else fused * logits
    # The gradient of the hidden states in chunks, joined, scaled; that of the head while a chunk's is added, and
    # scaled, of which one stays.
    head = FLOAT32 * vocab_size * hidden
    return LossMemory(round(alive) + 3 * num_tokens * hidden * itemsize + head, head, True)


def logits_alive(logits: int, logits_of_chunk: int) -> float:
    """How many numbers of logits a CPU holds: the current chunk's, and what the last pieces made of those before."""
    piece = min(logits_of_chunk, max(PIECE, logits // MAX_PIECES))
    return CHUNK_ON_CPU * logits_of_chunk + min(CHUNK_ON_CPU * (logits - logits_of_chunk), PIECES_AHEAD * piece)


def update_bytes(step: Step, masters: int) -> int:
    """What the optimizer makes on top of weights, state and gradients, whose memory it reuses as it goes.

    As much as the weights for a model of one's own, whose parameters are not known one by one.
    """
    if not isinstance(step.model_config, DecoderConfig):
        return masters * (2 if step.config.training.weight_ema else 1)
    shapes = parameter_shapes(step.model_config)
    ahead = min(masters, KERNELS_OF_UPDATE * masters // len(shapes))
    return ahead + step.config.optimizer.update_bytes(shapes) + (ahead if step.config.training.weight_ema else 0)


def refresh_bytes(step: Step, *, on_its_own: bool) -> int:
    """What the optimizer makes anew: in its own time, or what a step has beside it. 0 for a model of one's own.

    On a CPU a step waits for it and has the results beside it, on a GPU all of it.
    """
    if not isinstance(step.model_config, DecoderConfig):
        return 0
    optimizer, shapes = step.config.optimizer, parameter_shapes(step.model_config)
    waits = step.on_cpu and not on_its_own
    return optimizer.refresh_bytes(shapes) if waits else optimizer.renewal_bytes(shapes, step.on_cpu)


def choose_micro_batch_size(step: Step, limit: int) -> int:
    """The largest divisor of a rank's sequences whose estimate fits into `limit` bytes; 1 when none does."""
    return next((size for size in divisors(step.rows) if fits(step._replace(micro_batch_size=size), limit)), 1)


def divisors(number: int) -> list[int]:
    """All of them, largest first."""
    return [size for size in range(number, 0, -1) if number % size == 0]


def fits(step: Step, limit: int) -> bool:
    """Whether the estimated peak is within `limit` bytes."""
    return estimate_memory(step).peak <= limit


def explain(estimate: MemoryEstimate) -> str:
    """The parts of the peak, for a person."""
    sizes = zip(MemoryEstimate._fields[1:], estimate[1:], strict=True)
    return ", ".join(f"{name} {format_bytes(size)}" for name, size in sizes if size)
