"""A disk that fills up in the middle of a run: one error line, exit code 2, earlier checkpoints whole, and on it goes.

The disk is played by RLIMIT_FSIZE, which makes a write fail half-way without needing root; a slow test fills a real
file system where it may mount one. Space does not run out in a checkpoint only: every file of a run has its turn.
"""

import contextlib
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from core.checkpoint import TEMPORARY, find_damage, list_checkpoints
from core.config import load
from tests.processes import TRAIN, finish, num_lines, run, start, wait_until, write_yaml
from tests.tiny_run import assert_same_run, quiet_train, tiny_config

SAVES = {"checkpoint": {"every": "2 steps"}}


def largest_file(num_bytes: int) -> Callable[[], None]:
    """For `preexec_fn`: no file of the child may grow beyond."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))


def assert_one_error(code: int, errors: str) -> str:
    """The one line."""
    assert code == 2, errors
    lines = [line for line in errors.splitlines() if not line.startswith("warning: ")]
    assert len(lines) == 1, errors
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that had room, and its folder with prepared data."""
    folder = tmp_path_factory.mktemp("disk")
    quiet_train(tiny_config(folder, name="whole", **SAVES))
    return folder


def test_a_save_that_does_not_fit_leaves_the_ones_before(whole: Path) -> None:
    """A limit between the sizes of model and optimizer: the save fails after its first file."""
    config = write_yaml(whole, name="cut", **SAVES)
    run_folder = whole / "runs" / "cut"
    sizes = {
        path.name: path.stat().st_size
        for path in list_checkpoints(whole / "runs" / "whole" / "checkpoints")[-1].iterdir()
    }
    quiet_train(load(config, ["training.duration=20 steps"]))
    before = list_checkpoints(run_folder / "checkpoints")
    limit = (sizes["model.safetensors"] + sizes["optimizer.safetensors"]) // 2
    code, _, errors = run(*TRAIN, config, "--resume", "training.duration=30 steps", preexec_fn=largest_file(limit))
    assert "cannot save to" in assert_one_error(code, errors)
    assert list_checkpoints(run_folder / "checkpoints") == before
    assert not list((run_folder / "checkpoints").glob(f"{TEMPORARY}*"))
    assert [damage for checkpoint in before for damage in find_damage(checkpoint)] == []
    assert quiet_train(load(config), resume=True).exit_code == 0
    assert_same_run(whole / "runs" / "whole", run_folder)


@pytest.mark.parametrize("num_bytes", [10, 300, 1500, 3000, 30_000])
def test_a_disk_that_is_full_from_the_start_is_one_error_line(whole: Path, num_bytes: int) -> None:
    """Config, environment, tokenizer, log, metrics: whichever comes first. With room again the same command works."""
    config = write_yaml(whole, name=f"start-{num_bytes}", **SAVES)
    code, _, errors = run(*TRAIN, config, preexec_fn=largest_file(num_bytes))
    assert_one_error(code, errors)
    run_folder = whole / "runs" / f"start-{num_bytes}"
    begun = (run_folder / "config.yaml").exists()
    assert quiet_train(load(config), resume=begun).exit_code == 0
    assert_same_run(whole / "runs" / "whole", run_folder)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of four megabytes, where this process may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    mountable = hasattr(os, "geteuid") and os.geteuid() == 0 and Path("/bin/mount").exists()
    if not mountable or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("cannot mount a file system here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
def test_a_real_disk_fills_up(whole: Path, small_disk: Path) -> None:
    """The rest of the disk goes to another file while the run is under way; then it is given back."""
    run_folder = small_disk / "tiny"
    config = write_yaml(whole, name="tiny", out_dir=str(small_disk), training={"duration": "100000 steps"}, **SAVES)
    with start(*TRAIN, config) as process:
        assert wait_until(process, lambda: num_lines(run_folder / "metrics.jsonl") >= 10), process.communicate()
        ballast = small_disk / "ballast"
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(4096)):
                pass
        code, _, errors = finish(process)
    assert "the disk is full" in assert_one_error(code, errors)
    saved = list_checkpoints(run_folder / "checkpoints")
    assert saved
    assert [damage for checkpoint in saved for damage in find_damage(checkpoint)] == []
    ballast.unlink()
    last = int(saved[-1].name.removeprefix("step_"))
    code, _, errors = run(*TRAIN, config, "--resume", f"training.duration={last + 5} steps")
    assert code == 0, errors
