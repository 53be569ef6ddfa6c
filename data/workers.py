"""Other processes for what Python does slowly: cleaning, filters, fingerprints. Results come in the order of the tasks.

`spawn`, because a fork of a process that uses MLX or threads is not safe; workers start only when there is a second
task, so a small corpus never pays for them. A worker ends by itself when its parent is killed, and leaves Ctrl-C
to it. To run something else in parallel, hand another function to `ordered_map`.
"""

import collections
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from typing import Any, TypeVar

from utils.errors import DataError

Task = TypeVar("Task")
Result = TypeVar("Result")


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered_map(function: Callable[[Task], Result], tasks: Iterable[Task], num_workers: int) -> Iterator[Result]:
    """`map` over worker processes; at most one task more than there are workers is in memory.

    Raises what `function` raises, and DataError when a worker dies.
    """
    tasks = iter(tasks)
    beginning = list(islice(tasks, 2))
    tasks = chain(beginning, tasks)
    if num_workers < 2 or len(beginning) < 2:
        yield from map(function, tasks)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_workers, mp_context=context, initializer=_start_worker)
    try:
        yield from _in_order(pool, function, tasks, num_workers + 1)
    except BrokenProcessPool as error:
        raise DataError(
            "a worker process died while it prepared data: was it killed, or is memory short? tools/prepare-data.py "
            "--jobs 1 needs less of it; starting again goes on where this stopped. A script of one's own that prepares "
            "data needs the usual `if __name__ == '__main__':`"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _in_order(pool: ProcessPoolExecutor, function: Callable, tasks: Iterator[Any], ahead: int) -> Iterator[Any]:
    pending: collections.deque[Future] = collections.deque()
    for task in tasks:
        pending.append(pool.submit(function, task))
        del task  # The pool has it now; a second one is some 16 MB.
        if len(pending) >= ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _start_worker() -> None:
    """Leave Ctrl-C to the parent and do not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent.sentinel,), daemon=True).start()


def _follow(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)
