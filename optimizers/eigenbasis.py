"""Eigenvectors of running means, kept up to date: all at once by `eigh`, or a step of orthogonal iteration by QR, which
is cheaper and follows a mean that changes slowly. Each new vector takes the column of the old one that stood at its
place in the order of eigenvalues, so what others keep for a column stays valid. Both run on a CPU only. Matrices of one
size go through them as one stack: MLX starts about a hundred operations ahead and then waits, so decompositions one
by one would hold up the update that should run beside them. To change what counts as broken edit `LOST`.

Shapes: N matrices of one size, C rows and columns.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping
from typing import Literal, NamedTuple, TypeVar

import mlx.core as mx

Basis = Literal["qr", "eigh"]
Key = TypeVar("Key", bound=Hashable)

LOST = 1e-4
"""Of the largest eigenvalue: a negative one beyond it is no rounding."""
RIDGE = 1e-6
"""Likewise, added to every eigenvalue: columns without any keep their direction instead of taking that of rounding."""
TINY = 1e-37
LARGEST_STACK = 2**22


class Renewed(NamedTuple):
    """A basis, and whether its matrix had to be damped."""

    basis_1CC: mx.array
    """Orthonormal columns."""
    damped_1: mx.array
    """1 or 0, float32."""


class Prepared(NamedTuple):
    """What decompositions start from, and where their columns go."""

    matrices_NCC: mx.array
    places_N1C: mx.array
    """For each column of the basis its place in the order of falling eigenvalues, from 0."""
    damped_N: mx.array
    """Whether each had to be damped: 1 or 0, float32."""


def renewed_bases(means: Mapping[Key, mx.array], bases: Mapping[Key, mx.array], basis: Basis) -> dict[Key, Renewed]:
    """Nearly the eigenvectors of symmetric matrices [1, C, C] of any sizes, from those they had; float32, lazily.

    `qr`: one step of orthogonal iteration from the old ones (Vyas et al. 2024, algorithm 4); `eigh`: exactly. What is
    not finite counts as zero. A matrix that had such elements, or has a negative eigenvalue (under `qr`: as far as the
    old basis shows it), is damped: so much is added to its diagonal that there is none, which changes no eigenvector
    and keeps QR's basis near the old one. Zeros keep it altogether.
    """
    renewed: dict[Key, Renewed] = {}
    for keys in stacks_of({key: mean.shape[-1] for key, mean in means.items()}):
        found = decomposed(stacked([prepare(means[key], bases[key], basis) for key in keys]), basis)
        if runs_alone():
            mx.eval(found)
        parts = (mx.split(array, len(keys)) for array in found)
        renewed |= {key: Renewed(*pair) for key, *pair in zip(keys, *parts, strict=True)}
    return renewed


def runs_alone() -> bool:
    """Whether the CPU makes the updates too: then nothing is gained by starting all decompositions at once, and their
    memory is saved.
    """
    return mx.default_device().type == mx.DeviceType.cpu


def stacks_of(sizes: Mapping[Key, int]) -> Iterator[list[Key]]:
    """The keys of matrices of one size; at most `LARGEST_STACK` numbers at once when the CPU is alone."""
    keys_of: dict[int, list[Key]] = defaultdict(list)
    for key, size in sizes.items():
        keys_of[size].append(key)
    for size, keys in keys_of.items():
        at_once = max(1, LARGEST_STACK // size**2) if runs_alone() else len(keys)
        yield from (keys[start : start + at_once] for start in range(0, len(keys), at_once))


def stacked(prepared: list[Prepared]) -> Prepared:
    """Many of N = 1 as one."""
    return Prepared(*(mx.concatenate(list(parts)) for parts in zip(*prepared, strict=True)))


def prepare(mean_1CC: mx.array, basis_1CC: mx.array, basis: Basis) -> Prepared:
    """Mend, scale and damp a matrix and, where QR is to follow, multiply it by its old basis."""
    is_finite = mx.isfinite(mean_1CC)
    mended_1CC = mx.where(is_finite, mean_1CC, 0.0)
    mended_1CC = mended_1CC / mx.maximum(mx.max(mx.abs(mended_1CC)), TINY)
    turned_1CC = mended_1CC @ basis_1CC
    values_11C = mx.sum(basis_1CC * turned_1CC, axis=1, keepdims=True)
    least, most = mx.min(values_11C), mx.max(values_11C)
    is_lost = mx.logical_or(mx.logical_not(mx.all(is_finite)), least < -LOST * most)
    order_11C = mx.argsort(-values_11C, axis=2)
    place_11C = mx.argsort(order_11C, axis=2)
    damped_1 = is_lost.astype(mx.float32).reshape(1)
    if basis == "eigh":
        return Prepared(mended_1CC, place_11C, damped_1)
    # No eigenvalue is below minus the largest sum of a row.
    row_sum = mx.max(mx.sum(mx.abs(mended_1CC), axis=2))
    ridge = mx.where(is_lost, row_sum, RIDGE * mx.maximum(most, 1.0))
    turned_1CC = turned_1CC + ridge * basis_1CC
    return Prepared(mx.take_along_axis(turned_1CC, order_11C, axis=2), place_11C, damped_1)


def decomposed(stack: Prepared, basis: Basis) -> tuple[mx.array, mx.array]:
    """The new bases [N, C, C] of a stack and which were damped [N], started on the CPU and not waited for."""
    places_N1C, damped_N = stack.places_N1C, stack.damped_N
    with mx.stream(mx.cpu):
        if basis == "eigh":
            values_NC, columns_NCC = mx.linalg.eigh(stack.matrices_NCC)
            places_N1C = places_N1C.shape[2] - 1 - places_N1C  # Its eigenvalues rise.
            is_lost_N = values_NC[:, 0] < -LOST * values_NC[:, -1]
            damped_N = mx.maximum(damped_N, is_lost_N.astype(mx.float32))
        else:
            columns_NCC = mx.linalg.qr(stack.matrices_NCC)[0]
        bases_NCC = mx.take_along_axis(columns_NCC, places_N1C, axis=2)
    mx.async_eval(bases_NCC, damped_N)
    return bases_NCC, damped_N
