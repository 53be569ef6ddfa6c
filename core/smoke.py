"""Does this machine train at all: one line for each check, then a verdict. For a rented GPU before it costs anything.

`python -m core.smoke [--json FILE]` ends with 0, or with 2 when something is wrong. The checks (core/smoke_checks.py)
run in a child, because what goes wrong on a new machine often takes the process along: an import that fails inside
the CUDA runtime, a C++ exception in a thread of MLX, a kernel that never ends. Each check that raises, dies or falls
silent is one FAILED line, and a new child goes on with the next. So nothing here imports MLX. To add a check, add a row
to `CHECKS`; to say more about an error, add one to `ADVICE`.
"""

import argparse
import json
import multiprocessing
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import distributions
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from utils.cli import Parser, run_command
from utils.registry import import_object

CHECKS = {
    "mlx": "core.smoke_checks:describe_device",
    "streams": "core.smoke_checks:check_streams",
    "products": "core.smoke_checks:check_products",
    "attention": "core.smoke_checks:check_attention",
    "loss": "core.smoke_checks:check_loss",
    "training step": "core.smoke_checks:check_training_step",
    "files": "core.smoke_checks:check_files",
}
PATIENCE_SECONDS = 90.0
"""For one check. A first use compiles kernels, which takes some seconds for each."""
LIMIT_SECONDS = 240.0
"""For all of them, so that a machine on which everything hangs does not cost ten minutes."""
GRACE_SECONDS = 10.0
"""For a killed process to go; one that hangs in a driver may not."""
LOADS_MLX = "mlx"
"""The check without which no other makes sense."""
PACKAGES = ("mlx-lm", "numpy", "safetensors")

# (parts of an error's text, what to try); the first row that matches.
ADVICE = (
    (
        ("cudaMemAdvise", "cudaMallocManaged", "managed memory"),
        "the sandbox lacks CUDA's managed memory, as gVisor did (mlx issues 2428 and 2519; MLX falls back to pinned "
        "memory since pulls 3075 and 3701): update MLX, or install the other one of mlx[cuda12] and mlx[cuda13]",
    ),
    (
        ("driver version", "forward compatibility"),
        "mlx[cuda12] needs NVIDIA driver 550.54.14, mlx[cuda13] 580: install the one for the driver shown above",
    ),
    (("libcuda.so",), "there is no NVIDIA driver here: ask for a GPU, or install mlx[cpu]"),
    (
        ("libmlx", "No module named 'mlx'"),
        "MLX or its backend is missing: pip install 'mlx[cuda12]' (or cuda13) for NVIDIA, 'mlx[cpu]' without a GPU",
    ),
    (("Bad address",), "the kernel refused memory of the GPU in a write, as gVisor did (gvisor issue 10331)"),
)
NO_ADVICE = "try the other one of mlx[cuda12] and mlx[cuda13], and another version of MLX"


class Finding(NamedTuple):
    """What became of one check."""

    name: str
    state: str
    """ok | FAILED | skipped"""
    text: str
    """Figures, or what is wrong."""
    figures: dict[str, Any]
    """For the JSON file."""
    seconds: float


Outcome = tuple[str, str, dict[str, Any]]
"""State, text and figures of a finding."""


class Lost(Exception):
    """The child died or fell silent; the text is for the finding."""


def run_checks(
    names: Sequence[str],
    work: Callable[[list[str], Connection, str], None],
    patience: float = PATIENCE_SECONDS,
    limit: float = LIMIT_SECONDS,
) -> Iterator[Finding]:
    """Findings in order; `work` is `answer`, run in as many children as it takes. Without MLX the rest is skipped."""
    waiting, deadline = list(names), time.monotonic() + limit
    while waiting:
        for finding in findings_of_child(list(waiting), work, patience, deadline):
            yield finding
            waiting.remove(finding.name)
            if finding.name == LOADS_MLX and not finding.figures:
                yield from (Finding(name, "skipped", "MLX does not load", {}, 0.0) for name in waiting)
                return


def findings_of_child(
    names: list[str], work: Callable[..., None], patience: float, deadline: float
) -> Iterator[Finding]:
    """Findings of one child; the last one may be that it was lost."""
    context = multiprocessing.get_context("spawn")  # A forked child cannot use CUDA.
    ours, theirs = context.Pipe(duplex=False)
    with tempfile.NamedTemporaryFile("r", errors="replace") as errors:
        child = context.Process(target=work, args=(names, theirs, errors.name), daemon=True)
        child.start()
        theirs.close()
        try:
            for name in names:
                began = time.monotonic()
                try:
                    outcome = receive(ours, child, Path(errors.name), max(0.0, min(patience, deadline - began)))
                except Lost as lost:
                    yield Finding(name, "FAILED", str(lost), {}, time.monotonic() - began)
                    return
                yield Finding(name, *outcome, time.monotonic() - began)
        finally:
            child.kill()
            child.join(GRACE_SECONDS)
            ours.close()
            sys.stderr.write(errors.read())


def receive(ours: Connection, child: Any, errors: Path, patience: float) -> Outcome:
    """What the child sends next. Raises Lost."""
    if not ours.poll(patience):
        raise Lost(f"no answer in {patience:.3g} s")
    try:
        return ours.recv()
    except (EOFError, OSError):  # OSError: it died in the middle of a message.
        child.join(GRACE_SECONDS)
    code = child.exitcode
    how = signal.strsignal(-code) if code is not None and code < 0 else f"exit code {code}"
    lines = [line.strip() for line in errors.read_text(errors="replace").splitlines() if line.strip()]
    raise Lost(with_advice(f"the process died ({how}): {lines[-1] if lines else 'it said nothing'}"))


def answer(names: list[str], connection: Connection, errors: str) -> None:
    """The child: run each check, send its outcome. What libraries write to stderr goes into the file `errors`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The parent ends it.
    os.dup2(os.open(errors, os.O_WRONLY | os.O_APPEND), 2)
    for name in names:
        connection.send(outcome_of(CHECKS[name]))


def outcome_of(path: str) -> Outcome:
    """Run the check at an import path."""
    try:
        report = import_object(path)()
    except Exception as error:  # One check that raises must not hide the others.
        return "FAILED", with_advice(f"{type(error).__name__}: {' '.join(str(error).split())}"), {}
    if report.problems:
        return "FAILED", with_advice("; ".join(report.problems), otherwise=None), report.figures
    return "ok", report.text, report.figures


def with_advice(text: str, otherwise: str | None = NO_ADVICE) -> str:
    """An error's text and what to try; `otherwise` when no row of `ADVICE` knows."""
    advice = next((say for parts, say in ADVICE if any(part in text for part in parts)), otherwise)
    return f"{text}; {advice}" if advice else text


def machine_facts() -> dict[str, Any]:
    """Python, packages, and the GPUs that the driver shows; all that can be known without MLX."""
    installed = {each.name: each.version for each in distributions()}
    versions = {name: installed[name] for name in sorted(installed) if name == "mlx" or name.startswith("mlx-")}
    versions |= {name: installed[name] for name in PACKAGES if name in installed}
    return {"python": platform.python_version(), "versions": versions, "nvidia": nvidia_gpus()}


def nvidia_gpus() -> list[str]:
    """`name, driver, memory` of each GPU, by nvidia-smi; empty where there is none."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        shown = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in shown.splitlines() if line.strip()]


def headline(facts: dict[str, Any]) -> str:
    """`python 3.11.7, mlx 0.32.4, ...; NVIDIA H100 80GB HBM3, 580.95.05, 81559 MiB`."""
    versions = ", ".join(
        f"{name} {version}" for name, version in {"python": facts["python"], **facts["versions"]}.items()
    )
    return f"{versions}; {'; '.join(facts['nvidia']) or 'no NVIDIA GPU'}"


def verdict(findings: Sequence[Finding]) -> str:
    """The last line."""
    failed = [finding.name for finding in findings if finding.state == "FAILED"]
    skipped = sum(finding.state == "skipped" for finding in findings)
    if not failed:
        return f"smoke test passed: {len(findings)} checks in {sum(finding.seconds for finding in findings):.0f} s"
    more = f", {skipped} skipped" if skipped else ""
    return f"smoke test FAILED: {', '.join(failed)} ({len(failed)} of {len(findings)} checks{more}); do not train here"


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line of `core.smoke`."""
    parser = Parser("Check that this machine computes and stores what training needs.", prog="python -m core.smoke")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write what was found there")
    options = parser.parse_args(arguments)
    if options.json is not None and not options.json.absolute().parent.is_dir():
        parser.error(f"--json: there is no folder {options.json.absolute().parent}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m core.smoke`."""
    options = parse_arguments(arguments)
    facts, findings = machine_facts(), []
    print(headline(facts), flush=True)
    for finding in run_checks(list(CHECKS), answer):
        findings.append(finding)
        print(f"{finding.state:<8}{finding.name:<15}{finding.text} ({finding.seconds:.1f} s)", flush=True)
    print(verdict(findings), flush=True)
    passed = all(finding.state == "ok" for finding in findings)
    if options.json is not None:
        content = {"passed": passed, **facts, "checks": [finding._asdict() for finding in findings]}
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0 if passed else 2


if __name__ == "__main__":
    run_command(main)
