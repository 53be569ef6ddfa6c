"""What a person sees of a training run: a progress bar on a terminal, plain lines elsewhere.

Every figure comes from the metrics rows, so the bar, the log and the plots agree. To show another figure, edit
`describe`.
"""

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from utils.cli import warn
from utils.units import format_count

PLAIN_INTERVAL_SECONDS = 5.0


def format_time(seconds: float) -> str:
    """`1:05`, `2:03:04`."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def describe(figures: dict[str, float], remaining_seconds: float | None) -> str:
    """`loss 3.21  val 2.10 bits/byte  12.3k tok/s  1:05 left`, as far as known."""
    parts = []
    if "train/loss" in figures:
        parts.append(f"loss {figures['train/loss']:.3f}")
    if "eval/bits_per_byte" in figures:
        parts.append(f"val {figures['eval/bits_per_byte']:.3f} bits/byte")
    if "speed/tokens_per_second" in figures:
        parts.append(f"{format_count(figures['speed/tokens_per_second'])} tok/s")
    if remaining_seconds is not None:
        parts.append(f"{format_time(remaining_seconds)} left")
    return "  ".join(parts)


class TrainingProgress:
    """A bar that follows the steps; silent on ranks that are not main."""

    def __init__(self, total_steps: int, first_step: int, *, enabled: bool, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)
        self._enabled = enabled
        self._total = total_steps
        self._figures: dict[str, float] = {}
        self._last_line = 0.0
        self._bar: Progress | None = None
        if enabled and self._console.is_terminal:
            columns = (TextColumn("{task.completed}/{task.total}"), BarColumn(24), TextColumn("{task.description}"))
            self._bar = Progress(*columns, console=self._console, refresh_per_second=4)
            self._task = self._bar.add_task("starting", total=total_steps, completed=first_step)
            self._bar.start()

    def update(self, step: int, figures: dict[str, float], remaining_seconds: float | None = None) -> None:
        """Show that `step` updates are done, with the newest figures."""
        self._figures.update(figures)
        if not self._enabled:
            return
        text = describe(self._figures, remaining_seconds)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=text)
        elif figures and (self._is_time() or step >= self._total or "eval/loss" in figures):
            self._print(f"step {step}/{self._total}  {text}")

    def _is_time(self) -> bool:
        return time.monotonic() - self._last_line >= PLAIN_INTERVAL_SECONDS

    def _print(self, line: str) -> None:
        self._last_line = time.monotonic()
        print(line, flush=True)

    def say(self, line: str) -> None:
        """A line above the bar."""
        if not self._enabled:
            return
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False)
        else:
            print(line, flush=True)

    def warn(self, line: str) -> None:
        """A line on stderr, from every rank."""
        warn(line)

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def show_rows(rows: list[tuple[str, Any]]) -> str:
    """Two aligned columns."""
    width = max(len(name) for name, _ in rows) + 2
    return "\n".join(f"  {name:<{width}}{value}" for name, value in rows)
