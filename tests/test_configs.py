"""Every YAML in configs/ loads, writes back, counts its model, and is what its name and its comments say."""

from pathlib import Path
from typing import Any

import pytest

from core.config import Config, build_section, dump, load, load_with_notes, to_yaml
from utils.units import parse_number

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "configs").rglob("*.yaml"))
SIZES = ["1m", "2m", "10m", "40m", "100m", "200m", "400m", "650m", "1b", "7b", "13b", "32b", "qwen3-7m", "flex-10m"]
MODELS = sorted((ROOT / "configs" / "models").glob("model-config-*.yaml"))
ids = [str(path.relative_to(ROOT / "configs")) for path in FILES]


def model_of(config: Config) -> Any:
    """The model section with the vocabulary the tokenizer will give it."""
    data: Any = config.data
    size = config.model.vocab_size or data.tokenizer.expected_vocab_size()
    return config.model.model_copy(update={"vocab_size": size + config.objective.num_reserved_tokens})


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_it_loads_and_writes_back(path: Path, tmp_path: Path) -> None:
    config = load(path)
    (tmp_path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert load(tmp_path / "config.yaml") == config
    assert dump(load(tmp_path / "config.yaml")) == dump(config)


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_its_model_can_be_counted_and_its_batch_shared(path: Path) -> None:
    config = load(path)
    model = model_of(config)
    assert model.num_params() > 0
    assert model.flops_per_token(config.data.sequence_length) > 0
    assert config.rows_per_batch % config.micro_batch_size_of(1) == 0


def test_the_manual_is_the_defaults_and_leaves_none_out() -> None:
    loaded = load_with_notes(ROOT / "configs" / "base_config.yaml")
    assert dump(loaded.config) == dump(build_section(Config, {}))
    unsaid = [path for path, origin in loaded.provenance.items() if origin == "default"]
    assert unsaid == []


@pytest.mark.parametrize("path", MODELS, ids=[path.stem for path in MODELS])
def test_a_model_has_the_size_in_its_name_and_in_its_comment(path: Path) -> None:
    config = load(path)
    count = model_of(config).num_params()
    named = parse_number(path.stem.split("-")[-1].upper())
    assert abs(count - named) < 0.15 * named
    assert f"{count:,} parameters" in path.read_text()
    assert config.name.endswith(path.stem.split("-")[-1])
    assert config.data.sequence_length == config.model.max_position_embeddings  # pyright: ignore


def test_the_sizes_asked_for_are_there() -> None:
    sizes = {path.stem.removeprefix("model-config-") for path in MODELS}
    assert sizes == set(SIZES)


def test_qwen3_7m_is_the_shape_of_the_tutorials() -> None:
    config = load(ROOT / "configs" / "models" / "model-config-qwen3-7m.yaml")
    model = model_of(config)
    assert round(model.num_params() / 1e6, 2) == 7.03
    shape = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")
    assert [getattr(model, key) for key in shape] == [128, 3, 4, 2, 512]
    assert (model.vocab_size - config.objective.num_reserved_tokens, config.data.sequence_length) == (49152, 256)
    assert (model.type, model.tie_word_embeddings) == ("qwen3", True)


def test_small_vocabularies_for_small_models() -> None:
    for path in MODELS:
        model, size = model_of(load(path)), path.stem.split("-")[-1]
        wanted = {"1m": 2048, "2m": 2048, "7m": 49152}.get(size, 16384 if size in ("10m", "40m") else 32768)
        assert model.vocab_size == wanted


def test_quickstart_and_its_masked_twin() -> None:
    quick, denoise = (load(ROOT / "configs" / "training" / f"{name}.yaml") for name in ("quickstart", "denoise"))
    data: Any = quick.data
    assert [source.type for source in data.sources] == ["stdlib"]
    assert (data.tokenizer.type, data.tokenizer.vocab_size, data.sequence_length) == ("bpe", 2048, 256)
    assert (denoise.objective.type, denoise.data) == ("denoise", quick.data)
    assert dump(denoise.model)["tie_word_embeddings"] is False
