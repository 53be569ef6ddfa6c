"""Packages that only some features need: imported where they are used, and missed by a line that says what to install.

To make another package optional, add it to an extra in `pyproject.toml` and call `optional` in the one function that
uses it.
"""

import importlib
from typing import Any

from utils.errors import BackendError


def optional(module: str, extra: str) -> Any:
    """The module, imported now. Raises BackendError, naming the extra that brings it, when it is not installed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or module.split(".")[0] != error.name.split(".")[0]:
            raise
        package = error.name.split(".")[0]
        raise BackendError(f"{package} is not installed; to install it: pip install -e '.[{extra}]'") from error
