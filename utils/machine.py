"""What a figure must say about the machine it was measured on: chip, versions, memory, and the peaks of the chip.

Every row of tools/benchmark.py carries it, so that rows of different people can lie in one table. To add a version,
add its package to `PACKAGES`.
"""

import datetime
import importlib.metadata
import os
import platform
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

from utils.chips import Peak, peak_of, this_chip
from utils.memory import memory_limit

PACKAGES = ("mlx", "mlx-lm", "torch", "numpy")
PROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


class Machine(NamedTuple):
    """The columns that all rows share, and the peaks of the chip."""

    row: dict[str, Any]
    peaks: dict[str, Peak]
    """By precision."""

    @property
    def heading(self) -> str:
        """`Apple M3 Max, 2026-11-21, pippin 0.1.0, python 3.11.7, mlx 0.32.4`."""
        versions = ", ".join(f"{name} {version}" for name, version in self.row["versions"].items())
        return f"{self.row['chip']}, {self.row['date']}, {versions}"


def describe_machine(precisions: set[str]) -> Machine:
    """The machine at hand; a peak that no table knows is measured, which takes a second."""
    chip = this_chip()
    versions = {"pippin": tomllib.loads(PROJECT.read_text())["project"]["version"], "python": platform.python_version()}
    row = {
        "chip": chip.name,
        "backend": chip.kind,
        "cores": os.cpu_count(),
        "memory_bytes": memory_limit(),
        "platform": platform.platform(),
        "date": datetime.date.today().isoformat(),
        "versions": versions | {name: version for name in PACKAGES if (version := installed_version(name))},
    }
    return Machine(row, {precision: peak_of(chip, precision) for precision in precisions})


def installed_version(package: str) -> str | None:
    """A package's version; None when it is not there."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
