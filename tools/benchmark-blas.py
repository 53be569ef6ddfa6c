"""`python tools/benchmark-blas.py`: a float32 matrix product with the BLAS of the MLX wheel, and with ours.

Each runs in its own process, because a library that is loaded stays loaded: one imports `mlx.core` directly, one
imports `core` first, as every command of this project does. They take turns and the best of all counts, so that other
work on the machine disturbs both alike. Exit code 1 when a CPU wheel gains less than `LEAST_RATIO` at full size.
"""

import subprocess
import sys
from pathlib import Path

from utils.cli import Parser, run_command
from utils.fast_blas import needs_openblas

REPOSITORY = Path(__file__).resolve().parent.parent
FULL_SIZE = 2048
LEAST_RATIO = 10.0
NUM_TURNS = 2
CHILD = "from utils.matmul import matmul_gflops; print(matmul_gflops({size}))"


def measure(first_import: str, size: int) -> float:
    """GFLOP/s of a fresh process that begins with `first_import`."""
    code = f"{first_import}; {CHILD.format(size=size)}"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=REPOSITORY)
    return float(result.stdout)


def main() -> int:
    """Measure, print, judge."""
    parser = Parser("Measure what putting OpenBLAS ahead of MLX's own BLAS gains on this machine.")
    parser.add_argument("--size", type=int, default=FULL_SIZE, help="rows and columns of the matrices (%(default)s)")
    size = parser.parse_args().size
    if size < 1:
        parser.error(f"--size is {size}, must be at least 1")
    turns = [(measure("import mlx.core", size), measure("import core", size)) for _ in range(NUM_TURNS)]
    plain, fast = (max(column) for column in zip(*turns, strict=True))
    print(f"float32 {size} x {size}: {plain:.1f} GFLOP/s as the wheel comes, {fast:.1f} with core: {fast / plain:.1f}x")
    if size >= FULL_SIZE and needs_openblas() and fast < LEAST_RATIO * plain:
        print(f"error: at least {LEAST_RATIO:.0f}x was expected", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    run_command(main)
