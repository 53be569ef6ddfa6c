"""How much memory the blocks of a decoder take during one micro-batch, from its config alone: no array is made.

Two kinds of memory. What automatic differentiation *keeps* of each block until its gradient is due: counted array by
array in `block_memory`. What only *passes*: arrays that are read once. MLX frees those late, because it issues
operations ahead of the device (on a CPU about fifty kernels, on a GPU as many as command buffers hold), so what the
last fifty kernels made is alive at once, and around the loss that is nearly all they made. The counts in `PASSING`
are of arrays in that window, found with mlx 0.32.4 on a CPU by making one size of a model large at a time; half
precision and the fused kernels of GPUs are derived, not measured. Which way attention goes is asked of the functions
that choose it in models/attention. To correct a term, edit it here: tests/test_core_memory_plan.py compares the sum
with MLX's own counter.

Units: bytes. D, F, Q, G are one array [B, L, hidden | intermediate | query heads | key/value heads]; S are the scores.
"""

import platform
from typing import Literal, NamedTuple

import mlx.core as mx

from models.attention import auto_attention
from models.attention.auto_attention import AutoAttentionConfig
from models.attention.block_attention import block_size
from models.attention.blocks import layout_of
from models.attention.blockwise import CPU_TILE_BYTES, GPU_TILE_BYTES, MOST_TILES
from models.attention.flash_attention import Call, FlashAttentionConfig, choose_path, device_kind
from models.attention.flex_attention import FEW_QUERIES, FlexAttentionConfig, fitting_block_size
from models.attention.flex_mask import Shape, fold
from models.attention.mask import Mask
from models.attention.mods import Mods
from models.attention.tiles import tile_slices
from models.decoder_config import DecoderConfig

Path = Literal["square", "triangle", "tiles", "fused"]
"""What attention holds of its scores: all, those of causal blocks, one tile's at a time, or none."""
FLOAT32 = 4

TILES_AHEAD = 16
"""Arrays of one tile's scores among the last fifty kernels, about eight for each of two tiles. Measured: 14 to 17 at
512, 1024 and 2048 positions, 8 heads of 4, one block and two, flash and ALiBi."""
BESIDE_TILES = 4
"""Arrays of kind D that pass beside them. Measured: 4 to 6 with hidden size 128 at 1024 and 2048 positions."""


class Sizes(NamedTuple):
    """Bytes of one array of each kind, or a number of such arrays."""

    D: float
    F: float
    Q: float
    G: float
    S: float

    def of(self, counts: "Sizes") -> int:
        """Bytes of so many arrays of each kind."""
        return round(sum(size * count for size, count in zip(self, counts, strict=True)))


class ActivationMemory(NamedTuple):
    """Bytes, for one micro-batch."""

    kept: int
    """Of all blocks, from the forward to the backward pass."""
    block: int
    """Of one block, when its gradient is computed: among `kept` unless the block is recomputed."""
    beside_loss: int
    """What has passed just before and after the loss."""
    in_backward: int
    """What passes while one block's gradient is computed."""


class Work(NamedTuple):
    """One micro-batch, and on what."""

    rows: int
    """Sequences."""
    length: int
    """Tokens of each."""
    itemsize: int = FLOAT32
    """Bytes of a number of the compute precision."""
    on_cpu: bool = True
    """Nothing is fused there."""
    is_causal: bool = True
    """False: every token sees the whole row."""
    has_segments: bool = False
    """Documents of a row are kept apart by an array mask."""


# Arrays among the last fifty kernels. Around the loss: the last norm, half a block's attention and its feed-forward
# gradient. Within the gradient of a block: first its feed-forward part with the softmax, then projections, rotation and
# transposes of heads. Blockwise attention takes so many kernels that nothing else passes beside it.
PASSING = {
    "loss": Sizes(D=12, F=4, Q=4, G=4, S=1),
    "softmax": Sizes(D=12, F=4, Q=0, G=0, S=4),
    "projections": Sizes(D=17, F=4, Q=8.5, G=8.5, S=2),
}
PASSING_LINEAR = {
    "loss": Sizes(D=12, F=4, Q=4, G=4, S=0),
    "softmax": Sizes(D=12, F=4, Q=0, G=0, S=0),
    "projections": Sizes(D=17, F=0, Q=6, G=6, S=0),
}
RECOMPUTED_SOFTMAX = 1
"""Scores more, all at once, when their own softmax has just been computed again. Measured at 1024 positions, 8 heads of
4: 5.2 and 4.2; in causal blocks of 510 positions 4.0 and 3.6, which is taken for the same."""


def activation_memory(config: DecoderConfig, work: Work, recompute_every: int = 0) -> ActivationMemory:
    """Memory of the blocks for one micro-batch; `recompute_every`: n of activation checkpointing `every n`, 0: none."""
    rows, length, itemsize, on_cpu, _, has_segments = work
    path = attention_path(config, work)
    sizes = array_sizes(config, rows, length, itemsize, path)
    block = sizes.of(kept_arrays(config, path, on_cpu)) + other_bytes(config, rows, length, path, has_segments)
    num_recomputed = len(range(0, config.num_hidden_layers, recompute_every)) if recompute_every else 0
    # A recomputed block keeps what came into it.
    kept = (config.num_hidden_layers - num_recomputed) * block + num_recomputed * round(sizes.D)
    counts = PASSING_LINEAR if path in ("tiles", "fused") else PASSING
    in_backward = max(sizes.of(counts["softmax"]), sizes.of(counts["projections"]))
    if path == "square" and recompute_every:
        in_backward = max(in_backward, sizes.of(counts["softmax"]) + round(RECOMPUTED_SOFTMAX * sizes.S))
    if path == "tiles":
        in_backward = max(in_backward, TILES_AHEAD * tile_bytes(config, work) + round(BESIDE_TILES * sizes.D))
    return ActivationMemory(kept, block, sizes.of(counts["loss"]), in_backward)


def attention_path(config: DecoderConfig, work: Work) -> Path:
    """The way that attention goes in training, which decides what grows with the square of the length."""
    attention, length = config.attention, work.length
    mask, mods = folded_mask(config, work.is_causal)
    if config.attention_dropout:
        return "square"
    has_blocks = isinstance(attention, AutoAttentionConfig) and work.on_cpu and platform.system() != "Darwin"
    if has_blocks and length <= auto_attention.SHORT:
        return "triangle" if work.is_causal else "square"
    if mods:
        return "tiles" if length >= FEW_QUERIES else "square"
    if not isinstance(attention, AutoAttentionConfig | FlashAttentionConfig | FlexAttentionConfig):
        return "square"
    named = "array" if work.has_segments else mask.named(length, length)
    mask_bytes = length**2 if named == "array" else 0
    device = "cpu" if work.on_cpu else gpu_kind()
    dtype = mx.float32 if work.itemsize == FLOAT32 else mx.bfloat16
    path = choose_path(Call(device, dtype, config.head_size, length, length, named, True, mask_bytes))
    if path == "written out" and getattr(attention, "block_size", None) is None:
        return "square"
    return "fused" if path == "fused" else "tiles"


def gpu_kind() -> Literal["metal", "cuda"]:
    """This machine's; Metal for a plan made on a machine without one."""
    return "cuda" if device_kind() == "cuda" else "metal"


def folded_mask(config: DecoderConfig, is_causal: bool) -> tuple[Mask, Mods]:
    """The mask of a training step without segments, and the mods that it cannot express."""
    attention, mask = config.attention, Mask("causal" if is_causal else "bidirectional")
    return fold(mask, attention.mods) if isinstance(attention, FlexAttentionConfig) else (mask, ())


def array_sizes(config: DecoderConfig, rows: int, length: int, itemsize: int, path: Path) -> Sizes:
    """Bytes of one array of each kind. Scores are float32 in every precision."""
    token = rows * length * itemsize
    scores = {"square": length * length, "triangle": causal_blocks(length)}.get(path, 0)
    return Sizes(
        D=token * config.hidden_size,
        F=token * config.intermediate_size,
        Q=token * config.num_attention_heads * config.head_size,
        G=token * config.num_groups * config.head_size,
        S=FLOAT32 * rows * config.num_attention_heads * scores,
    )


def kept_arrays(config: DecoderConfig, path: Path, on_cpu: bool) -> Sizes:
    """How many arrays of each kind autodiff keeps of a block."""
    # Each of the two norms: its input and its output; composed of parts on a CPU, also the product before the weight.
    # A norm of the heads: its input and, again, the product; the output goes into the rotation, which keeps nothing.
    hidden, heads = (6, 2) if on_cpu else (4, 1)
    if not config.qk_norm:
        heads = 0
    # Attention without scores keeps its output for its own gradient, beside the copy that the output projection reads.
    has_scores = path in ("square", "triangle")
    outputs = 1 if has_scores else 2
    return Sizes(
        D=hidden,
        F=4,  # gate, up, their product; the sigmoid as well, which mx.compile finds to be the one of the backward pass
        Q=1 + outputs + heads,  # rotated queries
        G=2 + heads,  # rotated keys, values
        S=1 + (1 if config.attention_dropout else 0) if has_scores else 0,  # the weights, and those not dropped
    )


def other_bytes(config: DecoderConfig, rows: int, length: int, path: Path, has_segments: bool) -> int:
    """What a block keeps besides: masks at a byte each, or the log-sum-exp of rows of scores."""
    heads = config.num_attention_heads
    if path in ("tiles", "fused"):
        found = FLOAT32 * rows * heads * length
    else:
        found = length * length * (rows if has_segments else 1)
        found += rows * heads * length * length if config.attention_dropout else 0
    return found + (2 * rows * length * config.hidden_size if config.residual_dropout else 0)


def causal_blocks(length: int) -> int:
    """Scores of one head that models/attention/block_attention.py computes."""
    size = block_size(length)
    return sum((min(start + size, length) - start) * min(start + size, length) for start in range(0, length, size))


def tile_bytes(config: DecoderConfig, work: Work) -> int:
    """The scores of one tile of blockwise attention: a block of queries, the keys that the widest one sees, and so
    many heads as `heads_of_a_tile` in models/attention/blockwise.py puts together. Mods may hide more keys."""
    groups, length = config.num_groups, work.length
    mask, mods = folded_mask(config, work.is_causal)
    shape = Shape(work.rows, config.num_attention_heads, length, length)
    size = getattr(config.attention, "block_size", None) or fitting_block_size(mask, mods, shape)
    layout = layout_of(mask, length, length, size)
    one = FLOAT32 * (config.num_attention_heads // groups) * size * size * layout.most_kept
    cached = (CPU_TILE_BYTES if work.on_cpu else GPU_TILE_BYTES) // one
    at_once = max(1, cached, -(-work.rows * groups * len(layout.rows) // MOST_TILES))
    rows, heads = tile_slices(work.rows, groups, at_once)
    share = min(size, length) * min(size * layout.most_kept, length) / (size * size * layout.most_kept)
    return round(one * share) * (rows[0].stop - rows[0].start) * (heads[0].stop - heads[0].start)
