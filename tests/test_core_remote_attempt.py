"""One attempt in a container, without Modal: the child is a script of a few lines, the volume two folders.

What the real entry point, retries and interrupts make of it is tested in test_modal_modal_deploy.py.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from core import remote_attempt
from core.checkpoint import Snapshot, find_damage, write_checkpoint
from core.remote import Attempt, Order, attempt_file, attempts_in, output_file, write_attempt
from core.remote_attempt import Place, TryAgainError, attempt, is_stuck, training_command

ORDER = Order(
    name="r",
    folder="runs/r",
    config="name: r\n",
    data="d",
    init_from=None,
    gpu="A100-80GB",
    image="i",
    attempts_before=0,
    max_seconds=None,
    attempt_seconds=60.0,
    sync_seconds=0.05,
    bar_columns=0,
)

STARTED = (
    "import os, sys, time; os.makedirs('runs/r', exist_ok=True); open('runs/r/config.yaml', 'w').write('name: r')\n"
)
LONG = STARTED + "print('step 1/9  loss 1.0', flush=True)\ntime.sleep(60)\n"
SAVES_WHEN_ASKED = (
    "import signal\nsignal.signal(2, lambda *_: (open('runs/r/log.txt', 'w').write('saved\\n'), sys.exit(130)))\n"
)


class Cancelled(BaseException):
    """Stands for modal.exception.InputCancellation."""


class FolderVolume:
    """A mounted volume whose commits are counted."""

    def __init__(self) -> None:
        self.commits = 0

    def commit(self) -> None:
        self.commits += 1

    def reload(self) -> None:
        pass


@pytest.fixture
def mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder with `runs` and `data`; the image has passed its smoke test."""
    monkeypatch.setenv("PIPPIN_MOUNTS", str(tmp_path))
    (tmp_path / "disk").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "disk"))
    (tmp_path / "data" / "d").mkdir(parents=True)
    (tmp_path / "runs" / ".smoke").mkdir(parents=True)
    (tmp_path / "runs" / ".smoke" / "i-A100-80GB.json").write_text("{}")
    return tmp_path


@pytest.fixture
def trains(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes the child a script."""

    def set_script(script: str) -> None:
        monkeypatch.setattr(remote_attempt, "training_command", lambda order, place: [sys.executable, "-c", script])

    return set_script


def attempts_of(mounts: Path) -> list[Attempt]:
    return attempts_in(mounts / "runs" / "r")


def save(mounts: Path, step: int) -> None:
    """A checkpoint of the run on the volume."""
    arrays = {"w": np.arange(3, dtype=np.float32)}
    folder = mounts / "runs" / "r"
    (folder / "tokenizer").mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text("name: r")
    snapshot = Snapshot(step, arrays, arrays, None, {"step": step}, {}, False)
    write_checkpoint(folder / "checkpoints", snapshot, folder / "tokenizer", keep_last=3)


def once(condition: Callable[[], bool], action: Callable[[], None]) -> None:
    """Do something in this process as soon as a condition holds."""

    def wait() -> None:
        deadline = time.monotonic() + 30
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.01)
        action()

    threading.Thread(target=wait, daemon=True).start()


def test_a_run_that_finishes(mounts: Path, trains: Callable[[str], None], capfd: pytest.CaptureFixture[str]) -> None:
    trains(STARTED + "print('hello')\nprint('uh', file=sys.stderr)\n")
    volume = FolderVolume()
    outcome = attempt(ORDER, volume, Cancelled)
    assert (outcome.outcome, outcome.exit_code, outcome.step) == ("finished", 0, 0)
    (row,) = attempts_of(mounts)
    assert (row.number, row.outcome, row.gpu) == (1, "finished", "A100-80GB")
    assert row.ended is not None
    assert (mounts / "runs" / "r" / "config.yaml").read_text() == "name: r"
    assert volume.commits >= 3, "begun, brought, ended"
    out, err = capfd.readouterr()
    assert "attempt 1 of run r on A100-80GB, from step 0" in out
    assert "hello" in out
    assert "uh" in err
    kept = (mounts / "runs" / "r" / output_file(1)).read_text()
    assert "hello" in kept
    assert "uh" in kept


def test_what_a_person_must_mend_is_returned_with_its_lines(mounts: Path, trains: Callable[[str], None]) -> None:
    trains("import sys; print('error: a.b: wrong\\nerror: loss is not finite', file=sys.stderr); sys.exit(2)")
    outcome = attempt(ORDER, FolderVolume(), Cancelled)
    assert outcome == ("refused", 2, 0, "a.b: wrong\nloss is not finite")


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("import sys; print('Traceback ...\\nZeroDivisionError', file=sys.stderr); sys.exit(1)", "ZeroDivisionError"),
        ("import os; os.kill(os.getpid(), 9)", "killed by SIGKILL: the container's memory may have been used up"),
        ("import sys; sys.exit(2)", "exit code 2"),
    ],
)
def test_a_crash_is_tried_again_three_times_at_one_step(
    mounts: Path, trains: Callable[[str], None], script: str, said: str
) -> None:
    trains(script)
    for _ in range(2):
        with pytest.raises(TryAgainError, match=said):
            attempt(ORDER, FolderVolume(), Cancelled)
    outcome = attempt(ORDER, FolderVolume(), Cancelled)
    assert (outcome.outcome, outcome.exit_code) == ("failed", 1)
    assert "3 attempts in a row crashed at step 0" in outcome.message
    assert said in outcome.message
    with pytest.raises(TryAgainError):  # A launch of its own begins to count anew.
        attempt(ORDER._replace(attempts_before=3), FolderVolume(), Cancelled)
    assert [row.outcome for row in attempts_of(mounts)] == ["crashed"] * 2 + ["failed", "crashed"]


def test_a_crash_behind_a_new_checkpoint_is_never_hopeless() -> None:
    def row(number: int, first_step: int, step: int, outcome: str = "crashed") -> Attempt:
        return Attempt(number, "T4", 0, 1, 2, outcome, first_step, step)

    assert not is_stuck([row(1, 0, 0), row(2, 0, 0)])
    assert is_stuck([row(1, 0, 0), row(2, 0, 0), row(3, 0, 0)])
    assert is_stuck([row(1, 0, 5), row(2, 5, 5), row(3, 5, 5), row(4, 5, 5)])
    assert not is_stuck([row(1, 0, 5), row(2, 5, 7), row(3, 7, 7), row(4, 7, 7)])
    assert not is_stuck([row(1, 0, 0), row(2, 0, 0, "interrupted"), row(3, 0, 0)])


def test_an_attempt_whose_time_is_over_saves_and_hands_over(mounts: Path, trains: Callable[[str], None]) -> None:
    trains(SAVES_WHEN_ASKED + LONG)
    with pytest.raises(TryAgainError, match="attempt 1 out of time at step 0: saved after"):
        attempt(ORDER._replace(attempt_seconds=1.5), FolderVolume(), Cancelled)
    assert (mounts / "runs" / "r" / "log.txt").read_text() == "saved\n"
    assert attempts_of(mounts)[-1].outcome == "out of time"


def test_hours_are_those_of_all_attempts_of_a_launch(mounts: Path, trains: Callable[[str], None]) -> None:
    trains(SAVES_WHEN_ASKED + LONG)
    limited = ORDER._replace(max_seconds=1.5)
    outcome = attempt(limited, FolderVolume(), Cancelled)
    assert (outcome.outcome, outcome.exit_code) == ("out of hours", 130)
    assert (mounts / "runs" / "r" / "log.txt").read_text() == "saved\n"
    trains("raise AssertionError('a container that may spend nothing starts nothing')")
    assert attempt(limited, FolderVolume(), Cancelled).outcome == "out of hours"
    before = len(attempts_of(mounts))
    trains(STARTED)
    again = limited._replace(attempts_before=before)
    assert attempt(again, FolderVolume(), Cancelled).outcome == "finished", "a new launch has hours of its own"


def test_a_lost_attempt_counts_by_its_last_sign_of_life(mounts: Path, trains: Callable[[str], None]) -> None:
    folder = mounts / "runs" / "r" / ".remote"
    folder.mkdir(parents=True)
    lost = Attempt(1, "T4", started=100.0, seen=160.0)
    (mounts / "runs" / "r" / attempt_file(1)).write_text(write_attempt(lost))
    trains(STARTED)
    assert attempt(ORDER._replace(max_seconds=60.0), FolderVolume(), Cancelled).outcome == "out of hours"
    assert attempt(ORDER._replace(max_seconds=90.0), FolderVolume(), Cancelled).outcome == "finished"


@pytest.mark.parametrize(("kind", "outcome"), [(KeyboardInterrupt, "interrupted"), (Cancelled, "stopped")])
def test_an_interrupt_saves_and_is_passed_on(
    mounts: Path, trains: Callable[[str], None], kind: type[BaseException], outcome: str
) -> None:
    trains(SAVES_WHEN_ASKED + LONG)
    before = signal.getsignal(signal.SIGUSR1)

    def raise_it(*_: object) -> None:
        raise kind

    signal.signal(signal.SIGUSR1, raise_it)
    output = mounts / "runs" / "r" / output_file(1)
    once(lambda: output.is_file() and "step 1" in output.read_text(), lambda: os.kill(os.getpid(), signal.SIGUSR1))
    try:
        with pytest.raises(kind):
            attempt(ORDER, FolderVolume(), Cancelled)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert (mounts / "runs" / "r" / "log.txt").read_text() == "saved\n", "the child was asked, and waited for"
    row = attempts_of(mounts)[-1]
    assert (row.outcome, row.ended is not None) == (outcome, True)


def test_the_run_is_brought_while_it_goes_on(mounts: Path, trains: Callable[[str], None]) -> None:
    wait = "\nwhile not os.path.exists('go'): time.sleep(0.01)\n"
    trains(STARTED + "open('runs/r/metrics.jsonl', 'w').write('{}\\n')" + wait)
    metrics, go = mounts / "runs" / "r" / "metrics.jsonl", mounts / "disk" / "pippin" / "go"
    seen: list[Attempt] = []

    def look() -> None:
        seen.extend(attempts_of(mounts))
        go.touch()

    once(metrics.is_file, look)
    attempt(ORDER, FolderVolume(), Cancelled)
    assert [row.outcome for row in seen] == ["running"]


def test_every_attempt_takes_the_newest_whole_checkpoint(mounts: Path, trains: Callable[[str], None]) -> None:
    save(mounts, 2)
    save(mounts, 4)
    newest = mounts / "runs" / "r" / "checkpoints" / "step_00000004"
    (newest / "model.safetensors").write_bytes(b"flipped")
    trains("import os; print(sorted(os.listdir('runs/r/checkpoints'))); print(os.path.exists('runs/r/config.yaml'))")
    outcome = attempt(ORDER, FolderVolume(), Cancelled)
    assert outcome.outcome == "finished"
    said = (mounts / "runs" / "r" / output_file(1)).read_text()
    assert "step_00000002" in said
    assert "step_00000004" not in said
    assert not find_damage(mounts / "runs" / "r" / "checkpoints" / "step_00000002")


def test_a_run_without_a_whole_checkpoint_is_left_to_a_person(mounts: Path, trains: Callable[[str], None]) -> None:
    save(mounts, 2)
    (mounts / "runs" / "r" / "checkpoints" / "step_00000002" / "model.safetensors").write_bytes(b"flipped")
    trains("raise AssertionError('nothing is trained')")
    outcome = attempt(ORDER, FolderVolume(), Cancelled)
    assert (outcome.outcome, outcome.exit_code) == ("refused", 2)
    assert "no checkpoint of r on the volume is whole" in outcome.message


def test_the_parent_of_training_never_loads_mlx() -> None:
    """It would hold memory of the GPU, and an image in which MLX fails could not say so."""
    script = (
        "import sys, core.remote_attempt, core.remote_commands, core.remote_mirror; print('mlx.core' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "False\n"


def test_the_command_resumes_what_was_started(mounts: Path, tmp_path: Path) -> None:
    place = Place(tmp_path, tmp_path / "runs" / "r", tmp_path / "output.txt")
    fresh = training_command(ORDER._replace(init_from="weights-1"), place)
    assert fresh[1:] == [
        "-m", "core.training", "--config", str(tmp_path / "order.yaml"), "--data", str(mounts / "data" / "d"),
        "--init-from", str(mounts / "data" / "weights-1"),
    ]  # fmt: skip
    (place.run).mkdir(parents=True)
    (place.run / "config.yaml").touch()
    assert training_command(ORDER, place)[-1] == "--resume"


def test_data_that_is_not_there_is_refused(mounts: Path) -> None:
    outcome = attempt(ORDER._replace(data="gone"), FolderVolume(), Cancelled)
    assert (outcome.outcome, outcome.exit_code) == ("refused", 2)
    assert "the data volume holds no gone" in outcome.message


@pytest.mark.parametrize(("code", "outcome"), [(0, "finished"), (2, "failed")])
def test_a_new_image_is_tested_once(
    mounts: Path, trains: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, code: int, outcome: str
) -> None:
    script = (
        f"import sys; open(sys.argv[-1], 'w').write('[]'); print('error: kernel', file=sys.stderr); sys.exit({code})"
    )
    monkeypatch.setattr(remote_attempt, "smoke_command", lambda report: [sys.executable, "-c", script, str(report)])
    trains(STARTED)
    result = attempt(ORDER._replace(image="new"), FolderVolume(), Cancelled)
    assert result.outcome == outcome
    passed = mounts / "runs" / ".smoke" / "new-A100-80GB.json"
    assert passed.is_file() == (code == 0)
    if code:
        assert "this image failed its smoke test (exit code 2)" in result.message
        assert "error: kernel" in result.message
    else:
        monkeypatch.setattr(remote_attempt, "smoke_command", lambda report: ["no such command"])
        assert attempt(ORDER._replace(image="new"), FolderVolume(), Cancelled).outcome == "finished"
