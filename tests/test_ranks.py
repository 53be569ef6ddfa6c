"""Two processes that train one model over MLX's ring: the losses of one process, one writer, one end for both.

Processes are started as `mlx.launch` would start them, with MLX_RANK and a hostfile; a slow test uses the launcher.
"""

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.checkpoint import list_checkpoints
from tests.processes import (
    ROOT,
    TRAIN,
    TWO,
    Ranks,
    ends,
    finish,
    free_port,
    num_lines,
    start,
    two_ranks,
    wait_until,
    write_yaml,
)
from tests.tiny_run import interrupt_after, losses, metric_rows, quiet_train, tiny_config

LAYERS = {"logging": {"layers_every": "5 steps"}}
LONG = {"training": {"duration": "100000 steps"}, "evaluation": {"every": None}}


def wait_for_step(ranks: Ranks, run: Path, step: int) -> None:
    """Return when `step` rows of metrics are there."""
    assert wait_until(ranks[0], lambda: num_lines(run / "metrics.jsonl") >= step), ends(ranks)


def assert_close(found: list[float], expected: list[float]) -> None:
    """The tolerances of the issue: sums in another order, amplified by the updates."""
    assert len(found) == len(expected) == 20
    np.testing.assert_allclose(found[:5], expected[:5], rtol=1e-6)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose corpus is prepared, with the run of one process in it."""
    folder = tmp_path_factory.mktemp("ranks")
    quiet_train(tiny_config(folder, name="one", **LAYERS))
    return folder


def layers(run: Path) -> list[float]:
    """Norms and ratio of the last block at steps 5, 10, 15 and 20."""
    kinds = ("grad_norm", "weight_norm", "update_ratio")
    names = [f"layers/{kind}/model.layers.1" for kind in kinds]
    return [row[name] for row in metric_rows(run) if names[0] in row for name in names]


@pytest.fixture(scope="module")
def expected(shared: Path) -> list[float]:
    return losses(shared / "runs" / "one")


@pytest.mark.parametrize(
    "changes",
    [pytest.param({}, marks=pytest.mark.slow), {"training": {"micro_batch_size": 2}}],
    ids=["whole", "accumulated"],
)
def test_two_processes_give_the_losses_of_one_and_one_of_them_writes(
    tmp_path: Path, shared: Path, expected: list[float], changes: dict[str, Any]
) -> None:
    samples = {"evaluation": {"samples": {"every": "10 steps", "max_tokens": 3}}}
    config = write_yaml(tmp_path, **TWO, **LAYERS, **samples, **changes)
    with two_ranks(tmp_path, config) as ranks:
        (first, output, errors), second = (finish(process) for process in ranks)
    assert (first, errors, second) == (0, "", (0, "", ""))
    assert output.count("try next:") == 1
    run = tmp_path / "runs" / "tiny"
    assert_close(losses(run), expected)
    assert len(layers(run)) == 12
    np.testing.assert_allclose(layers(run), layers(shared / "runs" / "one"), rtol=1e-3)
    assert [row["step"] for row in metric_rows(run) if "eval/loss" in row] == [0, 10, 20]
    assert num_lines(run / "samples.jsonl") == 2


def test_ctrl_c_saves_once_and_one_process_continues_what_two_began(shared: Path, expected: list[float]) -> None:
    config = write_yaml(shared, **TWO, name="two-then-one")
    run = shared / "runs" / "two-then-one"
    with two_ranks(shared, config) as ranks:
        wait_for_step(ranks, run, 4)
        for process in ranks:
            process.send_signal(signal.SIGINT)
        assert ends(ranks)[0] == [130, 130]
    saved = list_checkpoints(run / "checkpoints")[-1]
    assert json.loads((saved / "state.json").read_text())["step"] == losses_until(run)
    quiet_train(tiny_config(shared, name="two-then-one"), resume=True)
    assert_close(losses(run), expected)


def losses_until(run: Path) -> int:
    """The last step that has a row."""
    return max(row["step"] for row in metric_rows(run))


def test_two_processes_continue_what_one_began(shared: Path, expected: list[float]) -> None:
    interrupt_after(tiny_config(shared, name="one-then-two"), step=7)
    with two_ranks(shared, write_yaml(shared, **TWO, name="one-then-two"), "--resume") as ranks:
        assert ends(ranks) == ([0, 0], ["", ""])
    assert_close(losses(shared / "runs" / "one-then-two"), expected)


def test_a_signal_to_one_process_ends_both(shared: Path) -> None:
    run = shared / "runs" / "one-signal"
    with two_ranks(shared, write_yaml(shared, **TWO, **LONG, name="one-signal")) as ranks:
        wait_for_step(ranks, run, 3)
        ranks[1].terminate()
        assert ends(ranks)[0] == [143, 143]
    assert len(list_checkpoints(run / "checkpoints")) >= 1


def unwritable_cache(folder: Path, name: str) -> Path:
    (folder / "file").write_text("")
    return write_yaml(folder, **TWO, name=name, data={"cache_dir": str(folder / "file")})


MISTAKES: dict[str, tuple[Callable[[Path], list[Path]], int, str]] = {
    "the run is there": (lambda folder: [write_yaml(folder, **TWO, name="one")] * 2, 0, "is there already"),
    "no corpus": (
        lambda folder: (
            [write_yaml(folder, **TWO, name="nothing", data={"sources": [{"type": "jsonl", "path": "nowhere"}]})] * 2
        ),
        0,
        "nowhere",
    ),
    "odd batch": (lambda folder: [write_yaml(folder, **TWO, name="odd", training={"batch_size": 7})] * 2, 0, "7"),
    "only on rank 0": (
        lambda folder: [unwritable_cache(folder, "zero"), write_yaml(folder, **TWO, name="zero-b")],
        0,
        "cannot prepare data",
    ),
    "only on rank 1": (
        lambda folder: [write_yaml(folder, **TWO, name="rank-one"), unwritable_cache(folder, "rank-one-b")],
        1,
        "cannot prepare data",
    ),
}


# Three are found by both ranks; two of these are enough for every day.
EVERY_DAY = [name if name != "no corpus" else pytest.param(name, marks=pytest.mark.slow) for name in MISTAKES]


@pytest.mark.parametrize("name", EVERY_DAY)
def test_a_mistake_ends_both_and_is_told_once(shared: Path, name: str) -> None:
    make, teller, message = MISTAKES[name]
    with two_ranks(shared, configs=make(shared)) as ranks:
        codes, errors = ends(ranks)
    assert codes == [2, 2]
    assert message in errors[teller]
    assert errors[teller].startswith("error: ")
    assert errors[1 - teller] == ""


@pytest.mark.parametrize("killed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_killed_process_ends_the_other_and_the_run_can_be_resumed(shared: Path, killed: int) -> None:
    name = f"killed-{killed}"
    config = write_yaml(shared, **TWO, **LONG, name=name, checkpoint={"every": "2 steps"})
    with two_ranks(shared, config) as ranks:
        wait_for_step(ranks, shared / "runs" / name, 6)
        ranks[killed].kill()
        code, _, errors = finish(ranks[1 - killed])
    assert code == 2, errors
    assert "Traceback" not in errors
    assert [line for line in errors.splitlines() if line.startswith("error:")] == errors.splitlines()[-1:]
    result = quiet_train(tiny_config(shared, name=name), resume=True)
    assert result.step == 20


@pytest.mark.slow
def test_a_full_disk_of_the_writer_ends_both(shared: Path) -> None:
    config = write_yaml(shared, **TWO, **LONG, name="full", checkpoint={"every": "2 steps"})
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))  # noqa: E731
    with two_ranks(shared, config, preexec_fn=limit) as ranks:
        codes, errors = ends(ranks)
    assert codes == [2, 2]
    assert "cannot save" in errors[0]


@pytest.mark.slow
def test_the_launcher_and_its_ctrl_c(shared: Path, expected: list[float]) -> None:
    """Ctrl-C reaches the launcher and both processes; they save although the launcher has gone."""
    config = write_yaml(shared, **TWO, name="launched")
    run = shared / "runs" / "launched"
    launcher = Path(sys.executable).with_name("mlx.launch")
    options = ["--backend", "ring", "-n", "2", "-p", str(free_port()), "--env", f"PYTHONPATH={ROOT}"]
    with start(launcher, *options, "--", *TRAIN, config, stdin=subprocess.PIPE) as process:
        wait_for_step([process], run, 4)
        os.killpg(process.pid, signal.SIGINT)
        finish(process)
    with start(launcher, *options, "--", *TRAIN, config, "--resume", stdin=subprocess.PIPE) as process:
        code, output, errors = finish(process)
    assert code == 0, output + errors
    assert_close(losses(run), expected)
