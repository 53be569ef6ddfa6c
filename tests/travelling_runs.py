"""Run folders without training: the files of a run and real checkpoints of a few numbers, to be carried about.

`write_run` goes on with a folder that is there as a run would: rows are appended, checkpoints saved and pruned.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from core.checkpoint import (
    BEST,
    LATEST,
    MANIFEST,
    Snapshot,
    checkpoint_name,
    find_damage,
    newest_valid,
    read_checkpoint,
    write_checkpoint,
)
from core.config import to_yaml
from core.run import OWN_FILES
from tests.tiny_run import tiny_config


def write_run(
    folder: Path, *steps: int, best: int | None = None, life: float = 0.0, note: str = "", keep: int = 2, **changes: Any
) -> Path:
    """Let the run in `folder` save `steps` and keep the last two, or `keep`, and the best.

    `life`: stands in weights and losses, so that two lives of one run have others at the same step; `note`: stands in
    the state, as what an evaluation adds to a step that is saved again.
    """
    (folder / "tokenizer").mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer" / "tokenizer.json").write_text(f'{{"life": {life}}}')
    sources = {"sources": [{"type": "jsonl", "path": "corpus.jsonl"}], "cache_dir": "cache"}
    config = tiny_config(folder.parent, name=folder.name, out_dir="runs", data=sources, **changes)
    (folder / "config.yaml").write_text(to_yaml(config))
    (folder / "environment.json").write_text("{}\n")
    first = max((row["step"] for row in rows(folder)), default=0) + 1
    for name in ("metrics.jsonl", "samples.jsonl"):
        with (folder / name).open("a") as file:
            file.writelines(
                json.dumps({"step": step, "train/loss": step + life}) + "\n"
                for step in range(first, max(steps, default=0) + 1)
            )
    with (folder / "log.txt").open("a") as file:
        file.write(f"saved {steps}\n")
    for step in steps:
        snapshot = snapshot_of(step, life, note, is_best=step == best)
        write_checkpoint(folder / "checkpoints", snapshot, folder / "tokenizer", keep_last=keep)
    return folder


def snapshot_of(step: int, life: float, note: str, *, is_best: bool) -> Snapshot:
    """Weights full of the step."""
    weights = {"model.norm.weight": np.full((3, 5), step + life, np.float32)}
    moments = {"optimizer.step": np.array(step, np.uint64)}
    return Snapshot(step, weights, moments, None, {"step": step, "note": note}, {"model_type": "llama"}, is_best)


def rows(folder: Path) -> list[dict[str, Any]]:
    """Of metrics.jsonl."""
    file = folder / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of a run that counts, with its content: no lock, nothing temporary."""
    paths = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    kept = [path for path in paths if path.parts[0] in OWN_FILES - {"lock"} and ".tmp" not in str(path)]
    return {str(path): (folder / path).read_bytes() for path in kept}


def steps_of(folder: Path) -> list[int]:
    """The checkpoints that verify."""
    found = (folder / "checkpoints").glob("step_*")
    return sorted(int(path.name[5:]) for path in found if not find_damage(path))


def pointed(folder: Path) -> tuple[str, str]:
    """What LATEST and BEST name; empty when there is none."""
    files = (folder / "checkpoints" / LATEST, folder / "checkpoints" / BEST)
    latest, best = (file.read_text().strip() if file.exists() else "" for file in files)
    return latest, best


def resumed(folder: Path, scratch: Path) -> float | None:
    """What a run that resumes from a copy of `folder` would go on from: the first weight; None: from step 0.

    Fails when the metrics do not reach that step: the run that goes on would leave a hole. On a volume, checkpoints
    without a manifest are none; here there must not be any.
    """
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(folder, scratch)
    for path in (scratch / "checkpoints").glob("step_*"):
        if "volume" in folder.parts and not (path / MANIFEST).exists():
            shutil.rmtree(path)
    newest = newest_valid(scratch / "checkpoints", lambda line: None)
    if newest is None:
        return None
    restored = read_checkpoint(newest)
    assert {row["step"] for row in rows(scratch)} >= set(range(1, restored.state["step"] + 1))
    return float(restored.model["model.norm.weight"][0, 0])


def manifest(folder: Path, step: int) -> Path:
    """MANIFEST.json of a checkpoint."""
    return folder / "checkpoints" / checkpoint_name(step) / MANIFEST
