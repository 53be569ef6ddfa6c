"""How a remote run is doing: its state, figures, attempts and cost, and what to type next.

What it is doing is decided in `core/remote_condition.py`. The functions here take states, rows and texts, so all of it
runs without Modal. Commands are in `modal/modal_client.py`; to show another figure, edit `describe` for `status` and
`COLUMNS` with `cells` for `ls`.
"""

import codecs
import importlib.util
import json
import math
import os
import shlex
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from core.progress import format_time
from core.remote import CLIENT, OUTPUT_FILE, Attempt, numbered
from core.remote_condition import Condition, ago, current_attempts, first_line
from core.remote_files import RemoteFolder, RemoteState
from utils.errors import ConfigError
from utils.gpus import GPUS, PRICES_OF, format_dollars, hourly_price
from utils.metrics import Row, parse_lines, with_nan
from utils.units import format_count

POLL_SECONDS = 2.0
ATTEMPTS_SHOWN = 6
COLUMNS = ("run", "state", "step", "loss", "GPU", "attempts", "hours", "about", "last sign of life")
LEFT_OUT = ("attempts", "hours", "GPU", "last sign of life", "about", "loss")
"""Columns that a narrow terminal goes without, the first one first."""


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
    client, run = CLIENT, shlex.quote(name)
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
