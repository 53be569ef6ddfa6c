"""The whole road on a small corpus of its own, with the commands a person types.

Train, Ctrl-C, resume, evaluate, generate, plot, export, and the export in mlx-lm; the run that was interrupted is
compared with one that was not. Only what a signal is sent to runs in a process of its own.
"""

import json
import os
import shutil
import signal
from pathlib import Path

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest

from core import evaluation, generation, training
from core.config import load
from core.generation import generate
from core.loading import load_model
from core.training import train
from models.attention.mask import Mask
from tests.commands import call
from tests.processes import TRAIN, finish, num_lines, start, wait_until, write_yaml
from tests.tiny_run import assert_same_run, losses, metric_rows
from tests.tool_files import load_tool

CHANGES = {
    "training": {"duration": "60 steps", "micro_batch_size": 4, "weight_ema": 0.9},
    "evaluation": {"every": "20 steps", "samples": {"every": "20 steps", "prompts": ["the ", "old "], "max_tokens": 5}},
    "checkpoint": {"every": "15 steps"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was interrupted and resumed, `stopped`, beside the same run left alone, `whole`."""
    folder = tmp_path_factory.mktemp("pipeline")
    whole, stopped = (write_yaml(folder, name=name, **CHANGES) for name in ("whole", "stopped"))
    assert training.main(["--config", str(whole)]) == 0
    run_folder = folder / "runs" / "stopped"
    with start(*TRAIN, stopped) as process:
        assert wait_until(process, lambda: num_lines(run_folder / "metrics.jsonl") >= 8), process.communicate()
        os.killpg(process.pid, signal.SIGINT)
        code, _, errors = finish(process)
    assert code == 130, errors
    assert losses(run_folder) == losses(folder / "runs" / "whole")[: len(losses(run_folder))]
    assert len(losses(run_folder)) < 60
    resumed = call(training.main, "--config", stopped, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming from" in resumed.stdout
    assert "try next:" in resumed.stdout
    return folder


@pytest.fixture
def stopped(folder: Path) -> Path:
    return folder / "runs" / "stopped"


def test_the_interrupted_run_is_the_run_left_alone(folder: Path, stopped: Path) -> None:
    assert_same_run(folder / "runs" / "whole", stopped)
    assert (folder / "runs" / "whole" / "samples.jsonl").read_text() == (stopped / "samples.jsonl").read_text()
    assert losses(stopped)[-1] < 0.6 * losses(stopped)[0]


def test_evaluation_says_what_training_said(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluation.main(["--run", str(stopped)]) == 0
    last = [row for row in metric_rows(stopped) if "eval/loss" in row][-1]
    printed = dict(line.rsplit("  ", 1) for line in capsys.readouterr().out.splitlines())
    printed = {name.strip(): value.strip() for name, value in printed.items()}
    assert printed["bits per byte, this model"] == f"{last['eval/bits_per_byte']:.3f}"
    assert printed["loss (nats per token)"] == f"{last['eval/loss']:.4f}"
    assert float(printed["bits per byte, this model"]) < float(printed["bits per byte, gzip -9"])


def test_generation_continues_and_repeats_itself_with_a_seed(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = []
    for _ in range(2):
        generation.main(["--run", str(stopped), "--prompt", "the red", "--max-tokens", "12", "--seed", "3"])
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert texts[0].startswith("the red")
    assert len(texts[0]) > len("the red\n")


def test_the_logs_are_drawn(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["plot-logs.py", str(stopped)])
    load_tool("plot-logs").main()
    assert (stopped / "plots" / "training.png").read_bytes().startswith(b"\x89PNG")


def test_the_export_is_the_same_model_in_mlx_lm(stopped: Path, tmp_path: Path) -> None:
    load_tool("convert-to-mlx-lm").main(["--run", str(stopped), "--out-path", str(tmp_path / "out")])
    model, tokenizer = mlx_lm.load(str(tmp_path / "out"))[:2]
    ours = load_model(run=stopped)
    assert ours.weights == "ema"
    tokens = mx.array([ours.tokenizer.encode("the old dog sees the house under")])
    np.testing.assert_allclose(np.array(model(tokens)), np.array(ours.model(tokens, Mask("causal"))), atol=1e-4)
    theirs = mlx_lm.generate(model, tokenizer, "the red", max_tokens=8)
    text = generate(ours.model, ours.tokenizer, "the red", max_tokens=8, temp=0)[0].text
    assert theirs.lstrip() == text.lstrip()  # mlx-lm drops a leading space when it decodes a continuation.
    assert text.strip()


def test_a_checkpoint_loads_in_mlx_lm_as_it_is(stopped: Path) -> None:
    latest = stopped / "checkpoints" / (stopped / "checkpoints" / "LATEST").read_text().strip()
    model, tokenizer = mlx_lm.load(str(latest))[:2]
    ours = load_model(run=stopped, weights="raw")
    tokens = mx.array([tokenizer.encode("the red house")])
    np.testing.assert_allclose(np.array(model(tokens)), np.array(ours.model(tokens, Mask("causal"))), atol=1e-4)


def test_the_resolved_config_starts_the_same_run_again(folder: Path, stopped: Path) -> None:
    copy = shutil.copy(stopped / "config.yaml", folder / "again.yaml")
    assert training.main(["--config", str(copy), "name=again", "training.compile=false"]) == 0
    assert losses(folder / "runs" / "again") == losses(stopped)
    names = {path.name for path in (folder / "runs" / "again").iterdir()}
    assert {"config.yaml", "environment.json", "metrics.jsonl", "log.txt", "samples.jsonl", "tokenizer"} < names
    assert json.loads((folder / "runs" / "again" / "environment.json").read_text())["packages"]["mlx"]


def test_five_lines_of_python(folder: Path) -> None:
    result = train(load(folder / "whole.yaml", ["name=from-python", "training.duration=20 steps"]))
    loaded = load_model(run=result.folder)
    text = generate(loaded.model, loaded.tokenizer, "the ", max_tokens=5, seed=1)[0].text
    assert result.step == 20
    assert text
