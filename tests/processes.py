"""Training runs in processes of their own, to be interrupted, killed and started again; used by the tests of all that.

Each child leads a process group, so that a signal sent to the group reaches what a terminal's Ctrl-C would reach: the
compiler that MLX starts, and the launcher's children. A child that a failed test leaves behind is killed.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.tiny_run import merge, tiny_values

ROOT = Path(__file__).parent.parent
TRAIN = (sys.executable, "-m", "core.training", "--config")
PATIENCE_SECONDS = 120.0
TWO = {"distributed": {"type": "data_parallel"}}
Ranks = list[subprocess.Popen[str]]


def write_yaml(folder: Path, **changes: Any) -> Path:
    """A tiny run's config as a file; corpus, cache and runs lie in `folder`, which other configs may share."""
    values = merge(tiny_values(folder), changes)
    path = folder / f"{values['name']}.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@contextlib.contextmanager
def start(*command: str | Path, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A command in the checkout, in a process group of its own that does not outlive the block."""
    process = subprocess.Popen(
        [str(part) for part in command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a process that ends by itself."""
    output, errors = process.communicate(timeout=PATIENCE_SECONDS)
    return process.returncode, output, errors


def run(*command: str | Path, **options: Any) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    with start(*command, **options) as process:
        return finish(process)


def wait_until(process: subprocess.Popen[str], happened: Callable[[], Any]) -> bool:
    """Whether `happened` came true while the process lived; asks it every millisecond."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not happened():
        if process.poll() is not None:
            return False
        assert time.monotonic() < end, "neither happened nor ended"
        time.sleep(0.001)
    return True


def num_lines(path: Path) -> int:
    """Lines of a file, 0 when it is not there."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def two_ranks(
    folder: Path, *arguments: str | Path, configs: list[Path] | None = None, **options: Any
) -> Iterator[Ranks]:
    """`core.training` twice, joined by a ring on this machine; `configs` gives each rank its own."""
    hostfile = folder / "hosts.json"
    hostfile.write_text(json.dumps([[f"127.0.0.1:{free_port()}"] for _ in range(2)]))
    shared = {**os.environ, "MLX_HOSTFILE": str(hostfile), "OPENBLAS_NUM_THREADS": "1"}
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(
                start(
                    *TRAIN,
                    *(configs[rank : rank + 1] if configs else ()),
                    *arguments,
                    env=shared | {"MLX_RANK": str(rank)},
                    **options,
                )
            )
            for rank in range(2)
        ]


def ends(ranks: Ranks) -> tuple[list[int], list[str]]:
    """Exit codes and stderr of all ranks."""
    ended = [finish(process) for process in ranks]
    return [code for code, _, _ in ended], [errors for _, _, errors in ended]
