"""The run: config, the training loop, checkpoints, objectives, generation, evaluation, export.

Importing it prepares the process for MLX on Linux CPUs: OpenBLAS ahead of MLX's own BLAS, and a malloc that keeps what
is freed. It is the only import-time effect of the project and must come before the first `import mlx.core`.
"""

from utils.fast_blas import needs_openblas, put_openblas_first
from utils.fast_malloc import keep_freed_memory

put_openblas_first()
if needs_openblas():
    keep_freed_memory()
