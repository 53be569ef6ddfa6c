"""OpenBLAS comes before the wheel's BLAS in a fresh process, from every source, and its absence is said loudly."""

import ctypes
import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from utils import fast_blas
from utils.elf import read_defined_symbols

pytestmark = pytest.mark.skipif(not fast_blas.needs_openblas(), reason="only the mlx-cpu wheel needs OpenBLAS")

WHEEL, PATCHELF = fast_blas.find_wheel_library(), fast_blas.find_patchelf()
REPOSITORY = Path(__file__).parent.parent


class FakeConfig:
    """Stands in for the C function that says how an OpenBLAS was built."""

    def __init__(self, config: bytes) -> None:
        self.config = config

    def __call__(self) -> bytes:
        return self.config


def fake_library(config: bytes) -> SimpleNamespace:
    """What ctypes would return for an OpenBLAS."""
    return SimpleNamespace(openblas_get_config=FakeConfig(config), cblas_sgemm=None)


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a fresh interpreter in the repository."""
    variables = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(REPOSITORY), **environment}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=variables, cwd=REPOSITORY)


def mapped_after(code: str, **environment: str) -> tuple[str, str]:
    """What a fresh process prints after `code`: the files it has mapped; and its stderr."""
    result = run_python(f"{code}; print(open('/proc/self/maps').read())", **environment)
    assert result.returncode == 0, result.stderr
    return result.stdout, result.stderr


def test_importing_core_maps_openblas() -> None:
    maps, errors = mapped_after("import core, mlx.core as mx; mx.eval(mx.ones((8, 8)) @ mx.ones((8, 8)))")
    assert "openblas" in maps
    assert errors == ""


def test_mlx_calls_the_openblas_in_front() -> None:
    """The symbol libmlx binds to is looked up in load order, so it must resolve into OpenBLAS after MLX came, too."""
    code = """
import core, ctypes, mlx.core
class Info(ctypes.Structure):
    _fields_ = [("file", ctypes.c_char_p), ("base", ctypes.c_long), ("name", ctypes.c_char_p), ("at", ctypes.c_long)]
everything, info = ctypes.CDLL(None), Info()
everything.dladdr(ctypes.cast(everything.cblas_sgemm, ctypes.c_void_p), ctypes.byref(info))
print(info.file.decode())
"""
    assert "openblas" in run_python(code).stdout


def test_without_core_the_wheel_keeps_its_reference_blas() -> None:
    maps, _ = mapped_after("import mlx.core")
    assert "openblas" not in maps


def test_importing_mlx_first_warns_once() -> None:
    result = run_python("import mlx.core, core, importlib; importlib.import_module('core')")
    assert result.stderr.count("import core first") == 1


def test_nothing_to_load_is_one_loud_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(fast_blas, "openblas_version", lambda: None)
    monkeypatch.setattr(fast_blas, "load_system_library", lambda: False)
    monkeypatch.setattr(fast_blas, "find_wheel_library", lambda: None)
    monkeypatch.delitem(sys.modules, "mlx.core", raising=False)
    fast_blas.put_openblas_first()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "20 times slower" in lines[0]
    assert "pip install scipy-openblas32 patchelf" in lines[0]


def test_a_second_call_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_blas, "openblas_version", lambda: "OpenBLAS 0.3")
    monkeypatch.setattr(fast_blas, "load_system_library", lambda: pytest.fail("loaded again"))
    fast_blas.put_openblas_first()


def test_other_platforms_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not fast_blas.needs_openblas()


def test_a_library_that_is_no_openblas_is_refused() -> None:
    assert not fast_blas.load("libm.so.6")
    assert not fast_blas.load("no-such-library.so")


@pytest.mark.skipif(WHEEL is None or PATCHELF is None, reason="needs the scipy-openblas32 wheel and patchelf")
class TestWheel:
    """The pip route: a copy of the wheel's library whose symbols have lost their prefix."""

    def test_every_prefix_is_gone_and_nothing_else_changed(self, tmp_path: Path) -> None:
        assert WHEEL is not None
        assert PATCHELF is not None
        before = read_defined_symbols(WHEEL)
        after = read_defined_symbols(fast_blas.renamed_copy(WHEEL, PATCHELF, tmp_path))
        assert sorted(after) == sorted(name.removeprefix("scipy_") for name in before)
        assert {"cblas_sgemm", "sgeqrf_", "ssyevd_"} <= set(after)

    def test_two_processes_that_race_both_get_a_whole_library(self, tmp_path: Path) -> None:
        context = multiprocessing.get_context("spawn")
        with context.Pool(3) as pool:
            copies = pool.starmap(fast_blas.cached_copy, [(WHEEL, PATCHELF, tmp_path)] * 3)
        assert len(set(copies)) == 1
        assert [path.name for path in tmp_path.iterdir()] == [copies[0].name]
        assert ctypes.CDLL(str(copies[0])).cblas_sgemm

    def test_an_unwritable_cache_costs_one_line_and_no_speed(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        maps, errors = mapped_after(
            "from utils import fast_blas; fast_blas.SYSTEM_NAMES = (); import core",
            XDG_CACHE_HOME=str(tmp_path / "file"),
        )
        assert "openblas" in maps
        assert errors.count("warning: ") == 1
        assert "cache folder" in errors

    def test_the_copy_is_kept_for_the_next_process(self, tmp_path: Path) -> None:
        code = "from utils import fast_blas; fast_blas.SYSTEM_NAMES = (); import core"
        maps, _ = mapped_after(code, XDG_CACHE_HOME=str(tmp_path))
        (copy,) = (tmp_path / "pippin").iterdir()
        written = copy.stat().st_mtime_ns
        assert str(copy) in maps
        mapped_after(code, XDG_CACHE_HOME=str(tmp_path))
        assert copy.stat().st_mtime_ns == written

    def test_a_system_library_comes_before_the_wheel(self, tmp_path: Path) -> None:
        assert WHEEL is not None
        assert PATCHELF is not None
        system = fast_blas.renamed_copy(WHEEL, PATCHELF, tmp_path).rename(tmp_path / "libopenblas.so.0")
        code = "from utils import fast_blas; fast_blas.load_wheel = None; import core, mlx.core"
        maps, errors = mapped_after(code, LD_LIBRARY_PATH=str(tmp_path))
        assert str(system) in maps
        assert errors == ""

    def test_a_library_with_64_bit_integers_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """MLX would pass it 32-bit sizes."""
        library = fake_library(b"OpenBLAS 0.3.27 USE64BITINT DYNAMIC_ARCH")
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: library)
        assert not fast_blas.load("libopenblas.so.0")
        library.openblas_get_config.config = b"OpenBLAS 0.3.27 DYNAMIC_ARCH"
        assert fast_blas.load("libopenblas.so.0")

    def test_a_broken_patchelf_is_an_oserror(self, tmp_path: Path) -> None:
        assert WHEEL is not None
        with pytest.raises(OSError, match="patchelf"):
            fast_blas.cached_copy(WHEEL, "/bin/false", tmp_path)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("hosts", "threads"),
    [(["127.0.0.1:1", "127.0.0.1:2"], "4"), (["10.0.0.1:1", "10.0.0.2:1"], None), (["127.0.0.1:1"] * 16, "1")],
)
def test_ranks_of_one_machine_share_its_cores(
    hosts: list[str], threads: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostfile = tmp_path / "hosts.json"
    hostfile.write_text(json.dumps([[host] for host in hosts]))
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    for name, value in (("MLX_RANK", "0"), ("MLX_HOSTFILE", str(hostfile))):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    fast_blas.share_cores_with_ranks()
    assert os.environ.get("OPENBLAS_NUM_THREADS") == threads


@pytest.mark.parametrize("content", ["", "[]", "[[1]]", "{}"])
def test_a_broken_hostfile_changes_nothing(content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hostfile = tmp_path / "hosts.json"
    hostfile.write_text(content)
    monkeypatch.setattr(os, "environ", {"MLX_RANK": "0", "MLX_HOSTFILE": str(hostfile)})
    fast_blas.share_cores_with_ranks()
    assert "OPENBLAS_NUM_THREADS" not in os.environ


NUM_THREADS = """
import core, ctypes
from utils.fast_blas import fit_threads
counts = [fit_threads(1e9), ctypes.CDLL(None).openblas_get_num_threads(), fit_threads(1e12)]
print(counts, ctypes.CDLL(None).openblas_get_num_threads())
"""


@pytest.mark.parametrize(("choice", "printed"), [(None, "[1, 1, {all}] {all}"), ("1", "[None, 1, None] 1")])
def test_small_work_takes_one_thread_unless_a_person_chose(choice: str | None, printed: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "OPENBLAS_NUM_THREADS"}
    environment |= {"OPENBLAS_NUM_THREADS": choice} if choice else {}
    result = subprocess.run(
        [sys.executable, "-c", NUM_THREADS], capture_output=True, text=True, check=True, cwd=REPOSITORY, env=environment
    )
    assert result.stdout.strip() == printed.format(all=os.cpu_count())
