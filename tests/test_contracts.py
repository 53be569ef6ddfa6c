"""Every row of every table keeps its contract: it builds from defaults, its config survives the round trip, every
optimizer moves every parameter, and every objective trains every model. A new row is tested the day it is added."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import pytest
from mlx.utils import tree_flatten, tree_map

from core.config import Config, build_section, dump, load, to_yaml
from core.evaluation import number
from core.objectives import OBJECTIVES
from data import DATASETS, FILTERS, SOURCES, TOKENIZERS
from distributed import DISTRIBUTED
from models import MODELS
from models.attention import ATTENTION
from models.attention.mask import Mask
from optimizers import OPTIMIZERS, SCHEDULES
from optimizers.schedules import Timeline
from tests.first_steps import take_steps
from tests.small_runs import lively
from tests.tiny_run import quiet_train, tiny_config
from tests.update_oracles import peak_of_update
from utils.errors import BackendError
from utils.registry import import_object, look_up

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
}
REQUIRED: dict[str, dict[str, Any]] = {
    "jsonl": {"path": "corpus.jsonl"},
    "text": {"path": "corpus.txt"},
    "markdown": {"path": "corpus.md"},
    "tree": {"path": "checkout"},
    "parquet": {"path": "corpus.parquet"},
    "hub": {"dataset": "someone/something"},
    "file": {"path": "tokenizer.json"},
    "shards": {"path": "prepared"},
}
"""What a row cannot be built without."""
TABLES: dict[str, dict[str, str]] = {
    "model": MODELS,
    "objective": OBJECTIVES,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "distributed": DISTRIBUTED,
    "data": DATASETS,
}
"""Tables whose rows are root sections of a config."""
LEARNING_RATES = {"sgd": 0.5, "lion": 1e-3}
"""Where 1e-2 would be far off."""
ALL_TABLES: dict[str, dict[str, str]] = {
    **TABLES,
    "attention": ATTENTION,
    "source": SOURCES,
    "tokenizer": TOKENIZERS,
    "filter": FILTERS,
}
ROWS = [(kind, name) for kind, table in ALL_TABLES.items() for name in table]


def section_values(kind: str, name: str) -> dict[str, Any]:
    needs_more = kind in ("source", "tokenizer") or (kind, name) == ("data", "shards")
    return {"type": name, **(REQUIRED.get(name, {}) if needs_more else {})}


def as_config(kind: str, values: dict[str, Any]) -> Config:
    """A whole config whose only given values are those of this row."""
    wrapped: dict[str, Any] = {
        "attention": {"model": {"attention": values}},
        "source": {"data": {"sources": [values]}},
        "tokenizer": {"data": {"tokenizer": values}},
        "filter": {"data": {"filters": [values]}},
    }.get(kind, {kind: values})
    return build_section(Config, wrapped)


def row_of(kind: str, config: Config) -> Any:
    """The section of that row."""
    if kind == "attention":
        return config.model.attention  # pyright: ignore[reportAttributeAccessIssue]
    if kind == "source":
        return config.data.sources[0]  # pyright: ignore[reportAttributeAccessIssue]
    if kind == "filter":
        return config.data.filters[0]  # pyright: ignore[reportAttributeAccessIssue]
    return config.data.tokenizer if kind == "tokenizer" else getattr(config, kind)  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(("kind", "name"), ROWS)
def test_a_row_builds_from_defaults_and_survives_the_round_trip(kind: str, name: str) -> None:
    config = as_config(kind, section_values(kind, name))
    section = row_of(kind, config)
    assert type(section) is look_up(ALL_TABLES[kind], name, kind)
    assert section.type == name
    assert build_section(Config, dump(config)) == config


@pytest.mark.parametrize(("kind", "name"), ROWS)
def test_a_written_config_loads_back(kind: str, name: str, tmp_path: Path) -> None:
    config = as_config(kind, section_values(kind, name))
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    assert load(path) == config


@pytest.mark.parametrize(("kind", "name"), ROWS)
def test_every_field_of_a_row_is_documented(kind: str, name: str) -> None:
    section = import_object(ALL_TABLES[kind][name])
    assert section.__doc__
    assert [field for field, info in section.model_fields.items() if not info.description] == []


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_what_its_config_says(name: str) -> None:
    config = as_config("model", {"type": name, **SIZES, "vocab_size": 50}).model
    model, other = config.build(seed=1), config.build(seed=1)
    parameters: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
    assert sum(array.size for array in parameters.values()) == config.num_params()
    assert {array.dtype for array in parameters.values()} == {mx.float32}
    for key, array in dict(tree_flatten(other.parameters())).items():
        np.testing.assert_array_equal(np.array(array), np.array(parameters[key]))
    again = type(config).from_hf(config.to_hf())
    assert again.build(seed=1).parameters().keys() == model.parameters().keys()
    assert again.num_params() == config.num_params()
    assert config.flops_per_token(64) > config.flops_per_token(32) > 6 * 2 * 32 * 48


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_causal_when_asked_and_sees_both_sides_when_not(name: str) -> None:
    model: Any = lively(as_config("model", {"type": name, **SIZES, "vocab_size": 50}).model.build(seed=1))
    tokens = np.random.default_rng(0).integers(0, 50, (1, 9))
    changed = tokens.copy()
    changed[0, 5] = (changed[0, 5] + 1) % 50
    for mask, sees_ahead in ((Mask("causal"), False), (Mask("bidirectional"), True)):
        before, after = (np.array(model(mx.array(row), mask)) for row in (tokens, changed))
        moved = np.abs(before - after).max(axis=(0, 2)) > 1e-6
        assert moved[5:].all()
        assert moved[:5].all() == moved[:5].any() == sees_ahead


@pytest.mark.parametrize("name", ATTENTION)
@pytest.mark.parametrize("model", MODELS)
def test_attention_never_changes_the_result(name: str, model: str) -> None:
    tokens = mx.array(np.random.default_rng(0).integers(0, 50, (2, 16)))
    logits = []
    for backend in ("simple", name):
        values = {"type": model, **SIZES, "vocab_size": 50, "attention": {"type": backend}}
        built: Any = lively(as_config("model", values).model.build(seed=1))
        logits.append(np.array(built(tokens, Mask("causal"))))
    np.testing.assert_allclose(logits[1], logits[0], rtol=1e-4, atol=1e-4)


FOUR_STEPS: dict[str, dict[str, Any]] = {
    "one_cycle": {"peak_at": "4 steps", "start_ratio": 0.25},
    "sequence": {"parts": [{"from": 0, "schedule": {"type": "linear", "warmup": "4 steps"}}]},
}
"""What makes a schedule rise for four updates, where it is not `warmup`."""
RISES = {"one_cycle": [0.25, 0.4375, 0.8125, 1.0]}
"""Where it is not a line: 0.25 + 0.75 * (0, 1/4, 3/4, 1), the cosine at thirds."""
ENDS = {"constant": 1.0, "inverse_sqrt": 0.1**0.5, "sequence": 0.0}
"""Of 40 updates, where it is not `final_ratio`."""


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_rises_and_ends_where_it_should(name: str) -> None:
    schedule: Any = as_config("schedule", {"type": name, **FOUR_STEPS.get(name, {"warmup": "4 steps"})}).schedule
    multipliers = [schedule.multiplier(step, Timeline(40, 256)) for step in range(40)]
    assert multipliers[:4] == pytest.approx(RISES.get(name, [0.25, 0.5, 0.75, 1.0]), rel=1e-12)
    assert schedule.warmup_steps(Timeline(40, 256)) == 4
    assert max(multipliers) == multipliers[3] == 1.0
    assert multipliers[-1] == ENDS.get(name, getattr(schedule, "final_ratio", None))
    assert all(multiplier >= 0 for multiplier in multipliers)


@pytest.mark.parametrize("name", DISTRIBUTED)
def test_a_group_is_built_or_says_how_to_start_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLX_RANK", raising=False)
    section = as_config("distributed", {"type": name}).distributed
    if name == "single":
        group = section.build()
        tree = {"a": mx.array([1.0])}
        assert (group.rank, group.size, group.is_main, group.any(False)) == (0, 1, True, False)
        assert group.reduce(tree) is tree
    else:
        with pytest.raises(BackendError, match="mlx.launch"):
            section.build()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One corpus, prepared once."""
    return tmp_path_factory.mktemp("contracts")


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("model", MODELS)
def test_every_objective_trains_every_model(folder: Path, model: str, objective: str) -> None:
    config = tiny_config(folder, model={"type": model, **SIZES}, objective={"type": objective})
    _, outputs, _ = take_steps(config, num_steps=12)
    found = [number(output.loss) for output in outputs]
    assert all(np.isfinite(found))
    assert found[-1] < found[0] - 0.5
    assert all(number(output.applied) for output in outputs)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_trains_and_moves_every_parameter(folder: Path, optimizer: str) -> None:
    rate = LEARNING_RATES.get(optimizer, 1e-2)
    config = tiny_config(
        folder,
        optimizer={"type": optimizer, "learning_rate": rate},
        model={"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True},
    )
    parts, outputs, before = take_steps(config, num_steps=20)
    found = [number(output.loss) for output in outputs]
    assert found[-1] < found[0] - 0.5
    after = {name: np.array(array) for name, array in tree_flatten(parts.model.trainable_parameters())}
    still = [name for name, array in after.items() if np.abs(array - before[name]).max() < 1e-6]
    assert still == []
    state = parts.optimizer.state_dict()
    assert all(isinstance(array, mx.array) for array in state.values())
    fresh = config.optimizer.build(parts.model.trainable_parameters())
    fresh.load_state(state)
    assert {name: array.dtype for name, array in fresh.state_dict().items()} == {
        name: array.dtype for name, array in state.items()
    }


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_every_tokenizer_carries_a_run(folder: Path, tmp_path: Path, tokenizer: str) -> None:
    section: dict[str, Any] = {"type": tokenizer}
    if tokenizer == "file":
        tiny_config(folder).data.build(0, report=lambda line: None).tokenizer.save(tmp_path)
        section["path"] = str(tmp_path)
    if tokenizer in ("bpe", "unigram"):
        section["vocab_size"] = 300
    config = tiny_config(
        folder, name=f"tokenizer-{tokenizer}", data={"tokenizer": section}, training={"duration": "3 steps"}
    )
    assert quiet_train(config).evaluation is not None


def small_corpus(folder: Path, source: str) -> dict[str, Any]:
    """Where a source of this type finds a few documents."""
    if source in ("stdlib", "synthetic"):
        return {}
    texts = [json.loads(line)["text"] for line in (folder / "corpus.jsonl").read_text().splitlines()[:20]]
    place = folder / f"for-{source}"
    place.mkdir(exist_ok=True)
    if source == "jsonl":
        return {"path": str(folder / "corpus.jsonl")}
    if source in ("parquet", "hub"):
        (place / "data").mkdir(exist_ok=True)
        parquet.write_table(pyarrow.table({"text": texts}), place / "data" / "train-00000.parquet", row_group_size=4)
        return {"dataset": str(place)} if source == "hub" else {"path": str(place)}
    suffix = {"tree": ".py", "text": ".txt", "markdown": ".md"}[source]
    for index, text in enumerate(texts):
        (place / f"{index:02}{suffix}").write_text(text)
    return {"path": str(place)}


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_gives_documents_and_goes_on_where_it_stopped(folder: Path, source: str) -> None:
    tiny_config(folder)
    values = {"type": source, "max_documents": 6, **small_corpus(folder, source)}
    section = row_of("source", as_config("source", values))
    whole = list(section.documents(report=lambda line: None))
    assert whole
    text, state = whole[len(whole) // 2]
    assert isinstance(text, str)
    rest = list(section.documents(state, report=lambda line: None))
    assert rest == whole[len(whole) // 2 + 1 :]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_update_that_is_held_back_changes_nothing_even_when_gradients_are_nan(optimizer: str) -> None:
    model = as_config("model", {"type": "llama", **SIZES, "vocab_size": 50}).model.build(seed=1)
    parameters = model.trainable_parameters()
    built = as_config("optimizer", {"type": optimizer}).optimizer.build(parameters)
    ones = tree_map(mx.ones_like, parameters)
    parameters = built.apply_gradients(ones, parameters, mx.array(True))
    before = {name: np.array(array) for name, array in built.state_dict().items()}
    bad = tree_map(lambda array: array * mx.nan, ones)
    held = dict(tree_flatten(built.apply_gradients(bad, parameters, mx.array(False))))
    for name, array in dict(tree_flatten(parameters)).items():
        np.testing.assert_array_equal(np.array(held[name]), np.array(array))
    for name, array in built.state_dict().items():
        np.testing.assert_array_equal(np.array(array), before[name])


@pytest.mark.parametrize(("optimizer", "share"), [("sgd", 0.1), ("adamw", 0.1), ("lion", 1.2)])
def test_an_update_takes_the_place_of_what_it_replaces(optimizer: str, share: float) -> None:
    shapes = {f"layers.{i}.weight": (256, 256) for i in range(20)}
    built = as_config("optimizer", {"type": optimizer}).optimizer.build({n: mx.zeros(s) for n, s in shapes.items()})
    assert peak_of_update(built, shapes) < share * 20 * 256 * 256 * 4
