"""Forerunner files for tests: copies of those in tests/forerunner with other values, and what is said of them."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from core.config import LoadedConfig, load
from utils.errors import ConfigError

HERE = Path(__file__).parent / "forerunner"


def changed(tmp_path: Path, changes: dict[str, Any], file: str = "everything.yaml") -> str:
    """A copy of a file with other values at dotted paths."""
    values = yaml.safe_load((HERE / file).read_text())
    for path, value in changes.items():
        section = values
        *parents, last = path.split(".")
        for key in parents:
            section = section.setdefault(key, {})
        section[last] = value
    target = tmp_path / "changed.yaml"
    target.write_text(yaml.safe_dump(values, sort_keys=False))
    return str(target)


def problems(path: str) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        load(path)
    return raised.value.problems


def texts(loaded: LoadedConfig) -> str:
    return "\n".join(loaded.notes)
