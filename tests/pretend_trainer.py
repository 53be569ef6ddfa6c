"""Does to a run folder what training does, with the real writer of checkpoints and weights of a few numbers.

For tests of what reads a run folder while it changes. To make it do more, add a method.
"""

import itertools
from pathlib import Path

import numpy as np

from core.checkpoint import MANIFEST, Snapshot, list_checkpoints, write_checkpoint

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
