"""Prefetch: jobs done ahead of their consumer by threads, their results given in order whatever the number of threads.

One iterator of jobs is shared under a lock, so what comes next never depends on timing; only the doing of jobs runs
side by side. Threads, not processes: a job is mostly NumPy copies, and a batch handed over costs nothing. To do more
work ahead, raise `DEPTH`.
"""

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any, TypeVar

Value = TypeVar("Value")
DEPTH = 2
"""Results that may lie ready for each worker."""


class Slot:
    """The place of one result in the order of results."""

    def __init__(self) -> None:
        self.ready = threading.Event()
        self.value: Any = None
        self.error: BaseException | None = None


class Shared:
    """What the threads of one `prefetch` have in common."""

    def __init__(self, jobs: Iterator[Callable[[], Any]], room: int) -> None:
        self.jobs = jobs
        self.lock = threading.Lock()
        self.slots: queue.SimpleQueue[Slot | None] = queue.SimpleQueue()
        self.room = threading.Semaphore(room)
        self.ended = False

    def take(self) -> tuple[Slot, Callable[[], Any]] | None:
        """The next job and the place of its result, once there is room; None when there are no more."""
        self.room.acquire()
        with self.lock:
            if self.ended:
                return None
            slot = Slot()
            try:
                job = next(self.jobs)
            except StopIteration:
                self.ended = True
                self.slots.put(None)
                return None
            except Exception as error:
                self.ended = True
                slot.error = error
                slot.ready.set()
                self.slots.put(slot)
                return None
            self.slots.put(slot)
            return slot, job


def prefetch(jobs: Iterator[Callable[[], Value]], workers: int) -> Generator[Value, None, None]:
    """The results of the jobs, in order, done by `workers` threads up to `DEPTH` each ahead; 0: here, when asked for.

    An error of a job is raised here in the place of its result, one of the iterator `jobs` after the results before
    it. Closing or dropping the generator ends the threads; they start with the first `next`.
    """
    if not workers:
        for job in jobs:
            yield job()
        return
    shared = Shared(jobs, DEPTH * workers)
    threads = [threading.Thread(target=_work, args=(shared,), name="prefetch", daemon=True) for _ in range(workers)]
    for thread in threads:
        thread.start()
    try:
        while (slot := shared.slots.get()) is not None:
            slot.ready.wait()
            if slot.error is not None:
                raise slot.error
            shared.room.release()
            yield slot.value
    finally:
        shared.ended = True
        shared.room.release(workers)
        for thread in threads:
            thread.join()


def _work(shared: Shared) -> None:
    while (taken := shared.take()) is not None:
        slot, job = taken
        try:
            slot.value = job()
        except Exception as error:
            slot.error = error
        slot.ready.set()
    shared.room.release()  # So that the next thread sees the end too.
