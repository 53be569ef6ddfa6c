"""Programs that a test starts against the loopback control plane: the `modal` client or a script of ours.

They may run under a terminal. Each leads a process group, so that Ctrl-C reaches what a terminal's would and nothing of
it outlives the test. To give them another terminal, edit `start_client`.
"""

import codecs
import contextlib
import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

PATIENCE_SECONDS = 120.0
ROWS, COLUMNS = 40, 160


class Finished(NamedTuple):
    """A program that ended."""

    code: int
    output: str
    """Both streams, as they came."""


class Client:
    """A program that runs."""

    def __init__(self, process: subprocess.Popen[bytes], stream: int) -> None:
        self.process = process
        self._pieces: list[str] = []
        self._reader = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self._reader.start()

    def _read(self, stream: int) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        # The other end of a terminal that closes is an error, not an end.
        with contextlib.suppress(OSError):
            while piece := os.read(stream, 65536):
                self._pieces.append(decoder.decode(piece))
        os.close(stream)

    @property
    def output(self) -> str:
        """What it printed so far."""
        return "".join(self._pieces)

    def interrupt(self) -> None:
        """Ctrl-C."""
        self._signal(signal.SIGINT)

    def kill(self) -> None:
        """It is gone, with no chance to say so."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def wait_for(self, condition: str | Callable[[str], bool], timeout: float = PATIENCE_SECONDS) -> None:
        """Returns when its output has that text, or satisfies that condition."""
        holds = condition if callable(condition) else lambda output: condition in output
        deadline = time.monotonic() + timeout
        while not holds(self.output):
            assert self._reader.is_alive(), f"ended without {condition!r}:\n{self.output}"
            assert time.monotonic() < deadline, f"{timeout} s without {condition!r}:\n{self.output}"
            time.sleep(0.01)

    def wait(self, timeout: float = PATIENCE_SECONDS) -> Finished:
        """Its end; a program that does not end is killed and is a failure."""
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.close()
            raise AssertionError(f"still runs after {timeout} s:\n{self.output}") from None
        self._reader.join(timeout)
        return Finished(code, self.output)

    def close(self) -> None:
        """Ends it if it still runs."""
        self.kill()
        self.process.wait()
        self._reader.join(PATIENCE_SECONDS)


def start_client(command: Sequence[str | Path], cwd: Path, env: Mapping[str, str], *, terminal: bool) -> Client:
    """`modal` and `python` as first words are those of this environment."""
    first, *others = map(str, command)
    ours = {"modal": str(Path(sys.executable).with_name("modal")), "python": sys.executable}
    read, write = pty.openpty() if terminal else os.pipe()
    if terminal:
        fcntl.ioctl(write, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    try:
        process = subprocess.Popen(
            [ours.get(first, first), *others],
            cwd=cwd,
            env=env,
            stdin=write if terminal else subprocess.DEVNULL,
            stdout=write,
            stderr=write,
            start_new_session=True,
        )
    finally:
        os.close(write)
    return Client(process, read)
