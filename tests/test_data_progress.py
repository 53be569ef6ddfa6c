"""Progress as lines: now and then, in bytes, with the speed of the stage."""

import pytest

from data.progress import Lines, describe


def test_lines_come_when_time_has_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    now, said = [100.0], []
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    lines = Lines(said.append, seconds=5)
    lines("reading", 10_000_000, None)
    now[0] += 5
    lines("reading", 20_000_000, 40_000_000)
    lines("reading", 30_000_000, 40_000_000)
    now[0] += 6
    lines("tokenising", 1_000_000, None)
    now[0] += 5
    lines("tokenising", 5_000_000, None)
    assert said == ["reading: 20 of 40 MB, 4.0 MB/s", "tokenising: 5 MB, 1.0 MB/s"]


def test_a_first_moment_has_no_speed() -> None:
    assert describe(1_500_000_000, None, 0.5) == "1,500 MB"
