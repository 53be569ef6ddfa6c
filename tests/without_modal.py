"""What the tests of a container's side have in place of Modal: a volume, what befalls a run on it, a clock.

To let the volume fail in another way, edit `MountedVolume`.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from core.checkpoint import Snapshot, write_checkpoint
from core.remote import Attempt, Order, attempt_file, write_attempt

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


class Cancelled(BaseException):
    """Stands for modal.exception.InputCancellation."""


class MountedVolume:
    """Commits are counted; `arrivals` happen at the next reload, `trouble` says of each commit whether it fails."""

    def __init__(self, arrivals: Iterable[Callable[[], object]] = (), trouble: Iterable[bool] = ()) -> None:
        self.commits = self.failures = 0
        self.arrivals = list(arrivals)
        self._trouble: Iterator[bool] = iter(trouble)

    def commit(self) -> None:
        """As Modal's client does, it raises RuntimeError."""
        self.commits += 1
        if next(self._trouble, False):
            self.failures += 1
            raise RuntimeError("there are open files preventing the operation")

    def reload(self) -> None:
        """What was committed elsewhere is here."""
        while self.arrivals:
            self.arrivals.pop(0)()


def save(folder: Path, step: int) -> None:
    """A run folder's config and one more checkpoint."""
    arrays = {"w": np.arange(3, dtype=np.float32)}
    (folder / "tokenizer").mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text("name: r")
    snapshot = Snapshot(step, arrays, arrays, None, {"step": step}, {}, False)
    write_checkpoint(folder / "checkpoints", snapshot, folder / "tokenizer", keep_last=3)


def note(folder: Path, *attempts: Attempt) -> None:
    """What earlier attempts, or others, left in a run folder."""
    for each in attempts:
        path = folder / attempt_file(each.number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(write_attempt(each))


def once(condition: Callable[[], bool], action: Callable[[], None]) -> None:
    """Do something in this process as soon as a condition holds."""

    def wait() -> None:
        deadline = time.monotonic() + 30
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.01)
        action()

    threading.Thread(target=wait, daemon=True).start()


@contextlib.contextmanager
def told_by_signal(kind: type[BaseException]) -> Iterator[Callable[[], None]]:
    """Gives a function for other threads, after which the main thread raises `kind`."""

    def raise_it(*_: object) -> None:
        raise kind

    before = signal.signal(signal.SIGUSR1, raise_it)
    try:
        yield lambda: os.kill(os.getpid(), signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)


class Clock:
    """Stands for the module `time`: nothing but sleeping takes any."""

    def __init__(self) -> None:
        self._now = 0.0

    def monotonic(self) -> float:
        """Seconds slept."""
        return self._now

    time = monotonic

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self._now += seconds
