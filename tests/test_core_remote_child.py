"""A child's lines, its end, and what is told of it."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from core.remote_child import Child, explain_exit, moving_bar


def run(script: str, folder: Path, **options: int) -> tuple[int | None, Child]:
    with Child([sys.executable, "-c", script], folder, folder / "output.txt", **options) as child:
        return child.wait(30), child


def test_lines_go_to_both_streams_and_into_the_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, child = run(
        "import sys; print('a\\nb'); print('c', file=sys.stderr); print('d', end=''); sys.exit(3)", tmp_path
    )
    assert code == 3
    out, err = capfd.readouterr()
    assert (out, err) == ("a\nb\nd", "c\n")
    assert sorted((tmp_path / "output.txt").read_text().replace("dc", "d\nc").split()) == ["a", "b", "c", "d"]
    assert list(child.last_errors) == ["c"]


def test_only_the_last_errors_are_kept(tmp_path: Path) -> None:
    _, child = run("import sys; [print(number, file=sys.stderr) for number in range(100)]", tmp_path)
    assert list(child.last_errors) == [str(number) for number in range(80, 100)]


def test_all_errors_are_kept_beside_them(tmp_path: Path) -> None:
    script = "import sys; [print('error: bad', number, file=sys.stderr) for number in range(250)]"
    _, child = run(f"{script}; print('no error: x', file=sys.stderr)", tmp_path)
    assert child.errors == [f"bad {number}" for number in range(200)]
    assert child.last_errors[-1] == "no error: x"


def test_bytes_that_are_no_text_do_not_stop_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, _ = run("import sys; sys.stdout.buffer.write(b'\\xff\\n')", tmp_path)
    assert code == 0
    assert capfd.readouterr().out == "\\xff\n"


def test_values_of_secrets_are_blotted_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_0123456789")
    monkeypatch.setenv("WANDB_API_KEY", "short")
    run("import os, sys; print('t', os.environ['HF_TOKEN']); print('a short error', file=sys.stderr)", tmp_path)
    out, err = capfd.readouterr()
    assert out == "t ***\n"
    assert err == "a short error\n", "what is too short for a secret is left alone"
    assert "hf_0123456789" not in (tmp_path / "output.txt").read_text()


def test_an_interrupt_lets_it_save_and_a_deaf_one_is_killed(tmp_path: Path) -> None:
    saves = "import signal, sys, time; signal.signal(2, lambda *_: sys.exit(130)); print('ready'); time.sleep(60)"
    deaf = "import signal, time; signal.signal(2, signal.SIG_IGN); print('ready'); time.sleep(60)"
    for script, grace, expected in ((saves, 20.0, 130), (deaf, 0.1, -9)):
        with Child([sys.executable, "-c", script], tmp_path, tmp_path / "output.txt") as child:
            wait_for(tmp_path / "output.txt")
            assert child.interrupt(grace) == expected
        (tmp_path / "output.txt").unlink()


def test_a_child_that_still_loads_is_ended_without_a_traceback(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    script = "import time; open('ready', 'w').close(); time.sleep(60)"
    with Child([sys.executable, "-c", script], tmp_path, tmp_path / "output.txt") as child:
        wait_for(tmp_path / "ready")
        assert child.interrupt(20.0) == -9
    assert capfd.readouterr().err == ""


def test_a_child_that_saves_already_is_not_told_twice(tmp_path: Path) -> None:
    """A second signal would make it leave at once (core.run.StopSignal)."""
    script = (
        "import time; from core.run import StopSignal; stop = StopSignal(); open('ready', 'w').close()\n"
        "while not stop.requested(): time.sleep(0.01)\n"
        "time.sleep(1.5); open('saved', 'w').close(); raise SystemExit(130)"
    )
    with Child([sys.executable, "-c", script], tmp_path, tmp_path / "output.txt") as child:
        wait_for(tmp_path / "ready")
        os.kill(child.pid, signal.SIGINT)
        assert child.interrupt(20.0) == 130
    assert (tmp_path / "saved").exists()


def test_what_it_started_ends_with_it(tmp_path: Path) -> None:
    script = (
        "import subprocess, sys, time\n"
        "other = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], stdout=subprocess.DEVNULL,"
        " stderr=subprocess.DEVNULL)\n"
        "open('pid.tmp', 'w').write(str(other.pid)); import os; os.rename('pid.tmp', 'pid'); time.sleep(60)"
    )
    with Child([sys.executable, "-c", script], tmp_path, tmp_path / "output.txt"):
        wait_for(tmp_path / "pid")
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 20
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_alive(pid)


def test_what_it_leaves_behind_keeps_nobody_waiting(tmp_path: Path) -> None:
    """A data worker of a training that was killed holds its pipes."""
    other = "['sh', '-c', 'sleep 10; touch outlived']"
    code, _ = run(f"import subprocess, sys; subprocess.Popen({other}); print('last'); sys.exit(3)", tmp_path)
    assert code == 3
    assert not (tmp_path / "outlived").exists()
    assert (tmp_path / "output.txt").read_text() == "last\n"


def test_a_signal_for_the_container_is_not_one_for_the_child(tmp_path: Path) -> None:
    with Child([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path, tmp_path / "output.txt") as child:
        assert os.getsid(child.pid) == child.pid != os.getsid(0)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().split()[2] != "Z"


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("line", "columns", "shown"),
    [
        ("step 5/10  loss 1.0\n", 80, "\x1b[2K5/10 [############------------] loss 1.0\r"),
        ("step 10/10  loss 1.0\n", 80, "\x1b[2K10/10 [########################] loss 1.0\n"),
        ("step 0/0  val 1\n", 80, "\x1b[2K0/0 [------------------------] val 1\n"),
        ("step 5/10  loss 1.0\n", 12, "\x1b[2K5/10 [#####\r"),
        ("steps 5/10  loss\n", 80, "steps 5/10  loss\n"),
        ("a step 5/10  loss\n", 80, "a step 5/10  loss\n"),
    ],
)
def test_moving_bar(line: str, columns: int, shown: str) -> None:
    assert moving_bar(line, columns) == shown


def test_a_bar_moves_in_the_output_and_the_file_keeps_lines(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run("print('step 1/2  loss 3'); print('step 2/2  loss 2')", tmp_path, bar_columns=80)
    assert capfd.readouterr().out.count("\r") == 1
    assert (tmp_path / "output.txt").read_text() == "step 1/2  loss 3\nstep 2/2  loss 2\n"


def test_explain_exit() -> None:
    assert explain_exit(1) == "exit code 1"
    assert explain_exit(-11) == "killed by SIGSEGV"
    assert "--memory asks for more" in explain_exit(-9)
    assert explain_exit(-200) == "killed by signal 200"
