"""Forerunner files: every key of their schema is translated, ignored with a reason, or refused with its line."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.config import dump, load, load_with_notes, to_yaml
from core.forerunner import is_forerunner, is_tokenizer_config, translate_tokenizer_config
from core.forerunner_keys import ALL_KEYS, IGNORED, MOVED, READ, REFUSED
from tests.forerunner_files import HERE, changed, problems, texts
from utils.errors import ConfigError
from utils.yaml_file import read_yaml

GIVEN = sorted((Path(__file__).parents[2] / "shared" / "predecessor-configs").glob("*.yaml"))


def paths_of(values: dict[str, Any], prefix: str = "") -> set[str]:
    """Every dotted path, of sections as well as of values."""
    paths = set()
    for key, value in values.items():
        paths.add(prefix + key)
        if isinstance(value, dict):
            paths |= paths_of(value, f"{prefix}{key}.")
    return paths


def test_the_file_of_every_key_has_every_key() -> None:
    given = paths_of(yaml.safe_load((HERE / "everything.yaml").read_text()))
    assert set(ALL_KEYS) - given == set()
    assert max(Counter(key for table in (MOVED, IGNORED, REFUSED, READ) for key in table).values()) == 1


def test_every_key_arrives_where_it_belongs() -> None:
    loaded = load_with_notes(HERE / "everything.yaml")
    config = dump(loaded.config)
    assert loaded.overwrite
    assert (config["name"], config["seed"], config["init_from"]) == ("Everything (tiny)", 11, "runs/Earlier Run")
    model = {key: value for key, value in config["model"].items() if "dropout" not in key}
    assert model == {
        "type": "llama",
        "vocab_size": None,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "head_dim": 8,
        "max_position_embeddings": 192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 5000.0,
        "rope_traditional": True,
        "rope_scaling": model["rope_scaling"] | {"rope_type": "linear", "factor": 2.0},
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": False,
        "final_logit_softcapping": None,
        "attention_sinks": False,
        "initializer_range": 0.02,
        "attention": {"type": "flash", "block_size": 64},
    }
    data = config["data"]
    assert (data["sources"][0]["type"], data["sources"][0]["path"]) == ("jsonl", "corpus/books.jsonl")
    assert (data["validation_sources"][0]["type"], data["validation_sources"][0]["path"]) == (
        "text",
        "corpus/held-out.txt",
    )
    assert (data["tokenizer"]["type"], data["tokenizer"]["path"]) == ("file", "corpus/tokenizer")
    assert data["sequence_length"] == 96
    training = config["training"]
    assert (training["batch_size"], training["micro_batch_size"], training["duration"]) == (24, 6, "700 steps")
    assert (training["gradient_clip"], training["early_stopping"], training["weight_ema"]) == (0.5, 5, 0.99)
    assert (training["precision"], training["activation_checkpointing"]) == ("bfloat16", "every 2")
    optimizer = config["optimizer"]
    assert (optimizer["type"], optimizer["learning_rate"], optimizer["weight_decay"]) == ("adamw", 1e-4, 0.02)
    assert (optimizer["betas"], optimizer["eps"]) == ([0.8, 0.9], 1e-7)
    assert config["schedule"] == {"type": "cosine", "warmup": "70 steps", "final_ratio": 0.05}
    assert (config["logging"]["every"], config["checkpoint"]["every"]) == ("7 steps", "70 steps")
    assert config["checkpoint"]["keep_last"] == 4
    assert (config["evaluation"]["every"], config["evaluation"]["samples"]["every"]) == ("35 steps", "140 steps")


def test_every_ignored_key_is_said_once_with_its_line() -> None:
    notes = load_with_notes(HERE / "everything.yaml").notes
    for key, reason in IGNORED.items():
        assert sum(f" {key}," in note or f" {key} " in note for note in notes) == bool(reason), key
    lines = (HERE / "everything.yaml").read_text().splitlines()
    (overlap,) = [note for note in notes if "chunk_overlap" in note]
    line = next(number for number, text in enumerate(lines, 1) if "chunk_overlap" in text)
    assert overlap.startswith(f"{HERE / 'everything.yaml'}:{line}: data.preprocessing.chunk_overlap is ignored: ")
    assert len(set(notes)) == len(notes)


def test_every_reading_is_said() -> None:
    notes = texts(load_with_notes(HERE / "everything.yaml"))
    for said in (
        "iters, warmup_steps and intervals count updates, each of 4 micro-batches",
        "clipped to a global norm of 0.5",
        "weight_decay 0.02 is applied, decoupled",
        "documents longer than max_context_size go on",
        "data.tokenizer is ignored: vocabulary and special tokens are those of data.tokenizer_path",
        "ema_momentum is read as training.weight_ema",
        "gradient_checkpointing of 0.5 of the blocks is read as activation_checkpointing every 2",
        "the weights of runs/Earlier Run start this run; to continue a run, use --resume",
    ):
        assert said in notes


def test_what_asks_for_nothing_is_not_said(tmp_path: Path) -> None:
    silent = {"system.memory_limit": None, "system.devices": [], "system.distributed": False, "logging.wandb": False}
    notes = texts(load_with_notes(changed(tmp_path, silent | {"data.preprocessing.chunk_overlap": 0})))
    for word in ("memory_limit", "system.devices", "system.distributed", "logging.wandb,", "chunk_overlap"):
        assert word not in notes


def test_attention_is_flex_over_flash_over_simple(tmp_path: Path) -> None:
    flex = load_with_notes(changed(tmp_path, {"model.attention.use_flex_attention": True}))
    assert "use_flex_attention without mods is plain attention; model.attention.mods changes it" in texts(flex)
    assert "flash_block_size" not in texts(flex)
    for flag, name in ((False, "simple"), (None, "auto")):
        loaded = load_with_notes(changed(tmp_path, {"model.attention.use_flash_attention": flag}))
        assert f"flash_block_size is ignored: attention {name} has no blocks to choose" in texts(loaded)
        assert "use_flex_attention" not in texts(loaded)


def test_the_smallest_file_means_what_its_program_did() -> None:
    loaded = load_with_notes(HERE / "smallest.yaml")
    config = loaded.config
    model: Any = config.model
    assert not loaded.overwrite
    assert (model.num_hidden_layers, model.num_key_value_heads, model.max_position_embeddings) == (8, None, 64)
    assert model.attention.type == "auto"
    data = dump(config.data)
    assert data["sources"][0]["type"] == "text"
    new_ones = {"chat_tokens": False, "fim_tokens": False, "reserved_tokens": 0}
    special = {"pad": "<pad>", "bos": "<bos>", "eos": "<eos>"}
    assert data["tokenizer"] == {"type": "bytes", "special_tokens": special, **new_ones}
    assert (data["validation_fraction"], data["validation_sources"], config.evaluation.every) == (0.0, [], None)
    assert str(config.training.duration) == "1 epochs"
    assert (config.training.gradient_clip, config.training.precision) == (None, "auto")
    optimizer = dump(config.optimizer)
    assert (optimizer["type"], optimizer["update_scale"], optimizer["weight_decay"]) == ("muon", "original", 0.0)
    assert dump(config.schedule) == {"type": "cosine", "warmup": "0 steps", "final_ratio": 0.01}
    assert "muon keeps the original update scale" in texts(loaded)
    assert "no data.validation_file" in texts(loaded)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"training.epochs": 3}, {"training": {"duration": "3 epochs"}}),
        ({"training.hyperparameters.iters": None}, {"training": {"duration": "1 epochs"}}),
        ({"training.hyperparameters.gradient_accumulation_steps": None}, {"training": {"batch_size": 6}}),
        ({"training.hyperparameters.gradient_clip": None}, {"training": {"gradient_clip": 2.0}}),
        ({"training.early_stopping.enabled": False}, {"training": {"early_stopping": None}}),
        ({"system.mixed_precision": False}, {"training": {"precision": "float32"}}),
        ({"system.precision": None}, {"training": {"precision": "float16"}}),
        ({"training.hyperparameters.weight_decay": None}, {"optimizer": {"weight_decay": 0.5}}),
        ({"training.optimization.betas": None}, {"optimizer": {"betas": [0.85, 0.99]}}),
        ({"training.optimization.eps": None}, {"optimizer": {"eps": 1e-6}}),
        ({"training.scheduler.type": "linear"}, {"schedule": {"type": "linear", "warmup": "70 steps"}}),
        ({"training.scheduler.type": "cosine"}, {"schedule": {"type": "cosine", "warmup": "0 steps"}}),
        (
            {"training.scheduler": {"schedule": "linear", "warmup_ratio": 0.1}},
            {"schedule": {"type": "linear", "warmup": "10 %", "final_ratio": 0.0}},
        ),
        ({"logging.steps.validation_interval": 0}, {"evaluation": {"every": None}}),
        ({"logging.steps.checkpoint_interval": 0}, {"checkpoint": {"every": None}}),
        ({"data.validation_file": None}, {"data": {"validation_fraction": 0.0}, "evaluation": {"every": None}}),
        ({"model.attention.use_flash_attention": False}, {"model": {"attention": {"type": "simple"}}}),
        (
            {"model.attention.use_flex_attention": True},
            {"model": {"attention": {"type": "flex", "mods": [], "block_size": 64}}},
        ),
        (
            {"model.attention.use_flex_attention": True, "model.attention.flash_block_size": None},
            {"model": {"attention": {"type": "flex", "mods": [], "block_size": None}}},
        ),
        ({"model.attention.use_flash_attention": None}, {"model": {"attention": {"type": "auto"}}}),
        ({"system.gradient_checkpointing": False}, {"training": {"activation_checkpointing": "none"}}),
        ({"system.gradient_checkpointing_ratio": 1.0}, {"training": {"activation_checkpointing": "all"}}),
        ({"system.gradient_checkpointing_ratio": 0.25}, {"training": {"activation_checkpointing": "every 4"}}),
        ({"system.gradient_checkpointing_ratio": None}, {"training": {"activation_checkpointing": "every 2"}}),
        ({"model.rope.scaling": None}, {"model": {"rope_scaling": None}}),
        (
            {"model.architecture": "qwen3", "model.misc": None, "model.rope.traditional": False},
            {"model": {"type": "qwen3", "rope_theta": 5000.0, "tie_word_embeddings": True}},
        ),
        ({"resume": None, "data.weight_path": "old/model.safetensors"}, {"init_from": "old"}),
        ({"resume.checkpoint": "runs/X/checkpoints/step_500"}, {"init_from": "runs/X"}),
        ({"resume": None}, {"init_from": None}),
    ],
)
def test_other_values(tmp_path: Path, changes: dict[str, Any], expected: dict[str, Any]) -> None:
    config = dump(load(changed(tmp_path, changes)))
    for section, values in expected.items():
        assert config[section] == (config[section] | values if isinstance(values, dict) else values)


@pytest.mark.parametrize(
    ("logs", "period", "every"), [(True, None, "1000 steps"), (False, 140, None), (None, 0, None), (None, 7, "7 steps")]
)
def test_samples_come_as_often_as_asked(
    tmp_path: Path, logs: bool | None, period: int | None, every: str | None
) -> None:
    path = changed(tmp_path, {"logging.log_samples": logs, "logging.steps.sample_interval": period})
    assert dump(load(path))["evaluation"]["samples"]["every"] == every


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"data.input_fil": "x"}, "data.input_fil: unknown key (did you mean 'input_file'?)"),
        ({"sytem": {"seed": 1}}, "sytem: unknown key (did you mean 'system'?)"),
        (
            {"training.optimization.momentun": 1},
            "training.optimization.momentun: unknown key (did you mean 'momentum'?)",
        ),
        ({"model.dimensions.hidden_size": None}, "model.dimensions.hidden_size: is required, but missing"),
        ({"model.dimensions.hidden_size": "wide"}, "model.hidden_size: expected a whole number, got 'wide'"),
        ({"model.architecture": "multimodal_llama"}, "model.type: unknown model 'multimodal_llama'"),
        ({"model.dimensions": 3}, "model.dimensions: expected a section with keys of its own, got 3"),
        ({"model.lora": {"rank": 8}}, "model.lora: cannot be done: this version trains all weights"),
        ({"model.misc.num_local_experts": 4}, "model.misc.num_local_experts: cannot be done"),
        ({"model.rope.scaling": 2}, "model.rope.scaling: expected {type: linear, factor: 2}, got 2"),
        ({"data.hf_dataset_name": "x/y"}, "data.hf_dataset_name: cannot be done: this version reads local files"),
        ({"training.scheduler.type": "step"}, "training.scheduler.type: expected cosine_with_warmup, cosine, linear"),
        (
            {"training.scheduler.type": None},
            "training.scheduler.type: expected cosine_with_warmup, cosine, linear; it is",
        ),
        ({"training.hyperparameters.batch_size": 2.5}, "training.hyperparameters.batch_size: expected a whole number"),
        (
            {"system.gradient_checkpointing_ratio": 1.5},
            "system.gradient_checkpointing_ratio: expected a share above 0 and up to 1, got 1.5",
        ),
        ({"model.attention.flash_block_size": "big"}, "model.attention.block_size: expected a whole number, got 'big'"),
        ({"overwrite": "maybe"}, "overwrite: expected true or false, got 'maybe'"),
        ({"data.preprocessing.max_context_size": 512}, "data.sequence_length: 512 is longer than the model's"),
    ],
)
def test_mistakes_name_the_line_that_was_written(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    path = changed(tmp_path, changes)
    found = [line for line in problems(path) if problem in line]
    assert len(found) == 1
    number = int(found[0].removeprefix(f"{path}:").split(":")[0])
    last = next(iter(changes)).split(".")[-1]
    line = Path(path).read_text().splitlines()[number - 1]
    assert last in line or "missing" in found[0]


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    changes = {
        "data.hf_dataset_name": "x/y",
        "training.optimization.optimizer": "shampo",
        "model.dimensions.num_layers": "x",
        "foo": 1,
    }
    assert len(problems(changed(tmp_path, changes))) == 4


def test_our_own_file_may_extend_a_forerunners(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"extends: {HERE / 'everything.yaml'}\nname: mine\noptimizer: {{type: muon}}\n")
    loaded = load_with_notes(path, ["training.duration=5"])
    assert (loaded.config.name, loaded.config.optimizer.type, loaded.config.seed) == ("mine", "muon", 11)
    assert loaded.overwrite
    assert loaded.notes == load_with_notes(HERE / "everything.yaml").notes


def test_a_tokenizer_recipe_is_not_a_model(tmp_path: Path) -> None:
    (problem,) = problems(str(HERE / "tokenizer.yaml"))
    assert problem.endswith(
        f"trains a tokenizer, no model: python tools/train-tokenizer.py --config {HERE / 'tokenizer.yaml'}"
    )
    assert translate_tokenizer_config(yaml.safe_load((HERE / "tokenizer.yaml").read_text())) == {
        "data": {
            "sources": [{"type": "jsonl", "path": "corpus/books.jsonl", "max_documents": 5000}],
            "tokenizer": {
                "type": "bpe",
                "vocab_size": 4096,
                "special_tokens": {"pad": "<pad>", "bos": "<bos>", "eos": "<eos>"},
            },
        },
        "output_dir": "my-tokenizer",
    }
    with pytest.raises(ConfigError) as raised:
        translate_tokenizer_config({"data": None, "tokenizer": {}})
    assert len(raised.value.problems) == 2


def check_file(path: Path, tmp_path: Path) -> None:
    """It loads, its model builds or counts, and what is written of it loads back equal."""
    if is_tokenizer_config(read_yaml(path)):
        recipe = translate_tokenizer_config(yaml.safe_load(path.read_text()))
        assert recipe["data"]["tokenizer"]["vocab_size"] > 256
        return
    assert is_forerunner(read_yaml(path))
    config = load(path)
    model = config.model.model_copy(update={"vocab_size": 32000})
    assert model.num_params() > 0
    if model.num_params() < 20_000_000:
        assert model.build(seed=0) is not None
    (tmp_path / "ours.yaml").write_text(to_yaml(config))
    assert load(tmp_path / "ours.yaml") == config


@pytest.mark.parametrize("path", sorted(HERE.glob("*.yaml")), ids=lambda path: path.stem)
def test_files_of_ours_in_their_schema(path: Path, tmp_path: Path) -> None:
    check_file(path, tmp_path)


def test_files_of_theirs(tmp_path: Path) -> None:
    print(f"{len(GIVEN)} forerunner files beside the checkout")
    for path in GIVEN:
        check_file(path, tmp_path)
