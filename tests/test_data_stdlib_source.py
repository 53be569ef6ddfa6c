"""The standard library: there on every machine, without its tests."""

import pytest

from data.stdlib_source import StdlibSourceConfig, library_files
from tests.source_oracles import assert_resumes, read
from utils.errors import DataError


def test_stdlib_is_the_library_without_tests_and_resumes():
    assert_resumes(StdlibSourceConfig(max_documents=5))
    names = {path.name for path in library_files()}
    assert {"argparse.py", "_pydecimal.py"} <= names
    assert not any({"test", "tests", "site-packages"} & set(path.parts[-4:-1]) for path in library_files())
    texts, _ = read(StdlibSourceConfig())
    assert 5_000_000 < sum(len(text) for text in texts) < 50_000_000


def test_a_python_without_its_library_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"stdlib": str(tmp_path)})
    assert "no source files of the standard library" in StdlibSourceConfig().find_problems()[0]
    with pytest.raises(DataError, match="name a corpus in data.sources"):
        read(StdlibSourceConfig())
