"""One attempt in a container, without Modal: the child is a script of a few lines, the volume two folders.

What the real entry point, retries and interrupts make of it is tested in test_modal_modal_deploy.py.
"""

import contextlib
import itertools
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from core import remote_attempt
from core.checkpoint import find_damage
from core.remote import ENDED, Attempt, attempt_file, attempts_in, output_file, read_attempt
from core.remote_attempt import EXIT_CODES, Place, TryAgainError, attempt, is_stuck, training_command, watch
from core.remote_child import Child
from tests.without_modal import ORDER, Cancelled, Clock, MountedVolume, note, once, save, told_by_signal

STARTED = (
    "import os, sys, time; os.makedirs('runs/r', exist_ok=True); open('runs/r/config.yaml', 'w').write('name: r')\n"
)
LONG = STARTED + "print('step 1/9  loss 1.0', flush=True)\ntime.sleep(60)\n"
SAVES_WHEN_ASKED = (
    "import signal\nsignal.signal(2, lambda *_: (open('runs/r/log.txt', 'w').write('saved\\n'), sys.exit(130)))\n"
)


@pytest.fixture
def mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder with `runs` and `data`; the image has passed its smoke test."""
    monkeypatch.setenv("PIPPIN_MOUNTS", str(tmp_path))
    (tmp_path / "disk").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "disk"))
    (tmp_path / "data" / "d").mkdir(parents=True)
    (tmp_path / "runs" / ".smoke").mkdir(parents=True)
    (tmp_path / "runs" / ".smoke" / "i-A100-80GB.json").write_text("{}")
    monkeypatch.setattr(remote_attempt, "PAUSES", (0.0, 0.0))
    return tmp_path


@pytest.fixture
def trains(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes the child a script."""

    def set_script(script: str) -> None:
        monkeypatch.setattr(remote_attempt, "training_command", lambda order, place: [sys.executable, "-c", script])

    return set_script


def has_spoken(mounts: Path) -> bool:
    """Whether the script's first line was seen: from then on it can be interrupted."""
    output = mounts / "disk" / "pippin" / "output.txt"
    return output.is_file() and "step 1" in output.read_text()


def attempts_of(mounts: Path) -> list[Attempt]:
    return attempts_in(mounts / "runs" / "r")


def test_a_run_that_finishes(mounts: Path, trains: Callable[[str], None], capfd: pytest.CaptureFixture[str]) -> None:
    trains(STARTED + "print('hello')\nprint('uh', file=sys.stderr)\n")
    volume = MountedVolume()
    outcome = attempt(ORDER, volume, Cancelled)
    assert (outcome.outcome, outcome.exit_code, outcome.step) == ("finished", 0, 0)
    (row,) = attempts_of(mounts)
    assert (row.number, row.outcome, row.gpu, row.ended is None) == (1, "finished", "A100-80GB", False)
    assert (mounts / "runs" / "r" / "config.yaml").read_text() == "name: r"
    assert volume.commits >= 3, "begun, brought, ended"
    out, err = capfd.readouterr()
    assert "attempt 1 of run r on A100-80GB, from step 0" in out
    assert "hello" in out
    assert "uh" in err
    assert set((mounts / "runs" / "r" / output_file(1)).read_text().split()) == {"hello", "uh"}


def test_what_a_person_must_mend_is_returned_with_its_lines(mounts: Path, trains: Callable[[str], None]) -> None:
    trains("import sys; print('error: a.b: wrong\\nerror: loss is not finite', file=sys.stderr); sys.exit(2)")
    outcome = attempt(ORDER, MountedVolume(), Cancelled)
    assert outcome == ("refused", 2, 0, "a.b: wrong\nloss is not finite")


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("import sys; print('Traceback ...\\nZeroDivisionError', file=sys.stderr); sys.exit(1)", "ZeroDivisionError"),
        ("import os; os.kill(os.getpid(), 9)", "killed by SIGKILL: the container's memory may have been used up"),
        ("import sys; sys.exit(2)", "exit code 2"),
        ("import sys; print('error: not a refusal', file=sys.stderr); sys.exit(1)", "not a refusal"),
    ],
)
def test_a_crash_is_tried_again_three_times_at_one_step(
    mounts: Path, trains: Callable[[str], None], script: str, said: str
) -> None:
    trains(script)
    for _ in range(2):
        with pytest.raises(TryAgainError, match=said):
            attempt(ORDER, MountedVolume(), Cancelled)
    outcome = attempt(ORDER, MountedVolume(), Cancelled)
    assert (outcome.outcome, outcome.exit_code) == ("failed", 1)
    begin = "3 attempts in a row crashed at step 0, this is how the last ended: (exit code|killed by)"
    assert re.match(begin, outcome.message)
    assert said in outcome.message
    with pytest.raises(TryAgainError):  # A launch of its own begins to count anew.
        attempt(ORDER._replace(attempts_before=3), MountedVolume(), Cancelled)
    assert [row.outcome for row in attempts_of(mounts)] == ["crashed"] * 2 + ["failed", "crashed"]


def test_a_crash_behind_a_new_checkpoint_is_never_hopeless() -> None:
    def row(number: int, first_step: int, step: int, outcome: str = "crashed") -> Attempt:
        return Attempt(number, "T4", 0, 1, 2, outcome, first_step, step)

    assert not is_stuck([row(1, 0, 0), row(2, 0, 0)])
    assert is_stuck([row(1, 0, 0), row(2, 0, 0), row(3, 0, 0)])
    assert is_stuck([row(1, 0, 5), row(2, 5, 5), row(3, 5, 5), row(4, 5, 5)])
    assert not is_stuck([row(1, 0, 5), row(2, 5, 7), row(3, 7, 7), row(4, 7, 7)])
    assert not is_stuck([row(1, 0, 0), row(2, 0, 0, "interrupted"), row(3, 0, 0)])


@pytest.mark.parametrize(
    ("at_the_end", "outcome", "said"),
    [
        ("sys.exit(130)", "out of time", "attempt 1 out of time at step 0: saved after 0.0167 hours; going on"),
        ("sys.exit(1)", "crashed", "asked to save after 0.0167 hours, and did not (exit code 1)"),
        ("time.sleep(60)", "crashed", "asked to save after 0.0167 hours, and did not (killed)"),
        ("sys.exit(0)", "finished", ""),
        ("print('error: disk', file=sys.stderr); sys.exit(2)", "refused", "disk"),
    ],
)
def test_an_attempt_whose_time_is_over_saves_and_hands_over(
    mounts: Path,
    trains: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    at_the_end: str,
    outcome: str,
    said: str,
) -> None:
    def watch_until_it_speaks(child: Child, *_: object) -> None:
        while not has_spoken(mounts):
            assert child.wait(0.01) is None

    monkeypatch.setattr(remote_attempt, "watch", watch_until_it_speaks)
    monkeypatch.setattr(remote_attempt, "SAVE_SECONDS", 0.5 if "sleep" in at_the_end else 30.0)
    saves = f"import signal\ndef save(*_):\n    open('runs/r/log.txt', 'w').write('saved\\n'); {at_the_end}\n"
    trains(saves + "signal.signal(2, save)\n" + LONG)
    again = outcome in ("out of time", "crashed")
    with pytest.raises(TryAgainError, match=re.escape(said)) if again else contextlib.nullcontext():
        assert attempt(ORDER, MountedVolume(), Cancelled).message == said
    assert (mounts / "runs" / "r" / "log.txt").read_text() == "saved\n"
    assert attempts_of(mounts)[-1].outcome == outcome


def test_hours_are_those_of_all_attempts_of_a_launch(mounts: Path, trains: Callable[[str], None]) -> None:
    trains(SAVES_WHEN_ASKED + LONG)
    limited = ORDER._replace(max_seconds=1.5)
    outcome = attempt(limited, MountedVolume(), Cancelled)
    assert (outcome.outcome, outcome.exit_code) == ("out of hours", 130)
    assert (mounts / "runs" / "r" / "log.txt").read_text() == "saved\n"
    trains("raise AssertionError('a container that may spend nothing starts nothing')")
    assert attempt(limited, MountedVolume(), Cancelled).outcome == "out of hours"
    before = len(attempts_of(mounts))
    trains(STARTED)
    again = limited._replace(attempts_before=before)
    assert attempt(again, MountedVolume(), Cancelled).outcome == "finished", "a new launch has hours of its own"


@pytest.mark.parametrize(("hours", "outcome"), [(120.0, "out of hours"), (150.0, "finished")])
def test_lost_attempts_count_by_their_last_sign_of_life(
    mounts: Path, trains: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, hours: float, outcome: str
) -> None:
    note(mounts / "runs" / "r", Attempt(1, "T4", 100.0, seen=160.0), Attempt(2, "T4", 200.0, seen=260.0))
    trains(STARTED)
    if outcome != "finished":
        monkeypatch.setattr(remote_attempt, "make_place", None)  # Nothing is prepared where nothing may be spent.
    assert attempt(ORDER._replace(max_seconds=hours), MountedVolume(), Cancelled).outcome == outcome


def test_the_time_before_training_counts(
    mounts: Path, trains: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, deadlines = Clock(), []
    monkeypatch.setattr(remote_attempt, "time", clock)
    monkeypatch.setattr(remote_attempt, "check_image", lambda desk, place: clock.sleep(7.0))
    monkeypatch.setattr(remote_attempt, "watch", lambda *given: deadlines.append(given[-1]) or 0)
    trains(STARTED)
    attempt(ORDER, MountedVolume(), Cancelled)
    attempt(ORDER._replace(attempts_before=1, max_seconds=40.0), MountedVolume(), Cancelled)
    assert deadlines == [60.0, 7.0 + 40.0]


@pytest.mark.parametrize("outcome", ENDED)
def test_a_result_that_was_lost_is_returned_again(mounts: Path, trains: Callable[[str], None], outcome: str) -> None:
    note(mounts / "runs" / "r", Attempt(1, "T4", 1.0, 2.0, 3.0, outcome, 0, 7, "why"))
    trains(STARTED)
    again = attempt(ORDER, MountedVolume(), Cancelled)
    assert again == (outcome, EXIT_CODES[outcome], 7, "why")
    assert len(attempts_of(mounts)) == 1
    assert attempt(ORDER._replace(attempts_before=1), MountedVolume(), Cancelled).step == 0


def test_an_attempt_of_which_only_the_number_is_known(mounts: Path, trains: Callable[[str], None]) -> None:
    folder = mounts / "runs" / "r"
    note(folder, *(Attempt(number, "T4", 1.0, 2.0, 3.0, "crashed") for number in range(1, 11)))
    for number, text in ((7, '{"numb'), (8, "[]"), (10, '{"number": 10}')):
        (folder / attempt_file(number)).write_text(text)
    trains(STARTED + "print()")
    assert attempt(ORDER, MountedVolume(), Cancelled).outcome == "finished"
    assert read_attempt(0, (folder / attempt_file(11)).read_bytes()).number == 11
    assert (folder / output_file(11)).is_file()


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize(
    ("kind", "outcome", "grace"), [(KeyboardInterrupt, "interrupted", 20.0), (Cancelled, "stopped", 600.0)]
)
def test_an_interrupt_saves_and_is_passed_on(
    mounts: Path,
    trains: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    kind: type[BaseException],
    outcome: str,
    grace: float,
    fails: bool,
) -> None:
    trains(SAVES_WHEN_ASKED + LONG)
    graces, interrupt = [], Child.interrupt
    monkeypatch.setattr(Child, "interrupt", lambda child, grace: graces.append(grace) or interrupt(child, grace))
    volume = MountedVolume(trouble=itertools.chain([False], itertools.repeat(fails)))
    with told_by_signal(kind) as tell:
        once(lambda: has_spoken(mounts), tell)
        with pytest.raises(kind):
            attempt(ORDER._replace(sync_seconds=60.0), volume, Cancelled)
    assert graces == [grace]
    assert (mounts / "runs" / "r" / "log.txt").read_text() == "saved\n", "the child was asked, and waited for"
    row = attempts_of(mounts)[-1]
    assert (row.outcome, row.ended is not None) == (outcome, True)


@pytest.mark.parametrize("interrupted", [False, True])
def test_an_attempt_leaves_the_run_to_the_one_that_took_over(
    mounts: Path, trains: Callable[[str], None], capfd: pytest.CaptureFixture[str], interrupted: bool
) -> None:
    """Modal starts the next container while the one that it interrupted still saves."""
    trains(SAVES_WHEN_ASKED + LONG)
    folder, volume, other = mounts / "runs" / "r", MountedVolume(), Attempt(2, "T4", 1.0, 2.0)

    with told_by_signal(KeyboardInterrupt) as tell:

        def take_over() -> None:
            volume.arrivals.append(lambda: note(folder, other))
            if interrupted:
                tell()

        once(lambda: has_spoken(mounts), take_over)
        with pytest.raises(KeyboardInterrupt if interrupted else TryAgainError, match="^$|attempt 2 took over"):
            attempt(ORDER._replace(sync_seconds=60.0 if interrupted else 0.05), volume, Cancelled)
    assert not (folder / "log.txt").exists()
    assert (mounts / "disk" / "pippin" / "runs" / "r" / "log.txt").exists() == interrupted, "saved only where asked to"
    assert "not brought" not in capfd.readouterr().err
    first, second = attempts_of(mounts)
    assert (first.outcome, first.ended is not None, second) == ("interrupted", True, other)


def test_the_run_is_brought_while_it_goes_on(mounts: Path, trains: Callable[[str], None]) -> None:
    wait = "\nwhile not os.path.exists('go'): time.sleep(0.01)\n"
    trains(STARTED + "open('runs/r/metrics.jsonl', 'w').write('{}\\n')" + wait)
    metrics, go = mounts / "runs" / "r" / "metrics.jsonl", mounts / "disk" / "pippin" / "go"
    seen: list[Attempt] = []

    def look() -> None:
        seen.extend(attempts_of(mounts))
        go.touch()

    once(lambda: metrics.is_file() and attempts_of(mounts)[0].seen > attempts_of(mounts)[0].started, look)
    attempt(ORDER, MountedVolume(), Cancelled)
    (row,) = seen
    assert row.outcome == "running"
    assert row.seen > row.started


@pytest.mark.parametrize(("failures", "ends"), [("1111011110", False), ("00011111", True)])
def test_a_volume_that_fails_for_a_while(monkeypatch: pytest.MonkeyPatch, failures: str, ends: bool) -> None:
    clock, brought, fails = Clock(), [], iter(failures)

    def bring(*_: object) -> None:
        brought.append(round(clock.monotonic(), 3))
        if next(fails) == "1":
            raise RuntimeError("commit")

    monkeypatch.setattr(remote_attempt, "time", clock)
    monkeypatch.setattr(remote_attempt, "bring", bring)
    desk: Any = SimpleNamespace(order=ORDER._replace(sync_seconds=30.0), note=lambda: None)
    child: Any = SimpleNamespace(wait=clock.sleep)
    with pytest.raises(RuntimeError, match="commit") if ends else contextlib.nullcontext():
        assert watch(child, desk, Place(Path(), Path(), Path()), deadline=310.0) is None
    assert brought == pytest.approx([30.0 * (number + 1) for number in range(len(failures))], abs=2.1)


@pytest.mark.parametrize(("failures", "outcome"), [(2, "finished"), (3, "crashed")])
def test_the_last_of_a_run_is_brought_if_it_can_be(
    mounts: Path, trains: Callable[[str], None], failures: int, outcome: str
) -> None:
    trains(STARTED)
    volume = MountedVolume(trouble=[False] + [True] * failures)
    passes = contextlib.nullcontext() if outcome == "finished" else pytest.raises(TryAgainError, match="RuntimeError: ")
    with passes:
        attempt(ORDER._replace(sync_seconds=60.0), volume, Cancelled)
    assert volume.failures == failures
    assert attempts_of(mounts)[0].outcome == outcome
    assert (mounts / "runs" / "r" / "config.yaml").is_file()


def test_a_volume_that_fails_for_long_ends_the_attempt_which_saves(mounts: Path, trains: Callable[[str], None]) -> None:
    trains(SAVES_WHEN_ASKED + LONG)
    fails = itertools.chain((False for _ in iter(lambda: has_spoken(mounts), True)), [True] * 5)
    with pytest.raises(TryAgainError, match="attempt 1 crashed at step 0: RuntimeError: there are open files"):
        attempt(ORDER, MountedVolume(trouble=fails), Cancelled)
    assert (mounts / "runs" / "r" / "log.txt").read_text() == "saved\n", "brought as soon as it could be"


def test_every_attempt_takes_the_newest_whole_checkpoint(mounts: Path, trains: Callable[[str], None]) -> None:
    save(mounts / "runs" / "r", 2)

    def arrive() -> None:
        save(mounts / "runs" / "r", 3)
        save(mounts / "runs" / "r", 4)
        newest = mounts / "runs" / "r" / "checkpoints" / "step_00000004"
        (newest / "model.safetensors").write_bytes(b"flipped")

    trains("import os; print(sorted(os.listdir('runs/r/checkpoints'))); print(os.path.exists('runs/r/config.yaml'))")
    outcome = attempt(ORDER, MountedVolume([arrive]), Cancelled)
    assert outcome.outcome == "finished"
    said = (mounts / "runs" / "r" / output_file(1)).read_text()
    assert "step_00000003" in said
    assert "step_00000004" not in said
    assert not find_damage(mounts / "runs" / "r" / "checkpoints" / "step_00000003")


def test_a_run_without_a_whole_checkpoint_is_left_to_a_person(mounts: Path, trains: Callable[[str], None]) -> None:
    save(mounts / "runs" / "r", 2)
    (mounts / "runs" / "r" / "checkpoints" / "step_00000002" / "model.safetensors").write_bytes(b"flipped")
    trains("raise AssertionError('nothing is trained')")
    outcome = attempt(ORDER, MountedVolume(), Cancelled)
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
    outcome = attempt(ORDER._replace(data="gone"), MountedVolume(), Cancelled)
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
    result = attempt(ORDER._replace(image="new"), MountedVolume(), Cancelled)
    assert result.outcome == outcome
    passed = mounts / "runs" / ".smoke" / "new-A100-80GB.json"
    assert passed.is_file() == (code == 0)
    if code:
        assert "this image failed its smoke test (exit code 2)" in result.message
        assert "error: kernel" in result.message
    else:
        monkeypatch.setattr(remote_attempt, "smoke_command", lambda report: ["no such command"])
        again = ORDER._replace(image="new", attempts_before=1)
        assert attempt(again, MountedVolume(), Cancelled).outcome == "finished"
