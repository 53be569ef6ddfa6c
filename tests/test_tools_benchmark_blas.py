"""The BLAS benchmark runs, and its one figure is the formula it states."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from utils.matmul import matmul_gflops

REPOSITORY = Path(__file__).parent.parent


def benchmark(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the tool from the checkout."""
    environment = {"PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, str(REPOSITORY / "tools" / "benchmark-blas.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_both_processes_are_measured() -> None:
    result = benchmark("--size", "16")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("float32 16 x 16: ")


def test_a_size_of_zero_is_refused() -> None:
    result = benchmark("--size", "0")
    assert result.returncode == 2
    assert result.stderr.startswith("error: --size is 0")


def test_gflops_are_two_size_cubed_over_the_best_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 2.0, 10.0, 10.5])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    assert matmul_gflops(10, num_repeats=2) == 2 * 10**3 / 0.5 / 1e9
