"""What both ends of a remote run agree on: names, places and the messages between them.

This side (`core/remote_launch.py`) checks, uploads and calls; the other side (`core/remote_attempt.py`) runs
`core.training` in a container and keeps the run folder on a volume; `modal/` joins the two. Two volumes: prepared data,
which containers only read, under a name that is a hash of what it holds; and runs, `/NAME/...` as in a run folder, with
the state of the remote run in `.remote/`. Each path has one writer. Nothing here imports MLX or the modal client, since
the container starts with it. To send another setting along, add a field to `Order`.
"""

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

RUNS_VOLUME, DATA_VOLUME = "pippin-runs", "pippin-data"
CLIENT = "python modal/modal_client.py"
"""What a person types to look after runs."""
RUNS_MOUNT, DATA_MOUNT = "/runs", "/data"
STATE = ".remote"
"""In a run's folder on the volume; never brought home."""
LAUNCH = f"{STATE}/launch.json"
"""Who was called with what; written from here. What became of each attempt, and what it printed, is written there, in
two files of its own: a container that was interrupted may still save while the next one works."""
ATTEMPT_FILE, OUTPUT_FILE = re.compile(rf"{STATE}/attempt-(\d+)\.json"), re.compile(rf"{STATE}/output-(\d+)\.txt")

ATTEMPT_HOURS, MOST_RETRIES = 24, 10
"""Modal's longest attempt, and how often it tries again at most."""
CORES, GIB = 4.0, 16.0
"""What a container asks for beside its GPU: physical cores, and GiB of memory."""

ENDED = ("finished", "refused", "failed", "stopped", "out of hours")
"""Outcomes after which no further attempt follows; `interrupted`, `crashed` and `out of time` are tried again."""


def mounted(mount: str) -> Path:
    """Where a volume's mount path lies in this container; a stand-in that cannot mount puts them below a folder."""
    return Path(os.environ.get("PIPPIN_MOUNTS", "/"), mount.lstrip("/"))


class Order(NamedTuple):
    """What a container is asked to do. Plain values, so that the call can be repeated and read in a log."""

    name: str
    """The run."""
    folder: str
    """`out_dir/name` of the config."""
    config: str
    """The resolved config as YAML."""
    data: str
    """Folder of the data volume that holds the prepared data."""
    init_from: str | None
    """Folder of the data volume with the weights to start from; None: none."""
    gpu: str
    """What was asked for, as Modal names it."""
    image: str
    """Identifies what the image is made of: a new one is tested before it trains."""
    attempts_before: int
    """How many attempts earlier launches of this run made: they count neither for hours nor as failures of this one."""
    max_seconds: float | None
    """Most that all attempts together may take; None: no limit."""
    attempt_seconds: float
    """What one attempt may take before it saves and lets the next one go on."""
    sync_seconds: float
    """How often the run folder is brought to the volume."""
    bar_columns: int
    """Width of the terminal at the other end, for a bar that moves; 0: it is none, and lines stay as they are."""


class Attempt(NamedTuple):
    """One container's work on a run, as a file of its own tells of it. Times are seconds since 1970."""

    number: int
    """From 1."""
    gpu: str
    """As the order named it."""
    started: float
    seen: float
    """When it last gave a sign of life."""
    ended: float | None = None
    """None: it runs, or died without a word."""
    outcome: str = "running"
    """running | finished | refused | failed | stopped | out of hours | interrupted | crashed | out of time"""
    first_step: int = 0
    """The checkpoint it went on from."""
    step: int = 0
    """The newest checkpoint on the volume."""
    message: str = ""
    """Why it ended as it did."""

    @property
    def seconds(self) -> float:
        """How long it has been at work, as far as is known: what is paid for."""
        return max(0.0, (self.ended or self.seen) - self.started)


class Outcome(NamedTuple):
    """What the call returns: an end that no further attempt would change."""

    outcome: str
    """One of `ENDED`."""
    exit_code: int
    """As `core.training` would have ended: 0, 2, 130 and so on."""
    step: int
    message: str
    """For a person; several lines when there are several problems."""


def newest_step(run_folder: Path) -> int | None:
    """The step of the newest complete checkpoint of a run folder, by names alone; None: there is none."""
    manifests = (run_folder / "checkpoints").glob("step_*/MANIFEST.json")
    return max((int(path.parent.name.removeprefix("step_")) for path in manifests), default=None)


def attempt_file(number: int) -> str:
    """Where an attempt tells what becomes of it."""
    return f"{STATE}/attempt-{number}.json"


def output_file(number: int) -> str:
    """Where an attempt keeps what it prints."""
    return f"{STATE}/output-{number}.txt"


def numbered(names: Iterable[str], pattern: re.Pattern[str]) -> dict[int, str]:
    """Those of the names that match, by their number, in order."""
    found = {int(match[1]): name for name in names if (match := pattern.fullmatch(name))}
    return dict(sorted(found.items()))


def read_attempt(number: int, content: bytes) -> Attempt:
    """An attempt's file. Of one that is half written, or another version's, only the number is known."""
    try:
        row: dict[str, Any] = json.loads(content)
        return Attempt(**{key: row[key] for key in Attempt._fields if key in row})
    except (ValueError, TypeError):
        return Attempt(number, "", 0.0, 0.0)


def write_attempt(attempt: Attempt) -> str:
    """The text of an attempt's file."""
    return json.dumps(attempt._asdict(), indent=1) + "\n"


def attempts_in(run_folder: Path) -> list[Attempt]:
    """All attempts at the run that lies in a folder of this machine, in order."""
    files = numbered((f"{STATE}/{path.name}" for path in run_folder.glob(f"{STATE}/*")), ATTEMPT_FILE)
    return [read_attempt(number, (run_folder / name).read_bytes()) for number, name in files.items()]
