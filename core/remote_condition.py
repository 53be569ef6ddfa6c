"""What a remote run is doing: told by two witnesses, the runs volume and Modal.

On the volume each container notes its attempt and its last sign of life; Modal knows whether the call goes on, but
forgets the results of old ones. Where they differ, what the call returned wins, then what the container wrote; a call
that ended with neither gave up. `ask` and `stop` take whatever behaves like a modal.FunctionCall. To tell of another
state, edit `condition`.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from core.progress import format_time
from core.remote import ENDED, Attempt, Outcome
from core.remote_files import RemoteState
from utils.errors import BackendError
from utils.optional import optional

POLL_SECONDS = 2.0
SYNC_SECONDS = 30.0
"""How often a container is taken to write when the launch does not say."""
LOST_SECONDS = 600.0
"""After so long without a sign of life, a launch that broke off before it noted its call is taken to have made none."""
SIGNS_MISSED = 3
"""So many missing signs of life, and a minute for starting and copying, make a run silent."""


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
    torn = (optional("grpclib.exceptions", "modal").StreamTerminatedError, optional("aiohttp", "modal").ClientError)
    return (*(getattr(errors, f"{name}Error") for name in (*names, "VolumeUploadTimeout")), *torn)


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
