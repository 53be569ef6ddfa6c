"""Does to a run folder what training does, with the real writer of checkpoints and weights of a few numbers.

For tests of what reads a run folder while it changes, with what must hold of its copy at any time. To make it do more,
add a method.
"""

import itertools
from pathlib import Path

import numpy as np

from core.checkpoint import MANIFEST, Snapshot, find_damage, list_checkpoints, write_checkpoint
from core.remote_mirror import STAGED, restore
from utils.metrics import read_metrics

NUMBERS = itertools.count()


class Trainer:
    """Does to a run folder what training does; remembers every checkpoint it has ever written."""

    def __init__(self, folder: Path, keep_last: int = 2) -> None:
        self.folder, self.keep_last, self.step = folder, keep_last, 0
        self.written: set[tuple[str, bytes]] = set()
        (folder / "tokenizer").mkdir(parents=True)
        (folder / "tokenizer" / "tokenizer.json").write_text("{}")
        (folder / "tokenizer" / "tokenizer_config.json").write_text("{}")
        (folder / "config.yaml").write_text("name: one\n")
        (folder / "lock").write_text("process 1")

    def save(self, *, is_best: bool = False, weight: float | None = None) -> None:
        """One more step: its row, then its checkpoint, then what is pruned."""
        self.step += 1
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(f'{{"step": {self.step}, "tokens": 1, "time": 0.5}}\n')
        self.save_again(is_best=is_best, weight=weight)

    def save_again(self, *, is_best: bool = True, weight: float | None = None) -> None:
        """The same step with other counters, as after an evaluation."""
        weights = {"model.norm.weight": np.full((5, 7), weight or self.step, np.float32)}
        state = {"step": self.step, "saved": next(NUMBERS) if weight is None else 0}
        snapshot = Snapshot(self.step, weights, weights, None, state, {"model_type": "llama"}, is_best)
        path = write_checkpoint(self.folder / "checkpoints", snapshot, self.folder / "tokenizer", self.keep_last)
        self.written.add((path.name, (path / MANIFEST).read_bytes()))


def content(folder: Path) -> dict[str, bytes]:
    """Every file that travels, by relative name."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "lock"
    }


def steps(folder: Path) -> list[int]:
    """Of its checkpoint folders."""
    return [int(path.name.removeprefix("step_")) for path in list_checkpoints(folder / "checkpoints")]


def flip(path: Path) -> None:
    """One bit of a file."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def assert_restorable(trainer: Trainer, mount: Path, folder: Path, at_least: int) -> int:
    """What comes back from the volume is a run that training wrote, no older than `at_least`; its step."""
    warnings: list[str] = []
    step = restore(mount, folder, warnings.append)
    assert warnings == []
    assert (step or 0) >= at_least
    if step is None:
        assert not folder.exists()
        return 0
    for checkpoint in list_checkpoints(folder / "checkpoints"):
        assert find_damage(checkpoint) == []
        assert (checkpoint.name, (checkpoint / MANIFEST).read_bytes()) in trainer.written
    assert (folder / "checkpoints" / "LATEST").read_text() == f"step_{step:08d}\n"
    best = folder / "checkpoints" / "BEST"
    assert not best.exists() or (best.parent / best.read_text().strip()).is_dir()
    rows = [row["step"] for row in read_metrics(folder / "metrics.jsonl")]
    assert rows[:step] == list(range(1, step + 1))
    assert (folder / "tokenizer" / "tokenizer.json").exists()
    return step


def assert_whole(trainer: Trainer, mount: Path) -> None:
    """Each checkpoint that looks complete is, and the pointers name such; one half replaced can yet be finished."""
    folder = mount / "checkpoints"
    for path in list_checkpoints(folder):
        if (path / MANIFEST).exists() and not (path / STAGED).exists():
            assert find_damage(path) == []
    for pointer in (folder / "LATEST", folder / "BEST"):
        assert not pointer.exists() or (folder / pointer.read_text().strip() / MANIFEST).is_file()
    if (mount / "tokenizer" / "tokenizer.json").exists():
        assert content(mount / "tokenizer").items() >= content(trainer.folder / "tokenizer").items()


def assert_equal(trainer: Trainer, mount: Path) -> None:
    assert content(mount) == content(trainer.folder)
