"""Losses of the first 20 updates, written down: what no other test notices moves these numbers.

`make golden` rewrites tests/golden/; the commit that does says why they moved. Written in float32 on an x86-64 CPU
under Linux; other kernels (Metal, CUDA, Accelerate) round otherwise and are held to a wider tolerance.
"""

import json
import os
import platform
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from core.run import run_folder
from tests.tiny_run import TINY_QWEN3, losses, metric_rows, quiet_train, tiny_config

FOLDER = Path(__file__).parent / "golden"
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"type": "llama"},
    "qwen3": TINY_QWEN3,
}
CASES = [(model, objective, "adamw") for model in MODELS for objective in ("causal", "denoise")]
CASES += [("llama", "causal", optimizer) for optimizer in ("muon", "lion", "sgd")]
IS_SAME_CLASS = platform.machine() == "x86_64" and mx.default_device().type == mx.DeviceType.cpu
TOLERANCE = 1e-5 if IS_SAME_CLASS else 1e-3
RATES = {"adamw": 1e-2, "muon": 1e-2, "lion": 1e-3, "sgd": 0.1}


def figures(model: str, objective: str, optimizer: str, folder: Path) -> dict[str, Any]:
    """Losses of 20 updates and the validation losses among them."""
    config = tiny_config(
        folder,
        model=MODELS[model],
        objective={"type": objective},
        optimizer={"type": optimizer, "learning_rate": RATES[optimizer]},
        data={"tokenizer": {"type": "bytes"}},
        training={"micro_batch_size": 4},
    )
    quiet_train(config)
    rows = metric_rows(run_folder(config))
    return {
        "train/loss": losses(run_folder(config)),
        "eval/loss": [row["eval/loss"] for row in rows if "eval/loss" in row],
    }


@pytest.mark.parametrize(("model", "objective", "optimizer"), CASES)
def test_golden_losses(model: str, objective: str, optimizer: str, tmp_path: Path) -> None:
    found = figures(model, objective, optimizer, tmp_path)
    path = FOLDER / f"{model}-{objective}-{optimizer}.json"
    if os.environ.get("PIPPIN_WRITE_GOLDEN") == "1":
        FOLDER.mkdir(exist_ok=True)
        rounded = {name: [float(f"{value:.9g}") for value in values] for name, values in found.items()}
        path.write_text(json.dumps(rounded, indent=1) + "\n")
    expected = json.loads(path.read_text())
    assert len(found["train/loss"]) == 20
    for name, values in found.items():
        np.testing.assert_allclose(values, expected[name], rtol=TOLERANCE, err_msg=f"{name}: see `make golden`")


def test_every_golden_file_belongs_to_a_case() -> None:
    names = {f"{model}-{objective}-{optimizer}.json" for model, objective, optimizer in CASES}
    assert {path.name for path in FOLDER.iterdir()} == names
