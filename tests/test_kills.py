"""`kill -9` at random moments of one run: no kill loses it, and in the end it is the run that nothing disturbed.

Half of the kills wait for a random step, half for a save of one to be under way; every life but the first begins with
`--resume`. Compared are parameters, optimizer state, averaged weights, loader position, every logged figure, samples
and pointers, all bit for bit.
"""

import os
import random
import signal
from pathlib import Path

import pytest

from core.checkpoint import ASIDE, BEST, LATEST, TEMPORARY, list_checkpoints
from core.config import load
from tests.processes import TRAIN, num_lines, start, wait_until, write_yaml
from tests.tiny_run import assert_same_run, interrupt_after, losses, metric_rows, quiet_train, tiny_config

CHANGES = {
    "training": {"weight_ema": 0.9, "micro_batch_size": 4},
    "evaluation": {"every": "7 steps", "samples": {"every": "5 steps", "max_tokens": 4}},
    "checkpoint": {"every": "2 steps", "keep_last": 2},
}


def saves_under_way(folder: Path) -> list[Path]:
    """Temporary folders of saves."""
    return list((folder / "checkpoints").glob(f"{TEMPORARY}step_*"))


def live_until_killed(config: Path, folder: Path, step: int, in_a_save: bool, rng: random.Random) -> bool:
    """One life of the run, ended by SIGKILL; whether that hit a save. Fails when the run ended by itself."""
    flags = ["--resume"] if (folder / "config.yaml").exists() else []
    name, before = f"step_{step:08d}", saves_under_way(folder)
    with start(*TRAIN, config, *flags) as process:
        if in_a_save:
            reached = wait_until(process, lambda: any(name <= path.name[5:18] for path in saves_under_way(folder)))
        else:
            reached = wait_until(process, lambda: num_lines(folder / "metrics.jsonl") >= step)
            reached = reached and wait_until(process, iter([False] * rng.randrange(20) + [True]).__next__)
        os.kill(process.pid, signal.SIGKILL) if reached else None
        _, errors = process.communicate()
        assert process.returncode == -signal.SIGKILL, errors
    return not set(saves_under_way(folder)) <= set(before)


def kill_often(folder: Path, num_kills: int, num_steps: int, seed: int) -> int:
    """Train `killed` with kills and `whole` without; compare; the number of kills that hit a save."""
    rng = random.Random(seed)
    duration = {"training": {**CHANGES["training"], "duration": f"{num_steps} steps"}}
    whole, killed = (write_yaml(folder, **(CHANGES | duration), name=name) for name in ("whole", "killed"))
    quiet_train(load(whole))
    steps = sorted(rng.sample(range(1, num_steps - 4), num_kills))
    hits = sum(
        live_until_killed(killed, folder / "runs" / "killed", step, bool(number % 2), rng)
        for number, step in enumerate(steps)
    )
    assert quiet_train(load(killed), resume=True).exit_code == 0
    print(f"seed {seed}: {num_kills} kills at steps {steps}, {hits} during a save")
    assert_same_run(folder / "runs" / "whole", folder / "runs" / "killed")
    assert_same_files(folder / "runs" / "whole", folder / "runs" / "killed")
    return hits


def assert_same_files(whole: Path, killed: Path) -> None:
    """Samples, pointers and the checkpoints kept are equal, nothing temporary is left, and no row is twice there."""
    for name in ("samples.jsonl", f"checkpoints/{BEST}", f"checkpoints/{LATEST}", "tokenizer/tokenizer.json"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes(), name
    kept = [[path.name for path in list_checkpoints(run / "checkpoints")] for run in (whole, killed)]
    assert kept[0] == kept[1]
    assert not list((killed / "checkpoints").glob(f"{TEMPORARY}*"))
    for kind in ("train/loss", "eval/loss"):
        steps = [row["step"] for row in metric_rows(killed) if kind in row]
        assert steps == sorted(set(steps))


def test_a_kill_between_the_two_renames_of_a_replaced_save(tmp_path: Path) -> None:
    """The only checkpoint stands aside, its replacement has no name yet."""
    config = tiny_config(tmp_path, name="killed", checkpoint={"every": None}, evaluation={"every": None})
    interrupt_after(config, step=10)
    checkpoints = tmp_path / "runs" / "killed" / "checkpoints"
    (checkpoints / "step_00000010").rename(checkpoints / f"{ASIDE}step_00000010")
    (checkpoints / f"{TEMPORARY}step_00000010-123").mkdir()
    quiet_train(config, resume=True)
    quiet_train(tiny_config(tmp_path, name="whole", checkpoint={"every": None}, evaluation={"every": None}))
    assert_same_run(tmp_path / "runs" / "whole", tmp_path / "runs" / "killed")


def test_damaged_later_checkpoints_push_no_whole_one_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One is kept: the one just written, not the newer one that was passed over."""
    config = tiny_config(tmp_path, checkpoint={"every": "4 steps", "keep_last": 2, "keep_best": False})
    interrupt_after(config, step=9)
    checkpoints = tmp_path / "runs" / "tiny" / "checkpoints"
    assert [path.name for path in list_checkpoints(checkpoints)] == ["step_00000008", "step_00000009"]
    damaged = checkpoints / "step_00000009"
    (damaged / "optimizer.safetensors").write_bytes(b"")
    damaged.rename(checkpoints / "step_00000019")
    interrupt_after(config, step=13, resume=True)
    assert "step_00000019" in capsys.readouterr().err
    names = [path.name for path in list_checkpoints(checkpoints)]
    assert names == ["step_00000012", "step_00000013", "step_00000019"]
    quiet_train(config, resume=True)
    assert len(losses(tmp_path / "runs" / "tiny")) == 20


def test_three_kills_lose_nothing(tmp_path: Path) -> None:
    kill_often(tmp_path, num_kills=3, num_steps=24, seed=1)


@pytest.mark.slow
def test_twenty_four_kills_lose_nothing(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    assert kill_often(tmp_path, num_kills=24, num_steps=150, seed=seed) > 0
