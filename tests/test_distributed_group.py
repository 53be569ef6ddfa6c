"""Real processes on the loopback: two that sum over a ring, one that waits in vain, one with no launcher."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from distributed.group import DataParallelConfig
from utils.errors import BackendError

ROOT = Path(__file__).parent.parent

JOIN = """
import core, json, sys
import mlx.core as mx
from distributed.group import DataParallelConfig, ProcessGroup
group = DataParallelConfig(timeout_seconds=60).build()
"""

SUM = (
    JOIN
    + """
small = ProcessGroup(group.rank, group.size, group._all_sum, bucket_bytes=40)
weight = mx.random.normal((64, 64), key=mx.random.key(0))
state = [mx.zeros((64, 64)), mx.array(0, mx.uint64)]


def gradients_of(rank, step):
    rows = mx.random.normal((8, 64), key=mx.random.key(10 * step + rank))
    return {"layers": [rows.T @ (rows @ weight), rows[:3, :7]], "weight": mx.array(rank + 1)}


def step(gradients):
    reduced = small.reduce({"part": gradients["layers"][1], "weight": gradients["weight"]})
    reduced["whole"] = group.reduce(gradients["layers"][0])
    state[0] = state[0] - 0.1 * reduced["whole"] / reduced["weight"]
    state[1] = state[1] + 1
    return reduced


compiled = mx.compile(step, inputs=state, outputs=state)
history, flags = [], []
for number in range(5):
    history.append(compiled(gradients_of(group.rank, number)))
    mx.async_eval(history[-1], state)
    mx.async_eval(weight @ weight)
    flags.append(group.any(number == 3 and group.rank == 1))

expected = mx.zeros((64, 64))
error = 0.0
for number, reduced in enumerate(history):
    both = [gradients_of(rank, number) for rank in range(2)]
    whole = both[0]["layers"][0] + both[1]["layers"][0]
    expected = expected - 0.1 * whole / 3
    error = max(error, mx.abs(reduced["whole"] - whole).max().item())
    assert mx.array_equal(reduced["part"], both[0]["layers"][1] + both[1]["layers"][1])
    assert reduced["weight"].item() == 3
print("RESULT", json.dumps({
    "rank": group.rank, "size": group.size, "main": group.is_main, "flags": flags, "error": error,
    "steps": state[1].item(), "state": mx.abs(state[0] - expected).max().item(),
    "checksum": float(mx.sum(state[0]).item()),
}), flush=True)
"""
)


def free_ports() -> int:
    """The first of two neighbouring ports that nobody listens on."""
    for _ in range(50):
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            try:
                second.bind(("127.0.0.1", port + 1))
            except (OSError, OverflowError):
                continue
            return port
    raise AssertionError("no two neighbouring free ports")


def start(script: str, rank: int, hostfile: Path) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "MLX_RANK": str(rank),
        "MLX_HOSTFILE": str(hostfile),
    }
    return subprocess.Popen(
        [sys.executable, "-c", script],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def hostfile(tmp_path: Path) -> Path:
    port = free_ports()
    path = tmp_path / "hosts.json"
    path.write_text(json.dumps([[f"127.0.0.1:{port}"], [f"127.0.0.1:{port + 1}"]]))
    return path


def results_in(output: str) -> list[dict]:
    results = [json.loads(line.split("RESULT", 1)[1]) for line in output.splitlines() if "RESULT" in line]
    return sorted(results, key=lambda result: result["rank"])


def check(results: list[dict]) -> None:
    assert [result["rank"] for result in results] == [0, 1]
    assert [result["main"] for result in results] == [True, False]
    for result in results:
        assert result["size"] == 2
        assert result["steps"] == 5
        assert result["flags"] == [False, False, False, True, False]
        assert result["error"] == 0.0
        assert result["state"] < 1e-5
    assert results[0]["checksum"] == results[1]["checksum"]


def test_two_processes_sum_to_what_one_computes_compiled_and_with_other_work_in_flight(
    hostfile: Path,
) -> None:
    processes = [start(SUM, rank, hostfile) for rank in range(2)]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    check(results_in("".join(output for output, _ in outputs)))


@pytest.mark.slow
def test_the_launcher_starts_two_processes(tmp_path: Path) -> None:
    script = tmp_path / "sum.py"
    script.write_text(SUM)
    launcher = str(Path(sys.executable).with_name("mlx.launch"))
    options = ["--backend", "ring", "-n", "2", "-p", str(free_ports()), "--env", f"PYTHONPATH={ROOT}"]
    command = [launcher, *options, "--", sys.executable, str(script)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        output = process.stdout.read()
    assert process.returncode == 0, output
    check(results_in(output))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_missing_peer_ends_the_process_with_code_2_in_time(rank: int, hostfile: Path) -> None:
    process = start(JOIN.replace("=60", "=0.5"), rank, hostfile)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert f"error: rank {rank} waited 0.5 s for the others" in errors
    assert str(hostfile) in errors
    assert "Traceback" not in errors


LOSE = (
    JOIN
    + """
import os
from utils.errors import exit_code_of
assert not group.any(False)
if group.rank == 1:
    os._exit(9)
sys.exit(exit_code_of(lambda: [group.any(False) for _ in range(3)] and 0))
"""
)


def test_a_peer_that_dies_is_an_error_a_person_can_read(hostfile: Path) -> None:
    processes = [start(LOSE, rank, hostfile) for rank in range(2)]
    (_, errors), _ = (process.communicate(timeout=60) for process in processes)
    assert [process.returncode for process in processes] == [2, 9], errors
    assert "error: rank 0 lost another process of the run: [ring]" in errors
    assert "Traceback" not in errors


def test_without_a_launcher_it_says_how_to_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLX_RANK", raising=False)
    monkeypatch.delenv("MLX_HOSTFILE", raising=False)
    with pytest.raises(BackendError, match="mlx.launch --backend ring -n 2 -- python -m core.training"):
        DataParallelConfig().build()


def test_a_broken_hostfile_is_an_error_a_person_can_read(tmp_path: Path) -> None:
    path = tmp_path / "hosts.json"
    path.write_text("[[")
    process = start("import sys\nfrom utils.errors import exit_code_of\n" + BROKEN, 0, path)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2, errors
    assert errors.startswith("error: cannot join the ring of processes: ")


BROKEN = """
import core
from distributed.group import DataParallelConfig
sys.exit(exit_code_of(lambda: DataParallelConfig(timeout_seconds=20).build() and 0))
"""


def test_the_deadline_must_be_positive() -> None:
    with pytest.raises(ValidationError, match="timeout_seconds"):
        DataParallelConfig(timeout_seconds=0)
