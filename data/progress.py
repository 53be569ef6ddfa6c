"""How far a preparation is: `progress(stage, done, total)` is told in bytes, and a person sees it now and then.

Lines every few seconds are the default, for logs and pipes; a tool that has a terminal hands in a bar instead.
To show something else, write a function of the same shape.
"""

import time
from collections.abc import Callable

Progress = Callable[[str, int, int | None], None]
"""Told the stage's name, bytes done, and bytes in all (None: not known)."""
SECONDS_BETWEEN_LINES = 5.0


class Lines:
    """Says a line when some seconds have passed since the last one."""

    def __init__(self, say: Callable[[str], None], seconds: float = SECONDS_BETWEEN_LINES) -> None:
        self.say, self.seconds = say, seconds
        self.stage = ""
        self.begun = self.due = 0.0

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        """See `Progress`."""
        now = time.monotonic()
        if stage != self.stage:
            self.stage, self.begun, self.due = stage, now, now + self.seconds
        if now >= self.due:
            self.due = now + self.seconds
            self.say(f"{stage}: {describe(done, total, now - self.begun)}")


def describe(done: int, total: int | None, seconds: float) -> str:
    """For example `120 of 480 MB, 11.5 MB/s`; the speed is left out of a stage's first moment."""
    of = f" of {total / 1e6:,.0f}" if total else ""
    speed = f", {done / 1e6 / seconds:.1f} MB/s" if seconds >= 1 else ""
    return f"{done / 1e6:,.0f}{of} MB{speed}"
