"""What every test shares. `core` is imported before anything imports MLX, so that OpenBLAS is in place."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Workers of one machine share its cores; a thread pool as large as the machine in each of them only makes them wait.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest

import core  # noqa: F401
from tests.compiler import put_header_first
from tests.folder_volume import FolderVolume

# Workers inherit it.
if "PYTEST_XDIST_WORKER" not in os.environ:
    put_header_first()

# A shell's background job ignores Ctrl-C, and every process that a test starts would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Any]:
    """The stand-in of Modal's servers, `tests.modal_loopback.Loopback`, for the time of a test."""
    from tests.modal_loopback import Loopback

    with Loopback(tmp_path) as cloud:
        yield cloud


@pytest.fixture
def volume(tmp_path: Path) -> FolderVolume:
    """What behaves like a modal.Volume, in a folder."""
    return FolderVolume(tmp_path / "volume")


@pytest.fixture
def there(volume: FolderVolume) -> Path:
    """The folder of a run named `run` on the volume."""
    return volume.root / "run"
