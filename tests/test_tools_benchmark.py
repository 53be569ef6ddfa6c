"""tools/benchmark.py: every suite on a tiny model, one round; what it prints, writes and refuses."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from core import benchmark_suites
from core.benchmark_suites import BARS, SHAPES, SUITES
from core.config import Config, build_section
from optimizers import OPTIMIZERS
from tests.tool_files import load_tool
from utils import machine
from utils.chips import Peak

REPOSITORY = Path(__file__).resolve().parent.parent
MACHINE = {"chip", "backend", "cores", "memory_bytes", "platform", "date", "versions"}


tool: Any = load_tool("benchmark")


@pytest.fixture(autouse=True)
def _quiet_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """No measured peak, so that rows can be checked to the digit; never busy."""
    monkeypatch.setattr(machine, "peak_of", lambda chip, precision: Peak(1e12, "published"))
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))


def benchmark(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[list[dict[str, Any]], str]:
    """The JSON rows and the text that a run on the tiny model prints."""
    assert tool.main([*arguments, "--shape", "tiny", "--rounds", "1", "--warmup", "0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [json.loads(line) for line in lines if line.startswith("{")]
    return rows, "\n".join(line for line in lines if not line.startswith("{"))


def check_ok(rows: list[dict[str, Any]]) -> None:
    """Every row was measured, on one machine, and the variants computed the same."""
    assert [(row["variant"], row["note"]) for row in rows if row["status"] != "ok" or row["note"]] == []
    for row in rows:
        assert row.keys() >= MACHINE
        assert row["seconds"]["min"] <= row["seconds"]["median"] <= row["seconds"]["p90"]


def test_the_step_suite(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    page, file = tmp_path / "page.md", tmp_path / "rows.jsonl"
    page.write_text("# Figures\n")
    chosen = ("--only", "ours*", "--only", "bare*", "--only", "mlx-lm*")
    rows, text = benchmark(capsys, "step", *chosen, "--bars", "--json", str(file), "--append", str(page))
    check_ok(rows)
    names = ["ours", "ours, savers off", "ours, savers on", "bare MLX", "mlx-lm + OpenBLAS"]
    assert [row["variant"] for row in rows] == names
    shape = SHAPES["tiny"]
    for row in rows:
        assert (row["model"], row["batch"], row["length"]) == ("tiny", shape.batch_size, shape.length)
        tokens = shape.batch_size * shape.length
        assert row["tokens_per_second"] == pytest.approx(tokens / row["seconds"]["median"])
        assert row["mfu"] == pytest.approx(row["flops_per_token"] * row["tokens_per_second"] / 1e12)
        assert (row["peak_flops"], row["peak_origin"]) == (1e12, "published")
        assert row["peak_bytes"] > row["active_bytes"] > 0
        assert row["compiled_variants"] == 1
    assert rows[0]["seconds_ratio"] == rows[0]["peak_bytes_ratio"] == 1.0
    assert [json.loads(line) for line in file.read_text().splitlines()] == rows
    assert page.read_text().startswith("# Figures\n\n### ")
    assert page.read_text().count("\n| ") == len(rows) + 2
    assert "compiled variants of our step" in text
    assert text.count("not measured") == len(BARS) - 6
    assert all(("plan_error" in row) == row["variant"].startswith("ours") for row in rows)


def test_checkpointing_loss_and_attention(capsys: pytest.CaptureFixture[str]) -> None:
    rows, _ = benchmark(capsys, "memory")
    check_ok(rows)
    assert [row["variant"] for row in rows] == ["none", "every 2", "all"]
    rows, _ = benchmark(capsys, "loss", "--only", "plain", "--only", "128", "--only", "mx.nn")
    check_ok(rows)
    assert all(0 < row["peak_above_bytes"] < row["peak_bytes"] for row in rows)
    rows, text = benchmark(capsys, "attention", "--only", "window*")
    check_ok(rows)
    assert {row["case"] for row in rows} == {"window 32 of 128"}
    assert [row["variant"] for row in rows] == ["simple", "flash", "flex", "mx.fast"]
    assert "time x" in text


def test_optimizer_data_and_generation(capsys: pytest.CaptureFixture[str]) -> None:
    rows, _ = benchmark(capsys, "optimizer")
    check_ok(rows)
    assert len(rows) == len(OPTIMIZERS)
    by_name = {row["variant"]: row for row in rows}
    assert rows[0]["variant"] == "adamw"
    # Two float32 moments of every parameter, the step and the schedule.
    assert by_name["adamw"]["state_bytes"] == 2 * 4 * by_name["adamw"]["parameters"] + 12
    rows, _ = benchmark(capsys, "data")
    check_ok(rows)
    assert [row["length"] for row in rows] == [256, 1024]
    assert all(0.9 < row["packed_fraction"] <= 1 for row in rows)
    rows, _ = benchmark(capsys, "generate", "--only", "ours")
    check_ok(rows)
    assert rows[0]["prefill_tokens_per_second"] > 0
    assert rows[0]["decode_tokens_per_second"] > 0


def test_peers_that_are_absent_or_cannot_do_it_are_listed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    bare.chmod(0o755)
    rows, text = benchmark(capsys, "step", "--only", "PyTorch*", "--peer-python", str(bare))
    assert [(row["status"], row["note"]) for row in rows] == [("absent", "torch is not installed")]
    assert "PyTorch eager (absent)" in text
    rows, _ = benchmark(capsys, "step", "--only", "mlx-lm*", "--only", "*compile", "objective={type: denoise}")
    assert [row["status"] for row in rows] == ["skipped", "skipped"]
    assert "only we train objective 'denoise'" in rows[0]["note"]


@pytest.mark.slow
def test_pytorch_computes_the_same_loss(capsys: pytest.CaptureFixture[str]) -> None:
    """On our weights, eager and compiled; a parameter that differs would be an error."""
    rows, _ = benchmark(capsys, "step", "--only", "ours", "--only", "PyTorch eager", "--only", "torch.compile")
    assert [row["variant"] for row in rows] == ["ours", "PyTorch eager", "torch.compile"]
    check_ok(rows)


def test_a_config_of_ones_own(tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    model = "{hidden_size: 32, num_attention_heads: 2, num_hidden_layers: 1, intermediate_size: 64}"
    config.write_text(f"model: {model}\ntraining: {{batch_size: 8, micro_batch_size: 2}}\n")
    overrides = ["data.tokenizer={type: bpe, vocab_size: 300}", "seed=7"]
    options = tool.parse_arguments(["step", "--config", str(config), *overrides])
    read, path = tool.read_config(options, tmp_path)
    assert (read.seed, read.optimizer.type, read.model.vocab_size) == (7, "adamw", 300)
    assert (read.rows_per_batch, read.given_micro_batch_size) == (2, None)
    assert tool.load(path) == read


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["speed"], "invalid choice: 'speed'"),
        (["step", "--shape", "7b"], "invalid choice: '7b'"),
        (["step", "--rounds", "0"], "--rounds is 0, must be at least 1"),
        (["step", "--warmup", "-1"], "--warmup is -1"),
        (["step", "--timeout", "0"], "--timeout is 0.0"),
        (["step", "--peer-python", "/nowhere/python"], "there is no program /nowhere/python"),
        (["step", "--append", "/nowhere/page.md"], "there is no file /nowhere/page.md"),
        (["step", "--shape", "tiny", "model.hiden_size=3"], "model.hiden_size: unknown key (did you mean"),
        (["step", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["step", "--only", "nobody", "--shape", "tiny"], "--only nobody matches no variant and no case of suite step"),
    ],
)
def test_mistakes_are_one_error_line(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as ending:
        tool.run_command(lambda: tool.main(arguments))
    told = capsys.readouterr()
    assert ending.value.code == 2
    assert told.err.startswith("error: ")
    assert message in told.err
    assert told.err.count("\n") == 1


def test_the_newton_schulz_suite(capsys: pytest.CaptureFixture[str]) -> None:
    rows, text = benchmark(capsys, "newton-schulz")
    check_ok(rows)
    assert [(row["case"], row["variant"]) for row in rows] == [
        (case, kind) for case in ("llama", "GPT-2") for kind in ("mlx.optimizers.Muon", "ours")
    ]
    for theirs, ours in (rows[:2], rows[2:]):
        assert theirs["parameters"] == ours["parameters"]
        assert ours["kernels"] < ours["nodes"] < theirs["nodes"]
    assert rows[0]["parameters"] == 2 * (4 * 24 * 24 + 3 * 24 * 64)
    assert "nodes" in text


def test_the_share_suite(capsys: pytest.CaptureFixture[str]) -> None:
    """The worker that measures every row for the optimizer suite is the one that measures them here."""
    few = [benchmark_suites.WHOLE, "adamw", "sgd", "soap"]
    rows, _ = benchmark(capsys, "share", *(word for name in few for word in ("--only", name)))
    check_ok(rows)
    assert sorted(row["variant"] for row in rows) == sorted(few)
    by_name = {row["variant"]: row for row in rows}
    assert by_name["sgd"]["state_bytes"] < by_name["adamw"]["state_bytes"] < by_name["soap"]["state_bytes"]


def test_every_bar_names_what_a_suite_measures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(benchmark_suites, "save_model", lambda work: tmp_path)
    options = tool.parse_arguments(["all"])
    config, path = tool.read_config(options, tmp_path)
    work = benchmark_suites.Work(config, path, tmp_path, machine.describe_machine({"float32"}), "openblas", "python")
    names = {f"{case.suite}/{case.name}": [v.name for v in case.variants] for s in SUITES.values() for case in s(work)}
    assert sorted(names["optimizer/update"]) == sorted(OPTIMIZERS)
    (share,) = (variants for case, variants in names.items() if case.startswith("share/"))
    assert share == [benchmark_suites.WHOLE, *OPTIMIZERS]
    assert sum(case.startswith("attention/") for case in names) == 5 + 1
    for bar in BARS:
        assert {bar.over, bar.under} - {None} <= set(names[bar.case])


def test_the_shapes_are_what_they_are_called() -> None:
    sizes = {name: build_section(Config, shape.values(name)).model.num_params() for name, shape in SHAPES.items()}
    assert sizes["34m"] == 33_826_176
    assert round(sizes["124m"] / 1e6) == 124
    assert round(sizes["350m"] / 1e6) == 350


@pytest.mark.parametrize("suite", ["tokenise", "duplicates", "loader"])
def test_the_suites_of_data(capsys: pytest.CaptureFixture[str], suite: str) -> None:
    rows, text = benchmark(capsys, suite, "--bars")
    check_ok(rows)
    by_suite = {
        "tokenise": ["encode_batch", "encode_batch_fast", "shards"],
        "duplicates": ["ours", "ours"],
        "loader": ["1 worker", "0 workers", "2 workers"],
    }
    assert [row["variant"] for row in rows] == by_suite[suite]
    if suite == "tokenise":
        assert len({row["num_ids"] for row in rows}) == 1
    judged = {"tokenise": "tokenise and shard", "duplicates": "recall", "loader": "packed rows"}[suite]
    (line,) = (line for line in text.splitlines() if judged in line)
    assert "not measured" not in line


@pytest.mark.slow
def test_the_preparation_suite(capsys: pytest.CaptureFixture[str]) -> None:
    rows, _ = benchmark(capsys, "prepare")
    check_ok(rows)
    assert rows[0]["peak_bytes"] > 5e7
    assert rows[0]["planted_copies"] > 5
