"""Prefetch: order, errors at their place, and threads that end."""

import itertools
import threading
from collections.abc import Callable, Iterator

import pytest

from data.loader import Dataset
from data.prefetch import DEPTH, prefetch
from tests.stored_documents import dataset_over, write_store

WORKERS = [0, 1, 2, 4]


def jobs_for(values) -> Iterator[Callable]:
    for value in values:
        yield lambda value=value: value


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


@pytest.mark.parametrize("workers", WORKERS)
def test_results_come_in_order_and_threads_end(workers):
    assert list(prefetch(jobs_for(range(100)), workers)) == list(range(100))
    assert list(prefetch(jobs_for([]), workers)) == []
    assert not threads()


def test_a_slow_job_does_not_lose_its_place():
    gate = threading.Event()

    def jobs():
        yield lambda: gate.wait(30) and "slow"
        for number in range(2 * DEPTH - 1):
            yield lambda number=number: number
        yield gate.set

    ahead = prefetch(jobs(), 2)
    release = threading.Thread(target=gate.set)
    release.start()
    assert list(ahead)[: 2 * DEPTH] == ["slow", *range(2 * DEPTH - 1)]
    release.join()


@pytest.mark.parametrize("workers", [1, 3])
def test_it_works_ahead_but_not_without_bound(workers):
    full, over, taken = threading.Event(), threading.Event(), []

    def jobs():
        for number in itertools.count():
            taken.append(number)
            if len(taken) == DEPTH * workers + 1:
                full.set()
            if len(taken) > DEPTH * workers + 1:
                over.set()
            yield lambda number=number: number

    ahead = prefetch(jobs(), workers)
    assert next(ahead) == 0
    assert full.wait(30)
    assert not over.wait(0.05)
    ahead.close()
    assert len(taken) == DEPTH * workers + 1
    assert not threads()


@pytest.mark.parametrize("workers", WORKERS)
def test_an_error_surfaces_at_its_place(workers):
    def broken():
        raise ValueError("broken row")

    def jobs():
        yield from jobs_for(range(5))
        yield broken
        yield from jobs_for(range(5))

    ahead = prefetch(jobs(), workers)
    assert [next(ahead) for _ in range(5)] == list(range(5))
    with pytest.raises(ValueError, match="broken row"):
        next(ahead)
    assert not threads()


@pytest.mark.parametrize("workers", WORKERS)
def test_an_error_in_finding_jobs_comes_behind_the_results(workers):
    def jobs():
        yield from jobs_for(range(5))
        raise ValueError("no more rows")

    ahead = prefetch(jobs(), workers)
    assert [next(ahead) for _ in range(5)] == list(range(5))
    with pytest.raises(ValueError, match="no more rows"):
        next(ahead)
    assert not threads()


@pytest.mark.parametrize("workers", [1, 4])
def test_an_interrupt_or_a_dropped_iterator_ends_the_threads(workers, tmp_path):
    dataset: Dataset = dataset_over(write_store(tmp_path / "s", [[5, 9, 2]]), workers=workers)
    ahead = dataset.batches(2)
    next(ahead)
    assert threads()
    with pytest.raises(KeyboardInterrupt):
        ahead.throw(KeyboardInterrupt)
    assert not threads()
    ahead = dataset.batches(2)
    next(ahead)
    del ahead
    assert not threads()
