"""Worker processes: order, laziness, errors, death."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from data.workers import ordered_map, usable_cores
from utils.errors import DataError


def square(value: int) -> int:
    return value * value


def slow_first(value: int) -> int:
    time.sleep(0.2 if value == 0 else 0)
    return value


def refuse(value: int) -> int:
    if value == 1:
        raise DataError(f"bad {value}")
    return value


def die(value: int) -> int:
    if value == 1:
        os._exit(1)
    return value


def process(value: int) -> int:
    return os.getpid()


def test_results_come_in_order_from_other_processes() -> None:
    assert list(ordered_map(slow_first, range(5), 2)) == list(range(5))
    assert os.getpid() not in list(ordered_map(process, range(3), 2))


@pytest.mark.parametrize(("num_tasks", "num_workers"), [(0, 4), (1, 4), (5, 1)])
def test_nothing_is_started_for_one_task_or_one_worker(num_tasks: int, num_workers: int) -> None:
    assert list(ordered_map(process, range(num_tasks), num_workers)) == [os.getpid()] * num_tasks


def test_tasks_are_taken_only_as_they_are_needed() -> None:
    taken: list[int] = []

    def tasks() -> Iterator[int]:
        for value in range(20):
            taken.append(value)
            yield value

    results = ordered_map(square, tasks(), 2)
    assert next(results) == 0
    assert len(taken) <= 4
    results.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert len(taken) <= 4


def test_an_error_and_a_death_are_told() -> None:
    with pytest.raises(DataError, match="bad 1"):
        list(ordered_map(refuse, range(4), 2))
    with pytest.raises(DataError, match="a worker process died"):
        list(ordered_map(die, range(4), 2))


def test_a_worker_does_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import os\n"
        "from data.workers import ordered_map\n"
        "from tests.test_data_workers import process\n"
        "if __name__ == '__main__':\n"
        "    results = ordered_map(process, iter(int, 1), 2)\n"
        "    print(next(results), flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    root = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, str(script)], env=environment, stdout=subprocess.PIPE, text=True)
    worker = int(done.stdout)
    for _ in range(200):
        if not Path(f"/proc/{worker}").exists() or "Z" in Path(f"/proc/{worker}/stat").read_text().split()[2]:
            return
        time.sleep(0.05)
    raise AssertionError("the worker still runs")


def test_cores_are_counted() -> None:
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
