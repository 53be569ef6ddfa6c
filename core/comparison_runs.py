"""The runs of a comparison: their configs, the processes that make them, and the results they leave.

Each run is a process of its own, `python -m core.comparison_runs CONFIG RESULT`: the run of that config, started, or
gone on with where it was interrupted, then its result as JSON. A result is used again only for the very same config.
Checkpoints are deleted once a run is done; config and metrics stay. Which runs are due: core/comparison.py.
"""

import core  # noqa: F401 -- before MLX

# isort: split
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.comparison import Result, Settings, Trial, wanted
from core.config import Config, load, to_yaml
from core.run import differing_keys, run_folder
from core.session import NonFiniteError
from core.training import train
from data.text import TextDataConfig
from utils.cli import Parser, run_command
from utils.errors import ConfigError, DataError
from utils.metrics import column, read_metrics, without_nan
from utils.units import Duration
from utils.yaml_file import write_yaml

POLL_SECONDS = 0.2
MAY_CHANGE = {"optimizer", "schedule", "name"}
"""Sections that differ between the optimizers of a comparison; the name is the trial's own in the end."""


def with_optimizer(config: Path, optimizer: Path) -> Config:
    """The config of all runs with what an optimizer's file says. Raises ConfigError as loading does."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "both.yaml"
        path.write_text(write_yaml({"extends": [str(config.resolve()), str(optimizer.resolve())]}))
        return load(path)


def find_foreign_keys(config: Path, optimizer: Path) -> list[str]:
    """What an optimizer's file changes besides optimizer and schedule: its runs could not be compared with others."""
    lines = differing_keys(with_optimizer(config, optimizer), load(config))
    return [
        f"{optimizer}: an optimizer's file may set optimizer and schedule, but this one also changes {line}"
        for line in lines
        if line.split(":")[0].split(".")[0] not in MAY_CHANGE
    ]


def find_missing_evaluation(config: Config) -> list[str]:
    """Why runs of `config` would have no loss to compare."""
    data = config.data
    if not isinstance(data, TextDataConfig) or data.validation_fraction or data.validation_sources:
        return []
    return [
        "data.validation_fraction is 0 and data.validation_sources is empty, so there is no held-out text whose loss "
        "could be compared: set one of the two"
    ]


def trial_config(settings: Settings, trial: Trial, folder: Path) -> Config:
    """The whole config of a trial, whose run lies in `folder`/runs. Raises ConfigError as loading does."""
    files = [str(settings.config.resolve()), str(settings.optimizers[trial.optimizer].resolve())]
    own = {"extends": files, "name": trial.name, "seed": trial.seed, "out_dir": str(folder / "runs")}
    path = folder / "configs" / f"{trial.name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(write_yaml(own | {"optimizer": {"learning_rate": trial.learning_rate}}))
    config = load(path)
    duration = config.training.duration
    shorter = Duration(duration.value * trial.share, duration.unit) if trial.share != 1 else duration
    config = config.model_copy(update={"training": config.training.model_copy(update={"duration": shorter})})
    path.write_text(to_yaml(config))
    return config


def is_run_of(config: Config) -> bool:
    """Whether the run folder of `config` was made with its values; settings that are new since have defaults there."""
    kept = run_folder(config) / "config.yaml"
    return kept.is_file() and all(line.startswith("out_dir") for line in differing_keys(config, load(kept)))


def read_result(path: Path, config: Config) -> Result | None:
    """The result of a run of exactly this config; None when there is none."""
    if not (path.is_file() and is_run_of(config)):
        return None
    found: dict[str, Any] = {
        key: math.inf if value is None else value for key, value in json.loads(path.read_text()).items()
    }
    found["curve"] = tuple(map(tuple, found["curve"]))
    return Result(**found)


def write_result(path: Path, result: Result) -> None:
    """As JSON, whole or not at all; infinity as null."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({key: without_nan(value) for key, value in result._asdict().items()}))
    os.replace(temporary, path)


def run_trial(config: Config) -> Result | None:
    """Train to the end, or go on where it stopped; None when a signal ended it."""
    folder = run_folder(config)
    is_same = is_run_of(config)
    note = ""
    try:
        code = train(config, resume=is_same, overwrite=folder.exists() and not is_same).exit_code
        if code:
            return None
    except NonFiniteError as error:
        note = str(error).split(":")[0] + ": loss or gradient was not finite"
    result = result_of(folder, note)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return result


def result_of(folder: Path, note: str) -> Result:
    """From the metrics of a finished run; `note`: why it ended early, which makes its loss infinite.

    Raises DataError when the run is whole but was never evaluated.
    """
    rows = read_metrics(folder / "metrics.jsonl")
    tokens, losses = column(rows, "eval/loss", "tokens")
    _, bits = column(rows, "eval/bits_per_byte", "tokens")
    if not losses:
        if note:
            return Result(math.inf, math.inf, 0, (), note)
        raise DataError(f"{folder}: no evaluation in metrics.jsonl, so no loss to compare; is there held-out text?")
    curve = tuple((int(at), loss) for at, loss in zip(tokens, losses, strict=True) if math.isfinite(loss))
    is_whole = not note and math.isfinite(losses[-1])
    return Result(
        loss=losses[-1] if is_whole else math.inf,
        bits_per_byte=bits[-1] if is_whole else math.inf,
        tokens=int(tokens[-1]),
        curve=curve,
        note=note,
    )


class Comparison:
    """The runs of `settings` in `folder`, some at once."""

    def __init__(self, settings: Settings, folder: Path, say: Callable[[str], None]) -> None:
        self.settings, self.folder, self.say = settings, folder, say
        self.results: dict[Trial, Result] = {}
        self.running: dict[Trial, subprocess.Popen[bytes]] = {}
        try:
            for name in ("results", "logs", "configs"):
                (folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot write into {folder}: {error.strerror}; choose another --out") from error

    def due(self) -> list[Trial]:
        """Runs without a result, in the order of the optimizers, those found on disk being taken over."""
        found: list[Trial] = []
        for name in self.settings.optimizers:
            while new := [trial for trial in wanted(self.settings, name, self.results) if self._take_over(trial)]:
                self.say(f"{len(new)} run(s) of {name} are there already")
            found += wanted(self.settings, name, self.results)
        return found

    def _take_over(self, trial: Trial) -> bool:
        """Whether a result lies on disk; it then counts."""
        if trial in self.running:
            return False
        result = read_result(self._result_path(trial), trial_config(self.settings, trial, self.folder))
        if result is not None:
            self.results[trial] = result
        return result is not None

    def _result_path(self, trial: Trial) -> Path:
        return self.folder / "results" / f"{trial.name}.json"

    def run(self, num_jobs: int) -> None:
        """Make every run that is wanted, `num_jobs` at once. Raises what a run was refused with."""
        try:
            while (due := self.due()) or self.running:
                for trial in due:
                    if len(self.running) < num_jobs and trial not in self.running:
                        self.running[trial] = self._start(trial, num_jobs)
                for trial in self._wait():
                    self._finish(trial, self.running.pop(trial))
        finally:
            for process in self.running.values():
                process.terminate()
            for process in self.running.values():
                process.wait()

    def _wait(self) -> list[Trial]:
        """The runs that have ended, once there are some."""
        while True:
            ended = [trial for trial, process in self.running.items() if process.poll() is not None]
            if ended:
                return ended
            time.sleep(POLL_SECONDS)

    def _start(self, trial: Trial, num_jobs: int) -> subprocess.Popen[bytes]:
        threads = str(max(1, (os.cpu_count() or 1) // num_jobs))
        environment = os.environ | {"OPENBLAS_NUM_THREADS": threads, "OMP_NUM_THREADS": threads}
        config = self.folder / "configs" / f"{trial.name}.yaml"
        command = [sys.executable, "-m", "core.comparison_runs", str(config), str(self._result_path(trial))]
        with (self.folder / "logs" / f"{trial.name}.txt").open("wb") as log:
            return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)

    def _finish(self, trial: Trial, process: "subprocess.Popen[bytes]") -> None:
        if not self._take_over(trial):
            log = self.folder / "logs" / f"{trial.name}.txt"
            reason = reason_in(log.read_text(errors="replace"))
            raise ConfigError(f"the run {trial.name} ended with exit code {process.returncode}: {reason} (see {log})")
        result = self.results[trial]
        how = result.note or f"{result.loss:.4f} nats per token, {result.bits_per_byte:.3f} bits per byte"
        self.say(f"{trial.name}: {how}  ({len(self.results)} runs done)")


def reason_in(log: str) -> str:
    """The last line that says what was wrong, or the last one at all."""
    lines = log.strip().splitlines() or ["it said nothing"]
    return next((line for line in reversed(lines) if line.startswith("error:")), lines[-1])


def main() -> int:
    """`python -m core.comparison_runs CONFIG RESULT`: one run."""
    parser = Parser("Make one run of a comparison and write its result.", prog="python -m core.comparison_runs")
    parser.add_argument("config", type=Path)
    parser.add_argument("result", type=Path)
    options = parser.parse_args()
    config = load(options.config)
    result = run_trial(config)
    if result is None:
        return 1
    write_result(options.result, result)
    return 0


if __name__ == "__main__":
    run_command(main)
