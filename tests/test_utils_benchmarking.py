"""The worker protocol with workers that behave and workers that do not, and the statistics by exact numbers."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils import benchmarking
from utils.benchmarking import Worker, paired_ratio, percentile, random_tokens, spread, take_turns, utilisation

REPOSITORY = Path(__file__).parent.parent

POLITE = """
from utils.benchmarking import serve
def prepare(spec):
    rounds = []
    def measure():
        print("what a library prints is no answer")
        with open(spec["log"], "a") as file:
            file.write(spec["name"])
        rounds.append(1)
        return {"seconds": float(len(rounds))}
    return {"name": spec["name"]}, measure
serve(prepare)
"""
DIES_IN_ROUND_TWO = """
import sys
from utils.benchmarking import Channel
channel = Channel()
channel.ready({})
channel.wait()
channel.answer({"seconds": 1.0})
channel.wait()
print("out of memory in layer 3\\n", file=sys.stderr)
sys.exit(7)
"""
HANGS = "import sys, time; print('{}', flush=True); print('waiting for a lock', file=sys.stderr); time.sleep(60)"
TALKS_NONSENSE = "print('{}', flush=True); input(); print('step 1: loss 2.3', flush=True); input()"
HOLDS_100_MB = """
from utils.benchmarking import Channel
channel = Channel()
channel.ready({})
channel.wait()
block = b"x" * 10**8
channel.answer({})
"""
FAILS_TO_START = "raise RuntimeError('no such backend')"


@pytest.fixture
def start() -> Iterator:
    """Start workers of Python code; all are ended afterwards."""
    workers: list[Worker] = []
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}

    def start(name: str, code: str, *arguments: str) -> Worker:
        workers.append(Worker(name, [sys.executable, "-c", code, *arguments], environment))
        workers[-1].await_ready(30)
        return workers[-1]

    yield start
    for worker in workers:
        worker.stop()


def polite(start, name: str, log: Path) -> Worker:
    return start(name, POLITE, f'{{"name": "{name}", "log": "{log}"}}')


def test_workers_take_turns_and_warm_up_rounds_are_not_counted(start, tmp_path: Path) -> None:
    log = tmp_path / "log"
    workers = [polite(start, name, log) for name in "abc"]
    said: list[str] = []
    answers = take_turns(workers, num_rounds=2, num_warmups=1, timeout=30, say=said.append)
    assert log.read_text() == "abcabcabc"
    assert workers[0].facts == {"name": "a"}
    assert {name: [row and row["seconds"] for row in rows] for name, rows in answers.items()} == {
        name: [2.0, 3.0] for name in "abc"
    }
    assert said[:2] == ["warm-up 1: a", "warm-up 1: b"]
    assert said[-1] == "round 2: c"


@pytest.mark.parametrize(
    ("code", "rounds", "failure"),
    [
        (DIES_IN_ROUND_TWO, [1.0, None, None], "ended with code 7: out of memory in layer 3"),
        (HANGS, [None, None, None], "no answer within 0.5 s of a round: waiting for a lock"),
        (TALKS_NONSENSE, [None, None, None], "answered 'step 1: loss 2.3' where a JSON object was expected"),
        (FAILS_TO_START, [None, None, None], "ended with code 1: RuntimeError: no such backend"),
    ],
)
def test_one_that_fails_is_told_and_the_rest_goes_on(
    start, tmp_path: Path, code: str, rounds: list, failure: str
) -> None:
    bad, good = start("bad", code), polite(start, "good", tmp_path / "log")
    answers = take_turns([bad, good], num_rounds=3, num_warmups=0, timeout=0.5, say=lambda line: None)
    assert [row and row["seconds"] for row in answers["bad"]] == rounds
    assert bad.failure == failure
    assert [row and row["seconds"] for row in answers["good"]] == [1.0, 2.0, 3.0]
    assert good.failure is None


def test_a_worker_that_never_gets_ready_is_ended() -> None:
    worker = Worker("slow", [sys.executable, "-c", "import time; time.sleep(60)"])
    worker.await_ready(0.1)
    assert worker.failure == "no answer within 0.1 s of set-up"
    assert worker.take_turn(0.1) is None
    worker.stop()


def test_a_worker_that_a_signal_ended_is_told(start) -> None:
    worker = start("killed", "import os; print('{}', flush=True); input(); os.kill(os.getpid(), 9)")
    assert worker.take_turn(30) is None
    assert worker.failure == "was ended by SIGKILL"


STARTS_ANOTHER = """
import json, subprocess
print(json.dumps({"pid": subprocess.Popen(["sleep", "60"]).pid}), flush=True)
input()
"""


def is_running(process: int) -> bool:
    """Whether it is there and no zombie that nobody has asked for yet."""
    done = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True)
    return not done.stdout.strip().startswith("Z") and bool(done.stdout.strip())


def test_what_a_worker_started_ends_with_it(start) -> None:
    worker = start("parent", STARTS_ANOTHER)
    assert is_running(worker.facts["pid"])
    worker.stop()
    deadline = time.monotonic() + 10
    while is_running(worker.facts["pid"]):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_spread_by_exact_numbers() -> None:
    assert spread([4.0, 1.0, 3.0, 2.0, 5.0]) == (3.0, 1.0, 1.4, 4.6)
    assert spread([2.0]) == (2.0, 2.0, 2.0, 2.0)
    assert percentile([10.0, 20.0], 0.25) == 12.5


def test_ratios_are_of_neighbours_not_of_medians() -> None:
    slow_machine_in_round_two = ([1.0, 30.0, 3.0], [2.0, 20.0, 2.0])
    assert paired_ratio(*slow_machine_in_round_two) == 1.5
    assert paired_ratio([1.0, None, 9.0], [2.0, 4.0, None]) == 0.5
    assert paired_ratio([None], [1.0]) is None
    assert paired_ratio([1.0], [0.0]) is None


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(0.01, 100), st.floats(0.01, 100)), min_size=1, max_size=9))
def test_a_ratio_and_its_inverse_lie_around_one(pairs: list[tuple[float, float]]) -> None:
    above, below = zip(*pairs, strict=True)
    ratio = paired_ratio(above, below)
    assert ratio is not None
    ratios = [a / b for a, b in pairs]
    assert min(ratios) <= ratio <= max(ratios)
    assert paired_ratio(above, above) == 1.0


def test_utilisation_is_work_over_time_over_peak() -> None:
    assert utilisation(6e12, 2.0, 12e12) == 0.25
    assert utilisation(6e12, 2.0, None) is None


def test_random_tokens_are_the_same_everywhere() -> None:
    rows = random_tokens(2, 5, 100)
    assert rows == random_tokens(2, 5, 100)
    assert rows == [[49, 97, 53, 5, 33], [65, 62, 51, 38, 61]]
    assert {token for row in random_tokens(4, 200, 7) for token in row} == set(range(7))


def test_a_busy_machine_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(os, "getloadavg", lambda: (4.0, 0.0, 0.0))
    assert benchmarking.load_warning() is None
    monkeypatch.setattr(os, "getloadavg", lambda: (4.1, 0.0, 0.0))
    assert (benchmarking.load_warning() or "").startswith("the machine is busy (load 4.1 on 4 cores)")


def test_a_package_is_looked_for_where_it_would_run() -> None:
    assert benchmarking.is_installed(sys.executable, "json")
    assert not benchmarking.is_installed(sys.executable, "a_package_that_nobody_wrote")
    assert not benchmarking.is_installed("/nowhere/python", "json")


def test_memory_that_a_round_took_is_seen(start) -> None:
    row = start("large", HOLDS_100_MB).take_turn(30)
    assert row is not None
    assert 0.95e8 < row["max_rss_growth_bytes"] < 2e8
