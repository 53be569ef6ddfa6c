"""The root of a config, and the way from YAML files and command-line values to it and back.

`load` merges the files (`core/config_files.py`), fills the sections (`utils/coercion.py`) and raises one ConfigError
that lists everything wrong. `dump` and `to_yaml` give what loads back to an equal object. `python -m core.config
X.yaml` shows each value with the line that decided it. To add a root section: a field of `Config`, and its keys in
configs/base_config.yaml.
"""

import json
from collections.abc import Iterator
from collections.abc import Sequence as AnySequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, Field, field_validator, model_validator

from core.config_files import COMMAND_LINE, read_layers
from core.objectives.base import ObjectiveConfig
from core.settings import CheckpointConfig, EvaluationConfig, LoggingConfig, TrainingConfig
from data.text import DataConfig
from distributed.group import DistributedConfig
from models.base import ModelConfig
from optimizers.base import OptimizerConfig
from optimizers.schedules import ScheduleConfig
from utils.cli import Parser, run_command
from utils.coercion import build
from utils.errors import ConfigError
from utils.schema import Misfits, OneOf, Section, fields_by_key, json_schema
from utils.units import Duration
from utils.yaml_file import Mapping, Node, Place, Sequence, node_of, write_yaml

DEFAULT_BATCH_SIZE = 32


class Config(Section):
    """Everything a run is made of."""

    name: str = "untitled"
    """The run's folder inside `out_dir`."""
    seed: int = Field(default=42, ge=0, lt=2**63)
    """Decides initial weights, the order of the data, dropout and masking."""
    out_dir: str = "runs"
    """Where run folders lie."""
    init_from: str | None = None
    """A run, or a folder mlx-lm loads, whose weights this one starts from; null: random weights."""
    model: Annotated[ModelConfig, OneOf("models:MODELS", "model", "llama")]
    """What is trained; keys as in a Hugging Face config.json."""
    objective: Annotated[ObjectiveConfig, OneOf("core.objectives:OBJECTIVES", "objective", "causal")]
    """What the model learns to predict."""
    adapter: None = None
    """Small trainable matrices beside frozen weights; null: all weights are trained."""
    optimizer: Annotated[OptimizerConfig, OneOf("optimizers:OPTIMIZERS", "optimizer", "adamw")]
    """How gradients become updates."""
    schedule: Annotated[ScheduleConfig, OneOf("optimizers:SCHEDULES", "schedule", "cosine")]
    """How the learning rate moves over the run."""
    data: Annotated[DataConfig, OneOf("data:DATASETS", "dataset", "text")]
    """What is read, how it becomes tokens and rows."""
    training: TrainingConfig = TrainingConfig()
    """How long, in what batches and with what arithmetic."""
    distributed: Annotated[DistributedConfig, OneOf("distributed:DISTRIBUTED", "distributed", "single")]
    """How many processes share the work."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Validation during training."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """What is kept."""
    logging: LoggingConfig = LoggingConfig()
    """What is written down."""

    @property
    def rows_per_batch(self) -> int:
        """Sequences of one update over all ranks."""
        if self.training.batch_tokens is not None:
            return self.training.batch_tokens // self.data.sequence_length
        return self.training.batch_size or DEFAULT_BATCH_SIZE

    @property
    def given_micro_batch_size(self) -> int | None:
        """`training.micro_batch_size` when it is a number."""
        given = self.training.micro_batch_size
        return given if isinstance(given, int) else None

    def micro_batch_size_of(self, world_size: int) -> int:
        """Sequences each of `world_size` ranks computes at once; with `auto` the most it may be.

        Raises:
            ConfigError: the batch does not divide.
        """
        rows_per_rank, given = self.rows_per_batch // world_size, self.given_micro_batch_size
        micro = given or rows_per_rank
        if self.rows_per_batch % world_size or rows_per_rank % micro:
            step = (given or 1) * world_size
            parts = f"over {world_size} ranks" + (f" in micro-batches of {micro}" if given else "")
            near = _nearest_multiples(self.rows_per_batch, step)
            raise ConfigError(f"training.batch_size: {self.rows_per_batch} sequences cannot be shared {parts}; {near}")
        return micro

    @field_validator("name")
    @classmethod
    def _is_a_folder_name(cls, name: str) -> str:
        if not name or name[0] in ".-" or name != name.strip() or len(name.encode()) > 200:
            raise ValueError(f"expected a folder name that does not begin with '.' or '-', got '{name}'")
        if bad := [letter for letter in name if letter in "/\\" or not letter.isprintable()]:
            raise ValueError(f"expected a folder name, but {bad[0]!r} cannot be part of one, got '{name}'")
        return name

    @model_validator(mode="after")
    def _parts_fit(self) -> "Config":
        if misfits := [misfit for check in (_length_misfit, _batch_misfit, _sample_misfit) if (misfit := check(self))]:
            raise Misfits(*misfits)
        return self


def _length_misfit(config: Config) -> tuple[str, str] | None:
    longest, length = getattr(config.model, "max_position_embeddings", None), config.data.sequence_length
    if longest is None or length <= longest:
        return None
    reason = f"{length} is longer than the model's max_position_embeddings {longest}"
    return "data.sequence_length", f"{reason}; lower the one or raise the other"


def _sample_misfit(config: Config) -> tuple[str, str] | None:
    reason = config.objective.cannot_generate
    if config.evaluation.samples.every is None or reason is None:
        return None
    return "evaluation.samples.every", f"must be null: {reason}"


def _batch_misfit(config: Config) -> tuple[str, str] | None:
    training, length = config.training, config.data.sequence_length
    if training.batch_tokens is not None and training.batch_tokens % length:
        near = _nearest_multiples(training.batch_tokens, length)
        return (
            "training.batch_tokens",
            f"{training.batch_tokens} is no multiple of the sequence length {length}; {near}",
        )
    micro = config.given_micro_batch_size
    if micro is not None and config.rows_per_batch % micro:
        key = "batch_size" if training.batch_tokens is None else "batch_tokens"
        rows = config.rows_per_batch
        part = f"{rows} sequences cannot be cut into micro-batches of {micro}"
        return f"training.{key}", f"{part}; {_nearest_multiples(rows, micro)}"
    return None


def _nearest_multiples(number: int, step: int) -> str:
    below = number // step * step
    return f"the nearest that do: {below} and {below + step}" if below else f"the nearest that does: {step}"


class LoadedConfig(NamedTuple):
    """A config and what is known about its origin."""

    config: Config
    notes: tuple[str, ...]
    """How a forerunner's keys were read, and which were ignored: each to be said once."""
    provenance: dict[str, str]
    """Dotted path of every value -> `file:line`, `command line` or `default`."""
    overwrite: bool = False
    """A forerunner's `overwrite: true`."""


def load(path: str | Path, overrides: AnySequence[str] = ()) -> Config:
    """The config of a YAML file and `section.key=value` overrides. Raises ConfigError with every problem."""
    return load_with_notes(path, overrides).config


def load_with_notes(path: str | Path, overrides: AnySequence[str] = ()) -> LoadedConfig:
    """As `load`, with the notes of the forerunner translation and where each value came from."""
    layers = read_layers(path, overrides)
    problems = list(layers.problems)
    config = build(Config, layers.root, problems)
    if problems:
        raise ConfigError(*dict.fromkeys(problems))
    provenance = {path: _origin(layers.root, steps) for path, steps in _leaves(dump(config), "", ())}
    taken = config.optimizer.handed_down().items()
    provenance |= {f"optimizer.{path}": provenance[f"optimizer.{key}"] for path, key in taken}
    return LoadedConfig(config, layers.notes, provenance, layers.overwrite)


def build_section(annotation: Any, values: dict[str, Any]) -> Any:
    """A section of plain values, by the rules of `load`. Raises ConfigError."""
    problems: list[str] = []
    section = build(annotation, node_of(values, Place("values")), problems)
    if problems:
        raise ConfigError(*problems)
    return section


def dump(section: Any) -> Any:
    """Plain values (dict, list, str, number, bool, None) that build an equal section."""
    if isinstance(section, BaseModel):
        values = (getattr(section, name) for name in type(section).model_fields)
        return {key: dump(value) for key, value in zip(fields_by_key(type(section)), values, strict=True)}
    if isinstance(section, dict):
        return {key: dump(value) for key, value in section.items()}
    if isinstance(section, tuple | list):
        return [dump(value) for value in section]
    return str(section) if isinstance(section, Duration | Path) else section


def to_yaml(config: Section) -> str:
    """YAML text that loads back to an equal config."""
    return write_yaml(dump(config))


def _leaves(value: Any, path: str, steps: tuple) -> Iterator[tuple[str, tuple]]:
    if isinstance(value, dict) and value:
        for key, child in value.items():
            yield from _leaves(child, f"{path}.{key}" if path else key, (*steps, key))
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        for index, child in enumerate(value):
            yield from _leaves(child, f"{path}[{index}]", (*steps, index))
    else:
        yield path, steps


def _origin(root: Mapping, steps: tuple) -> str:
    node: Node | None = root
    for step in steps:
        if isinstance(node, Mapping):
            node = node.entries.get(step)
        else:
            node = node.items[step] if isinstance(node, Sequence) and step < len(node.items) else None
    return str(node.place) if node else "default"


def annotated_yaml(loaded: LoadedConfig) -> str:
    """The resolved config as YAML, each value followed by where it came from."""
    lines = list(_annotated_lines(dump(loaded.config), "", "", loaded.provenance))
    width = min(max(len(text) for text, _ in lines), 64)
    return "".join(f"{text:<{width}}  # {origin}\n" if origin else f"{text}\n" for text, origin in lines)


def _annotated_lines(values: dict, path: str, indent: str, origins: dict[str, str]) -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        where = f"{path}.{key}" if path else key
        if isinstance(value, dict) and value:
            yield f"{indent}{key}:", ""
            yield from _annotated_lines(value, where, indent + "  ", origins)
        elif where in origins:
            yield f"{indent}{key}: {write_yaml(value, flow=True).strip()}", origins[where]
        else:
            yield f"{indent}{key}:", ""
            for index, item in enumerate(value):
                for number, (text, origin) in enumerate(_annotated_lines(item, f"{where}[{index}]", "", origins)):
                    yield f"{indent}  {'  ' if number else '- '}{text}", origin


def editor_schema() -> dict[str, Any]:
    """The JSON schema of a config file: what `load` accepts, for editors that complete and check YAML."""
    schema = json_schema(Config)
    name = {"type": "string"}
    schema["properties"]["extends"] = {
        "anyOf": [name, {"type": "array", "items": name}],
        "description": "Parent files.",
    }
    return schema | {"$schema": "https://json-schema.org/draft/2020-12/schema", "required": []}


def main() -> None:
    """`python -m core.config X.yaml [section.key=value ...]`."""
    parser = Parser("Show a resolved config, each value with the line that decided it.", prog="python -m core.config")
    parser.add_argument("path", nargs="?", help="a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help=f"values of the {COMMAND_LINE}")
    parser.add_argument("--schema", action="store_true", help="write the JSON schema for editors instead")
    arguments = parser.parse_args()
    if arguments.schema:
        print(json.dumps(editor_schema(), indent=2))
        return
    if arguments.path is None:
        raise ConfigError("which config? for example: python -m core.config configs/training/quickstart.yaml")
    loaded = load_with_notes(arguments.path, arguments.overrides)
    for note in loaded.notes:
        print(f"# note: {note}")
    print(annotated_yaml(loaded), end="")


if __name__ == "__main__":
    run_command(main)
