"""The smoke test says of each machine what is wrong with it, one line for each check, whatever the check does to the
process it runs in."""

import json
import os
import sys
from functools import partial
from importlib.metadata import version
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import pytest

from core import smoke, smoke_checks
from core.smoke import ADVICE, CHECKS, NO_ADVICE, nvidia_gpus, run_checks, with_advice
from tests.broken_checks import MANAGED, answer_with
from tests.commands import call
from tests.processes import run

QUICK = "fine"


def findings_of(rows: dict[str, str], **limits: float) -> dict[str, smoke.Finding]:
    """Run these checks of tests/broken_checks.py."""
    return {finding.name: finding for finding in run_checks(list(rows), partial(answer_with, rows), **limits)}


def test_this_machine_passes(tmp_path: Path) -> None:
    code, output, errors = run(sys.executable, "-m", "core.smoke", "--json", tmp_path / "smoke.json")
    assert (code, errors) == (0, "")
    facts, *lines, verdict = output.splitlines()
    assert f"mlx {version('mlx')}" in facts
    assert f"numpy {version('numpy')}" in facts
    assert [line[:23].rstrip() for line in lines] == [f"ok      {name}" for name in CHECKS]
    assert verdict.startswith(f"smoke test passed: {len(CHECKS)} checks")
    content = json.loads((tmp_path / "smoke.json").read_text())
    assert content["passed"]
    assert content["versions"]["mlx"] == version("mlx")
    found = {check["name"]: check for check in content["checks"]}
    assert list(found) == list(CHECKS)
    assert {check["state"] for check in found.values()} == {"ok"}
    assert found["mlx"]["figures"]["backend"] == "cpu"
    assert 0 < found["products"]["figures"]["matmul"]["float32"] < 1e-4
    losses = found["training step"]["figures"]["losses"]
    assert losses[-1] < 0.8 * losses[0]


def test_wrong_results_are_named_and_end_with_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = dict.fromkeys(CHECKS, QUICK)
    rows = quick | {"attention": "wrong_attention", "files": "wrong_files"}
    monkeypatch.setattr(smoke, "answer", partial(answer_with, rows))
    done = call(smoke.main, "--json", tmp_path / "smoke.json")
    assert done.returncode == 2
    lines = {line[8:23].strip(): line for line in done.stdout.splitlines()[1:-1]}
    assert [name for name, line in lines.items() if line.startswith("FAILED")] == ["attention", "files"]
    assert "attention in float32 is wrong" in lines["attention"]
    assert "model.attention.type: simple" in lines["attention"]
    assert NO_ADVICE not in lines["attention"]
    assert "by way of MLX: OSError: [Errno 14] Bad address" in lines["files"]
    assert "gvisor issue 10331" in lines["files"]
    verdict = done.stdout.splitlines()[-1]
    assert verdict == f"smoke test FAILED: attention, files (2 of {len(CHECKS)} checks); do not train here"
    content = json.loads((tmp_path / "smoke.json").read_text())
    assert not content["passed"]
    assert [check["name"] for check in content["checks"] if check["state"] != "ok"] == ["attention", "files"]
    assert done.stderr == "libnoise: hello\n" * (len(CHECKS) - 2)


def test_an_mlx_that_does_not_load_is_one_line_and_not_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smoke, "answer", partial(answer_with, {"mlx": "cannot_import"}))
    done = call(smoke.main)
    assert done.returncode == 2
    states = [line.split()[0] for line in done.stdout.splitlines()[1:-1]]
    assert states == ["FAILED", *["skipped"] * (len(CHECKS) - 1)]
    line = done.stdout.splitlines()[1]
    assert MANAGED in line
    assert "mlx issues 2428 and 2519" in line
    assert "mlx[cuda13]" in line
    assert done.stdout.splitlines()[-1].startswith("smoke test FAILED: mlx (1 of 7 checks, 6 skipped)")
    assert "Traceback" not in done.stdout + done.stderr


def test_a_device_that_is_wrong_hides_no_other_check() -> None:
    """Unlike an import that fails: what the device computes is still worth knowing."""
    assert [finding.state for finding in findings_of({"streams": "raises", "mlx": QUICK}).values()] == ["FAILED", "ok"]


def test_a_check_that_raises_dies_or_leaves_hides_no_other() -> None:
    found = findings_of({"a": "raises", "b": QUICK, "c": "dies", "d": "leaves", "e": QUICK})
    assert [finding.state for finding in found.values()] == ["FAILED", "ok", "FAILED", "FAILED", "ok"]
    assert found["a"].text == f"RuntimeError: [matmul] bad shapes; {NO_ADVICE}"
    assert found["b"].text == "a figure"
    assert "the process died (Aborted): what():  cudaMallocManaged failed" in found["c"].text
    assert "mlx issues 2428" in found["c"].text
    assert found["d"].text.startswith("the process died (exit code 3): it said nothing")
    assert found["e"].figures == {"figure": 1}


def test_a_check_that_hangs_is_ended() -> None:
    (finding,) = findings_of({"a": "hangs"}, patience=0.2).values()
    assert (finding.state, finding.text) == ("FAILED", "no answer in 0.2 s")
    assert active_children() == []


def test_all_checks_together_have_a_limit() -> None:
    found = findings_of({"a": "hangs", "b": QUICK}, limit=0.0)
    assert [finding.state for finding in found.values()] == ["FAILED", "FAILED"]


def test_the_parent_never_loads_mlx() -> None:
    """Loading it is what a child is there to try."""
    names = "sorted(name for name in sys.modules if name.split('.')[0] == 'mlx')"
    code, output, _ = run(sys.executable, "-c", f"import sys, core.smoke; core.smoke.machine_facts(); print({names})")
    assert (code, output) == (0, "[]\n")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (MANAGED, "pinned"),
        ("CUDA driver version is insufficient for CUDA runtime version", "550.54.14"),
        ("ImportError: libcuda.so.1: cannot open shared object file", "ask for a GPU"),
        ("ImportError: libmlx.so: cannot open shared object file", "pip install"),
        ("ModuleNotFoundError: No module named 'mlx'", "pip install"),
        ("OSError: [Errno 14] Bad address", "gvisor issue 10331"),
    ],
)
def test_known_errors_have_advice(text: str, word: str) -> None:
    advice = with_advice(text).removeprefix(f"{text}; ")
    assert word in advice
    assert advice in [say for _, say in ADVICE]


def put_nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Make this script the only command there is."""
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


class TestTheDriver:
    def test_shows_gpus(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        put_nvidia_smi(tmp_path, monkeypatch, "echo 'NVIDIA H100 80GB HBM3, 580.95.05, 81559 MiB'; echo")
        assert nvidia_gpus() == ["NVIDIA H100 80GB HBM3, 580.95.05, 81559 MiB"]
        assert smoke.headline(smoke.machine_facts()).endswith("; NVIDIA H100 80GB HBM3, 580.95.05, 81559 MiB")

    @pytest.mark.parametrize("script", ["echo 'NVIDIA-SMI has failed'; exit 9", "kill -9 $$"])
    def test_that_fails_shows_none(self, script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        put_nvidia_smi(tmp_path, monkeypatch, script)
        assert nvidia_gpus() == []

    def test_that_is_not_there_shows_none(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", os.fspath(tmp_path))
        assert nvidia_gpus() == []

    def test_whose_gpu_mlx_does_not_use_fails_the_check(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The wheel without CUDA trains on a rented GPU's processor."""
        assert smoke_checks.describe_device().problems == ()
        monkeypatch.setattr(smoke_checks, "nvidia_gpus", lambda: ["NVIDIA L4, 580.95.05, 23034 MiB"])
        (problem,) = smoke_checks.describe_device().problems
        assert "NVIDIA L4" in problem
        assert "mlx[cuda12]" in problem


@pytest.mark.parametrize("wrong", [("--json", "nowhere/smoke.json"), ("--jso", "x"), ("extra",)])
def test_a_wrong_command_line_is_told_before_anything_runs(wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smoke, "run_checks", None)
    done = call(smoke.main, *wrong)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stdout == ""
