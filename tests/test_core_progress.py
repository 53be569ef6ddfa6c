"""What a person sees while a run goes on: on a terminal, elsewhere, and on a rank that is not the main one."""

import io

import pytest
from rich.console import Console

from core import progress
from core.progress import TrainingProgress, describe, format_time, show_rows


@pytest.mark.parametrize(("seconds", "text"), [(-3, "0:00"), (0.6, "0:01"), (65, "1:05"), (7384, "2:03:04")])
def test_times(seconds: float, text: str) -> None:
    assert format_time(seconds) == text


def test_only_what_is_known_is_described() -> None:
    assert describe({}, None) == ""
    figures = {"train/loss": 3.2149, "eval/bits_per_byte": 2.1, "speed/tokens_per_second": 12345.0, "other": 1.0}
    assert describe(figures, 65.0) == "loss 3.215  val 2.100 bits/byte  12.3k tok/s  1:05 left"


class Clock:
    """A clock that goes when it is told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    return clock


def test_plain_lines_come_every_few_seconds(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    show = TrainingProgress(10, 0, enabled=True, console=Console(file=io.StringIO()))
    for step in range(1, 10):
        clock.now += 2.0
        show.update(step, {"train/loss": 3.0})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["1/10", "4/10", "7/10"]
    assert lines[0] == "step 1/10  loss 3.000"


def test_validation_and_the_last_step_are_always_shown(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    show = TrainingProgress(10, 0, enabled=True, console=Console(file=io.StringIO()))
    show.update(1, {"train/loss": 3.0})
    show.update(2, {"train/loss": 2.0})
    show.update(2, {"eval/loss": 2.5, "eval/bits_per_byte": 1.5})
    show.update(9, {})
    show.update(10, {"train/loss": 1.0}, 0.0)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "step 1/10  loss 3.000",
        "step 2/10  loss 2.000  val 1.500 bits/byte",
        "step 10/10  loss 1.000  val 1.500 bits/byte  0:00 left",
    ]


def test_a_terminal_gets_a_bar_and_samples_above_it(capsys: pytest.CaptureFixture[str]) -> None:
    screen = io.StringIO()
    show = TrainingProgress(10, 4, enabled=True, console=Console(file=screen, force_terminal=True, width=90))
    show.update(7, {"train/loss": 3.0}, 5.0)
    show.say("sample: [bold]text[/bold]")
    show.close()
    show.close()
    drawn = screen.getvalue()
    assert "7/10" in drawn
    assert "loss 3.000" in drawn
    assert "sample: [bold]text[/bold]" in drawn  # a model's text is text, not markup
    assert capsys.readouterr().out == ""


def test_other_ranks_are_silent_but_for_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    show = TrainingProgress(10, 0, enabled=False)
    show.update(10, {"train/loss": 3.0})
    show.say("sample")
    show.warn("step 3: skipped")
    show.close()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "warning: step 3: skipped\n"


def test_rows_are_aligned() -> None:
    assert show_rows([("a", 1), ("long name", "x")]) == "  a          1\n  long name  x"
