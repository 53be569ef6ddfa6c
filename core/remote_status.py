"""How a remote run is doing: its state, figures, attempts and cost, and what to type next.

Two witnesses: the runs volume, where each container notes its attempt and its last sign of life, and Modal, which knows
whether the call goes on but forgets the results of old ones. Where they differ, what the call returned wins, then what
the container wrote; a call that ended with neither gave up. The functions take states, rows and texts, and `ask`,
`follow` and `stop` whatever behaves like Modal's objects, so that all of it runs without Modal. Commands are in
`modal/modal_client.py`; to show another figure, edit `describe` for `status` and `COLUMNS` with `cells` for `ls`.
"""

import codecs
import contextlib
import importlib.util
import json
import math
import os
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table
from rich.text import Text

from core.progress import format_time
from core.remote import ENDED, OUTPUT_FILE, Attempt, Outcome, numbered
from core.remote_files import RemoteFolder, RemoteState
from utils.errors import BackendError, ConfigError
from utils.gpus import GPUS, PRICES_OF, format_dollars, hourly_price
from utils.metrics import Row, parse_lines, with_nan
from utils.optional import optional
from utils.units import format_count

POLL_SECONDS = 5.0
SYNC_SECONDS = 30.0
"""How often a container is taken to write when the launch does not say."""
LOST_SECONDS = 600.0
"""After so long without a sign of life, a launch that broke off before it noted its call is taken to have made none."""
SIGNS_MISSED = 3
"""So many missing signs of life, and a minute for starting and copying, make a run silent."""
ATTEMPTS_SHOWN = 6
COLUMNS = ("run", "state", "step", "loss", "GPU", "attempts", "hours", "about", "last sign of life")
LEFT_OUT = ("attempts", "hours", "GPU", "last sign of life", "about", "loss")
"""Columns that a narrow terminal goes without, the first one first."""


class Call(NamedTuple):
    """What Modal says about the call that does the work."""

    is_over: bool | None = None
    """None: not known, since Modal was not asked or knows of no such call."""
    outcome: Outcome | None = None
    """What it returned."""
    message: str = ""
    """Why it ended without returning."""


class Condition(NamedTuple):
    """The state of a run in a word or two."""

    state: str
    """One of `ENDED`, or: here only | starting | running | silent | between attempts | ending | gave up | not begun"""
    detail: str
    is_over: bool
    """Nothing happens any more unless somebody starts it."""


def ask(call: Any) -> Call:
    """What has become of a `modal.FunctionCall`."""
    errors = optional("modal.exception", "modal")
    try:
        result = call.get(timeout=0)
    except TimeoutError:
        return Call(is_over=False)
    except errors.OutputExpiredError:
        return Call(is_over=True, message="Modal keeps its result no longer")
    except errors.NotFoundError:
        return Call()
    except trouble():
        raise
    except errors.InputCancellation:
        return Call(is_over=True, message="it was stopped")
    except Exception as error:  # Whatever ended the container is raised again here.
        return Call(is_over=True, message=first_line(error) or type(error).__name__)
    is_outcome = isinstance(result, dict) and result.keys() == set(Outcome._fields)
    return Call(is_over=True, outcome=Outcome(**result) if is_outcome else None)


def trouble() -> tuple[type[Exception], ...]:
    """Errors of the way to Modal, which say nothing about a run."""
    errors = optional("modal.exception", "modal")
    names = ["Auth", "Connection", "Internal", "PermissionDenied", "ResourceExhausted", "Service", "Version"]
    return tuple(getattr(errors, f"{name}Error") for name in (*names, "VolumeUploadTimeout"))


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turn such errors into one line for a person. Raises BackendError."""
    try:
        yield
    except trouble() as error:
        reason = first_line(error) or type(error).__name__
        raise BackendError(f"Modal: {reason}; the run there is not touched") from error


def first_line(message: object) -> str:
    """The first line of a text that is not empty, and the one that it announces with a colon."""
    lines = [line.strip() for line in str(message).splitlines() if line.strip()]
    return " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])


def current_attempts(state: RemoteState) -> list[Attempt]:
    """Those of the newest launch; the ones before belong to calls that are over."""
    return state.attempts[(state.launch or {}).get("attempts_before", 0) :]


def is_silent(state: RemoteState, attempt: Attempt, now: float) -> bool:
    """Whether it should have given a sign of life since."""
    patience = SIGNS_MISSED * (state.launch or {}).get("sync_seconds", SYNC_SECONDS) + 60
    return now - attempt.seen > patience


def condition(state: RemoteState, call: Call, now: float) -> Condition:
    """What a run is doing, by both witnesses; `now` is in seconds since 1970."""
    attempts = current_attempts(state)
    last = attempts[-1] if attempts else None
    if call.outcome is not None:
        return Condition(call.outcome.outcome, call.outcome.message, is_over=True)
    if last is not None and last.outcome in ENDED:
        return Condition(last.outcome, last.message, is_over=True)
    if last is None and state.launch is None:
        return Condition("here only", "its files lie on the volume; no call has been made", is_over=True)
    if call.is_over:
        if last is not None and last.outcome == "running" and not is_silent(state, last, now):
            return Condition("ending", f"Modal has ended the call ({call.message}); it may still be saving", False)
        why = call.message or first_line(last.message if last is not None else "")
        if last is None:
            return Condition("not begun", "; ".join(["the call is over", *([why] if why else [])]), is_over=True)
        tried = f"after {len(attempts)} attempt{'s' * (len(attempts) > 1)}"
        return Condition("gave up", f"{tried}: {why}" if why else tried, is_over=True)
    if last is None:
        since = (state.launch or {}).get("launched")
        detail = "waiting for a container" + (f" for {ago(since, now)}" if since is not None else "")
        return Condition("starting", detail, is_over=False)
    if last.outcome != "running":
        why = f": {first_line(last.message)}" if last.message else ""
        detail = f"attempt {last.number} {last.outcome}{why}; the next one goes on from step {last.step}"
        return Condition("between attempts", detail, is_over=False)
    if is_silent(state, last, now):
        return Condition("silent", f"no sign of life for {ago(last.seen, now)}; Modal starts it again", is_over=False)
    return Condition("running", f"last sign of life {ago(last.seen, now)} ago", is_over=False)


def judge(modal: Any, state: RemoteState, now: float) -> Condition:
    """The condition of a run, Modal asked about the call only while its end is not written down."""
    found, launch = condition(state, Call(), now), state.launch or {}
    if found.is_over:
        return found
    if call_id := launch.get("call_id"):
        return condition(state, ask(modal.FunctionCall.from_id(call_id)), now)
    heard = max([launch.get("launched", 0.0), *(attempt.seen for attempt in current_attempts(state))])
    lost = Call(is_over=True, message="its number was never noted")
    return condition(state, lost, now) if now - heard > LOST_SECONDS else found


def ago(then: float, now: float) -> str:
    """`1:05`; clocks of two machines may differ, so never less than nothing."""
    return format_time(now - then)


def read_rows(text: bytes | None) -> list[Row]:
    """Rows of a `metrics.jsonl` that is being written elsewhere: what is torn counts for nothing."""
    return [with_nan(row) for _, row in parse_lines((text or b"").splitlines(keepends=True)) if row is not None]


def newest(rows: Sequence[Row], name: str) -> float | None:
    """The last value of a figure that is a number."""
    values = (row[name] for row in reversed(rows) if name in row)
    return next((value for value in values if math.isfinite(value)), None)


def seconds_used(attempts: Iterable[Attempt]) -> float:
    """Of all attempts together."""
    return sum(attempt.seconds for attempt in attempts)


def dollars_used(state: RemoteState) -> float | None:
    """What all attempts cost by the list prices, with the cores, memory and region of the newest launch.

    None when a price is not known.
    """
    launch, total = state.launch or {}, 0.0
    for attempt in state.attempts:
        gpu = GPUS.get(attempt.gpu)
        asked = launch.get("cpu") or 0.0, launch.get("memory_gib") or 0.0
        price = None if gpu is None else hourly_price(gpu, *asked, launch.get("region"))
        if price is None:
            return None
        total += attempt.seconds / 3600 * price
    return total


def describe(name: str, state: RemoteState, rows: Sequence[Row], found: Condition, now: float) -> list[tuple[str, str]]:
    """What `status` shows, in two columns."""
    launch = state.launch or {}
    detail = "; ".join(line.strip() for line in found.detail.splitlines()).replace(":;", ":")
    lines = [("state", f"{found.state} ({detail})" if detail else found.state)]
    lines.append(("step", step_text(rows, launch.get("total_steps"), state.newest_step)))
    if (loss := newest(rows, "train/loss")) is not None:
        lines.append(("loss", f"{loss:.4f}{validation_text(rows)}"))
    if (speed := newest(rows, "speed/tokens_per_second")) is not None:
        left = seconds_left(rows, launch.get("total_steps")) if found.state == "running" else None
        lines.append(("speed", f"{format_count(speed)} tokens/s" + (f", {format_time(left)} left" if left else "")))
    if state.newest_step is not None:
        best = f", best step {state.best_step:,}" if state.best_step is not None else ""
        lines.append(("checkpoints", f"newest step {state.newest_step:,}{best}"))
    if gpu := launch.get("gpu"):
        lines.append(("GPU", str(gpu)))
    if state.attempts:
        lines += [*attempt_lines(state.attempts, detail), ("used", used_text(state))]
        lines.append(("last sign of life", f"{ago(state.attempts[-1].seen, now)} ago"))
    calls = [str(launch[key]) for key in ("app_id", "call_id") if launch.get(key)]
    return [("run", name), *lines, *([("on Modal", ", ".join(calls))] if calls else [])]


def step_text(rows: Sequence[Row], total: int | None, saved: int | None) -> str:
    """`1,200 of 20,000 (6 %)`, as far as known."""
    step = max(rows[-1]["step"] if rows else 0, saved or 0)
    return f"{step:,} of {total:,} ({math.floor(100 * step / total)} %)" if total else f"{step:,}"


def validation_text(rows: Sequence[Row]) -> str:
    """What the last evaluation said."""
    loss, bits = newest(rows, "eval/loss"), newest(rows, "eval/bits_per_byte")
    more = f" ({bits:.3f} bits/byte)" if bits is not None else ""
    return f", on held-out text {loss:.4f}{more}" if loss is not None else ""


def seconds_left(rows: Sequence[Row], total: int | None) -> float | None:
    """At the speed of the last row; None when that cannot be said."""
    speed = newest(rows, "speed/tokens_per_second")
    if not speed or not total or not rows[-1]["step"] or "tokens" not in rows[-1]:
        return None
    return (total - rows[-1]["step"]) * rows[-1]["tokens"] / rows[-1]["step"] / speed


def attempt_lines(attempts: Sequence[Attempt], said: str) -> list[tuple[str, str]]:
    """One line for each of the last attempts, and one for those before; what was said already is not said again."""
    shown, before = attempts[-ATTEMPTS_SHOWN:], attempts[:-ATTEMPTS_SHOWN]
    lines = [("attempts before", f"{len(before)}, {format_time(seconds_used(before))}")] if before else []
    for attempt in shown:
        is_lost = attempt.outcome == "running" and attempt is not attempts[-1]
        outcome = "ended without a word" if is_lost else attempt.outcome
        why = first_line(attempt.message)
        why = f": {why}" if why and why not in said else ""
        steps = f"step {attempt.first_step:,} to {max(attempt.step, attempt.first_step):,}"
        text = f"{outcome}, {steps}, {format_time(attempt.seconds)} on {attempt.gpu}{why}"
        lines.append((f"attempt {attempt.number}", text))
    return lines


def used_text(state: RemoteState) -> str:
    """Hours and dollars so far."""
    dollars, most = dollars_used(state), (state.launch or {}).get("max_hours")
    cost = "a price is not known" if dollars is None else f"about {format_dollars(dollars)}"
    text = f"{hours(state.attempts)} hours, {cost} (list prices of {PRICES_OF})"
    if most is not None:
        text += f"; {hours(current_attempts(state))} of at most {most:.2f} hours in this launch"
    return text


def hours(attempts: Iterable[Attempt]) -> str:
    """`0.25`, of all attempts together."""
    return f"{seconds_used(attempts) / 3600:.2f}"


def next_commands(name: str, found: Condition, launch: dict[str, Any] | None, config: Path | None) -> list[str]:
    """What to type next, by the state; `config`: the run's, when it lies here."""
    client, run = "python modal/modal_client.py", shlex.quote(name)
    pull = f"{client} pull --run {run}"
    again = [f"modal run modal/modal_deploy.py --config {shlex.quote(str(config))} --resume"] if config else []
    if not found.is_over:
        app = (launch or {}).get("app_id")
        live = [f"modal app logs {app} --follow"] if app else []
        return [f"{client} logs --run {run} --follow", *live, pull, f"{client} stop --run {run}"]
    if found.state == "finished":
        return [pull, f'{client} generate --run {run} --prompt "def"']
    logs = [] if found.state == "here only" else [f"{client} logs --run {run}"]
    return [*logs, pull, *again]


def image_settings(launch: dict[str, Any] | None, cuda: str | None) -> str:
    """What the image of a further call is made of: as for its launch. Raises ConfigError for a missing module."""
    own, known = (launch or {}).get("own_modules", []), (launch or {}).get("cuda", "12")
    if missing := [module for module in own if importlib.util.find_spec(module) is None]:
        raise ConfigError(f"the run needs {', '.join(missing)}, which cannot be imported here: start where it lies")
    return json.dumps({"cuda": cuda or known, "own_modules": own})


def cells(name: str, state: RemoteState, rows: Sequence[Row], found: Condition, now: float) -> list[str]:
    """A run's line in `ls`, as `COLUMNS`."""
    launch, loss, dollars = state.launch or {}, newest(rows, "train/loss"), dollars_used(state)
    return [
        name,
        found.state,
        step_text(rows, launch.get("total_steps"), state.newest_step),
        "-" if loss is None else f"{loss:.3f}",
        str(launch.get("gpu", "-")),
        str(len(state.attempts)),
        hours(state.attempts),
        "-" if not dollars else format_dollars(dollars),
        f"{ago(state.attempts[-1].seen, now)} ago" if state.attempts else "-",
    ]


def table_of(lines: Sequence[Sequence[str]], width: int) -> Table:
    """What `ls` prints on so many columns of a terminal."""
    # As `Text`: a name may hold what rich takes for markup.
    columns = {name: [Text(line[place]) for line in (COLUMNS, *lines)] for place, name in enumerate(COLUMNS)}
    for name in LEFT_OUT:
        if sum(max(text.cell_len for text in column) + 2 for column in columns.values()) - 2 > width:
            del columns[name]
    table = Table(*columns, box=None, pad_edge=False)
    for row in list(zip(*columns.values(), strict=True))[1:]:
        table.add_row(*row)
    return table


def read_output(folder: RemoteFolder) -> str:
    """What a run's containers have printed, as far as it has reached the volume; half a letter at the end waits."""
    parts = []
    for number, file in numbered(folder.sizes(), OUTPUT_FILE).items():
        text = codecs.getincrementaldecoder("utf-8")("replace").decode(folder.read(file) or b"")
        parts.append(f"--- attempt {number}\n{text}")
    return "".join(parts)


def last_lines(text: str, count: int) -> str:
    """At most so many lines from the end; all for 0."""
    return "".join(text.splitlines(keepends=True)[-count:])


def new_text(seen: str, text: str) -> str:
    """What has come since `seen` was all there was: all behind where the two part, as after a new start."""
    return text[len(os.path.commonprefix([seen, text])) :]


def follow(
    read: Callable[[], str],
    is_over: Callable[[], bool],
    show: Callable[[str], None],
    seen: str = "",
    wait: Callable[[float], None] = time.sleep,
) -> None:
    """Show what comes after `seen` until the run is over, its last words included; `read` gives the whole text."""
    while True:
        over = is_over()  # Before reading: what was written until then is shown.
        text = read()
        if more := new_text(seen, text):
            show(more)
        seen = text
        if over:
            return
        wait(POLL_SECONDS)


def stop(
    call: Any,
    look: Callable[[], RemoteState],
    *,
    patience_seconds: float,
    poll_seconds: float = POLL_SECONDS,
    wait: Callable[[float], None] = time.sleep,
    now: Callable[[], float] = time.time,
) -> RemoteState:
    """Cancel a call and wait until its container has saved; the state then.

    Raises:
        BackendError: nothing was heard within `patience_seconds`.
    """
    with contextlib.suppress(optional("modal.exception", "modal").NotFoundError):  # It is over, and forgotten.
        call.cancel()
    waited = 0.0
    while True:
        state = look()
        attempts = current_attempts(state)
        if attempts and attempts[-1].outcome in ENDED:
            return state
        works = attempts and attempts[-1].outcome == "running" and not is_silent(state, attempts[-1], now())
        if not works and ask(call).is_over is not False:
            return state
        if waited >= patience_seconds:
            raise BackendError(
                f"the call is cancelled, but its container has not said within {patience_seconds:.0f} s that it has "
                f"saved; look again with status, or end it with modal app stop {(state.launch or {}).get('app_id')}"
            )
        wait(poll_seconds)
        waited += poll_seconds
