"""Attention over blocks of queries, with memory that grows with the length instead of its square, forward and backward.

A tile is one block of queries against the keys it may see: its scores stay in a cache, and its softmax needs no second
look because whole rows are there; blocks that the mask empties are never touched. Tiles are chained with `mx.depends`,
so that one is alive at a time. Only the output and the log-sum-exp of each row of scores are kept, and the backward
pass computes the weights again from them: FlashAttention-2 (Dao 2023, algorithm 2), but for the rescaling of online
softmax, which a row held whole does not need. All arithmetic is float32, as in `simple`. To change how much of a layer
one tile holds edit `heads_of_a_tile`; what is skipped: `blocks.py`.
Legend: B rows, H query heads, G key/value heads, R = H / G, L queries, S keys, K head size; of a tile: b rows,
g key/value heads, Q queries, N keys, and M = R * Q, because the heads of a group are more queries of the same keys.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from models.attention.blocks import BlockLayout
from models.attention.tiles import Parts, Sums, Tile, keys_of, queries_of, tile_slices, tiles
from models.elementary import exp, row_sum

Allowed = Callable[[mx.array, mx.array, mx.array, mx.array], mx.array]
Score = Callable[[mx.array, mx.array, mx.array, mx.array, mx.array], mx.array]

HIDDEN = -1e30
CPU_TILE_BYTES = 2**21
GPU_TILE_BYTES = 2**26
MOST_TILES = 256


class Problem(NamedTuple):
    """What all tiles of a call share."""

    scale: float
    layout: BlockLayout
    allowed: Allowed | None
    score: Score | None
    sizes: tuple[int, int, int, int, int]
    """B, G, R, L, S."""

    @property
    def offset(self) -> int:
        """The position of the first query among the keys."""
        return self.sizes[4] - self.sizes[3]

    def with_heads(self, x_bgMX: mx.array) -> mx.array:
        """[b, g, M, X] as [b, g, R, Q, X]."""
        b, g, M, X = x_bgMX.shape
        return x_bgMX.reshape(b, g, self.sizes[2], M // self.sizes[2], X)

    def without_heads(self, x_bgRQX: mx.array) -> mx.array:
        """[b, g, R, Q, X] as [b, g, M, X]."""
        return x_bgRQX.reshape(*x_bgRQX.shape[:2], -1, x_bgRQX.shape[-1])

    def tiles(self) -> list[Tile]:
        """In the order in which they are computed."""
        B, G, R, L, S = self.sizes
        rows, heads = tile_slices(B, G, heads_of_a_tile(self.layout, B * G, R))
        return list(tiles(self.layout, L, S, rows, heads))


def attend_blockwise(
    q_BHLK: mx.array,
    k_BGSK: mx.array,
    v_BGSK: mx.array,
    scale: float,
    layout: BlockLayout,
    *,
    allowed: Allowed | None = None,
    score: Score | None = None,
    sinks_H: mx.array | None = None,
) -> mx.array:
    """softmax(score(q k^T * scale), masked) v in the dtype of q, [B, H, L, K]; a query that sees no key gets 0.

    `layout` says which blocks are computed, and its `band` masks them. `allowed(b, h, q, k)` and
    `score(score, b, h, q, k)` take int32 index arrays that broadcast against each other and against the float32 score;
    q and k are positions among the keys. `allowed` is asked for PARTIAL blocks (and FULL ones between them), `score`
    for all that is computed. `sinks_H` is one more logit for each head, which takes weight and gives nothing.
    Gradients: q, k, v and the sinks, each in its own dtype.
    """
    B, H, L, _ = q_BHLK.shape
    G, S = k_BGSK.shape[1], k_BGSK.shape[2]
    problem = Problem(scale, layout, allowed, score, (B, G, H // G, L, S))
    attend: Any = mx.custom_function(partial(forward, problem))
    attend.vjp(partial(backward, problem))
    return attend(q_BHLK, k_BGSK, v_BGSK, *(() if sinks_H is None else (sinks_H,)))[0]


def heads_of_a_tile(layout: BlockLayout, num_heads: int, group_size: int) -> int:
    """How many of all rows' key/value heads share a tile: as many as a cache holds, more if tiles would be too many."""
    bytes_of_one = 4 * group_size * layout.block_size**2 * max(1, layout.most_kept)
    on_cpu = mx.default_device().type == mx.DeviceType.cpu
    fitting = (CPU_TILE_BYTES if on_cpu else GPU_TILE_BYTES) // bytes_of_one
    return max(1, fitting, -(-num_heads * len(layout.rows) // MOST_TILES))


def forward(problem: Problem, *inputs: mx.array) -> tuple[mx.array, mx.array]:
    """The output [B, H, L, K] and the log-sum-exp [B, G, R, L, 1] of (q, k, v) or (q, k, v, sinks)."""
    q, k, v, sinks = in_groups(problem, inputs)
    outs, lses, done, bias = Parts(), Parts(), (), None
    for tile in problem.tiles():
        q_bgMK = queries_of(after(done, q), tile)
        if tile.heads.start == 0:
            bias = hidden_bias(problem, tile, q_bgMK)
        if tile.runs:
            scores, _ = tile_scores(problem, tile, q_bgMK, keys_of(k, tile), bias)
            out, lse = softmax_times(scores, keys_of(v, tile), sinks_of(sinks, tile))
        else:
            out, lse = mx.zeros_like(q_bgMK), mx.full((*q_bgMK.shape[:-1], 1), -HIDDEN)
        outs.add(tile, problem.with_heads(out.astype(inputs[0].dtype)))
        lses.add(tile, problem.with_heads(lse))
        done = (out, lse)
    return outs.joined().reshape(inputs[0].shape), lses.joined()


def softmax_times(scores_bgMN: mx.array, v_bgNK: mx.array, sinks_bgM1: mx.array | None) -> tuple[mx.array, mx.array]:
    """(output, log-sum-exp) of whole rows of scores; (0, -HIDDEN) for a row that is hidden everywhere."""
    largest = mx.maximum(mx.max(scores_bgMN, axis=-1, keepdims=True), HIDDEN)
    if sinks_bgM1 is not None:
        largest = mx.maximum(largest, sinks_bgM1)
    weights = exp(scores_bgMN - largest)
    total = row_sum(weights)
    if sinks_bgM1 is not None:
        total = total + mx.exp(sinks_bgM1 - largest)
    hidden = largest <= HIDDEN / 2
    out = mx.where(hidden, 0.0, (weights @ v_bgNK) / total)
    return out, mx.where(hidden, -HIDDEN, largest + mx.log(total))


def backward(problem: Problem, inputs: Any, cotangents: Any, outputs: Any) -> tuple[mx.array, ...]:
    """The gradients of `inputs`, tile by tile in the order of the forward pass."""
    q, k, v, sinks = in_groups(problem, inputs)
    dout, out, lse = cotangents[0].reshape(q.shape), outputs[0].reshape(q.shape), outputs[1]
    size = problem.layout.block_size
    dqs, dks, dvs, done, bias = Parts(), Sums(k.shape, size), Sums(v.shape, size), (), None
    for tile in problem.tiles():
        q_bgMK, dout_bgMK = queries_of(after(done, q), tile), queries_of(after(done, dout), tile)
        if tile.heads.start == 0:
            bias = hidden_bias(problem, tile, q_bgMK)
        if tile.runs:
            k_bgNK, v_bgNK = keys_of(k, tile), keys_of(v, tile)
            scores, pull_back = tile_scores(problem, tile, q_bgMK, k_bgNK, bias)
            weights = exp(scores - queries_of(lse, tile))
            delta = row_sum(dout_bgMK * queries_of(out, tile))
            dscores = pull_back(weights * (dout_bgMK @ v_bgNK.swapaxes(-1, -2) - delta))
            dq = dscores @ k_bgNK
            changed_k = dks.add(tile, dscores.swapaxes(-1, -2) @ q_bgMK)
            changed_v = dvs.add(tile, weights.swapaxes(-1, -2) @ dout_bgMK)
            done = (dq, *changed_k, *changed_v)
        else:
            dq = mx.zeros_like(q_bgMK)
        dqs.add(tile, problem.with_heads(dq.astype(inputs[0].dtype)))
    gradients = [dqs.joined().reshape(inputs[0].shape), dks.joined() * problem.scale, dvs.joined()]
    if sinks is not None:
        gradients.append(sinks_gradient(sinks, dout, out, lse))
    return tuple(gradient.astype(x.dtype) for gradient, x in zip(gradients, inputs, strict=True))


def sinks_gradient(sinks_GR: mx.array, dout_BGRLK: mx.array, out_BGRLK: mx.array, lse_BGRL1: mx.array) -> mx.array:
    """[H]: a sink's value is 0, so of the derivative of softmax only what it takes from the others is left."""
    weights = mx.exp(sinks_GR[:, :, None, None] - lse_BGRL1)
    return -mx.sum(weights * (dout_BGRLK.astype(mx.float32) * out_BGRLK), axis=(0, 3, 4)).flatten()


def tile_scores(
    problem: Problem, tile: Tile, q_bgMK: mx.array, k_bgNK: mx.array, bias: mx.array | None
) -> tuple[mx.array, Callable[[mx.array], mx.array]]:
    """The modified and masked scores [b, g, M, N], and what turns a gradient of them into one of q k^T."""
    k_bgKN = k_bgNK.swapaxes(-1, -2)
    if bias is not None and bias.ndim == 4 and bias.shape[1] > 1:
        bias = bias[:, tile.heads]
    if problem.score is None:
        return (q_bgMK @ k_bgKN if bias is None else mx.addmm(bias, q_bgMK, k_bgKN)), unchanged
    plain = problem.with_heads(q_bgMK @ k_bgKN)
    modify = partial(with_indices, problem.score, indices(problem, tile, tile.heads))
    scores = problem.without_heads(modify(plain))
    return (scores if bias is None else scores + bias), partial(gradient_of, modify, plain)


def unchanged(gradient_bgMN: mx.array) -> mx.array:
    """The gradient of scores that nothing has modified."""
    return gradient_bgMN


def with_indices(score: Score, indices: Sequence[mx.array], scores_bgRQN: mx.array) -> mx.array:
    """The modified scores."""
    return score(scores_bgRQN, *indices)


def gradient_of(modify: Callable[[mx.array], mx.array], scores_bgRQN: mx.array, gradient_bgMN: mx.array) -> mx.array:
    """The gradient of the scores before `modify`, in the shape of the gradient after it."""
    _, (gradient,) = mx.vjp(modify, [scores_bgRQN], [gradient_bgMN.reshape(scores_bgRQN.shape)])
    return gradient.reshape(gradient_bgMN.shape)


def hidden_bias(problem: Problem, tile: Tile, ready: mx.array) -> mx.array | None:
    """0 where the tile may be seen and HIDDEN elsewhere, [M, N] or [b or 1, G or 1, M, N]; None: all of it may."""
    if tile.masked is None:
        return None
    num_queries, num_columns = tile.queries.stop - tile.queries.start, tile.masked.stop - tile.masked.start
    bias = mx.zeros((1, num_columns))
    if problem.layout.band is not None:
        assert len(tile.runs) == 1, "a band is one stretch of keys"
        apart = problem.offset + tile.queries.start - tile.runs[0].start - tile.masked.start
        bias = band_bias(*problem.layout.band, apart, num_queries, num_columns)
    if problem.allowed is not None:
        b, h, q, k = indices(problem, tile, slice(0, problem.sizes[1]))
        bias = mx.where(problem.allowed(b, h, q, k[..., tile.masked]), bias, HIDDEN)
    # It waits for `ready`: a compiled step makes equal things once, and would hold the biases of all tiles to the end.
    bias = mx.depends([bias], [ready])[0]
    num_keys = sum(run.stop - run.start for run in tile.runs)
    full = [*((1,) * (5 - bias.ndim)), *bias.shape]
    bias = mx.broadcast_to(bias.reshape(full), (*full[:2], problem.sizes[2], num_queries, num_columns))
    bias = bias.reshape(*full[:2], -1, num_columns)
    return mx.pad(bias, [(0, 0)] * 3 + [(tile.masked.start, num_keys - tile.masked.stop)])


@lru_cache(maxsize=32)
def band_bias(lowest: int, highest: int, apart: int, num_queries: int, num_keys: int) -> mx.array:
    """[Q, N] for queries that begin `apart` positions after the keys: 0 where lowest <= query - key <= highest."""
    distance = apart + np.arange(num_queries)[:, None] - np.arange(num_keys)[None, :]
    return mx.array(np.where((distance >= lowest) & (distance <= highest), 0.0, HIDDEN).astype(np.float32))


def indices(problem: Problem, tile: Tile, heads: slice) -> list[mx.array]:
    """Row, query head, query and key position of a tile: [b,1,1,1,1], [1,g,R,1,1], [1,1,1,Q,1], [1,1,1,1,N]."""
    R = problem.sizes[2]
    b = np.arange(tile.rows.start, tile.rows.stop).reshape(-1, 1, 1, 1, 1)
    h = np.arange(heads.start * R, heads.stop * R).reshape(1, -1, R, 1, 1)
    q = np.arange(tile.queries.start, tile.queries.stop).reshape(1, 1, 1, -1, 1) + problem.offset
    k = np.concatenate([np.arange(run.start, run.stop) for run in tile.runs]).reshape(1, 1, 1, 1, -1)
    return [mx.array(x.astype(np.int32)) for x in (b, h, q, k)]


def in_groups(problem: Problem, inputs: Sequence[mx.array]) -> tuple[mx.array, mx.array, mx.array, mx.array | None]:
    """q [B, G, R, L, K]; k times the scale and v in float32; the sinks as float32 [G, R]."""
    q, k, v, *sinks = inputs
    B, G, R, L, _ = problem.sizes
    sinks_GR = sinks[0].astype(mx.float32).reshape(G, R) if sinks else None
    return q.reshape(B, G, R, L, -1), k.astype(mx.float32) * problem.scale, v.astype(mx.float32), sinks_GR


def sinks_of(sinks_GR: mx.array | None, tile: Tile) -> mx.array | None:
    """The tile's part, [1, g, M, 1]."""
    if sinks_GR is None:
        return None
    num_queries = tile.queries.stop - tile.queries.start
    return mx.repeat(sinks_GR[tile.heads], num_queries, axis=1)[None, :, :, None]


def after(done: Sequence[mx.array], x: mx.array) -> mx.array:
    """x, not to be used before `done` is computed."""
    return mx.depends([x], list(done))[0] if done else x
