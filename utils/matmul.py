"""How fast this machine multiplies matrices: the one number that decides how fast it trains.

Imports MLX only when called, so that the caller decides which BLAS came first.
"""

import time


def matmul_gflops(size: int, num_repeats: int = 5, precision: str = "float32") -> float:
    """GFLOP/s of a product of two `size` x `size` matrices: 2 size^3 operations, the best of `num_repeats`."""
    import mlx.core as mx

    a, b = mx.random.normal((2, size, size), key=mx.random.key(0)).astype(getattr(mx, precision))
    mx.eval(a @ b)
    seconds = []
    for _ in range(num_repeats):
        start = time.perf_counter()
        mx.eval(a @ b)
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds) / 1e9
