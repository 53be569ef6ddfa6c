"""The README keeps its word: every command parses, every file it names exists, its Python runs."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from core import config, training
from core.generation import build_parser
from tests.tiny_run import tiny_values

REPOSITORY = Path(__file__).parent.parent
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


DRY_RUNS = [line for block in blocks("bash") for line in block.splitlines() if "--dry-run" in line]


@pytest.mark.parametrize("line", DRY_RUNS)
def test_every_dry_run_works(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(line)
    assert words[:3] == ["python", "-m", "core.training"]
    assert training.main(words[3:]) == 0
    assert "parameters" in capsys.readouterr().out


def test_there_are_dry_runs_to_test() -> None:
    assert len(DRY_RUNS) >= 4


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\b(?:configs|scripts|tools|docs)/[\w./-]+\.\w+", README))))
def test_every_file_it_names_exists(path: str) -> None:
    assert (REPOSITORY / path).is_file()


def test_its_generation_flags_exist() -> None:
    flags = set(re.findall(r"core\.generation.*", README))
    named = {flag for line in flags for flag in re.findall(r"--[a-z-]+", line)} - {"--model", "--run"}
    for flag in named:
        build_parser().parse_args(["--run", "x", flag, "1"])


def test_its_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "quickstart.yaml").write_text(yaml.safe_dump(tiny_values(tmp_path)))
    (code,) = blocks("python")
    original = config.load
    monkeypatch.setattr(config, "load", lambda path, overrides: original(tmp_path / Path(path).name, overrides))
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert (tmp_path / "runs" / "from-python" / "checkpoints" / "LATEST").exists()
    assert capsys.readouterr().out


def test_its_config_example_loads(tmp_path: Path) -> None:
    (example,) = [block for block in blocks("yaml") if "my-first" in block]
    recipes = tmp_path / "training"
    recipes.mkdir()
    for name in ("models", "optimizers"):
        (tmp_path / name).symlink_to(REPOSITORY / "configs" / name)
    (tmp_path / "base_config.yaml").symlink_to(REPOSITORY / "configs" / "base_config.yaml")
    (recipes / "my-first.yaml").write_text(example)
    loaded = config.load(recipes / "my-first.yaml")
    assert loaded.name == "my-first"
    assert loaded.optimizer.type == "adamw"
    assert loaded.training.batch_size == 64
