"""What is read from the command line and checked before anything is contacted.

The commands themselves are started in test_modal_modal_deploy.py.
"""

import importlib.metadata
import sys
from pathlib import Path

import pytest

from core import remote_launch
from core.remote_launch import (
    attempt_seconds,
    function_timeout,
    image_key,
    image_packages,
    own_arguments,
    own_modules,
    parse,
    prepare,
)
from tests.remote_runs import Home
from tests.tiny_run import tiny_config
from utils.errors import ConfigError, UserError

SCRIPT = str(remote_launch.REPOSITORY / "modal" / "modal_deploy.py")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["run", SCRIPT, "--config", "x.yaml"], (["--config", "x.yaml"], False)),
        (["run", "--detach", SCRIPT, "a.b=1"], (["a.b=1"], True)),
        (["run", "-d", "--env", "dev", f"{SCRIPT}::main", "--gpu", "T4"], (["--gpu", "T4"], True)),
        (["run", SCRIPT, "--detach"], (["--detach"], False)),
        (["run", "other.py", SCRIPT], ([], False)),
        (["deploy", SCRIPT], None),
        (["run", "modal/other.py"], None),
        (["ls"], None),
        ([], None),
    ],
)
def test_own_arguments(words: list[str], expected: tuple[list[str], bool] | None) -> None:
    assert own_arguments(["/usr/bin/modal", *words], SCRIPT) == expected


def test_a_relative_script_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(remote_launch.REPOSITORY)
    assert own_arguments(["modal", "run", "modal/modal_deploy.py", "--smoke"], SCRIPT) == (["--smoke"], False)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--smoke", "--config", "x.yaml"],
        ["--config", "x.yaml", "--resume", "--overwrite"],
        ["--config", "x.yaml", "--timeout", "24.5"],
        ["--config", "x.yaml", "--max-hours", "0"],
        ["--config", "x.yaml", "--max-hours", "nan"],
        ["--config", "x.yaml", "--retries", "11"],
        ["--config", "x.yaml", "--cuda", "11"],
        ["--config", "x.yaml", "--pull", "first"],
        ["--config", "x.yaml", "--memory", "1e9"],
        ["--config", "x.yaml", "--cpu", "1000"],
        ["--conf", "x.yaml"],
    ],
)
def test_options_that_make_no_sense(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse(words)
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_an_attempt_leaves_time_to_save_and_modal_ends_what_does_not_end() -> None:
    day = parse(["--config", "x"])
    assert function_timeout(day) == 24 * 3600
    assert attempt_seconds(24 * 3600) == 24 * 3600 - 600
    assert attempt_seconds(600) == 540
    hours = parse(["--config", "x", "--max-hours", "2", "--timeout", "5"])
    assert function_timeout(hours) == 2 * 3600 + 600
    assert function_timeout(parse(["--config", "x", "--max-hours", "9", "--timeout", "5"])) == 5 * 3600
    assert function_timeout(parse(["--config", "x", "--timeout", "0.001"])) == 60


def test_the_image_has_every_dependency_at_the_version_of_the_lock_file() -> None:
    packages = image_packages("13")
    assert f"mlx[cuda13]=={importlib.metadata.version('mlx')}" in packages
    assert f"pyyaml=={importlib.metadata.version('pyyaml')}" in packages
    assert not [package for package in packages if "cpu" in package or package.count("==") != 1]
    assert image_key("12") != image_key("13")
    assert image_key("12") == image_key("12")


def test_own_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(tmp_path)
    assert own_modules(config) == []
    (tmp_path / "mine.py").write_text(
        "from optimizers.enhanced_optimizers import SGDConfig\n\nclass Mine(SGDConfig):\n    type: str = 'mine:Mine'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    own = tiny_config(tmp_path, optimizer={"type": "mine:Mine", "learning_rate": 0.1})
    assert own_modules(own) == ["mine"]
    ours = tiny_config(tmp_path, optimizer={"type": "optimizers.enhanced_optimizers:SGDConfig", "learning_rate": 0.1})
    assert own_modules(ours) == []
    masks = {"type": "flex", "mods": [{"type": "function", "mask": "mine:every_second"}]}
    (tmp_path / "mine.py").write_text("def every_second(b, h, q, k):\n    return (q - k) % 2 == 0\n")
    sys.modules.pop("mine")
    assert own_modules(tiny_config(tmp_path, model={"attention": masks})) == ["mine"]
    sys.modules.pop("mine", None)
    (tmp_path / "mine.py").unlink()
    with pytest.raises(ConfigError, match="'mine', which cannot be imported here"):
        own_modules(own)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--gpu", "A1000"], r"--gpu is 'A1000': Modal has no such GPU \(did you mean 'A100'\?\)"),
        (["data.sources=[{type: jsonl, path: gone.jsonl}]"], r"gone.jsonl: no such file"),
        (["distributed.type=data_parallel"], "distributed.type is data_parallel: a run on Modal takes one GPU"),
        (["model.hidden_size=65536", "model.intermediate_size=262144"], "--gpu A100-80GB: "),
        (["objective.type=mine:Objective"], "mine"),
        (["out_dir=corpus.jsonl"], "cannot write to corpus.jsonl/tiny"),
        (["--resume", "training.batch_size=3"], "training.batch_size"),
    ],
)
def test_mistakes_that_are_told_before_modal_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], line: str
) -> None:
    home = Home(tmp_path / "home")
    if "--resume" in arguments:
        home.train("training.duration=3 steps", "evaluation.every=null")
    monkeypatch.chdir(home.folder)
    monkeypatch.setattr(remote_launch, "check_connection", lambda: pytest.fail("Modal was looked for"))
    with pytest.raises(UserError, match=line):
        prepare(["--config", "c.yaml", *arguments], detached=False)


def test_weights_that_are_not_there_are_told_before_the_corpus_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(tmp_path / "home")
    monkeypatch.chdir(home.folder)
    monkeypatch.setattr(remote_launch, "check_connection", lambda: None)
    with pytest.raises(UserError, match="init_from: there is no folder runs/nowhere"):
        prepare(["--config", "c.yaml", "init_from=runs/nowhere"], detached=False)
    assert not (home.folder / "cache").exists()


def test_the_plan_is_printed_and_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, said = Home(tmp_path / "home"), []
    monkeypatch.chdir(home.folder)
    monkeypatch.setattr(remote_launch, "check_connection", lambda: None)
    checked = prepare(["--config", "c.yaml", "--gpu", "t4", "--max-hours", "2"], detached=True, say=said.append)
    assert (checked.gpu.name, checked.total_steps, checked.detached) == ("T4", 120, True)
    assert checked.options.memory == 16.0
    text = "\n".join(said)
    assert "plan of runs/tiny on Modal" in text
    assert "at most" in text
    assert not home.run.exists()
