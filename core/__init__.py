"""The run: config, the training loop, checkpoints, objectives, generation, evaluation, export.

Importing it puts OpenBLAS ahead of MLX's own BLAS on Linux CPUs: the only import-time effect of the project, and it
must come before the first `import mlx.core`.
"""

from utils.fast_blas import put_openblas_first

put_openblas_first()
