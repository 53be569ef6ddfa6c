"""Checks of machines that do not work, for the smoke test's child: import paths, since a child is given names.

`answer_with(rows, ...)`, made a partial of, stands for `core.smoke.answer` with some rows of its table replaced.
"""

import os
import threading
from multiprocessing.connection import Connection

import core  # noqa: F401 -- before MLX

# isort: split
import mlx.core as mx

from core import smoke
from core.self_test import OPERATIONS
from core.smoke_checks import Arrays, Path, Report, check_attention, check_files, through_numpy

HERE = "tests.broken_checks"
MANAGED = "cudaMemAdvise(data_, small_pool_size, cudaMemAdviseSetReadMostly, 0) failed: invalid argument"


def answer_with(rows: dict[str, str], names: list[str], connection: Connection, errors: str) -> None:
    """The child of `core.smoke` with other checks: name to function of this file."""
    smoke.CHECKS.update({name: f"{HERE}:{function}" for name, function in rows.items()})
    smoke.answer(names, connection, errors)


def fine() -> Report:
    """Nothing wrong; libraries may still have something to say."""
    os.write(2, b"libnoise: hello\n")
    return Report("a figure", {"figure": 1})


def cannot_import() -> Report:
    """MLX's import in Modal's sandbox in 2025."""
    raise ImportError(MANAGED)


def raises() -> Report:
    """An error with several lines."""
    raise RuntimeError("[matmul] bad\n  shapes")


def dies() -> Report:
    """A C++ exception in a thread of MLX."""
    os.write(2, b"terminate called after throwing an instance of 'std::runtime_error'\n")
    os.write(2, b"  what():  cudaMallocManaged failed: an illegal memory access was encountered\n\n")
    os.abort()


def leaves() -> Report:
    """A library that calls exit."""
    os._exit(3)


def hangs() -> Report:
    """A kernel that never ends."""
    threading.Event().wait()
    raise AssertionError


def one_key_too_many(q: mx.array, k: mx.array, v: mx.array, scale: float) -> mx.array:
    """Attention whose mask is off by one."""
    places = mx.arange(q.shape[2])
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=places[None, :] <= places[:, None] + 1)


def wrong_attention() -> Report:
    """The real check of a wrong kernel."""
    return check_attention(OPERATIONS._replace(attention=one_key_too_many))


def refused_write(folder: Path, arrays: Arrays) -> Arrays:
    """A write from managed memory in gVisor."""
    raise OSError(14, "Bad address")


def wrong_files() -> Report:
    """The real check where one of two ways fails."""
    return check_files({"NumPy": through_numpy, "MLX": refused_write})
