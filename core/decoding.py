"""The next tokens of several prompts at once, one a step, from a key-value cache.

Prompts of different lengths are padded on the left and kept apart by segments (0 is padding), so all rows end at the
same position and one step serves them all; rotary positions are relative, so the shift changes nothing. Rows draw
with their own keys, so each says the same alone and among others. The step after is already being computed while the
caller works on this one's tokens. Nothing here is compiled: the cache grows, so every step would be a new variant.
To decode differently (speculation, another cache), edit `draw_tokens`.
Legend: B prompts, L positions, T generated positions, C recent tokens, V vocabulary, D hidden size.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import mlx.core as mx

from core.sampling import SamplingOptions, draw_keys, prompt_keys, sample
from models.attention.mask import Mask

PREFILL_CHUNK = 2048
"""Prompt positions read at once: bounds the memory of a long prompt."""


def draw_tokens(
    model: Any, prompts: Sequence[Sequence[int]], num_steps: int, options: SamplingOptions, seed: int
) -> Iterator[list[int]]:
    """`num_steps` times the next token of every prompt, the step after it already under way."""
    tokens_BL, segments_BL = pad_left(prompts)
    keys, cache = prompt_keys(seed, prompts), model.make_cache()
    recent_BC = recent_tokens(prompts, options.repetition_context_size) if options.penalises else None
    logits_BV = prefill(model, tokens_BL, segments_BL, cache)
    next_B = sample(logits_BV, draw_keys(keys, 0), options, recent_BC)
    for step in range(1, num_steps + 1):
        drawn_B = next_B
        if step < num_steps:
            if recent_BC is not None:
                recent_BC = mx.concatenate([recent_BC[:, 1:], drawn_B[:, None].astype(recent_BC.dtype)], axis=1)
            logits_BV = read_one(model, drawn_B, segments_BL, step, cache)
            next_B = sample(logits_BV, draw_keys(keys, step), options, recent_BC)
            mx.async_eval(next_B)
        yield drawn_B.tolist()  # pyright: ignore[reportReturnType]


def pad_left(prompts: Sequence[Sequence[int]]) -> tuple[mx.array, mx.array | None]:
    """Tokens [B, L] int32 and segments [B, L] int32, 1 for a token and 0 for padding; None when nothing is padded."""
    longest = max(map(len, prompts))
    pads = [longest - len(prompt) for prompt in prompts]
    tokens_BL = mx.array([[0] * pad + list(prompt) for pad, prompt in zip(pads, prompts, strict=True)], mx.int32)
    if not any(pads):
        return tokens_BL, None
    return tokens_BL, mx.array([[0] * pad + [1] * (longest - pad) for pad in pads], mx.int32)


def recent_tokens(prompts: Sequence[Sequence[int]], num_recent: int) -> mx.array:
    """The last `num_recent` tokens of every prompt [B, C] int32; a shorter one is filled with an id no model has."""
    nothing = 2**31 - 1
    rows = [[nothing] * (num_recent - len(prompt)) + list(prompt)[-num_recent:] for prompt in prompts]
    return mx.array(rows, mx.int32)


def prefill(model: Any, tokens_BL: mx.array, segments_BL: mx.array | None, cache: list[Any]) -> mx.array:
    """Read the prompts into the cache, in chunks; the logits [B, V] after their last token."""
    length = tokens_BL.shape[1]
    # Positions that see later ones (a prefix-LM's) must have them in their chunk.
    chunk = length if getattr(model, "num_lookahead", 0) else PREFILL_CHUNK
    for start in range(0, length, chunk):
        end = min(start + chunk, length)
        mask = Mask("causal")
        if segments_BL is not None:
            mask = Mask("causal", segments=segments_BL[:, start:end], key_segments=segments_BL[:, :end])
        hidden_BLD = model.backbone(tokens_BL[:, start:end], mask, cache)
        mx.eval(hidden_BLD)
    return model.head(hidden_BLD[:, -1:])[:, -1]


def read_one(model: Any, tokens_B: mx.array, segments_BL: mx.array | None, step: int, cache: list[Any]) -> mx.array:
    """Read generated token number `step` (from 1) of every row; the logits [B, V] after it."""
    mask = Mask("causal")
    if segments_BL is not None:
        written_BT = mx.ones((segments_BL.shape[0], step), mx.int32)
        mask = Mask(
            "causal", segments=written_BT[:, :1], key_segments=mx.concatenate([segments_BL, written_BT], axis=1)
        )
    return model.head(model.backbone(tokens_B[:, None], mask, cache))[:, -1]
