"""Evaluation: figures worked out by hand from logits and bytes, and the weights that are evaluated."""

import lzma
import math
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from core.config import Config, build_section
from core.evaluation import Evaluation, Evaluator, compressors, main, report, rows_at_once
from core.loading import load_model
from core.objectives.causal import CausalConfig
from core.objectives.denoise import DenoiseConfig
from core.run import run_folder
from data.batch import Batch
from data.tokenizer import BytesTokenizerConfig
from tests.small_runs import lively, small_config
from tests.tiny_run import metric_rows, quiet_train, tiny_config, tiny_values
from utils.errors import DataError


class Bigrams(nn.Module):
    """Logits that depend on the token alone, so a loop in NumPy gives the same."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.table = mx.array(np.random.default_rng(0).normal(0, 2, (vocabulary, vocabulary)).astype(np.float32))

    def __call__(self, tokens: mx.array, mask: Any) -> mx.array:
        return self.table[tokens]


def byte_dataset(folder: Path) -> Any:
    """Text of one, two and four bytes a character, all of it held out in two documents."""
    (folder / "text.txt").write_text("caf\u00e9 \u20ac5|na\u00efve \U0001f600 ok" * 3, encoding="utf-8")
    data = {
        "type": "text",
        "sources": [{"type": "text", "path": str(folder / "text.txt"), "separator": "|"}],
        "tokenizer": {"type": "bytes"},
        "sequence_length": 16,
        "validation_fraction": 1.0,
        "cache_dir": str(folder / "cache"),
    }
    return build_section(Config, {"data": data}).data.build(0, report=lambda line: None)


def test_loss_and_bits_per_byte_are_those_worked_out_by_hand(tmp_path: Path) -> None:
    dataset = byte_dataset(tmp_path)
    model = Bigrams(dataset.tokenizer.vocab_size)
    objective = CausalConfig().build(dataset.tokenizer.vocab_size)
    evaluator = Evaluator(model, objective, "float32", compiled=False)
    found = evaluator.run(dataset.validation_batches(2), dataset.validation_bytes)
    assert found is not None
    table = np.array(model.table, np.float64)
    log_p = table - np.log(np.exp(table).sum(-1, keepdims=True))
    documents = sorted(set((tmp_path / "text.txt").read_text(encoding="utf-8").split("|")))
    end, nats, num_tokens, num_bytes = BytesTokenizerConfig().build().eos_id, 0.0, 0, 0
    for document in documents:
        ids = [end, *document.encode("utf-8"), end]
        nats -= sum(log_p[before, after] for before, after in zip(ids, ids[1:], strict=False))
        num_tokens += len(ids) - 1
        num_bytes += len(document.encode("utf-8"))
    assert (found.num_tokens, found.num_bytes) == (num_tokens, num_bytes)
    assert num_bytes > sum(len(document) for document in documents)
    np.testing.assert_allclose(found.total_nats, nats, rtol=1e-6)
    np.testing.assert_allclose(found.loss, nats / num_tokens, rtol=1e-6)
    np.testing.assert_allclose(found.perplexity, math.exp(nats / num_tokens), rtol=1e-5)
    np.testing.assert_allclose(found.bits_per_byte, nats / math.log(2) / num_bytes, rtol=1e-6)


def test_figures_of_odd_losses() -> None:
    assert Evaluation(800.0 * 5, 5, 10).perplexity == math.inf
    assert math.isnan(Evaluation(math.nan, 5, 10).perplexity)
    assert Evaluation(math.log(2) * 8, 4, 4).bits_per_byte == pytest.approx(2.0)
    assert set(Evaluation(1.0, 1, 1).as_metrics()) == {
        "eval/loss", "eval/perplexity", "eval/bits_per_byte", "eval/tokens"
    }  # fmt: skip


def test_compressors_are_gzip_and_xz_at_their_best() -> None:
    text = (Path(__file__).read_text() * 2).encode()
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = len(deflate.compress(text) + deflate.flush())
    found = compressors(text)
    assert found.gzip == pytest.approx(8 * (body + 18) / len(text))
    assert found.xz == pytest.approx(8 * len(lzma.compress(text, lzma.FORMAT_XZ, preset=9)) / len(text))
    assert found.xz < found.gzip < 8


def test_the_report_names_every_figure() -> None:
    lines = report(Evaluation(math.log(2) * 300, 100, 150), b"some text " * 15)
    text = "\n".join(lines)
    for name, value in [("perplexity", "8.00"), ("this model", "2.000"), ("held-out text", "150 bytes, 100 tokens")]:
        assert any(name in line and value in line for line in lines), text
    assert "gzip -9" in text
    assert "xz -9" in text


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A short causal run with averaged weights that lag far behind."""
    folder = tmp_path_factory.mktemp("run")
    config = tiny_config(folder, training={"weight_ema": 0.98})
    quiet_train(config)
    return SimpleNamespace(config=config, folder=run_folder(config))


def evaluate_loaded(config: Config, folder: Path, weights: str, batch_size: int) -> Evaluation:
    loaded = load_model(run=folder, weights=weights)
    dataset = config.data.build(config.seed, tokenizer=loaded.tokenizer, report=lambda line: None)
    objective = config.objective.build(loaded.tokenizer.vocab_size)
    evaluator = Evaluator(loaded.model, objective, "float32", compiled=False)
    found = evaluator.run(dataset.validation_batches(batch_size), dataset.validation_bytes)
    assert found is not None
    return found


def test_averaged_weights_are_what_is_evaluated(run: Any) -> None:
    logged = [row["eval/loss"] for row in metric_rows(run.folder) if "eval/loss" in row][-1]
    averaged, raw = (evaluate_loaded(run.config, run.folder, weights, 8) for weights in ("ema", "raw"))
    np.testing.assert_allclose(logged, averaged.loss, rtol=1e-6)
    assert abs(raw.loss - averaged.loss) > 0.01


@pytest.mark.parametrize("objective", [CausalConfig(), DenoiseConfig()])
def test_the_batch_size_does_not_change_the_result(run: Any, objective: Any) -> None:
    dataset = run.config.data.build(run.config.seed, report=lambda line: None)
    vocabulary = dataset.tokenizer.vocab_size
    model = lively(run.config.model.model_copy(update={"vocab_size": vocabulary + 1}).build(seed=0))
    evaluator = Evaluator(model, objective.build(vocabulary), "float32", compiled=False)
    found = [evaluator.run(dataset.validation_batches(size), dataset.validation_bytes) for size in (1, 3, 8, 50)]
    np.testing.assert_allclose([one.loss for one in found if one], found[0].loss if found[0] else 0, rtol=1e-6)
    assert len({one.num_tokens for one in found if one}) == 1


def test_the_command_repeats_what_training_logged(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    last = [row for row in metric_rows(run.folder) if "eval/loss" in row][-1]
    assert main(["--run", str(run.folder)]) == 0
    printed = capsys.readouterr().out
    assert f"{last['eval/loss']:.4f}" in printed
    assert f"{last['eval/bits_per_byte']:.3f}" in printed
    assert main(["--run", str(run.folder), "--weights", "raw", "--batch-size", "3"]) == 0
    assert f"{last['eval/loss']:.4f}" not in capsys.readouterr().out


def test_another_text_is_evaluated_as_a_whole(run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.txt"
    other.write_text("the red dog sees the small \u00e9t\u00e9 " * 20, encoding="utf-8")
    assert main(["--run", str(run.folder), "--data", str(other)]) == 0
    assert f"{len(other.read_bytes()):,} bytes" in capsys.readouterr().out


def test_the_model_trains_on_as_before_after_an_evaluation(tmp_path: Path) -> None:
    """Dropout is off while evaluating and on again behind it."""
    model = nn.Dropout(0.5)
    seen = []

    class Objective:
        def evaluate(self, model: nn.Module, batch: Batch) -> Any:
            seen.append(model.training)
            return SimpleNamespace(total=mx.array(1.0), weight=mx.array(1.0))

    objective: Any = Objective()
    batch = Batch(*(np.zeros((1, 1)) for _ in Batch._fields))
    assert Evaluator(model, objective, "float32", compiled=False).run([batch], 1) is not None
    assert Evaluator(model, objective, "float32", compiled=False).run([batch], 1, lambda: True) is None
    assert seen == [False]
    assert model.training


def test_a_run_without_validation_text_trains_and_says_what_to_give(tmp_path: Path) -> None:
    values = tiny_values(tmp_path)
    values["data"]["validation_fraction"] = 0.0
    values["training"]["duration"] = "4 steps"
    config = build_section(Config, values)
    result = quiet_train(config)
    assert result.evaluation is None
    with pytest.raises(DataError, match="has no validation text: name some with --data FILE"):
        main(["--run", str(run_folder(config))])


def test_rows_at_once_are_those_of_training_or_few_where_it_chose_by_its_memory() -> None:
    for micro, rows in ((None, 32), (16, 16), ("auto", 8)):
        config = small_config(training={"batch_size": 32, "micro_batch_size": micro})
        assert rows_at_once(config) == rows
    assert rows_at_once(small_config(training={"batch_size": 4, "micro_batch_size": "auto"})) == 4
