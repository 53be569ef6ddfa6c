"""How much memory the blocks of a decoder take during one micro-batch, from its config alone: no array is made.

Two kinds of memory. What automatic differentiation *keeps* of each block until its gradient is due: counted array by
array in `block_memory`. What only *passes*: arrays that are read once. MLX frees those late, because it issues
operations ahead of the device (on a CPU about fifty kernels, on a GPU as many as command buffers hold), so what the
last fifty kernels made is alive at once, and around the loss that is nearly all they made. The counts in `PASSING`
are of arrays in that window, found with mlx 0.32.4 on a CPU by making one size of a model large at a time; half
precision and the fused kernels of GPUs are derived, not measured. To correct a term, edit it here:
tests/test_core_memory_plan.py compares the sum with MLX's own counter.

Units: bytes. D, F, Q, G are one array [B, L, hidden | intermediate | query heads | key/value heads]; S are the scores.
"""

from typing import Literal, NamedTuple

from models.attention.block_attention import block_size
from models.attention.blockwise import CPU_TILE_BYTES, GPU_TILE_BYTES, MOST_TILES
from models.decoder_config import DecoderConfig

Path = Literal["simple", "blocks", "linear"]
FLOAT32 = 4

TILES_AHEAD = 14
"""Blockwise attention: arrays of one tile's scores among the last fifty kernels, about six for each of two tiles."""
BLOCK_SIZE = 128
"""Queries of a tile where the config leaves it open."""


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


# Arrays among the last fifty kernels. Around the loss: the last norm, half a block's attention and its feed-forward
# gradient. Within the gradient of a block: first its feed-forward part with the softmax, then projections, rotation and
# transposes of heads. Blockwise attention takes so many kernels that nothing else passes beside it.
PASSING = {
    "loss": Sizes(D=12, F=4, Q=4, G=4, S=1),
    "softmax": Sizes(D=12, F=4, Q=0, G=0, S=6),
    "projections": Sizes(D=17, F=4, Q=8.5, G=8.5, S=2),
}
PASSING_LINEAR = {
    "loss": Sizes(D=12, F=4, Q=4, G=4, S=0),
    "softmax": Sizes(D=12, F=4, Q=0, G=0, S=0),
    "projections": Sizes(D=17, F=0, Q=6, G=6, S=0),
}


def activation_memory(
    config: DecoderConfig,
    rows: int,
    length: int,
    *,
    itemsize: int = FLOAT32,
    on_cpu: bool = True,
    recompute_every: int = 0,
    has_segments: bool = False,
) -> ActivationMemory:
    """Memory of the blocks for `rows` sequences of `length` tokens.

    Args:
        itemsize: bytes of a number of the compute precision.
        on_cpu: nothing is fused there.
        recompute_every: n of activation checkpointing `every n`; 0: none.
        has_segments: documents of a row are kept apart by an array mask.
    """
    path = attention_path(config)
    sizes = array_sizes(config, rows, length, itemsize, path)
    block = sizes.of(kept_arrays(config, path, on_cpu)) + other_bytes(config, rows, length, path, has_segments)
    num_recomputed = len(range(0, config.num_hidden_layers, recompute_every)) if recompute_every else 0
    # A recomputed block keeps what came into it.
    kept = (config.num_hidden_layers - num_recomputed) * block + num_recomputed * round(sizes.D)
    counts = PASSING_LINEAR if path == "linear" else PASSING
    tiles = tile_bytes(config, rows, length, on_cpu) if path == "linear" else 0
    in_backward = max(
        sizes.of(counts["softmax"]), sizes.of(counts["projections"]), tiles + round(counts["softmax"].D * sizes.D)
    )
    return ActivationMemory(kept, block, sizes.of(counts["loss"]), in_backward)


def attention_path(config: DecoderConfig) -> Path:
    """What grows how with the length: scores of a whole row, of its causal blocks, or none at all."""
    kind = config.attention.explain(config.attention_dropout)
    if not kind.startswith("simple"):
        return "linear"
    return "blocks" if "blocks" in kind else "simple"


def array_sizes(config: DecoderConfig, rows: int, length: int, itemsize: int, path: Path) -> Sizes:
    """Bytes of one array of each kind. Scores are float32 in every precision."""
    token = rows * length * itemsize
    scores = {"simple": length * length, "blocks": causal_blocks(length), "linear": 0}[path]
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
    # Linear attention keeps its output for its own gradient, beside the copy that goes into the output projection.
    outputs = 2 if path == "linear" else 1
    return Sizes(
        D=hidden,
        F=4,  # gate, up, their product; the sigmoid as well, which mx.compile finds to be the one of the backward pass
        Q=1 + outputs + heads,  # rotated queries
        G=2 + heads,  # rotated keys, values
        S=0 if path == "linear" else 1 + (1 if config.attention_dropout else 0),  # the weights, and those not dropped
    )


def other_bytes(config: DecoderConfig, rows: int, length: int, path: Path, has_segments: bool) -> int:
    """What a block keeps besides: masks at a byte each, and the log-sum-exp of linear attention."""
    heads = config.num_attention_heads
    if path == "linear":
        found = FLOAT32 * rows * heads * length
    else:
        found = length * length * (rows if has_segments else 1)
        found += rows * heads * length * length if config.attention_dropout else 0
    return found + (2 * rows * length * config.hidden_size if config.residual_dropout else 0)


def causal_blocks(length: int) -> int:
    """Scores of one head that models/attention/block_attention.py computes."""
    size = block_size(length)
    return sum((min(start + size, length) - start) * min(start + size, length) for start in range(0, length, size))


def tile_bytes(config: DecoderConfig, rows: int, length: int, on_cpu: bool) -> int:
    """What passes in blockwise attention: tiles of one block of queries against all keys it may see, of so many heads
    as `heads_of_a_tile` in models/attention/blockwise.py puts together. None in a GPU's fused kernel."""
    if not on_cpu and config.attention.type in ("auto", "flash"):
        return 0
    groups, heads = config.num_groups, config.num_attention_heads
    block = getattr(config.attention, "block_size", None) or BLOCK_SIZE
    one = FLOAT32 * (heads // groups) * min(block, length) * length
    cached = (CPU_TILE_BYTES if on_cpu else GPU_TILE_BYTES) // one
    at_once = max(1, cached, -(-rows * groups * -(-length // block) // MOST_TILES))
    return TILES_AHEAD * one * min(at_once, rows * groups)
