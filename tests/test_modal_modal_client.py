"""`python modal/modal_client.py` against the stand-in: runs looked after from elsewhere, and runs that travel."""

import shutil
from pathlib import Path

import pytest

from core.checkpoint import list_checkpoints
from core.remote import newest_step
from tests.modal_loopback import Loopback, kill_children
from tests.remote_runs import (
    NEEDS_THE_STAND_IN,
    Home,
    attempts,
    client,
    deploy,
    knows_the_image,
    launch,
    saved,
    stayed,
    there,
)
from tests.tiny_run import assert_same_run, metric_rows

pytestmark = NEEDS_THE_STAND_IN


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def files(folder: Path) -> dict[str, bytes]:
    """Everything of a run that travels."""
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if name != "lock" and not name.startswith(".")}


def test_a_journey_there_and_back_is_the_run_that_stayed(cloud: Loopback, home: Home, tmp_path: Path) -> None:
    """Steps, tokens, learning rate, data order, losses, weights, optimizer: as if it had never left."""
    reference = stayed(tmp_path / "stayed" / "home")
    home.train_until(40)
    assert newest_step(home.run) == 40

    cloud.when(saved(cloud, home, 70), kill_children)
    away = launch(cloud, home, "--resume", "--pull", "none", "--retries", "0")
    assert away.code == 2, away.output
    assert "step_00000040: sending" in away.output
    assert "going on from step 40" in away.output
    step = newest_step(there(cloud, home))
    assert step is not None
    assert step >= 70
    assert newest_step(home.run) == 40

    pulled = client(cloud, home, "pull", "--run", "tiny")
    assert pulled.code == 0, pulled.output
    assert newest_step(home.run) == step
    home.train(resume=True)
    assert_same_run(home.run, reference)
    steps = [row["step"] for row in metric_rows(home.run) if "train/loss" in row]
    assert steps == list(range(1, 121))


def test_push_and_pull_give_back_every_bit(cloud: Loopback, home: Home) -> None:
    home.train("training.duration=40 steps")
    before = files(home.run)
    assert client(cloud, home, "push", "--run", "runs/tiny", "--checkpoints", "all").code == 0
    sent = cloud.uploaded_bytes
    again = client(cloud, home, "push", "--run", "tiny", "--checkpoints", "all")
    assert again.code == 0, again.output
    assert cloud.uploaded_bytes == sent, "the second time nothing is sent"
    shutil.rmtree(home.run)
    pulled = client(cloud, home, "pull", "--run", "tiny", "--checkpoints", "all")
    assert pulled.code == 0, pulled.output
    assert files(home.run) == before


def test_a_detached_run_outlives_its_terminal(cloud: Loopback, home: Home, tmp_path: Path) -> None:
    knows_the_image(cloud)
    terminal = cloud.start(deploy(home, "training.duration=240 steps", detach=True), cwd=home.folder)
    terminal.wait_for("step 40/240")
    terminal.kill()
    status = client(cloud, home, "status", "--run", "tiny")
    assert status.code == 0, status.output
    assert "of 240" in status.output
    follow = client(cloud, home, "logs", "--run", "tiny", "--follow", "--lines", "0")
    assert follow.code == 0, follow.output
    assert "step 240/240" in follow.output
    (row,) = attempts(cloud, home)
    assert row.outcome == "finished"
    pulled = client(cloud, home, "pull", "--run", "tiny", "--checkpoints", "best")
    assert pulled.code == 0, pulled.output
    assert len(list_checkpoints(home.run / "checkpoints")) == 1


@pytest.mark.slow
def test_ctrl_c_leaves_a_detached_run_alone(cloud: Loopback, home: Home) -> None:
    knows_the_image(cloud)
    terminal = cloud.start(deploy(home, detach=True), cwd=home.folder)
    terminal.wait_for("step 40/120")
    terminal.interrupt()
    finished = terminal.wait()
    assert finished.code == 130
    assert "the run goes on; bring it home with python modal/modal_client.py pull --run tiny" in finished.output
    assert client(cloud, home, "logs", "--run", "tiny", "--follow").code == 0
    assert attempts(cloud, home)[-1].outcome == "finished"


def test_stop_saves_and_status_ls_and_generate_tell_of_it(cloud: Loopback, home: Home) -> None:
    knows_the_image(cloud)
    long = ("training.duration=100000 steps", "checkpoint.every=null")
    running = cloud.start(deploy(home, *long, "--pull", "none"), cwd=home.folder)
    running.wait_for("step 40/100000")
    second = launch(cloud, home, "--resume", *long)
    assert second.code == 2
    assert "error: run tiny is running on Modal (last sign of life" in second.output
    stopped = client(cloud, home, "stop", "--run", "tiny")
    assert stopped.code == 0, stopped.output
    assert "is saved" in stopped.output
    assert running.wait().code == 130
    step = newest_step(there(cloud, home))
    assert step
    status = client(cloud, home, "status", "--run", "tiny")
    assert status.code == 0
    assert "stopped" in status.output
    assert f"{step:,} of 100,000" in status.output or f"{step:,}" in status.output
    listed = client(cloud, home, "ls")
    assert listed.code == 0
    assert "tiny" in listed.output
    text = client(cloud, home, "generate", "--run", "tiny", "--prompt", "the red", "--max-tokens", "5", "--temp", "0")
    assert text.code == 0, text.output
    assert "the red" in text.output
    assert cloud.containers[-1].function.resources.gpu_config.gpu_type == "L4"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["status", "--run", "tinny"], "error: there is no run tinny on the volume"),
        (["pull", "--run", "tiny"], "error: there is no run tiny on the volume"),
        (["push", "--run", "tiny"], "error: there is no run runs/tiny"),
        (["generate", "--run", "tiny", "--prompt", "a", "--gpu", "H10"], "error: --gpu is 'H10'"),
        (["stop"], "error: the following arguments are required: --run"),
    ],
)
def test_a_mistake_is_one_line(cloud: Loopback, home: Home, arguments: list[str], line: str) -> None:
    finished = client(cloud, home, *arguments)
    assert finished.code == 2
    assert line in finished.output
    assert "Traceback" not in finished.output
