"""Optional packages: the module when it is there, a line that says what to install when it is not, bugs as they are."""

import json
import sys
from pathlib import Path

import pytest

from utils.errors import BackendError
from utils.optional import optional


def test_an_installed_module_is_imported() -> None:
    assert optional("json", extra="data") is json


def test_a_missing_package_names_the_extra() -> None:
    with pytest.raises(BackendError) as caught:
        optional("no_such_package.inner", extra="data")
    assert caught.value.problems == ["no_such_package is not installed; to install it: pip install -e '.[data]'"]


def test_a_package_that_is_broken_inside_keeps_its_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_inside.py").write_text("import no_such_dependency\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        optional("broken_inside", extra="data")
    assert "broken_inside" not in sys.modules
