"""The source code of the installed Python: a corpus that is on every machine, for a first run without a download.

Its tests and what was installed on top of it are left out. A library file in another encoding is left out and counted.
"""

import os
import platform
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.cache import Report
from data.document_sources import read_source
from data.folders import stamps
from data.sources import Documents, Part, SourceConfig, State
from utils.errors import DataError

NOT_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
LARGEST_MODULE = 10_000_000


class StdlibSourceConfig(SourceConfig):
    """The standard library of the running Python without its tests: about 12 MB of source, on every machine."""

    type: str = "stdlib"
    """Row of data.SOURCES."""

    def walk(self, state: State, report: Report) -> Documents:
        """See `SourceConfig.walk`."""
        return self.walk_files(library_files(), state, report)

    def parts(self, file: Path, state: State) -> Iterator[Part]:
        """See `SourceConfig.parts`; a module has one part."""
        if state["part"] == 0:
            text, rule = read_source(file, LARGEST_MODULE)
            yield Part(text, {"part": 1}, left_out=rule)

    def origin(self) -> dict[str, Any]:
        """See `SourceConfig.origin`."""
        return {"python": platform.python_version(), "files": stamps(library_files())}

    def find_problems(self) -> list[str]:
        """See `SourceConfig.find_problems`."""
        try:
            library_files()
        except DataError as error:
            return error.problems
        return []


def library_files() -> list[Path]:
    """The modules of the standard library, sorted, without tests and installed packages."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found: list[Path] = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in NOT_LIBRARY]
        found += [Path(folder, name) for name in names if name.endswith(".py")]
    if not found:
        raise DataError(f"{root}: no source files of the standard library; name a corpus in data.sources")
    return sorted(found)
