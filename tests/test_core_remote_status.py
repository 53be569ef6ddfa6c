"""What is said about a remote run follows from its two witnesses, the volume and Modal, and from nothing else."""

import io
import json
import re
from pathlib import Path
from typing import Any

import modal.exception
import pytest
from rich.console import Console

from core.remote import Attempt, Outcome, output_file
from core.remote_condition import Call, ask, condition, current_attempts, explained, judge, stop
from core.remote_files import RemoteFolder, RemoteState
from core.remote_status import (
    COLUMNS,
    LEFT_OUT,
    cells,
    describe,
    dollars_used,
    follow,
    image_settings,
    last_lines,
    new_text,
    next_commands,
    read_output,
    read_rows,
    seconds_left,
    table_of,
)
from tests.folder_volume import FolderVolume
from utils.errors import BackendError, ConfigError

NOW = 1_700_000_000.0
LAUNCH = {
    "call_id": "fc-1", "app_id": "ap-1", "gpu": "A100-80GB", "launched": NOW - 4000, "total_steps": 200,
    "max_hours": 2.0, "sync_seconds": 20.0, "attempts_before": 0,
}  # fmt: skip
LATER = LAUNCH | {"attempts_before": 1}
CRASHED = Attempt(1, "A100-80GB", NOW - 3900, NOW - 2200, NOW - 2100, "crashed", 0, 80, "killed by SIGKILL\nand so on")
RUNNING = Attempt(2, "A100-80GB", NOW - 1800, NOW - 10, first_step=80, step=120)
GOES_ON = Call(is_over=False)
METRICS = b"".join(
    json.dumps(row).encode() + b"\n"
    for row in (
        {"step": 100, "tokens": 100_000, "time": 1.0, "train/loss": 4.0, "speed/tokens_per_second": 500.0},
        {"step": 120, "tokens": 120_000, "time": 2.0, "eval/loss": 3.5, "eval/bits_per_byte": 1.25},
        {"step": 125, "tokens": 125_000, "time": 2.5, "train/loss": 3.25, "speed/tokens_per_second": 1000.0},
        {"step": 126, "tokens": 126_000, "time": 2.6, "train/loss": None},
    )
)


def state_of(*attempts: Attempt, launch: dict[str, Any] | None = LAUNCH, newest: int | None = 120) -> RemoteState:
    return RemoteState(True, newest, None, launch, list(attempts))


class FakeCall:
    """A `modal.FunctionCall` of which each answer is known."""

    def __init__(self, *answers: object) -> None:
        self._answers = list(answers)
        self.is_cancelled = False

    def get(self, timeout: float | None) -> object:
        assert timeout == 0, "a poll may not wait"
        answer = self._answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def cancel(self) -> None:
        self.is_cancelled = True
        if self._answers and isinstance(self._answers[0], modal.exception.NotFoundError):
            raise self._answers[0]


@pytest.mark.parametrize(
    ("attempts", "launch", "call", "state", "is_over"),
    [
        ([], None, Call(), "here only", True),
        ([], LAUNCH, Call(), "starting", False),
        ([], LAUNCH, Call(is_over=False), "starting", False),
        ([], LAUNCH, Call(is_over=True, message="no such image"), "not begun", True),
        ([CRASHED, RUNNING], LAUNCH, Call(is_over=False), "running", False),
        ([RUNNING._replace(seen=NOW - 119)], LAUNCH, Call(is_over=False), "running", False),
        ([RUNNING._replace(seen=NOW - 121)], LAUNCH, Call(is_over=False), "silent", False),
        ([RUNNING._replace(seen=NOW - 121)], LAUNCH | {"sync_seconds": 30.0}, Call(), "running", False),
        ([RUNNING._replace(seen=NOW + 500)], LAUNCH, Call(), "running", False),
        ([RUNNING], LAUNCH, Call(is_over=True, message="it was stopped"), "ending", False),
        ([RUNNING._replace(seen=NOW - 121)], LAUNCH, Call(is_over=True), "gave up", True),
        ([CRASHED], LAUNCH, Call(is_over=False), "between attempts", False),
        ([CRASHED], LAUNCH, Call(), "between attempts", False),
        ([CRASHED], LAUNCH, Call(is_over=True), "gave up", True),
        ([CRASHED._replace(outcome="finished")], LAUNCH, Call(), "finished", True),
        ([CRASHED._replace(outcome="out of hours")], LAUNCH, Call(is_over=True), "out of hours", True),
        # Another launch, whose first attempt has not begun, and one whose call ended before.
        ([CRASHED._replace(outcome="stopped")], LATER, Call(is_over=False), "starting", False),
        ([CRASHED._replace(outcome="stopped")], LATER, Call(is_over=True), "not begun", True),
        # What the call returned is true whatever the volume shows so far.
        ([RUNNING], LAUNCH, Call(True, Outcome("finished", 0, 200, "")), "finished", True),
        ([], LAUNCH, Call(True, Outcome("refused", 2, 0, "bad key")), "refused", True),
    ],
)
def test_the_state_follows_from_what_is_known(
    attempts: list[Attempt], launch: dict[str, Any] | None, call: Call, state: str, is_over: bool
) -> None:
    found = condition(state_of(*attempts, launch=launch), call, NOW)
    assert (found.state, found.is_over) == (state, is_over)


def test_the_detail_says_what_happened_and_what_follows() -> None:
    def detail(*attempts: Attempt, call: Call = GOES_ON) -> str:
        return condition(state_of(*attempts), call, NOW).detail

    assert detail(CRASHED) == "attempt 1 crashed: killed by SIGKILL; the next one goes on from step 80"
    assert detail(CRASHED, RUNNING) == "last sign of life 0:10 ago"
    assert detail() == "waiting for a container for 1:06:40"
    assert detail(CRASHED, call=Call(True, message="TryAgainError")) == "after 1 attempt: TryAgainError"
    assert detail(CRASHED, CRASHED, call=Call(True)) == "after 2 attempts: killed by SIGKILL"
    assert detail(CRASHED._replace(message=""), call=Call(True)) == "after 1 attempt"
    assert detail(call=Call(True)) == "the call is over"
    assert detail(call=Call(True, message="no image")) == "the call is over; no image"


def test_only_the_attempts_of_the_newest_launch_count_for_its_state() -> None:
    assert current_attempts(state_of(CRASHED, RUNNING, launch=LATER)) == [RUNNING]
    assert current_attempts(state_of(CRASHED, RUNNING)) == [CRASHED, RUNNING]
    assert current_attempts(state_of(CRASHED, launch=None)) == [CRASHED]


@pytest.mark.parametrize(
    ("answer", "call"),
    [
        (TimeoutError(), Call(is_over=False)),
        (Outcome("finished", 0, 9, "")._asdict(), Call(True, Outcome("finished", 0, 9, ""))),
        ({"of": "another version"}, Call(is_over=True)),
        (None, Call(is_over=True)),
        (RuntimeError("attempt 3 crashed\nmore"), Call(is_over=True, message="attempt 3 crashed")),
        (RuntimeError("3 crashed, the last:\nkilled\nmore"), Call(is_over=True, message="3 crashed, the last: killed")),
        (RuntimeError(), Call(is_over=True, message="RuntimeError")),
        (modal.exception.FunctionTimeoutError("took 24 h"), Call(is_over=True, message="took 24 h")),
        (modal.exception.RemoteError("terminated"), Call(is_over=True, message="terminated")),
        (modal.exception.InputCancellation("x"), Call(is_over=True, message="it was stopped")),
        (modal.exception.OutputExpiredError(), Call(is_over=True, message="Modal keeps its result no longer")),
        (modal.exception.NotFoundError("no call fc-1"), Call()),
    ],
)
def test_modal_is_asked_what_became_of_a_call(answer: object, call: Call) -> None:
    assert ask(FakeCall(answer)) == call


@pytest.mark.parametrize("name", ["AuthError", "ConnectionError", "ServiceError", "VolumeUploadTimeoutError"])
def test_trouble_on_the_way_is_one_line_and_says_nothing_about_the_run(name: str) -> None:
    error = getattr(modal.exception, name)("token rejected\ndetails")
    with pytest.raises(BackendError, match=r"^Modal: token rejected; the run there is not touched$"), explained():
        ask(FakeCall(error))
    with pytest.raises(ZeroDivisionError), explained():
        raise ZeroDivisionError


def shown(state: RemoteState, call: Call = GOES_ON, metrics: bytes = METRICS) -> dict[str, str]:
    return dict(describe("a-run", state, read_rows(metrics), condition(state, call, NOW), NOW))


def test_status_shows_figures_attempts_and_cost() -> None:
    assert shown(RemoteState(True, 120, 100, LAUNCH, [CRASHED, RUNNING])) == {
        "run": "a-run",
        "state": "running (last sign of life 0:10 ago)",
        "step": "126 of 200 (63 %)",
        "loss": "3.2500, on held-out text 3.5000 (1.250 bits/byte)",
        "speed": "1k tokens/s, 1:14 left",  # 74 steps of 1000 tokens
        "checkpoints": "newest step 120, best step 100",
        "GPU": "A100-80GB",
        "attempt 1": "crashed, step 0 to 80, 30:00 on A100-80GB: killed by SIGKILL",
        "attempt 2": "running, step 80 to 120, 29:50 on A100-80GB",
        # 3590 s at $0.000694
        "used": "1.00 hours, about $2.50 (list prices of 2026-09-26); 1.00 of at most 2.00 hours in this launch",
        "last sign of life": "0:10 ago",
        "on Modal": "ap-1, fc-1",
    }


def test_status_of_a_run_that_only_lies_there() -> None:
    assert shown(RemoteState(True, 1200, None, None, []), Call(), b"") == {
        "run": "a-run",
        "state": "here only (its files lie on the volume; no call has been made)",
        "step": "1,200",
        "checkpoints": "newest step 1,200",
    }


def test_many_attempts_are_summed_but_for_the_last() -> None:
    attempts = [CRASHED._replace(number=number) for number in range(1, 9)]
    lines = shown(state_of(*attempts))
    assert lines["attempts before"] == "2, 1:00:00"
    assert [name for name in lines if name.startswith("attempt ")] == [f"attempt {number}" for number in range(3, 9)]


def test_a_message_of_several_lines_stays_in_its_row() -> None:
    refused = Call(True, Outcome("refused", 2, 0, "one key\nanother key"))
    assert shown(state_of(), refused)["state"] == "refused (one key; another key)"
    failed = shown(state_of(CRASHED._replace(outcome="failed", message="3 crashed; the last:\nkilled\nlog")), Call())
    assert failed["state"] == "failed (3 crashed; the last: killed; log)"
    assert failed["attempt 1"] == "failed, step 0 to 80, 30:00 on A100-80GB", "what was said is not said again"


def test_hours_of_the_launch_are_those_of_its_attempts() -> None:
    assert "; 0.50 of at most 2.00 hours in this launch" in shown(state_of(CRASHED, RUNNING, launch=LATER))["used"]
    assert "at most" not in shown(state_of(CRASHED, launch=LAUNCH | {"max_hours": None}))["used"]


def test_dollars_follow_each_attempts_own_card() -> None:
    hour = Attempt(1, "T4", NOW - 3600, NOW)
    both = [hour, hour._replace(gpu="H100")]
    assert dollars_used(state_of(*both)) == pytest.approx(3600 * (0.000164 + 0.001097))
    assert dollars_used(state_of(*both, launch=None)) == pytest.approx(3600 * (0.000164 + 0.001097))
    asked = LAUNCH | {"cpu": 4.0, "memory_gib": 16.0}
    with_container = 3600 * (0.000164 + 4 * 0.0000131 + 16 * 0.00000222)
    assert dollars_used(state_of(hour, launch=asked)) == pytest.approx(with_container)
    assert dollars_used(state_of(hour, launch=asked | {"region": "us"})) == pytest.approx(1.5 * with_container)
    assert dollars_used(state_of(hour, hour._replace(gpu="of a later year"))) is None
    assert "a price is not known" in shown(state_of(hour._replace(gpu="of a later year")))["used"]
    assert dollars_used(state_of()) == 0


def test_an_attempt_that_another_one_followed_is_not_running() -> None:
    lines = shown(state_of(RUNNING._replace(number=1), RUNNING))
    assert lines["attempt 1"] == "ended without a word, step 80 to 120, 29:50 on A100-80GB"
    assert lines["attempt 2"].startswith("running, ")


def test_time_left_needs_a_speed_and_a_length() -> None:
    rows = read_rows(METRICS)
    assert seconds_left(rows, 200) == pytest.approx(74)
    assert seconds_left(rows, None) is None
    assert seconds_left(rows[1:2], 200) is None
    assert seconds_left([], 200) is None
    finished = Call(True, Outcome("finished", 0, 200, ""))
    assert shown(state_of(RUNNING), finished)["speed"] == "1k tokens/s"


def test_torn_rows_count_for_nothing() -> None:
    rows = read_rows(b'{"step": 1, "train/loss": 2.0}\nnot a row\n{"step": 2, "train/lo')
    assert rows == [{"step": 1, "train/loss": 2.0}]
    assert read_rows(None) == []


@pytest.mark.parametrize(
    ("attempts", "call", "first_words"),
    [
        ([RUNNING], Call(is_over=False), ["logs", "app", "pull", "stop"]),
        ([CRASHED], Call(is_over=True), ["logs", "pull", "again"]),
        ([CRASHED._replace(outcome="finished")], Call(), ["pull", "generate"]),
        ([CRASHED._replace(outcome="refused")], Call(), ["logs", "pull", "again"]),
    ],
)
def test_what_to_type_next_fits_the_state(attempts: list[Attempt], call: Call, first_words: list[str]) -> None:
    state, config = state_of(*attempts), Path("my runs/my run/config.yaml")
    found = condition(state, call, NOW)
    commands = next_commands("my run", found, state.launch, config)
    assert next_commands("my run", found, state.launch, None) == [each for each in commands if "--config" not in each]
    prefixes = {"app": "modal app logs ap-1 --follow", "again": "modal run modal/modal_deploy.py --config "}
    expected = [prefixes.get(word, f"python modal/modal_client.py {word} --run 'my run'") for word in first_words]
    assert [command[: len(begin)] for command, begin in zip(commands, expected, strict=True)] == expected
    assert all("my run" not in command.replace("'my run'", "").replace(f"'{config}'", "") for command in commands)


def test_the_table_has_a_cell_for_each_column_and_takes_names_as_they_are() -> None:
    state = state_of(CRASHED, RUNNING)
    line = cells("[red]odd", state, read_rows(METRICS), condition(state, Call(), NOW), NOW)
    assert line == ["[red]odd", "running", "126 of 200 (63 %)", "3.250", "A100-80GB", "2", "1.00", "$2.50", "0:10 ago"]
    empty = state_of(launch=None, newest=None)
    bare = cells("pushed", empty, [], condition(empty, Call(), NOW), NOW)
    assert bare == ["pushed", "here only", "0", "-", "-", "0", "0.00", "-", "-"]
    for width, left_out in ((180, []), (60, ["attempts", "hours", "GPU", "last sign of life"]), (40, LEFT_OUT)):
        screen = io.StringIO()
        Console(file=screen, width=width).print(table_of([line, bare], width))
        kept = [place for place, name in enumerate(COLUMNS) if name not in left_out]
        for text, row in zip(screen.getvalue().splitlines(), (COLUMNS, line, bare), strict=True):
            assert re.split("  +", text.strip()) == [row[place] for place in kept]


def test_a_launch_that_broke_off_before_its_call_is_noted_does_not_start_for_ever() -> None:
    """`judge` has nobody to ask; the container, if there is one, is heard of."""
    broken = LAUNCH | {"call_id": None}
    for attempts, launched, state in (
        ([], NOW - 500, "starting"), ([], NOW - 700, "not begun"), ([RUNNING], 0, "running"),
        ([RUNNING._replace(seen=NOW - 500)], 0, "silent"), ([RUNNING._replace(seen=NOW - 700)], 0, "gave up"),
    ):  # fmt: skip
        assert judge(None, state_of(*attempts, launch=broken | {"launched": launched}), NOW).state == state


def test_another_call_gets_the_image_of_the_launch() -> None:
    assert json.loads(image_settings(None, None)) == {"cuda": "12", "own_modules": []}
    launch = LAUNCH | {"cuda": "13", "own_modules": ["json"]}
    assert json.loads(image_settings(launch, None)) == {"cuda": "13", "own_modules": ["json"]}
    assert json.loads(image_settings(launch, "12"))["cuda"] == "12"
    with pytest.raises(ConfigError, match="the run needs no_such, which cannot be imported here"):
        image_settings({"own_modules": ["json", "no_such"]}, None)


def test_only_what_is_new_is_shown() -> None:
    assert new_text("", "a\n") == "a\n"
    assert new_text("a\n", "a\n") == ""
    assert new_text("a\nb", "a\nbc\nd\n") == "c\nd\n"
    assert new_text("of another run\n", "a\n") == "a\n"


def test_half_a_letter_at_the_end_waits_for_its_other_half(tmp_path: Path) -> None:
    """Else the text of the next poll would not begin with this one, and all of it would be shown again."""
    volume, whole = FolderVolume(tmp_path), "a\n\u00e9\n".encode()
    folder = RemoteFolder(volume, "a-run")
    assert read_output(folder) == ""
    folder.write(output_file(1), whole[:3])
    assert read_output(folder) == "--- attempt 1\na\n"
    folder.write(output_file(10), b"c")
    folder.write(output_file(2), b"b\n")
    folder.write(output_file(1), whole)
    assert read_output(folder) == "--- attempt 1\na\n\u00e9\n--- attempt 2\nb\n--- attempt 10\nc"


def test_last_lines() -> None:
    assert last_lines("a\nb\nc", 2) == "b\nc"
    assert last_lines("a\nb\nc", 5) == "a\nb\nc"
    assert last_lines("a\nb\nc", 0) == "a\nb\nc"


def test_following_shows_each_line_once_and_the_last_words() -> None:
    texts, waits, pieces = iter(["a\nb\n", "a\nb\n", "a\nb\nc\n", "a\nb\nc\nlast words\n"]), [], []
    over = iter([False, False, False, True])
    follow(lambda: next(texts), lambda: next(over), pieces.append, seen="a\n", wait=waits.append)
    assert pieces == ["b\n", "c\n", "last words\n"]
    assert len(waits) == 3


def test_following_asks_whether_it_is_over_before_it_reads() -> None:
    """The other way round, what is written between the two would be lost."""
    text, pieces = ["a\n"], []

    def is_over() -> bool:
        text[0] += "last words\n"
        return True

    follow(lambda: text[0], is_over, pieces.append, seen="a\n", wait=lambda seconds: None)
    assert pieces == ["last words\n"]


def stopped_by(states: list[RemoteState], answers: list[object], patience: int = 60) -> tuple[RemoteState, int]:
    """What `stop` ends with when the volume shows these states, one a poll, and how often it waited."""
    call, waits, shown_states = FakeCall(*answers), [], iter(states)

    def look() -> RemoteState:
        assert call.is_cancelled, "the state of before says nothing"
        return next(shown_states)

    result = stop(call, look, patience_seconds=patience, wait=waits.append, now=lambda: NOW)
    return result, len(waits)


CANCELLED = modal.exception.RemoteError("terminated")
SAVED = state_of(RUNNING._replace(outcome="stopped", ended=NOW, step=126), newest=126)


@pytest.mark.parametrize(
    ("states", "answers", "num_waits"),
    [
        ([state_of(RUNNING), state_of(RUNNING), SAVED], [], 2),
        # No container yet, but one may be coming until Modal says that the call is over.
        ([state_of(), state_of(RUNNING), SAVED], [TimeoutError()], 2),
        ([state_of()], [CANCELLED], 0),
        ([state_of()], [modal.exception.NotFoundError("no such call")], 0),
        ([state_of(CRASHED), state_of(CRASHED)], [TimeoutError(), CANCELLED], 1),
        # A container that died says nothing any more.
        ([state_of(RUNNING._replace(seen=NOW - 500))], [CANCELLED], 0),
        # Modal says that it is over while the container is still saving.
        ([state_of(RUNNING), SAVED], [], 1),
        # An attempt of an earlier launch is no answer.
        ([state_of(CRASHED._replace(outcome="stopped"), launch=LATER)], [CANCELLED], 0),
    ],
)
def test_stopping_waits_until_it_is_saved(states: list[RemoteState], answers: list[object], num_waits: int) -> None:
    result, waited = stopped_by(states, answers)
    assert result == states[-1]
    assert waited == num_waits


def test_stopping_gives_up_waiting_and_says_what_to_do() -> None:
    """Three waits of two seconds: a fourth state would be one too many."""
    with pytest.raises(BackendError, match="not said within 6 s that it has saved.*modal app stop ap-1"):
        stopped_by([state_of(RUNNING)] * 4, [], patience=6)
