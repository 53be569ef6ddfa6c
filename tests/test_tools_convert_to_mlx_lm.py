"""The export command as a person calls it, and the command line's way of saying what is wrong.

One process of its own shows that the command starts and that nothing is said on stderr; the rest is called here.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from core import generation
from tests.commands import call
from tests.small_runs import save_run, small_config, small_tokenizer
from tests.tool_files import load_tool

ROOT = Path(__file__).parent.parent
CONVERT = load_tool("convert-to-mlx-lm").main
GENERATE = generation.main


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("runs") / "run", small_config(), small_tokenizer(), {3: 0})


def test_convert_says_what_it_wrote_and_what_it_writes_generates(run: Path, tmp_path: Path) -> None:
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "tools/convert-to-mlx-lm.py", "--run", run, "--out-path", tmp_path / "out"]
    command += ["--dtype", "bfloat16", "--checkpoint", "3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths})
    assert (done.returncode, done.stderr) == (0, "")
    assert "bfloat16, raw weights of" in done.stdout
    assert f"--model {tmp_path / 'out'}" in done.stdout
    done = call(GENERATE, "--model", tmp_path / "out", "--prompt", "ab", "--max-tokens", "3", "--temp", "0")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ab")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([CONVERT, "--run", "RUN"], "--out-path"),
        ([CONVERT, "--run", "RUN", "--out-path", "OUT", "--dtype", "int8"], "invalid choice: 'int8'"),
        ([CONVERT, "--run", "runs/nowhere", "--out-path", "OUT"], "there is no run runs/nowhere"),
        ([CONVERT, "--run", "RUN", "--out-path", "RUN"], "exists"),
        ([CONVERT, "--run", "RUN", "--out-path", "/proc/nowhere/out"], "cannot write /proc/nowhere/out"),
        ([GENERATE, "--prompt", "a"], "one of the arguments --run --model is required"),
        ([GENERATE, "--run", "RUN", "--checkpoint", "9"], "no checkpoint of step 9; there are steps 3"),
        ([GENERATE, "--run", "RUN", "--temp", "-1"], "temp is -1.0"),
        ([GENERATE, "--run", "RUN", "--prompt", "x" * 70], "prompt 1 has 71 tokens and the model reads 64"),
        ([GENERATE, "--run", "RUN", "--tem", "1"], "unrecognized arguments: --tem 1"),
    ],
)
def test_mistakes_are_one_error_line_and_exit_code_2(
    run: Path, tmp_path: Path, arguments: list[Any], named: str
) -> None:
    places = {"RUN": str(run), "OUT": str(tmp_path / "out")}
    command, *others = arguments
    done = call(command, *[places.get(argument, argument) for argument in others])
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert named in done.stderr
    assert not (tmp_path / "out").exists()
