"""Ctrl-C and SIGTERM at awkward moments: while the corpus is read, the step compiled, the model evaluated, a save made.

The exit code is the signal's, nobody sees a traceback, and with `--resume` the run becomes the one that was never
interrupted. Signals go to the whole process group, as a terminal sends them.
"""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from core.checkpoint import TEMPORARY, list_checkpoints
from core.config import load
from core.evaluation import Evaluator
from core.run import run_folder
from tests.processes import TRAIN, finish, num_lines, run, start, wait_until, write_yaml
from tests.tiny_run import assert_same_run, needs_compiler, quiet_train, tiny_config, write_corpus

SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
SLOW_SAVES = """
import core, sys, time
import core.checkpoint, core.training
write_files = core.checkpoint._write_files
def write_slowly(*arguments):
    write_files(*arguments)
    time.sleep(1000)
core.checkpoint._write_files = write_slowly
from utils.cli import run_command
run_command(core.training.main)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose corpus is prepared, with the run nobody interrupted in it."""
    folder = tmp_path_factory.mktemp("interrupts")
    quiet_train(tiny_config(folder, name="whole"))
    return folder


def interrupted_evaluation(config: Any, which: int) -> int:
    """Train with Ctrl-C in the middle of evaluation number `which`; the exit code."""
    evaluate, num_calls = Evaluator.run, iter(range(100))

    def evaluate_and_interrupt(self: Evaluator, batches: Any, *rest: Any) -> Any:
        batches = list(batches)
        if next(num_calls) == which:
            assert len(batches) > 1
            first = batches.pop(0)
            batches = interrupting(first, batches)
        return evaluate(self, batches, *rest)

    def interrupting(first: Any, others: list[Any]) -> Any:
        yield first
        os.kill(os.getpid(), signal.SIGINT)
        yield from others

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Evaluator, "run", evaluate_and_interrupt)
        return quiet_train(config).exit_code


@pytest.mark.parametrize("which", [0, 1, 2], ids=["first", "middle", "last"])
def test_in_an_evaluation(folder: Path, which: int) -> None:
    config = tiny_config(folder, name=f"evaluation-{which}")
    assert interrupted_evaluation(config, which) == 130
    assert quiet_train(config, resume=True).exit_code == 0
    assert_same_run(folder / "runs" / "whole", run_folder(config))
    for pointer in ("BEST", "LATEST"):
        name = f"checkpoints/{pointer}"
        assert (run_folder(config) / name).read_text() == (folder / "runs" / "whole" / name).read_text()


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_while_the_corpus_is_read(tmp_path: Path, number: int, code: int) -> None:
    """Nothing of the run is there yet, nor half of the data; the same command starts it."""
    write_corpus(tmp_path / "corpus.jsonl", num_documents=40_000)
    config = write_yaml(tmp_path)
    with start(*TRAIN, config) as process:
        assert wait_until(process, lambda: list((tmp_path / "cache").glob(".building-*")))
        os.killpg(process.pid, number)
        assert finish(process)[0::2] == (code, "")
    assert not list((tmp_path / "cache").glob(".building-*"))
    assert not (tmp_path / "runs" / "tiny").exists()


@needs_compiler
@pytest.mark.skipif(mx.default_device() != mx.Device(mx.cpu), reason="only for CPUs does MLX start a compiler")
@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_while_the_first_step_is_compiled(folder: Path, tmp_path: Path, number: int, code: int) -> None:
    """The compiler dies of the same Ctrl-C; that is no error of the program."""
    config = write_yaml(folder, name=f"compiled-{code}", training={"compile": True}, evaluation={"every": None})
    (tmp_path / "kernels").mkdir()
    with start(*TRAIN, config, env={**os.environ, "TMPDIR": str(tmp_path / "kernels")}) as process:
        assert wait_until(process, lambda: list((tmp_path / "kernels").glob("cc*")))
        os.killpg(process.pid, number)
        assert_stopped(process, code)
    assert quiet_train(load(config, ["training.compile=false"]), resume=True).exit_code == 0


def assert_stopped(process: subprocess.Popen[str], expected: int) -> None:
    """The code of the signal, and not a word but the one about stopping."""
    code, _, errors = finish(process)
    assert code == expected, errors
    assert set(errors.split("\n")) <= {"", "stopping after this step and saving (again: leave at once)"}


def test_a_second_ctrl_c_in_a_save_leaves_at_once_and_loses_nothing_saved_before(folder: Path) -> None:
    config = write_yaml(folder, name="second")
    checkpoints = folder / "runs" / "second" / "checkpoints"
    with start(sys.executable, "-c", SLOW_SAVES, "--config", config) as process:
        assert wait_until(process, lambda: list(checkpoints.glob(f"{TEMPORARY}step_*")))
        rows = folder / "runs" / "second" / "metrics.jsonl"
        assert wait_until(process, lambda: num_lines(rows) >= 12)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert wait_until(process, lambda: "stopping" in process.stderr.readline())  # pyright: ignore
        process.send_signal(signal.SIGINT)
        assert finish(process)[0] == 130
    assert list_checkpoints(checkpoints) == []
    assert quiet_train(load(config), resume=True).exit_code == 0
    assert_same_run(folder / "runs" / "whole", folder / "runs" / "second")


def moments(process: Any, rows: Path, rng: random.Random) -> Callable[[], bool]:
    """True after some polls from a random row on; at once for row 0."""
    row, polls = num_lines(rows) + rng.randrange(4), iter(range(rng.randrange(200)))
    return lambda: num_lines(rows) >= row and next(polls, None) is None


@pytest.mark.slow
def test_twenty_signals_at_random_moments(tmp_path: Path) -> None:
    rng = random.Random(seed := random.SystemRandom().randrange(10**6))
    print(f"seed {seed}")
    changes = {
        "training": {"duration": "400 steps"},
        "checkpoint": {"every": "3 steps"},
        "evaluation": {"every": "4 steps"},
    }
    quiet_train(tiny_config(tmp_path, name="whole", **changes))
    config, folder = write_yaml(tmp_path, name="stopped", **changes), tmp_path / "runs" / "stopped"
    for _ in range(20):
        number, code = rng.choice(SIGNALS)
        with start(*TRAIN, config, *(["--resume"] if (folder / "config.yaml").exists() else [])) as process:
            assert process.stdout is not None
            process.stdout.readline()
            wait_until(process, moments(process, folder / "metrics.jsonl", rng))
            os.killpg(process.pid, number)
            assert_stopped(process, code)
    assert run(*TRAIN, config, "--resume")[0] == 0
    assert_same_run(tmp_path / "runs" / "whole", folder)
