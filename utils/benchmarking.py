"""Measures rival programs fairly: each lives in its own process, they take turns, and neighbours are compared.

A process of its own, because a library that is loaded stays loaded (a BLAS, an allocator, a compiler's cache). Turns,
because whatever else the machine does then disturbs all alike. The parent starts every worker, waits until it is
ready, then sends `go` to one after the other and reads one JSON object from each; between two turns a worker sleeps on
its standard input. One that dies, hangs or talks nonsense is reported, and the rest goes on.

Standard library only, so that a worker may run in another environment. Knows nothing of models. To change what is
said over the pipes edit `Channel` and `Worker` together; to change the order of turns, `take_turns`.
"""

import contextlib
import json
import os
import queue
import random
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

Row = dict[str, Any]
GO = "go\n"
STOP_SECONDS = 5.0
PAUSE_SECONDS = 0.1
"""Before each turn: the threads of the one before spin for a while (OpenBLAS: 2^26 cycles) before they sleep."""


class Spread(NamedTuple):
    """How a measure is spread over rounds."""

    median: float
    min: float
    p10: float
    p90: float


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of the values lie, straight lines between them."""
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])


def spread(values: Sequence[float]) -> Spread:
    """Median, smallest, 10th and 90th percentile of at least one value."""
    return Spread(statistics.median(values), min(values), percentile(values, 0.1), percentile(values, 0.9))


def paired_ratio(above: Sequence[float | None], below: Sequence[float | None]) -> float | None:
    """The median of above / below over the rounds that have both; None when none has."""
    ratios = [a / b for a, b in zip(above, below, strict=False) if a is not None and b]
    return statistics.median(ratios) if ratios else None


def utilisation(flops: float, seconds: float, peak_flops: float | None) -> float | None:
    """Share of the peak: `flops` operations done in `seconds` on a chip of `peak_flops` a second; None without one."""
    return flops / seconds / peak_flops if peak_flops else None


def load_warning() -> str | None:
    """A line when more programs want to run than there are cores: times then say little."""
    load, num_cores = os.getloadavg()[0], os.cpu_count() or 1
    if load <= num_cores:
        return None
    return f"the machine is busy (load {load:.1f} on {num_cores} cores): ratios still compare, times and speeds do not"


def random_tokens(num_rows: int, length: int, vocab_size: int, seed: int = 0) -> list[list[int]]:
    """Rows of `length` ids below `vocab_size`, the same in every process and Python."""
    draw = random.Random(seed)
    return [[draw.randrange(vocab_size) for _ in range(length)] for _ in range(num_rows)]


def max_rss_bytes() -> int:
    """The most memory this process has held so far, as the kernel counts it."""
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Not ru_maxrss: on Linux it begins at what the parent held when it started this process.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


class Failure(Exception):
    """Why a worker cannot be measured any further."""


class Channel:
    """A worker's end: says it is ready, waits for its turn, answers. What libraries print goes to stderr."""

    def __init__(self) -> None:
        sys.stdout.flush()
        self._replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self._rss_before = max_rss_bytes()

    def ready(self, facts: Mapping[str, Any]) -> None:
        """Set-up is done; `facts` holds for all rounds."""
        self._send({"ready": True, **facts})

    def wait(self) -> bool:
        """Sleep until it is this worker's turn; False when there is none any more."""
        return sys.stdin.readline() == GO

    def answer(self, row: Mapping[str, Any]) -> None:
        """What this round measured."""
        self._send({"max_rss_growth_bytes": max_rss_bytes() - self._rss_before, **row})

    def _send(self, row: Mapping[str, Any]) -> None:
        self._replies.write(json.dumps(row) + "\n")
        self._replies.flush()


def serve(prepare: Callable[[Any], tuple[Row, Callable[[], Row]]]) -> None:
    """The whole life of a worker: `prepare(spec)` gives its facts and the function that is one round."""
    channel = Channel()
    facts, measure = prepare(json.loads(sys.argv[1]))
    channel.ready(facts)
    while channel.wait():
        channel.answer(measure())


def time_on_mlx(run: Callable[[], Any], held_bytes: int | None = None) -> Row:
    """One call of `run`, which must evaluate what it makes: seconds, and bytes of MLX's allocator.

    `held_bytes`: what does not count as the call's own memory; by default what was held before it.
    """
    import mlx.core as mx

    mx.reset_peak_memory()
    held_bytes = mx.get_active_memory() if held_bytes is None else held_bytes
    start = time.perf_counter()
    run()
    seconds = time.perf_counter() - start
    return {"seconds": seconds} | mlx_memory() | {"held_bytes": held_bytes}


def mlx_memory() -> Row:
    """The counters of MLX's allocator. The peak does not include the cache."""
    import mlx.core as mx

    return {
        "peak_bytes": mx.get_peak_memory(),
        "active_bytes": mx.get_active_memory(),
        "cache_bytes": mx.get_cache_memory(),
    }


def timed_generation(start: Callable[[], Iterator[Any]]) -> Row:
    """Seconds to the first token that `start()` gives (prefill) and for the rest (decode), and MLX's memory."""
    import mlx.core as mx

    mx.reset_peak_memory()
    began = time.perf_counter()
    tokens = start()
    next(tokens)
    first = time.perf_counter()
    for _ in tokens:
        pass
    end = time.perf_counter()
    return {"seconds": end - began, "prefill_seconds": first - began, "decode_seconds": end - first} | mlx_memory()


class Worker:
    """The parent's end of one process. `failure` says why it takes no more turns."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.facts: Row = {}
        self.failure: str | None = None
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 -- closed by `stop`
        # A session of its own, so that compilers it starts can be ended with it.
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=None if environment is None else dict(environment),
            start_new_session=True,
        )
        self._lines: queue.Queue[bytes] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def await_ready(self, timeout: float) -> None:
        """Wait until the worker has set itself up."""
        row = self._guarded(lambda: self._receive(timeout, "set-up"))
        self.facts = {} if row is None else {key: value for key, value in row.items() if key != "ready"}

    def take_turn(self, timeout: float) -> Row | None:
        """One round; None when it failed, now or before."""
        return self._guarded(lambda: self._ask(timeout))

    def stop(self) -> None:
        """End the process, by force if it does not go."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            self._process.stdin.close()
            self._process.wait(timeout=STOP_SECONDS)
        self._kill()
        self._reader.join()
        self._process.stdout.close()
        self._errors.close()

    def _guarded(self, action: Callable[[], Row]) -> Row | None:
        if self.failure is not None:
            return None
        try:
            return action()
        except Failure as failure:
            self.failure = str(failure)
            self._kill()
            return None

    def _ask(self, timeout: float) -> Row:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(GO.encode())
            self._process.stdin.flush()
        except OSError:
            raise Failure(self._death()) from None
        return self._receive(timeout, "a round")

    def _receive(self, timeout: float, what: str) -> Row:
        try:
            line = self._lines.get(timeout=timeout)
        except queue.Empty:
            raise Failure(f"no answer within {timeout:g} s of {what}{self._last_words()}") from None
        if not line:
            raise Failure(self._death())
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise Failure(f"answered {line.decode(errors='replace').strip()[:80]!r} where a JSON object was expected")
        return row

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(b"")

    def _death(self) -> str:
        try:
            code = self._process.wait(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            return f"closed its output{self._last_words()}"
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        return how + self._last_words()

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").splitlines()
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f": {last[:300]}" if last else ""

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def take_turns(
    workers: Sequence[Worker], num_rounds: int, num_warmups: int, timeout: float, say: Callable[[str], None]
) -> dict[str, list[Row | None]]:
    """Every worker's answers, one entry a round (None: failed), warm-up rounds left out.

    A round asks each worker once, in the order given.
    """
    answers: dict[str, list[Row | None]] = {worker.name: [] for worker in workers}
    for number in range(num_warmups + num_rounds):
        kind = f"warm-up {number + 1}" if number < num_warmups else f"round {number - num_warmups + 1}"
        for worker in workers:
            if worker.failure is None:
                say(f"{kind}: {worker.name}")
                time.sleep(PAUSE_SECONDS)
            row = worker.take_turn(timeout)
            if number >= num_warmups:
                answers[worker.name].append(row)
    return answers


def is_installed(python: str, package: str) -> bool:
    """Whether the interpreter `python` finds `package`; nothing is imported."""
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({package!r}) is None)"
    try:
        return subprocess.run([python, "-c", code], capture_output=True, cwd=Path(sys.prefix)).returncode == 0
    except OSError:
        return False
