"""malloc that keeps what is freed: seen in the page faults of a process that allocates the same block again."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

COUNT_FAULTS = """
import ctypes, resource
from utils.fast_malloc import keep_freed_memory
if {keeps}:
    assert keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
def touch():
    block = libc.malloc(64 << 20)
    ctypes.memset(block, 1, 64 << 20)
    libc.free(block)
touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(*, keeps: bool) -> int:
    code = COUNT_FAULTS.format(keeps=keeps)
    command, root = [sys.executable, "-c", code], Path(__file__).parent.parent
    return int(subprocess.run(command, check=True, capture_output=True, text=True, cwd=root).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_a_block_that_comes_again_costs_no_page_faults() -> None:
    assert page_faults(keeps=True) * 20 < page_faults(keeps=False)
