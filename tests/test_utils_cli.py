"""What a command says and leaves with: a person's mistake, Ctrl-C, a closed pipe, a terminal without the letters."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from utils.cli import Parser, run_command, warn
from utils.errors import DataError

ROOT = Path(__file__).parent.parent


def code_of(main) -> object:
    with pytest.raises(SystemExit) as caught:
        run_command(main)
    return caught.value.code


def fail(error: BaseException):
    def main() -> None:
        raise error

    return main


def test_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of(lambda: None) == 0
    assert code_of(lambda: 7) == 7
    assert code_of(fail(KeyboardInterrupt())) == 130
    assert code_of(fail(DataError("one", "two"))) == 2
    assert capsys.readouterr().err == "error: one\nerror: two\n"


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run_command(fail(ZeroDivisionError()))


def test_wrong_flags_are_an_error_line(capsys: pytest.CaptureFixture[str]) -> None:
    parser = Parser("A command.")
    parser.add_argument("--number", type=int)
    for arguments in (["--number", "x"], ["--num", "1"], ["--other"]):
        with pytest.raises(SystemExit) as caught:
            parser.parse_args(arguments)
        assert caught.value.code == 2
        assert capsys.readouterr().err.startswith("error: ")


def test_warnings_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    warn("careful")
    assert capsys.readouterr().err == "warning: careful\n"


def test_a_closed_pipe_is_quiet() -> None:
    command = "from utils.cli import run_command\nrun_command(lambda: print('line\\n' * 200_000))"
    with subprocess.Popen(
        [sys.executable, "-c", command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 0


def test_a_terminal_without_a_letter_shows_its_code() -> None:
    command = "from utils.cli import run_command\nrun_command(lambda: print('\\u20ac'))"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", command], cwd=ROOT, env=environment, capture_output=True)
    assert (done.returncode, done.stdout) == (0, b"\\u20ac\n")
