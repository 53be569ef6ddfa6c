"""From logits to the next token: repetition penalty, top-p, min-p, top-k, temperature, draw.

The order is mlx-lm's (penalty, then top-p, min-p and top-k on the unscaled distribution, temperature last), so one
set of flags means the same in both programs. Every filter keeps a set that depends on the probabilities alone: tokens
that tie at a boundary stay or go together, whatever their ids. Randomness comes from explicit keys, one per row, made
by hashing (seed, prompt, how many tokens were drawn): a row draws the same whoever stands beside it, and training's
random state is never touched. To add a filter: write one pure function and put it into `filter_logits`.

Legend: B rows, V vocabulary, C tokens of repetition context.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from utils.errors import ConfigError


@dataclass(frozen=True)
class SamplingOptions:
    """How to choose the next token. Raises ConfigError for values that mean nothing."""

    temp: float = 0.8
    """Temperature; 0 takes the most probable token."""
    top_p: float = 1.0
    """Keep the most probable tokens that together reach this mass; 0 and 1 keep all."""
    min_p: float = 0.0
    """Keep tokens at least this many times as probable as the most probable one; 0 keeps all."""
    top_k: int = 0
    """Keep this many of the most probable tokens; 0 keeps all."""
    repetition_penalty: float | None = None
    """Divide positive logits of recent tokens by this, multiply negative ones; None, 0 and 1 do nothing."""
    repetition_context_size: int = 20
    """How many recent tokens, prompt included, the penalty sees."""

    def __post_init__(self) -> None:
        """Check every value, naming all that are wrong."""
        penalty = self.repetition_penalty
        checks = [
            (0 <= self.temp < math.inf, f"temp is {self.temp}; give 0 (greedy) or a positive number"),
            (0 <= self.top_p <= 1, f"top_p is {self.top_p}; give a number between 0 and 1"),
            (0 <= self.min_p <= 1, f"min_p is {self.min_p}; give a number between 0 and 1"),
            (self.top_k >= 0, f"top_k is {self.top_k}; give 0 (all tokens) or a positive whole number"),
            (
                penalty is None or 0 <= penalty < math.inf,
                f"repetition_penalty is {penalty}; give a positive number such as 1.1",
            ),
            (
                self.repetition_context_size > 0,
                f"repetition_context_size is {self.repetition_context_size}; give a positive whole number",
            ),
        ]
        problems = [problem for fine, problem in checks if not fine]
        if problems:
            raise ConfigError(*problems)

    @property
    def penalises(self) -> bool:
        """Whether recent tokens change the logits at all."""
        return self.repetition_penalty not in (None, 0, 1)


def sample(logits_BV: mx.array, keys_B2: mx.array, options: SamplingOptions, recent_BC: mx.array | None) -> mx.array:
    """The next token of every row.

    `logits_BV` of any float type is computed in float32. `keys_B2` uint32 holds one key per row (`draw_keys`), unused
    when greedy. `recent_BC` int32 holds each row's recent tokens, V or more where there is none; None: no penalty.
    Returns [B] uint32.
    """
    logits_BV = logits_BV.astype(mx.float32)
    if options.penalises and recent_BC is not None:
        logits_BV = penalise_repetition(logits_BV, recent_BC, float(options.repetition_penalty or 1))
    if options.temp == 0:
        return mx.argmax(logits_BV, axis=-1)
    return draw(filter_logits(logits_BV, options) / options.temp, keys_B2)


def filter_logits(logits_BV: mx.array, options: SamplingOptions) -> mx.array:
    """`logits_BV` float32 with -inf for every token that top-p, then min-p, then top-k leaves out."""
    if 0 < options.top_p < 1:
        logits_BV = keep_top_p(logits_BV, options.top_p)
    if options.min_p > 0:
        logits_BV = keep_min_p(logits_BV, options.min_p)
    if 0 < options.top_k < logits_BV.shape[-1]:
        logits_BV = keep_top_k(logits_BV, options.top_k)
    return logits_BV


def keep_top_p(logits_BV: mx.array, top_p: float) -> mx.array:
    """Nucleus sampling (Holtzman et al. 2020): keep a token when those more probable hold less than `top_p`."""
    descending_BV = -mx.sort(-logits_BV, axis=-1)
    probabilities_BV = mx.softmax(descending_BV, axis=-1, precise=True)
    before_BV = mx.cumsum(probabilities_BV, axis=-1, inclusive=False)
    num_kept_B1 = mx.maximum((before_BV < top_p).sum(axis=-1, keepdims=True), 1)
    return _keep_from(logits_BV, mx.take_along_axis(descending_BV, num_kept_B1 - 1, axis=-1))


def keep_min_p(logits_BV: mx.array, min_p: float) -> mx.array:
    """Min-p sampling (Nguyen et al. 2024): keep tokens of at least `min_p` times the largest probability."""
    return _keep_from(logits_BV, logits_BV.max(axis=-1, keepdims=True) + math.log(min_p))


def keep_top_k(logits_BV: mx.array, top_k: int) -> mx.array:
    """Keep the `top_k` most probable tokens, and all that tie with the last of them; 0 < `top_k` <= V."""
    largest_BK = mx.topk(logits_BV, top_k, axis=-1)
    return _keep_from(logits_BV, largest_BK.min(axis=-1, keepdims=True))


def _keep_from(logits_BV: mx.array, threshold_B1: mx.array) -> mx.array:
    return mx.where(logits_BV >= threshold_B1, logits_BV, -mx.inf)


def penalise_repetition(logits_BV: mx.array, recent_BC: mx.array, penalty: float) -> mx.array:
    """Make recent tokens less likely (CTRL, Keskar et al. 2019): each once, however often it occurred.

    `recent_BC` may hold ids of V and above, which stand for no token.
    """
    num_rows, vocab_size = logits_BV.shape
    seen_BV = mx.zeros((num_rows, vocab_size + 1), dtype=mx.bool_)
    slots_BC = mx.minimum(recent_BC, vocab_size)
    seen_BV = mx.put_along_axis(seen_BV, slots_BC, mx.ones(slots_BC.shape, dtype=mx.bool_), axis=-1)[:, :vocab_size]
    penalised_BV = mx.where(logits_BV < 0, logits_BV * penalty, logits_BV / penalty)
    return mx.where(seen_BV, penalised_BV, logits_BV)


def draw(logits_BV: mx.array, keys_B2: mx.array) -> mx.array:
    """One token per row with probability softmax(logits), row b from `keys_B2[b]` alone. Returns [B] uint32."""
    return mx.vmap(lambda logits_V, key: mx.random.categorical(logits_V, key=key))(logits_BV, keys_B2)


def prompt_keys(seed: int, prompts: Sequence[Sequence[int]]) -> list[bytes]:
    """What the draws of each prompt start from: its tokens, the seed, and how often it came before in the list.

    So a prompt draws the same alone and among others, and a prompt given twice draws differently the second time.
    """
    keys, times_seen = [], dict[tuple[int, ...], int]()
    for prompt in map(tuple, prompts):
        occurrence = times_seen.get(prompt, 0)
        times_seen[prompt] = occurrence + 1
        keys.append(hashlib.sha256(repr((seed, occurrence, prompt)).encode()).digest())
    return keys


def draw_keys(keys: Sequence[bytes], step: int) -> mx.array:
    """The random keys [B, 2] uint32 of draw number `step`, counted from 0."""
    digests = [hashlib.sha256(key + step.to_bytes(8, "little")).digest() for key in keys]
    words = [[int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")] for digest in digests]
    return mx.array(words, dtype=mx.uint32)
