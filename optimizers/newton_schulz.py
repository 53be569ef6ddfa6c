"""Newton-Schulz: stacks of matrices made nearly orthogonal with matrix products alone, so it runs on every device.

An odd polynomial maps the singular values towards 1, some times over. Matrices close to square are iterated as they
are; of long ones only the Gram matrix of the short side is, and one product at the end applies what it gathered. All
is float32: half precision needs restarts on the Gram path and diverged elsewhere; float32 needs neither restarts nor
symmetrisation (which made it worse). To change polynomials edit `COEFFICIENTS`; to bound memory, `LARGEST_STACK`.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Literal

import mlx.core as mx

from optimizers.base import Arrays, Shapes

Coefficients = Literal["quintic", "polar_express"]
Triple = tuple[float, float, float]
Rows = Mapping[str, tuple[int, ...]]
"""Rows of each matrix that a parameter is made of, one under the other."""

QUINTIC: Triple = (3.4445, -4.7750, 2.0315)
COEFFICIENTS: dict[Coefficients, tuple[Triple, ...]] = {
    "quintic": (QUINTIC,) * 6,
    "polar_express": (
        (8.156554524902461, -22.48329292557795, 15.878769915207462),
        (4.042929935166739, -2.808917465908714, 0.5000178451051316),
        (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
        (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
        (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
        (1.875, -1.25, 0.375),
    ),
}
"""(a, b, c) of x -> a x + b x^3 + c x^5, one for each step; fewer steps take the first ones.

`quintic` (Jordan et al. 2024, kellerjordan.github.io/posts/muon): five steps bring what was above 0.01 into [0.68,
1.14], never above 1.21. `polar_express` (Amsel et al. 2025, arXiv 2505.16932, for five steps with a safety factor of
1.02): [0.85, 1.15], but up to 1.9 on the way, so three or four steps of it are worse than of the quintic. Its sixth
is the limit of the sequence, the Newton-Schulz step of fifth order: [0.99, 1.01]."""

GRAM_FROM = 1.75
"""Long side over short side from which the Gram matrix is iterated. Its n steps take (4n - 3) + 2 r products of the
short side for a ratio r, the others n (2 r + 1): equal at 1.5; on a CPU as fast at 1.67, 1.4 times faster at 2.67."""
LARGEST_STACK = 92 * 2**20
"""Float32 numbers that the update of one stack may leave behind (368 MiB), which decides how many matrices it has. With
half of the stacks before and after alive beside it, that bounds an update's memory for models of any size. Eight
squares of 768 or five matrices of 768 x 2048 fit: with fewer, twelve such layers took over a fifth of MLX's nodes."""
TINY = 1e-12


def newton_schulz(matrices_NRC: mx.array, steps: Sequence[Triple]) -> mx.array:
    """Nearly U V^T of each matrix U S V^T of a stack [N, R, C], float32; `steps` as in `COEFFICIENTS`.

    The Frobenius norm brings the singular values below 1 first: it is the root of the Gram matrix's trace, so finding
    it takes no pass over the matrices. Zero stays zero, and norms below 1e-12 stay small.
    """
    gram_NSS = gram_of(matrices_NRC)
    per_norm_N11 = mx.rsqrt(mx.maximum(diagonals(gram_NSS).sum(axis=2, keepdims=True), TINY**2))
    gram_NSS = gram_NSS * mx.square(per_norm_N11)
    if iterates_gram(matrices_NRC.shape):
        factor_NSS = gathered(gram_NSS, per_norm_N11, steps)
        return matrices_NRC @ factor_NSS if is_tall(matrices_NRC) else factor_NSS @ matrices_NRC
    x_NRC = matrices_NRC * per_norm_N11
    for index, (a, b, c) in enumerate(steps):
        gram_NSS = gram_of(x_NRC) if index else gram_NSS
        inner_NSS = mx.addmm(gram_NSS, gram_NSS, gram_NSS, alpha=c, beta=b)
        factors = (x_NRC, inner_NSS) if is_tall(x_NRC) else (inner_NSS, x_NRC)
        x_NRC = mx.addmm(x_NRC, *factors, beta=a)
    return x_NRC


def gathered(gram_NSS: mx.array, scale_N11: mx.array, steps: Sequence[Triple]) -> mx.array:
    """`scale` times the product Q of all steps' p(G) = a + b G + c G^2, where each step turns G into p(G) G p(G).

    With G = X X^T, Q X is what the same steps make of X (Gram Newton-Schulz, as in microsoft/dion and DeepSpeed).
    What rounding makes of a zero in G grows by a^2 a step and stays harmless over six. Making each G anew as
    Q X X^T Q, for as many products, does not: a matrix of ones came out 70,000 times too large.
    """
    index_S = mx.arange(gram_NSS.shape[-1])
    is_diagonal_SS = index_S[:, None] == index_S
    product_NSS = None
    for index, (a, b, c) in enumerate(steps):
        inner_NSS = mx.addmm(gram_NSS, gram_NSS, gram_NSS, alpha=c, beta=b)
        if product_NSS is None:
            product_NSS = scale_N11 * mx.where(is_diagonal_SS, inner_NSS + a, inner_NSS)
        else:
            product_NSS = mx.addmm(product_NSS, product_NSS, inner_NSS, beta=a)
        if index + 1 < len(steps):
            half_NSS = mx.addmm(gram_NSS, gram_NSS, inner_NSS, beta=a)
            gram_NSS = mx.addmm(half_NSS, half_NSS, inner_NSS, beta=a)
    assert product_NSS is not None
    return product_NSS


def gram_of(x_NRC: mx.array) -> mx.array:
    """The Gram matrices [N, S, S] of the shorter side, S = min(R, C)."""
    x_NCR = x_NRC.swapaxes(1, 2)
    return x_NCR @ x_NRC if is_tall(x_NRC) else x_NRC @ x_NCR


def diagonals(squares_NSS: mx.array) -> mx.array:
    """The diagonals [N, 1, S], read in place."""
    number, side, _ = squares_NSS.shape
    return mx.as_strided(squares_NSS, (number, 1, side), (side * side, side, side + 1))


def is_tall(x_NRC: mx.array) -> bool:
    """More rows than columns."""
    return x_NRC.shape[1] > x_NRC.shape[2]


def iterates_gram(shape: Sequence[int]) -> bool:
    """Whether matrices of this shape [..., rows, columns] are iterated as Gram matrices."""
    short, long = sorted(shape[-2:])
    return long >= GRAM_FROM * short


def numbers_held(shape: Sequence[int], num_steps: int) -> int:
    """Float32 numbers that the update of one matrix leaves behind: MLX issues all of it ahead of computing.

    Its own: the momentum in its stack, the step, the result; the gradient's place is taken over. Of the Gram matrix
    each iteration makes four; otherwise it makes two and the next matrix, after the scaled one.
    """
    short, long = sorted(shape[-2:])
    matrix, square = short * long, short * short
    if iterates_gram(shape):
        return 3 * matrix + 4 * num_steps * square
    return (4 + num_steps) * matrix + 2 * num_steps * square


def stacks(shapes: Shapes, num_steps: int = 5) -> Iterator[list[str]]:
    """Names of matrices [rows, columns] of one shape, as many at once as hold at most `LARGEST_STACK` numbers."""
    names_of: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for name, shape in shapes.items():
        names_of[tuple(shape)].append(name)
    for shape, names in names_of.items():
        num_at_once = max(1, LARGEST_STACK // numbers_held(shape, num_steps))
        yield from (names[start : start + num_at_once] for start in range(0, len(names), num_at_once))


def part_names(name: str, rows: Sequence[int]) -> list[str]:
    """What the matrices of a parameter are called; the parameter's own name when it is one."""
    return [name] if len(rows) == 1 else [f"{name}/{index}" for index in range(len(rows))]


def part_shapes(shapes: Shapes, rows: Rows) -> dict[str, tuple[int, int]]:
    """Shape of every matrix, by its part name."""
    return {
        part: (num_rows, shape[-1])
        for name, shape in shapes.items()
        for part, num_rows in zip(part_names(name, rows[name]), rows[name], strict=True)
    }


def parted(arrays: Arrays, rows: Rows) -> Arrays:
    """Every matrix [rows, columns] of parameters [(stacked,) rows, columns], by its part name."""
    parts: Arrays = {}
    for name, array in arrays.items():
        flat = array.reshape(-1, array.shape[-1]) if array.ndim > 2 else array
        pieces = [flat] if len(rows[name]) == 1 else mx.split(flat, list(accumulate(rows[name]))[:-1])
        parts.update(zip(part_names(name, rows[name]), pieces, strict=True))
    return parts


def joined(parts: Arrays, rows: Rows, shapes: Shapes) -> Arrays:
    """Parameters from their matrices: the inverse of `parted`. All but the columns are as in `shapes`."""
    whole: Arrays = {}
    for name, shape in shapes.items():
        pieces = [parts[part] for part in part_names(name, rows[name])]
        flat = pieces[0] if len(pieces) == 1 else mx.concatenate(pieces)
        whole[name] = flat.reshape(*shape[:-1], flat.shape[-1]) if len(shape) > 2 else flat
    return whole
