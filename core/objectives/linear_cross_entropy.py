"""The output layer and its loss in one function that never holds all logits: the largest arrays of a training step.

Tokens go through head product, softmax and gradient in chunks. The gradients of hidden states and head are computed
in the *forward* pass, where a chunk's logits are alive anyway, so that nothing is recomputed and the backward pass
only multiplies them by the gradient that arrives (the idea of Liger Kernel, Hsu et al. 2024). MLX
evaluates what is ready in any order, so each chunk is made to wait for the gradients of the one before (`mx.depends`);
without that several chunks' logits are alive at once. Inside a chunk a GPU uses MLX's fused cross-entropy. A Linux CPU
takes a derivative by hand, with one exp for each logit where automatic differentiation takes two, and in pieces of a
few rows: MLX allocates about a hundred operations ahead of the one that runs, and frees an array when its last reader
has run, so many small operations hold less than a few large ones. A `chunk_size` of None is the plain path, the
definition the chunks are tested against. To add a term to the loss, edit `weighted_sums` and `gradient_by_hand`; to
change the chunks' size, `auto_chunk_size`.

Shapes: T = tokens, C = tokens of a chunk, D = hidden size, V = vocabulary.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import mlx.core as mx

from core.objectives.base import cross_entropy
from models.elementary import has_slow_exp, polynomial_exp, row_sum, tanh

PIECE = 2**18
"""Logits of a piece: 1 MB, what a core's second cache holds."""
MAX_PIECES = 128
"""So that the graph stays small: each is some 30 operations."""


class LossOptions(NamedTuple):
    """What is added to cross-entropy; the defaults add nothing."""

    z_loss: float = 0.0
    """z: adds z * logsumexp(logits)^2, against logits that drift (Chowdhery et al. 2022, PaLM, section 5)."""
    label_smoothing: float = 0.0
    """s: the target is 1 - s on the token and s spread over the vocabulary (Szegedy et al. 2016, section 7)."""
    soft_cap: float | None = None
    """c: logits become c * tanh(logits / c) (Gemma Team 2024, Gemma 2, section 2). The model's, not the objective's."""


class LossSums(NamedTuple):
    """0-d float32 sums over tokens, each times the token's weight, in nats. In chunks only `total` has a gradient."""

    total: mx.array
    """What is minimised: smoothed cross-entropy and z-loss."""
    cross_entropy: mx.array
    """-log p(target), without smoothing and z-loss."""
    z_loss: mx.array
    """The z-loss in `total`."""


def auto_chunk_size(num_tokens: int, vocab_size: int, on_gpu: bool) -> int | None:
    """Tokens of a chunk for `num_tokens` at once; None: all, because their logits are small.

    CPU, measured at V = 256 to 32,768 and 64 to 1,024 tokens: below 128 tokens adding up the head's gradient [V, D]
    costs more than the chunks save; from 256 on they are 6 to 12 % faster than the plain loss, beyond 512 hardly more.
    Hence 32 MB of logits, within 256 and 512 tokens. GPU, reasoned and not measured: adding up reads and
    writes 12 V D bytes a chunk for the 6 C V D operations of its three products, which costs a tenth of the time at
    C = 4,096 on an H100 and at 1,024 on an M3 Max. Hence 2^26 logits (128 MB in bfloat16), within 1,024 and 8,192.
    """
    small, budget, fewest, most = (2**26, 2**26, 1024, 8192) if on_gpu else (2**20, 2**23, 256, 512)
    if num_tokens * vocab_size <= small:
        return None
    return min(max(budget // vocab_size // 128 * 128, fewest), most)


def linear_cross_entropy(
    hidden_TD: mx.array,
    weight_VD: mx.array,
    targets_T: mx.array,
    weights_T: mx.array,
    *,
    chunk_size: int | None,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    soft_cap: float | None = None,
    differentiable: bool = True,
) -> LossSums:
    """The loss of targets_T under softmax(hidden_TD weight_VD^T), differentiable in hidden_TD and weight_VD.

    Gradients have their array's dtype; sums over tokens are float32. The gradient that arrives here (under float16 the
    loss scale over the number of tokens) multiplies last, in float32 and before the rounding to half precision, so
    that it lifts small gradients as it should. Until it comes, float16 could not hold a probability below 6e-8:
    float16 takes both gradient products in float32.

    Args:
        hidden_TD: float32, bfloat16 or float16; logits are computed in this dtype.
        weight_VD: the head, same dtype.
        targets_T: integers below V.
        weights_T: float32; 0 for padding. Neither targets nor weights get a gradient.
        chunk_size: tokens at a time; the last chunk may be smaller. None: all.
        z_loss, label_smoothing, soft_cap: see `LossOptions`.
        differentiable: False computes no gradients ahead, for evaluation. The memory of one chunk holds for both.
    """
    options = LossOptions(z_loss, label_smoothing, soft_cap)
    if chunk_size is None:
        return weighted_sums(cap_logits(hidden_TD @ weight_VD.T, soft_cap), targets_T, weights_T, options)
    if not differentiable:
        return _sums_of_chunks(hidden_TD, weight_VD, targets_T, weights_T, chunk_size, options)

    def forward(hidden_TD: mx.array, weight_VD: mx.array) -> tuple[mx.array, ...]:
        return _sums_and_gradients(hidden_TD, weight_VD, targets_T, weights_T, chunk_size, options)

    def backward(primals: Any, cotangents: Any, outputs: Any) -> tuple[mx.array, ...]:
        scale = cotangents[0]
        return tuple((scale * gradient).astype(x.dtype) for x, gradient in zip(primals, outputs[3:], strict=True))

    function: Any = mx.custom_function(forward)
    function.vjp(backward)
    return LossSums(*function(hidden_TD, weight_VD)[:3])


def cap_logits(logits: mx.array, soft_cap: float | None) -> mx.array:
    """c * tanh(logits / c), any shape; the same logits for None."""
    return logits if soft_cap is None else soft_cap * tanh(logits / soft_cap)


def weighted_sums(logits: mx.array, targets: mx.array, weights: mx.array, options: LossOptions) -> LossSums:
    """The definition: logits [..., V], already capped, of any dtype; targets and weights [...]."""
    losses = cross_entropy(logits, targets)
    total, z_loss = losses, mx.zeros_like(losses)
    if options.z_loss or options.label_smoothing:
        target = mx.take_along_axis(logits, targets[..., None], axis=-1)[..., 0].astype(mx.float32)
        if options.z_loss:
            z_loss = options.z_loss * mx.square(losses + target)
            total = total + z_loss
        if options.label_smoothing:
            mean = mx.mean(logits.astype(mx.float32), axis=-1)
            total = total + options.label_smoothing * (target - mean)
    return LossSums(*(mx.sum(values * weights) for values in (total, losses, z_loss)))


def _sums_of_chunks(
    hidden_TD: mx.array,
    weight_VD: mx.array,
    targets_T: mx.array,
    weights_T: mx.array,
    chunk_size: int,
    options: LossOptions,
) -> LossSums:
    sums = _nothing()
    for chunk, pieces in _chunks(hidden_TD, weight_VD, chunk_size):
        logits_CV = mx.depends(hidden_TD[chunk], list(sums)) @ weight_VD.T
        for piece in pieces:
            labels = targets_T[chunk][piece], weights_T[chunk][piece]
            sums = _add(sums, weighted_sums(cap_logits(logits_CV[piece], options.soft_cap), *labels, options))
    return sums


def _sums_and_gradients(
    hidden_TD: mx.array,
    weight_VD: mx.array,
    targets_T: mx.array,
    weights_T: mx.array,
    chunk_size: int,
    options: LossOptions,
) -> tuple[mx.array, ...]:
    """Total, cross-entropy, z-loss, and the gradients of the total: [T, D] and float32 [V, D]."""
    sums, gradient_VD, gradients = _nothing(), None, []
    for chunk, pieces in _chunks(hidden_TD, weight_VD, chunk_size):
        done = [] if gradient_VD is None else [gradient_VD, gradients[-1], *sums]
        hidden_CD = mx.depends(hidden_TD[chunk], done)
        logits_CV, rows = hidden_CD @ weight_VD.T, []
        for piece in pieces:
            labels = targets_T[chunk][piece], weights_T[chunk][piece]
            more, gradient_RV = _logit_gradient(logits_CV[piece], *labels, options)
            rows.append(gradient_RV)
            sums = _add(sums, more)
        gradient_CV = mx.concatenate(rows) if len(rows) > 1 else rows[0]
        gradients.append(gradient_CV @ weight_VD)
        gradient_VD = _add_product(gradient_VD, gradient_CV.T, hidden_CD)
    assert gradient_VD is not None
    return *sums, mx.concatenate(gradients), gradient_VD


def _logit_gradient(
    logits_RV: mx.array, targets_R: mx.array, weights_R: mx.array, options: LossOptions
) -> tuple[LossSums, mx.array]:
    """The sums over some rows and the gradient of their total, in the dtype the gradient products take."""
    if has_slow_exp(logits_RV):
        return gradient_by_hand(logits_RV, targets_R, weights_R, options)
    # A probability below 6e-8 is 0 in float16, and the loss scale comes too late to help.
    if logits_RV.dtype == mx.float16:
        logits_RV = logits_RV.astype(mx.float32)

    def function(logits_RV: mx.array) -> LossSums:
        return weighted_sums(cap_logits(logits_RV, options.soft_cap), targets_R, weights_R, options)

    one, zero = mx.array(1.0), mx.array(0.0)
    sums, gradients = mx.vjp(function, [logits_RV], [one, zero, zero])
    return LossSums(*sums), gradients[0]


def gradient_by_hand(
    logits_CV: mx.array, targets_C: mx.array, weights_C: mx.array, options: LossOptions
) -> tuple[LossSums, mx.array]:
    """`weighted_sums` of uncapped float32 logits, and the gradient of its total [C, V], with one exp for each logit.

    With p = softmax(x), lse = logsumexp(x), weight w, target t:
    d total / d x_j = w ((1 + 2 z lse) p_j - (1 - s) [j = t] - s / V), times 1 - (x_j / c)^2 under a soft cap.
    """
    z, smoothing, cap = options
    x_CV = cap_logits(logits_CV, cap)
    index_C1, weight_C1 = targets_C[:, None], weights_C[:, None]
    largest_C1 = mx.max(x_CV, axis=-1, keepdims=True)
    powers_CV = polynomial_exp(x_CV - largest_C1)
    sum_C1 = row_sum(powers_CV)
    lse_C1 = largest_C1 + mx.log(sum_C1)
    target_C1 = mx.take_along_axis(x_CV, index_C1, axis=-1)
    losses_C1 = lse_C1 - target_C1
    total_C1, z_C1 = losses_C1, z * mx.square(lse_C1)
    factor_C1 = weight_C1 * (1.0 + 2.0 * z * lse_C1) / sum_C1
    gradient_CV = powers_CV * factor_C1
    at_target_C1 = mx.take_along_axis(powers_CV, index_C1, axis=-1) * factor_C1 - (1.0 - smoothing) * weight_C1
    if z:
        total_C1 = total_C1 + z_C1
    if smoothing:
        total_C1 = total_C1 + smoothing * (target_C1 - row_sum(x_CV) / x_CV.shape[1])
        share_C1 = weight_C1 * (smoothing / x_CV.shape[1])
        gradient_CV, at_target_C1 = gradient_CV - share_C1, at_target_C1 - share_C1
    gradient_CV = mx.put_along_axis(gradient_CV, index_C1, at_target_C1, axis=-1)
    if cap is not None:
        gradient_CV = gradient_CV * (1.0 - mx.square(x_CV * (1.0 / cap)))
    sums = (mx.sum(values * weight_C1) for values in (total_C1, losses_C1, z_C1))
    return LossSums(*sums), gradient_CV


def _chunks(hidden_TD: mx.array, weight_VD: mx.array, size: int) -> Iterator[tuple[slice, list[slice]]]:
    """Slices of tokens, and of each chunk's rows the pieces its elementwise work is done in."""
    (num_tokens, _), (vocab_size, _) = hidden_TD.shape, weight_VD.shape
    rows = size
    if has_slow_exp(hidden_TD):
        rows = max(1, max(PIECE, num_tokens * vocab_size // MAX_PIECES) // vocab_size)
    for chunk in _slices(num_tokens, size):
        yield chunk, _slices(chunk.stop - chunk.start, rows)


def _slices(length: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def _nothing() -> LossSums:
    return LossSums(mx.array(0.0), mx.array(0.0), mx.array(0.0))


def _add(sums: LossSums, more: LossSums) -> LossSums:
    return LossSums(*(a + b for a, b in zip(sums, more, strict=True)))


def _add_product(sum_VD: mx.array | None, a_VC: mx.array, b_CD: mx.array) -> mx.array:
    """sum + a b in float32, for float32 into the sum's own memory."""
    if sum_VD is None:
        return (a_VC @ b_CD).astype(mx.float32)
    if a_VC.dtype == mx.float32:
        return mx.addmm(sum_VD, a_VC, b_CD)
    return sum_VD + (a_VC @ b_CD).astype(mx.float32)
