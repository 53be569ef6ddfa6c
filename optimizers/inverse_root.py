"""A^-power of symmetric positive definite matrices by a coupled Newton iteration: matrix products only, so that it runs
where MLX has no eigenvalues (on a GPU) and many matrices at once. It keeps M, which goes to the identity, and X, which
goes to the root; both are multiplied by powers of one polynomial of M, so they commute and rounding does not build up
(Iannazzo 2006; Guo & Higham 2006). Newton's own polynomial grows small eigenvalues by less than e in each iteration;
ours are the steepest that leave the large ones above `FLOOR`, and take half as many iterations to the same accuracy.
To change that trade edit `FLOOR`, to change what counts as converged `TOLERANCE`.

Shapes: N matrices of R rows and columns.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping
from fractions import Fraction
from functools import lru_cache
from itertools import groupby
from typing import NamedTuple, TypeVar

import mlx.core as mx

LARGEST_STACK = 2**20
"""Numbers in the matrices that are iterated at once; an iteration makes four or five arrays of this size."""
FLOOR = 0.1
"""No iteration makes the largest eigenvalue smaller than this: what it loses there in digits is lost."""
TOLERANCE = 0.1
"""Largest Frobenius norm of M - 1 at the end. Rounding leaves about 1e-5; one eigenvalue that failed leaves 1."""
SMALLEST_STEP = 1e-7

Key = TypeVar("Key", bound=Hashable)


class Roots(NamedTuple):
    """Of a stack of matrices."""

    root_NRR: mx.array
    """A^-power, float32; zeros for a matrix of zeros, anything where it did not converge."""
    converged_N: mx.array
    """Bool: false for a matrix that has a negative eigenvalue beyond its ridge, or holds NaN or infinity."""


@lru_cache(maxsize=64)
def coefficients(power: Fraction, smallest: float) -> tuple[tuple[float, float], ...]:
    """(a, b) of each iteration x -> x (a - b x)^q that brings eigenvalues in [smallest, 1] to 1; q: `power`'s bottom.

    Each maps the interval [low, 1] into itself with the highest low that it can: the peak becomes 1, and 1 falls as low
    as `low` rises, or to `FLOOR`. The share r = b / a decides; the larger, the steeper.
    """
    degree, low, found = power.denominator, smallest, []
    while 1 - low > SMALLEST_STEP:
        least, most = 1 / (degree + 1), 1.0
        for _ in range(60):
            share = (least + most) / 2
            peak = shrunk(max(low, 1 / ((degree + 1) * share)), share, degree)
            enough = max(shrunk(low, share, degree), FLOOR * peak)
            least, most = (share, most) if shrunk(1.0, share, degree) >= enough else (least, share)
        peak = shrunk(max(low, 1 / ((degree + 1) * least)), least, degree)
        low = min(shrunk(low, least, degree), shrunk(1.0, least, degree)) / peak
        factor = peak ** (-1 / degree)
        found.append((factor, factor * least))
    return tuple(found)


def shrunk(value: float, share: float, degree: int) -> float:
    """x (1 - r x)^q."""
    return value * (1 - share * value) ** degree


def inverse_root(matrices_NRR: mx.array, ridge_N: mx.array, power: Fraction, least_ridge: float) -> Roots:
    """(A + ridge * |A|_F * 1)^-power for each matrix, of which none has a ridge below `least_ridge`.

    The Frobenius norm stands for the largest eigenvalue, which it is at least: it is exact, and rows of zeros do not
    change it. Error of float32 in a fourth root, relative to its norm: 3e-5 with a ridge of 1e-4, 3e-4 with 1e-5, 3e-3
    with 1e-6 if the matrix has no full rank, else a third of that; a float32 matrix does not hold more digits.
    """
    identity_RR = mx.eye(matrices_NRR.shape[-1])
    largest_N11 = mx.max(mx.abs(matrices_NRR), axis=(1, 2), keepdims=True)
    has_any = largest_N11 > 0
    scaled_NRR = matrices_NRR / mx.where(has_any, largest_N11, 1.0)
    norm_N11 = mx.where(has_any, mx.sqrt(sum_of_squares(scaled_NRR)), 1.0)
    ridge_N11 = ridge_N[:, None, None]
    coupled_NRR = (scaled_NRR / norm_N11 + ridge_N11 * identity_RR) / (1 + ridge_N11)
    scale_N11 = (norm_N11 * (1 + ridge_N11)) ** -float(power) * mx.where(has_any, largest_N11, 1.0) ** -float(power)
    root_NRR = mx.where(has_any, scale_N11, 0.0) * identity_RR
    for a, b in coefficients(power, least_ridge / (1 + least_ridge)):
        factor_NRR = a * identity_RR - b * coupled_NRR
        root_NRR = root_NRR @ product_of(factor_NRR, power.numerator)
        coupled_NRR = product_of(factor_NRR, power.denominator) @ coupled_NRR
    error_N11 = mx.sqrt(sum_of_squares(coupled_NRR - identity_RR))
    # Symmetric again: the products are so only up to rounding. NaN compares as false.
    return Roots((root_NRR + root_NRR.swapaxes(1, 2)) / 2, error_N11.reshape(-1) < TOLERANCE)


def sum_of_squares(matrices_NRC: mx.array) -> mx.array:
    """[N, 1, 1]; rows first, because MLX adds one number after the other on a CPU."""
    return mx.sum(mx.sum(mx.square(matrices_NRC), axis=2, keepdims=True), axis=1, keepdims=True)


def product_of(matrices_NRR: mx.array, exponent: int) -> mx.array:
    """Each matrix times itself, `exponent` (1, 2, ...) factors in all, by repeated squaring."""
    result = matrices_NRR
    for bit in f"{exponent:b}"[1:]:
        result = result @ result
        result = result @ matrices_NRR if bit == "1" else result
    return result


def inverse_roots(
    matrices: Mapping[Key, mx.array], ridges: Mapping[Key, mx.array], power: Fraction, least_ridge: float
) -> dict[Key, Roots]:
    """`inverse_root` of stacks [N, R, R] with ridges [N]; matrices of one size together, whatever stack they are in."""
    parts: dict[Key, list[Roots]] = defaultdict(list)
    last = mx.zeros(())
    for pieces in stacks({key: array.shape for key, array in matrices.items()}):
        joined_NRR = mx.concatenate([matrices[key][start:stop] for key, start, stop in pieces])
        ridge_N = mx.concatenate([ridges[key][start:stop] for key, start, stop in pieces])
        # One stack after the other: together their iterations hold many times the memory of the matrices.
        (joined_NRR,) = mx.depends([joined_NRR], [last])
        found = inverse_root(joined_NRR, ridge_N, power, least_ridge)
        last, first = found.root_NRR, 0
        for key, start, stop in pieces:
            parts[key].append(Roots(*(array[first : first + stop - start] for array in found)))
            first += stop - start
    return {key: Roots(*(mx.concatenate(list(arrays)) for arrays in zip(*parts[key], strict=True))) for key in matrices}


def stacks(shapes: Mapping[Key, tuple[int, ...]]) -> Iterator[list[tuple[Key, int, int]]]:
    """Pieces (key, start, stop) of stacks [N, R, R] with one R, at most `LARGEST_STACK` numbers at once."""
    single: dict[int, list[tuple[Key, int]]] = defaultdict(list)
    for key, (num_matrices, size, _) in shapes.items():
        single[size] += [(key, index) for index in range(num_matrices)]
    for size, members in single.items():
        at_once = max(1, LARGEST_STACK // size**2)
        for start in range(0, len(members), at_once):
            runs = groupby(members[start : start + at_once], key=lambda member: member[0])
            indices = [(key, [index for _, index in run]) for key, run in runs]
            yield [(key, found[0], found[-1] + 1) for key, found in indices]
