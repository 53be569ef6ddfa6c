"""Freed memory stays with the process on Linux CPUs, where MLX asks malloc for every array anew.

MLX's CPU backend frees a step's buffers and allocates the same ones in the next. glibc hands large blocks back to the
kernel at once, which then has to give, and clear, the same pages again: 113 thousand page faults a step of the
quickstart. Raising two thresholds keeps the blocks; the price is that the process holds the most it ever used. Other
C libraries have no `mallopt`, and GPU builds a cache of their own.
"""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_BLOCK = 1 << 30
MOST_KEPT = (1 << 31) - 1


def keep_freed_memory() -> bool:
    """Ask glibc to keep freed blocks; False where there is no glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST_BLOCK)) and bool(mallopt(M_TRIM_THRESHOLD, MOST_KEPT))
