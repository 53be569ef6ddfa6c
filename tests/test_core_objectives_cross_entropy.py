"""What causal and denoise share: both paths through a model agree, validation stays cross-entropy alone, and settings
that cannot work are refused."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from core.config import Config, build_section
from core.evaluation import number
from core.objectives.causal import CausalConfig
from core.objectives.denoise import DenoiseConfig
from core.objectives.linear_cross_entropy import linear_cross_entropy
from core.run import run_folder
from data.batch import Batch
from models.attention.mask import Mask
from tests.small_runs import small_model
from tests.tiny_run import assert_same_run, interrupt_after, losses, metric_rows, quiet_train, tiny_config
from utils.errors import ConfigError

NUM_TOKENS = 40
OBJECTIVES = {"causal": CausalConfig, "denoise": DenoiseConfig}
ADDED = {"z_loss": 0.01, "label_smoothing": 0.1}


def make_batch(num_rows: int = 4, length: int = 9, seed: int = 0) -> Batch:
    """Random pairs; the last row is padding, the one before half so."""
    rng = np.random.default_rng(seed)
    tokens, targets = rng.integers(0, NUM_TOKENS, (2, num_rows, length)).astype(np.int32)
    segments = np.ones((num_rows, length), np.int32)
    segments[-1], segments[-2, 4:] = 0, 0
    keys = rng.integers(0, 2**32, (num_rows, 2), dtype=np.uint32)
    weights = (segments > 0).astype(np.float32)
    return Batch(*(mx.array(array) for array in (tokens, targets, weights, segments, keys)))


class OnlyCalls:
    """A model of a person's own: `__call__` and nothing else."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, tokens: mx.array, mask: Mask) -> mx.array:
        self.tokens, self.mask = tokens, mask
        return self.model(tokens, mask)


def loss_and_gradients(objective: Any, model: Any, batch: Batch) -> tuple[Any, dict[str, np.ndarray]]:
    found = []

    def total(parameters: Any) -> mx.array:
        model.update(parameters)
        found.append(objective(model, batch))
        return found[-1].total

    parameters = model.trainable_parameters()
    gradients: Any = tree_flatten(mx.grad(total)(parameters))
    model.update(parameters)
    return objective(model, batch), {name: np.array(array) for name, array in gradients}


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": False, "final_logit_softcapping": 2.0}], ids=str)
@pytest.mark.parametrize("added", [{}, ADDED], ids=str)
@pytest.mark.parametrize("kind", OBJECTIVES)
def test_a_loss_in_chunks_trains_every_parameter_alike(
    kind: str, added: dict[str, Any], changes: dict[str, Any]
) -> None:
    """The last id of the model is denoise's mask, which is never predicted."""
    model, batch = small_model(NUM_TOKENS + 1, **changes), make_batch()
    plain, chunked = (OBJECTIVES[kind](chunk_size=size, **added).build(NUM_TOKENS) for size in (None, 7))
    expected, expected_gradients = loss_and_gradients(plain, model, batch)
    loss, gradients = loss_and_gradients(chunked, model, batch)
    assert loss.metrics.keys() == expected.metrics.keys()
    for a, b in ((loss.total, expected.total), (loss.weight, expected.weight)):
        np.testing.assert_allclose(number(a), number(b), rtol=1e-5)
    for name, value in expected.metrics.items():
        np.testing.assert_allclose(number(loss.metrics[name]), number(value), rtol=1e-5)
    for name, gradient in expected_gradients.items():
        np.testing.assert_allclose(gradients[name], gradient, atol=1e-5 * np.abs(gradient).max(), err_msg=name)
    for objective in (plain, chunked):
        total = number(objective.evaluate(model, batch).total)
        np.testing.assert_allclose(total, number(plain.evaluate(OnlyCalls(model), batch).total), rtol=1e-5)


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_one_batch_is_the_sum_of_its_micro_batches(kind: str) -> None:
    model, batch = small_model(NUM_TOKENS + 1), make_batch(num_rows=8)
    objective = OBJECTIVES[kind](chunk_size=10, **ADDED).build(NUM_TOKENS)
    whole, gradients = loss_and_gradients(objective, model, batch)
    parts = [
        loss_and_gradients(objective, model, Batch(*(array[first : first + 2] for array in batch)))
        for first in range(0, 8, 2)
    ]
    totals = [[number(value) for value in (loss.total, loss.weight, *loss.metrics.values())] for loss, _ in parts]
    expected = [number(value) for value in (whole.total, whole.weight, *whole.metrics.values())]
    np.testing.assert_allclose(np.sum(totals, axis=0), expected, rtol=1e-5)
    for name, gradient in gradients.items():
        summed = sum(part[name] for _, part in parts)
        np.testing.assert_allclose(summed, gradient, atol=1e-5 * np.abs(gradient).max(), err_msg=name)


@pytest.mark.parametrize("kind", OBJECTIVES)
@pytest.mark.parametrize("chunk_size", [None, 7])
def test_validation_is_cross_entropy_alone_and_training_says_it_too(kind: str, chunk_size: int | None) -> None:
    model, batch = small_model(NUM_TOKENS + 1), make_batch()
    bare = OBJECTIVES[kind](chunk_size=chunk_size).build(NUM_TOKENS)
    added = OBJECTIVES[kind](chunk_size=chunk_size, **ADDED).build(NUM_TOKENS)
    assert number(added.evaluate(model, batch).total) == number(bare.evaluate(model, batch).total)
    loss, alone = added(model, batch), bare(model, batch)
    assert added.evaluate(model, batch).metrics.keys() == alone.metrics.keys()
    assert loss.metrics.keys() - alone.metrics.keys() == {"z_loss", "cross_entropy"}
    np.testing.assert_allclose(number(loss.metrics["cross_entropy"]), number(alone.total), rtol=1e-6)
    assert abs(number(loss.total) - number(alone.total)) > 0.1


def test_label_smoothing_alone_reports_cross_entropy() -> None:
    objective: Any = CausalConfig(label_smoothing=0.1).build(NUM_TOKENS)
    assert objective(small_model(NUM_TOKENS), make_batch()).metrics.keys() == {"cross_entropy"}


def test_a_model_without_a_backbone_takes_the_plain_path_or_says_why_not() -> None:
    model, batch = small_model(NUM_TOKENS), make_batch()
    own: Any = OnlyCalls(model)
    expected = number(CausalConfig(chunk_size=None).build(NUM_TOKENS)(model, batch).total)
    for size in ("auto", None):
        assert number(CausalConfig(chunk_size=size).build(NUM_TOKENS)(own, batch).total) == expected
    with pytest.raises(ConfigError, match=r"chunk_size is 8, and OnlyCalls lacks .* auto or null.*head_weight"):
        CausalConfig(chunk_size=8).build(NUM_TOKENS)(own, batch)


def test_auto_takes_chunks_where_logits_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    objective: Any = CausalConfig().build(NUM_TOKENS)
    model = small_model(NUM_TOKENS)
    asked = []

    def choose(*arguments: Any) -> int | None:
        asked.append(arguments)
        return 5

    assert objective.chunk_size(model, 100) is None
    monkeypatch.setattr("core.objectives.cross_entropy.auto_chunk_size", choose)
    assert objective.chunk_size(model, 100) == 5
    assert asked == [(100, NUM_TOKENS, mx.default_device().type == mx.DeviceType.gpu)]


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_gradients_are_made_for_training_alone(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def watch(*arguments: Any, differentiable: bool, **options: Any) -> Any:
        made.append(differentiable)
        return linear_cross_entropy(*arguments, differentiable=differentiable, **options)

    monkeypatch.setattr("core.objectives.cross_entropy.linear_cross_entropy", watch)
    objective, model, batch = (
        OBJECTIVES[kind](chunk_size=8).build(NUM_TOKENS),
        small_model(NUM_TOKENS + 1),
        make_batch(),
    )
    objective(model, batch)
    objective.evaluate(model, batch)
    assert made == [True, False]


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_a_model_that_reads_segments_gets_them(kind: str) -> None:
    own: Any = OnlyCalls(small_model(NUM_TOKENS + 1))
    objective, batch = OBJECTIVES[kind]().build(NUM_TOKENS), make_batch()
    objective(own, batch)
    assert own.mask.segments is None
    own.needs_segments = True
    for method in (objective, objective.evaluate):
        method(own, batch)
        assert own.mask.segments is batch.segments


@pytest.mark.parametrize("values", [{"chunk_size": 0}, {"chunk_size": -4}], ids=str)
def test_a_chunk_of_nothing_is_refused_with_a_remedy(values: dict[str, Any]) -> None:
    for kind in OBJECTIVES:
        with pytest.raises(ConfigError, match=rf"chunk_size is {values['chunk_size']}; give .* auto, or null"):
            build_section(Config, {"name": "x", "objective": {"type": kind, **values}})


@pytest.mark.parametrize("values", [{"z_loss": -0.1}, {"label_smoothing": 1.0}, {"label_smoothing": -0.1}], ids=str)
def test_settings_out_of_range_are_refused(values: dict[str, Any]) -> None:
    for kind in OBJECTIVES:
        with pytest.raises(ConfigError, match=next(iter(values))):
            build_section(Config, {"name": "x", "objective": {"type": kind, **values}})


def test_a_run_in_chunks_is_the_plain_run_logs_what_it_adds_and_resumes(tmp_path: Path) -> None:
    def config(name: str, **objective: Any) -> Config:
        sections = {"objective": {"type": "causal", **objective}, "training": {"micro_batch_size": 4}}
        return tiny_config(tmp_path, name=name, **sections)

    plain, chunked, resumed = (
        config("plain", chunk_size=None, **ADDED),
        config("chunked", chunk_size=50, **ADDED),
        config("resumed", chunk_size=50, **ADDED),
    )
    for each in (plain, chunked):
        quiet_train(each)
    interrupt_after(resumed, 7)
    quiet_train(resumed, resume=True)
    np.testing.assert_allclose(losses(run_folder(chunked)), losses(run_folder(plain)), rtol=1e-4)
    rows = [row for row in metric_rows(run_folder(chunked)) if "train/loss" in row]
    for row in rows:
        assert row["train/loss"] > row["train/cross_entropy"] + row["train/z_loss"] > row["train/cross_entropy"]
    assert_same_run(run_folder(chunked), run_folder(resumed))
