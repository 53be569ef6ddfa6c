"""Names to classes: one literal table per package, `{"muon": "optimizers.muon:MuonConfig"}`, loaded lazily.

Tables beat decorators here: `grep muon` finds the row, importing a package has no side effect, the error can list
every row, and only the chosen module is loaded. A name that holds a colon is an import path to a user's own class.
"""

import difflib
import importlib
from collections.abc import Iterable, Mapping
from typing import Any


def import_object(path: str) -> Any:
    """Import `module.name:attribute`. Raises ValueError when either half is not there."""
    module_name, _, attribute = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not module_name.startswith(error.name):
            raise
        raise ValueError(f"cannot import '{path}': there is no module '{error.name}'") from error
    try:
        return getattr(module, attribute)
    except AttributeError:
        raise ValueError(f"cannot import '{path}': '{module_name}' has no '{attribute}'") from None


def look_up(table: Mapping[str, str], name: str, kind: str) -> Any:
    """The object that `name` stands for in `table`. Raises ValueError that names what there is."""
    if name in table:
        return import_object(table[name])
    if ":" in name:
        return import_object(name)
    raise ValueError(f"unknown {kind} '{name}'{suggestion(name, table)}; there are: {', '.join(sorted(table))}")


def suggestion(name: str, choices: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the nearest choice, or nothing."""
    near = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.6)
    return f" (did you mean '{near[0]}'?)" if near else ""
