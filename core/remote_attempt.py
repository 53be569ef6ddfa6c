"""The far end of a remote run: what a container does with an order.

Every attempt, the first, a retry after a crash or a rescheduled one, takes one path: bring the run folder from the
volume to the local disk, go on from the newest whole checkpoint or else start, run `core.training` as a child process,
bring what it saved to the volume again and again. Training never writes to the volume itself, because a volume can
neither be committed nor reloaded while a file on it is open. What no further attempt would change is returned; what one
may change is raised, so that the function is retried; an interrupt is passed on after saving, so that the input is
rescheduled. The next attempt may begin while this one still saves: from then on this one leaves the run alone. To
change when an attempt counts as hopeless, edit `is_stuck`.
"""

import contextlib
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

from core.remote import (
    DATA_MOUNT,
    RUNS_MOUNT,
    Attempt,
    Order,
    Outcome,
    attempt_file,
    attempts_in,
    mounted,
    newest_step,
    output_file,
    write_attempt,
)
from core.remote_child import Child, explain_exit
from core.remote_mirror import mirror, restore
from utils.cli import warn
from utils.errors import UserError

POLL_SECONDS = 0.2
INTERRUPT_GRACE_SECONDS = 20.0
"""For saving, of the 30 s that an interrupted container has left; the rest is for the volume."""
SAVE_SECONDS = 600.0
"""Left for saving where nobody is about to kill the container."""
HOPELESS = 3
"""Crashes in a row at one step after which a further attempt would only cost money."""
MOST_FAILED_SYNCS = 5
"""So often in a row the volume may fail before training is ended for it."""
PAUSES = (1.0, 2.0)
"""Seconds before what must be brought is tried again."""
SAVED = (130, 143)
"""Exit codes of a training that was asked to stop, and has saved."""
EXIT_CODES = {"finished": 0, "refused": 2, "failed": 1, "stopped": 130, "out of hours": 130}
SMOKE = ".smoke"


class Volume(Protocol):
    """What is used of a mounted modal.Volume."""

    def commit(self) -> None:
        """Make what was written to the mount durable."""

    def reload(self) -> None:
        """Show on the mount what was committed elsewhere."""


class TryAgainError(Exception):
    """The attempt failed, and the next one may not: raised, so that the call is retried."""


class Desk:
    """The state of a run on the volume: its folder, and the list of attempts of which the last is this one."""

    def __init__(self, order: Order, runs: Volume) -> None:
        self.order, self.runs = order, runs
        self.folder = mounted(RUNS_MOUNT) / order.name
        runs.reload()
        self.attempts = attempts_in(self.folder)

    @property
    def now(self) -> Attempt:
        """This attempt."""
        return self.attempts[-1]

    @property
    def of_this_launch(self) -> list[Attempt]:
        """The attempts that this order led to."""
        return self.attempts[self.order.attempts_before :]

    def begin(self) -> None:
        """Add an entry for a new attempt."""
        number = self.now.number + 1 if self.attempts else 1
        now, step = time.time(), newest_step(self.folder) or 0
        self.attempts.append(Attempt(number, self.order.gpu, now, now, first_step=step, step=step))
        self.write()

    def note(self, **changes: object) -> None:
        """Change the entry of this attempt and make it durable, with everything else on the volume."""
        step = newest_step(self.folder) or 0
        self.attempts[-1] = self.now._replace(**{"seen": time.time(), "step": step, **changes})
        self.write()

    def write(self) -> None:
        """Write the entry, whole or not at all, and commit."""
        file = self.folder / attempt_file(self.now.number)
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{file.name}.tmp")
        temporary.write_text(write_attempt(self.now), encoding="utf-8")
        temporary.replace(file)
        self.runs.commit()

    def end(self, outcome: str, message: str) -> Outcome:
        """Close the entry; what the call returns."""
        self.note(outcome=outcome, ended=time.time(), message=message)
        return result_of(self.now)

    def make_way(self) -> None:
        """Look whether another attempt took over: close the entry then, and raise TryAgainError."""
        self.runs.reload()
        newest = max(attempt.number for attempt in attempts_in(self.folder))
        if newest > self.now.number:
            raise self.give_back("interrupted", f"attempt {newest} took over")

    def give_back(self, outcome: str, message: str) -> TryAgainError:
        """Close the entry; what to raise."""
        self.note(outcome=outcome, ended=time.time(), message=message)
        return TryAgainError(f"attempt {self.now.number} {outcome} at step {self.now.step}: {message}")


def result_of(ended: Attempt) -> Outcome:
    """What the call returns for an attempt that no other follows."""
    return Outcome(ended.outcome, EXIT_CODES[ended.outcome], ended.step, ended.message)


class Place(NamedTuple):
    """Where an attempt works on the container's own disk."""

    root: Path
    run: Path
    output: Path


def attempt(order: Order, runs: Volume, cancelled: type[BaseException], say: Callable[[str], None] = print) -> Outcome:
    """Work on a run until it ends, or until something ends this attempt.

    Args:
        runs: the volume at `RUNS_MOUNT`.
        cancelled: what is raised in the main thread when a person stops the call.

    Returns:
        An end that no further attempt would change: finished, refused, out of hours, failed for good.

    Raises:
        TryAgainError: a crash, the time of one attempt is over, or another took over; what was saved is on the volume.
        KeyboardInterrupt: the container was interrupted, after saving; `cancelled` likewise.
    """
    began = time.monotonic()
    desk = Desk(order, runs)
    if desk.of_this_launch and desk.now.outcome in EXIT_CODES:
        say(f"attempt {desk.now.number} of run {order.name} has ended it, but what it returned was lost")
        return result_of(desk.now)
    left = seconds_left(order, desk.of_this_launch)
    desk.begin()
    say(f"attempt {desk.now.number} of run {order.name} on {order.gpu}, from step {desk.now.step}")
    if left is not None and left <= 0:
        return out_of_hours(desk)
    place = make_place(order)
    try:
        return work(desk, place, left, began, say)
    except (KeyboardInterrupt, cancelled) as interrupt:
        leave(desk, place, "stopped" if isinstance(interrupt, cancelled) else "interrupted")
        raise
    except TryAgainError:
        raise
    except UserError as error:
        return desk.end("refused", "\n".join(error.problems))
    except Exception as error:  # Modal's client says RuntimeError when a commit fails; anything may have a cause there.
        with contextlib.suppress(Exception):
            bring(desk, place)
        return crash(desk, f"{type(error).__name__}: {error}")


def work(desk: Desk, place: Place, left: float | None, began: float, say: Callable[[str], None]) -> Outcome:
    """Test a new image, restore, train, keep the volume up to date. Raises as `attempt`."""
    order = desk.order
    if (failed := check_image(desk, place)) is not None:
        return failed
    if not (mounted(DATA_MOUNT) / order.data).is_dir():
        return desk.end("refused", f"the data volume holds no {order.data}: launch again, which uploads it")
    step = restore(desk.folder, place.run, warn)
    say("starting" if step is None else f"going on from step {step}")
    allowed = min(order.attempt_seconds, left if left is not None else float("inf"))
    with Child(training_command(order, place), place.root, place.output, bar_columns=order.bar_columns) as child:
        try:
            code = watch(child, desk, place, began + allowed)
        except TryAgainError:
            raise  # Another attempt took over: what this one would save is of no use.
        except BaseException as error:
            child.interrupt(INTERRUPT_GRACE_SECONDS if isinstance(error, KeyboardInterrupt) else SAVE_SECONDS)
            raise
        is_over = code is None
        if code is None:
            code = child.interrupt(SAVE_SECONDS)
    bring_surely(desk, place)
    if not is_over or code in (0, 2):
        return conclude(desk, child, code)
    if left is not None and left <= order.attempt_seconds:
        return out_of_hours(desk)
    hours = f"{order.attempt_seconds / 3600:.3g} hours"
    if code not in SAVED:
        said = "killed" if code == -signal.SIGKILL else explain_exit(code)
        return crash(desk, f"asked to save after {hours}, and did not ({said})")
    raise desk.give_back("out of time", f"saved after {hours}; going on")


def watch(child: Child, desk: Desk, place: Place, deadline: float) -> int | None:
    """Keep the volume up to date until the child ends; None: it still runs at `deadline` (monotonic seconds).

    A volume that fails once is tried again the next time: training is worth more. Raises what it fails with for good.
    """
    failures, next_sync = 0, time.monotonic() + desk.order.sync_seconds
    while (now := time.monotonic()) < deadline:
        code = child.wait(min(POLL_SECONDS, deadline - now))
        if code is not None:
            return code
        if time.monotonic() >= next_sync:
            try:
                bring(desk, place)
                desk.note()
                failures = 0
            except TryAgainError:
                raise
            except Exception as error:
                failures += 1
                if failures == MOST_FAILED_SYNCS:
                    raise
                warn(f"the run was not brought to the volume, the next time it may be: {type(error).__name__}: {error}")
            next_sync = time.monotonic() + desk.order.sync_seconds
    return None


def conclude(desk: Desk, child: Child, code: int) -> Outcome:
    """What a child's end means for the run. Raises TryAgainError."""
    if code == 0:
        return desk.end("finished", "")
    if code == 2 and child.errors:
        return desk.end("refused", "\n".join(child.errors))
    return crash(desk, "\n".join([explain_exit(code), *child.last_errors]))


def crash(desk: Desk, message: str) -> Outcome:
    """The end of a run that crashes always at the same step. Raises TryAgainError for one that may yet succeed."""
    failure = desk.give_back("crashed", message)
    if is_stuck(desk.of_this_launch):
        crashed = f"{HOPELESS} attempts in a row crashed at step {desk.now.step}"
        return desk.end("failed", f"{crashed}, this is how the last ended: {message}")
    raise failure


def is_stuck(attempts: list[Attempt]) -> bool:
    """Whether the last attempts all crashed and none saved a further step."""
    last = attempts[-HOPELESS:]
    crashed = [each for each in last if each.outcome == "crashed" and each.step == each.first_step]
    return len(crashed) == HOPELESS


def seconds_left(order: Order, attempts: list[Attempt]) -> float | None:
    """Of what the order may cost; None: it is not limited."""
    return None if order.max_seconds is None else order.max_seconds - sum(each.seconds for each in attempts)


def out_of_hours(desk: Desk) -> Outcome:
    """The end of a run whose hours are used up: it can be resumed."""
    hours = (desk.order.max_seconds or 0) / 3600
    return desk.end("out of hours", f"--max-hours {hours:.3g} is used up; --resume goes on from the last checkpoint")


def make_place(order: Order) -> Place:
    """An empty working folder, with the config."""
    root = Path(tempfile.gettempdir(), "pippin")
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    (root / "order.yaml").write_text(order.config, encoding="utf-8")
    return Place(root, root / order.folder, root / "output.txt")


def training_command(order: Order, place: Place) -> list[str]:
    """What to run: the newest checkpoint is taken up when the run was started before."""
    data = mounted(DATA_MOUNT)
    started = (place.run / "config.yaml").is_file()
    weights = [] if order.init_from is None else ["--init-from", str(data / order.init_from)]
    resume = ["--resume"] if started else []
    inputs = ["--config", str(place.root / "order.yaml"), "--data", str(data / order.data)]
    return [sys.executable, "-m", "core.training", *inputs, *weights, *resume]


def bring(desk: Desk, place: Place) -> None:
    """Bring the run folder and the output to the volume, and make them durable.

    Raises TryAgainError when another attempt took over: the run is that one's now.
    """
    desk.make_way()
    if (place.run / "config.yaml").is_file():
        mirror(place.run, desk.folder)
    if place.output.is_file():
        shutil.copyfile(place.output, desk.folder / output_file(desk.now.number))
    desk.runs.commit()


def bring_surely(desk: Desk, place: Place) -> None:
    """`bring`, tried again after a pause: nothing comes after it that would make up for it."""
    for pause in PAUSES:
        try:
            bring(desk, place)
        except TryAgainError:
            raise
        except Exception as error:
            warn(f"the run was not brought to the volume, trying again: {type(error).__name__}: {error}")
            time.sleep(pause)
        else:
            return
    bring(desk, place)


def leave(desk: Desk, place: Place, outcome: str) -> None:
    """Bring what was saved and close the entry. What fails is only told: the interrupt itself must be passed on."""
    for last in (lambda: bring_surely(desk, place), lambda: desk.note(outcome=outcome, ended=time.time())):
        try:
            last()
        except Exception as error:
            warn(f"{type(error).__name__}: {error}")


def smoke_command(report: Path) -> list[str]:
    """The smoke test, which writes what it found into `report`."""
    return [sys.executable, "-m", "core.smoke", "--json", str(report)]


def check_image(desk: Desk, place: Place) -> Outcome | None:
    """Run the smoke test once for each image and GPU; the end of the run when it fails."""
    passed = mounted(RUNS_MOUNT) / SMOKE / f"{desk.order.image}-{desk.order.gpu}.json"
    if passed.is_file():
        return None
    report = place.root / "smoke.json"
    with Child(smoke_command(report), place.root, place.output) as child:
        code = child.wait(SAVE_SECONDS)
    if code != 0:
        bring(desk, place)
        said = "took too long" if code is None else explain_exit(code)
        return desk.end("failed", "\n".join([f"this image failed its smoke test ({said}):", *child.last_errors]))
    passed.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(report, passed)
    desk.runs.commit()
    return None
