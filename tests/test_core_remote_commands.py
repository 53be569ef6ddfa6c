"""What a container runs besides training, as a process of its own; the commands stand in for longer ones."""

import ast
import sys
import time
from pathlib import Path

import pytest

from core import remote_commands
from core.remote_commands import GENERATION_SECONDS, SMOKE_SECONDS, generation_command, run, run_generation
from tests.without_modal import MountedVolume, save

DEPLOY = Path(__file__).resolve().parents[1] / "modal" / "modal_deploy.py"


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the run lies on the volume."""
    monkeypatch.setenv("PIPPIN_MOUNTS", str(tmp_path))
    (tmp_path / "disk").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "disk"))
    return tmp_path / "runs" / "r"


def say(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a script stand for generation; it gets the same arguments."""

    def command(run_folder: Path, arguments: list[str]) -> list[str]:
        return [sys.executable, "-c", script, *generation_command(run_folder, arguments)[3:]]

    monkeypatch.setattr(remote_commands, "generation_command", command)


def test_text_comes_from_the_newest_checkpoint_there_is(
    kept: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of those that another container committed after this one had started, too."""
    save(kept, 2)
    say("import os, sys; print(sys.argv[3:], open(sys.argv[2] + '/checkpoints/LATEST').read())", monkeypatch)
    volume = MountedVolume([lambda: save(kept, 4)])
    assert run_generation(volume, "r", ["--prompt", "x y"]) == 0
    assert capfd.readouterr().out == "['--prompt', 'x y'] step_00000004\n\n"
    assert not volume.commits


def test_a_run_without_a_checkpoint_has_no_text(kept: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_generation(MountedVolume(), "r", []) == 2
    kept.mkdir(parents=True)
    assert run_generation(MountedVolume(), "r", []) == 2
    assert capfd.readouterr().err == "error: run r has no checkpoint on Modal\n" * 2


def test_damage_is_told_in_lines(kept: Path, capfd: pytest.CaptureFixture[str]) -> None:
    save(kept, 2)
    (kept / "checkpoints" / "step_00000002" / "model.safetensors").write_bytes(b"flipped")
    assert run_generation(MountedVolume(), "r", []) == 2
    err = capfd.readouterr().err
    assert "warning: damaged checkpoint passed over: " in err
    assert "error: no checkpoint of r on the volume is whole" in err


@pytest.mark.parametrize(
    ("script", "code", "said"),
    [("raise SystemExit(3)", 3, ""), ("import os; os.kill(os.getpid(), 11)", 1, "error: killed by SIGSEGV\n")],
)
def test_its_exit_code_is_passed_on(
    kept: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], script: str, code: int, said: str
) -> None:
    save(kept, 2)
    say(script, monkeypatch)
    assert run_generation(MountedVolume(), "r", []) == code
    assert capfd.readouterr().err == said


def test_what_takes_too_long_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    for deadline in (time.monotonic() - 1.0, time.monotonic() + 0.1):
        assert run(command, tmp_path, deadline) == 1
    assert capfd.readouterr().err == "error: took too long\n" * 2


def test_it_is_said_before_modal_ends_the_container() -> None:
    found = {
        node.name: float(ast.unparse(keyword.value))
        for node in ast.walk(ast.parse(DEPLOY.read_text()))
        if isinstance(node, ast.FunctionDef)
        for decorator in node.decorator_list
        if isinstance(decorator, ast.Call)
        for keyword in decorator.keywords
        if keyword.arg == "timeout" and isinstance(keyword.value, ast.Constant)
    }
    assert found["smoke"] >= SMOKE_SECONDS + 30
    assert found["generate"] >= GENERATION_SECONDS + 30
