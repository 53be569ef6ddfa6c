"""What every test shares. `core` is imported before anything imports MLX, so that OpenBLAS is in place."""

import os

# Workers of one machine share its cores; a thread pool as large as the machine in each of them only makes them wait.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import core  # noqa: F401
from tests.compiler import put_header_first

# Workers inherit it.
if "PYTEST_XDIST_WORKER" not in os.environ:
    put_header_first()
