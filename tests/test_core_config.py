"""Config files: extends, the order of what wins, all problems at once, provenance, and the way back to YAML."""

import copy
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.config import Config, annotated_yaml, build_section, dump, editor_schema, load, load_with_notes, main, to_yaml
from core.config_files import parse_overrides
from core.objectives import OBJECTIVES
from core.settings import TrainingConfig
from distributed import DISTRIBUTED
from models import MODELS
from optimizers import OPTIMIZERS, SCHEDULES
from tests.commands import call
from utils.errors import ConfigError
from utils.units import Duration
from utils.yaml_file import value_of

ROOT = Path(__file__).parents[1]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    def write(name: str, text: str) -> str:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text, encoding="utf-8")
        return name

    return write


def problems(path: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        load(path, overrides)
    return raised.value.problems


def test_an_empty_file_is_the_defaults(write) -> None:
    config = load(write("a.yaml", ""))
    assert config == build_section(Config, {})
    assert (config.model.type, config.optimizer.type, config.data.type) == ("llama", "adamw", "text")


def test_file_wins_over_parents_and_the_command_line_over_the_file(write) -> None:
    write("base.yaml", "seed: 1\ntraining: {batch_size: 8, duration: 10, gradient_clip: 2}")
    path = write("a.yaml", "extends: base.yaml\ntraining: {batch_size: 16, duration: 20}")
    loaded = load_with_notes(path, ["training.duration=3 epochs"])
    training = loaded.config.training
    assert (loaded.config.seed, training.gradient_clip, training.batch_size) == (1, 2.0, 16)
    assert training.duration == Duration(3, "epochs")
    origins = ("seed", "training.gradient_clip", "training.batch_size", "training.duration", "training.compile")
    assert [loaded.provenance[key] for key in origins] == [
        "base.yaml:1",
        "base.yaml:2",
        "a.yaml:2",
        "command line",
        "default",
    ]


def test_later_parents_win_over_earlier_ones(write) -> None:
    write("one/x.yaml", "seed: 1\nname: x")
    write("one/y.yaml", "extends: ../two/z.yaml\nseed: 2")
    write("two/z.yaml", "seed: 3\nout_dir: z")
    loaded = load_with_notes(write("two/a.yaml", "extends:\n  - ../one/x.yaml\n  - ../one/y.yaml"))
    assert (loaded.config.seed, loaded.config.name, loaded.config.out_dir) == (2, "x", "z")
    assert loaded.provenance["out_dir"] == "two/z.yaml:2"


def test_lists_replace_and_a_changed_type_drops_the_parents_keys(write) -> None:
    write("base.yaml", "optimizer: {type: muon, learning_rate: 0.5, ns_steps: 6}\ntraining: {batch_size: 8}\n"
          "evaluation: {samples: {prompts: [a, b]}}")  # fmt: skip
    path = write("a.yaml", "extends: base.yaml\nevaluation: {samples: {prompts: [c]}}")
    assert load(path).evaluation.samples.prompts == ("c",)
    assert load(path, ["optimizer.type=muon"]).optimizer.learning_rate == 0.5
    changed = load(path, ["optimizer={type: adamw, eps: 1e-6}"]).optimizer
    assert (changed.type, dump(changed)["eps"]) == ("adamw", 1e-6)
    assert changed.learning_rate == build_section(Config, {}).optimizer.learning_rate


def test_the_order_of_command_line_values_of_one_section_does_not_matter(write) -> None:
    path = write("a.yaml", "optimizer: {type: muon, ns_steps: 6}")
    values = ["optimizer.learning_rate=2e-3", "optimizer.type=adamw"]
    assert load(path, values) == load(path, values[::-1])
    assert load(path, values).optimizer.learning_rate == 2e-3
    assert load(path, ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"a.yaml": "seed: 1\nextends: a.yaml"}, "a.yaml:2: extends: goes in a circle: a.yaml -> a.yaml"),
        (
            {"a.yaml": "extends: d/b.yaml", "d/b.yaml": "extends: ../c.yaml", "c.yaml": "extends: [d/b.yaml]"},
            "c.yaml:1: extends: goes in a circle: d/b.yaml -> c.yaml -> d/b.yaml",
        ),
        (
            {"a.yaml": "\nextends: [quikstart.yaml]", "quickstart.yaml": ""},
            "a.yaml:2: extends: there is no file 'quikstart.yaml' (did you mean 'quickstart.yaml'?)",
        ),
        ({"a.yaml": "extends: b/c.yaml"}, "a.yaml:1: extends: there is no file 'b/c.yaml'"),
        ({"a.yaml": "extends: {a: b}"}, "a.yaml:1: extends: expected a file name or a list of them, got a mapping"),
        ({"a.yaml": "extends: [[a]]"}, "a.yaml:1: extends: expected a file name or a list of them, got a list"),
        ({"a.yaml": "extends: b.yaml", "b.yaml": "x: 1\nx: 2"}, "b.yaml:2: duplicate key 'x', already given in line 1"),
    ],
)
def test_parents_that_cannot_be_read(write, files: dict[str, str], problem: str) -> None:
    for name, text in files.items():
        write(name, text)
    assert problems("a.yaml") == [problem]


def test_all_problems_of_all_files_come_at_once(write) -> None:
    write("base.yaml", "training:\n  batch_size: many\nfoo: 1")
    path = write("a.yaml", "extends: base.yaml\noptimizer:\n  type: adamw\n  learnng_rate: 1\nmodel: {type: lama}")
    assert problems(path, "seed=-1", "checkpoint.evry=3", "checkpoint.every=x") == [
        "base.yaml:2: training.batch_size: expected a whole number, got 'many'",
        "base.yaml:3: foo: unknown key; there are: " + ", ".join(Config.model_fields),
        "a.yaml:4: optimizer.learnng_rate: unknown key (did you mean 'learning_rate'?)",
        "a.yaml:5: model.type: unknown model 'lama' (did you mean 'llama'?); there are: llama, qwen3",
        "command line: checkpoint.evry: unknown key (did you mean 'every'?)",
        "command line: checkpoint.every: expected a length such as '2000 steps', '500M tokens', '20 tokens_per_param', "
        "'3 epochs' or '5 %', got 'x'",
        "command line: seed: must be greater than or equal to 0, got -1",
    ]


def test_bad_command_line_values_are_all_named() -> None:
    with pytest.raises(ConfigError) as raised:
        parse_overrides(["seed", "=3", "a..b=1", "data.sources=[1", "optimizer={a: 1, a: 2}"])
    assert [problem.partition(" (")[0] for problem in raised.value.problems] == [
        "command line: expected section.key=value, got 'seed'",
        "command line: expected section.key=value, got '=3'",
        "command line: expected section.key=value, got 'a..b=1'",
        "command line: data.sources: is not readable YAML: expected ',' or ']', but got '<stream end>'",
        "command line: optimizer: duplicate key 'a', already given in line 1",
    ]


def test_command_line_values_are_yaml() -> None:
    root = parse_overrides(["a.b=3e-4", "a.c=[1, x]", "d={e: {f: null}}", "d.e.g=a=b"])
    assert value_of(root) == {"a": {"b": 3e-4, "c": [1, "x"]}, "d": {"e": {"f": None, "g": "a=b"}}}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "model: {max_position_embeddings: 128}\ndata: {sequence_length: 256}",
            "a.yaml:2: data.sequence_length: 256 is longer than the model's max_position_embeddings 128",
        ),
        (
            "training:\n  batch_size: 30\n  micro_batch_size: 8",
            "a.yaml:2: training.batch_size: 30 sequences cannot be cut into micro-batches of 8; "
            "the nearest that do: 24 and 32",
        ),
        (
            "training: {micro_batch_size: 7}",
            "a.yaml:1: training.batch_size: 32 sequences cannot be cut into micro-batches of 7; "
            "the nearest that do: 28 and 35",
        ),
        (
            "training: {batch_size: 4, micro_batch_size: 8}",
            "a.yaml:1: training.batch_size: 4 sequences cannot be cut into micro-batches of 8; "
            "the nearest that does: 8",
        ),
        (
            "data: {sequence_length: 256}\ntraining:\n  batch_tokens: 10k",
            "a.yaml:3: training.batch_tokens: 10000 is no multiple of the sequence length 256; "
            "the nearest that do: 9984 and 10240",
        ),
        (
            "training: {batch_size: 4, batch_tokens: 1024}",
            "a.yaml:1: training: give batch_size (4) or batch_tokens (1024), not both",
        ),
        ("model: {hidden_size: 100, num_attention_heads: 3}", "a.yaml:1: model.num_attention_heads: hidden_size 100"),
        ("adapter: {rank: 8}", "a.yaml:1: adapter: expected null, got a mapping"),
    ],
)
def test_parts_that_do_not_fit(write, text: str, problem: str) -> None:
    (found,) = problems(write("a.yaml", text))
    assert found.startswith(problem)


def test_every_misfit_between_sections_is_named(write) -> None:
    text = "model: {max_position_embeddings: 128}\ntraining: {batch_size: 3, micro_batch_size: 2}"
    assert len(problems(write("a.yaml", text))) == 2


@pytest.mark.parametrize("name", ["Llama (2M)", "quick start", "a.b-c_d+e=f", "\u00e4pfel"])
def test_names_that_are_folders(write, name: str) -> None:
    assert load(write("a.yaml", f"name: {name}")).name == name


@pytest.mark.parametrize("name", ["''", "..", ".hidden", "a/b", "'a\\b'", "'-x'", "' a'", '"a\\nb"', "a" * 201])
def test_names_that_are_not(write, name: str) -> None:
    (found,) = problems(write("a.yaml", f"name: {name}"))
    assert found.startswith("a.yaml:1: name: expected a folder name")


def test_batch_sizes_are_counted_in_rows_for_any_number_of_ranks(write) -> None:
    config = load(write("a.yaml", "training: {batch_tokens: 8192, micro_batch_size: 4}\ndata: {sequence_length: 256}"))
    assert (config.rows_per_batch, config.micro_batch_size_of(1), config.micro_batch_size_of(8)) == (32, 4, 4)
    with pytest.raises(ConfigError, match="32 sequences cannot be shared over 3 ranks .* 24 and 36"):
        config.micro_batch_size_of(3)
    with pytest.raises(ConfigError, match="cannot be shared over 16 ranks"):
        config.micro_batch_size_of(16)
    whole = load(write("b.yaml", ""))
    assert (whole.rows_per_batch, whole.micro_batch_size_of(1), whole.micro_batch_size_of(2)) == (32, 32, 16)
    with pytest.raises(ConfigError, match="over 5 ranks; the nearest that do: 30 and 35"):
        whole.micro_batch_size_of(5)


def test_what_is_written_loads_back_equal(write) -> None:
    config = load(
        write("a.yaml", "name: 1e6\nseed: 9007199254740993\nmodel: {type: qwen3, rms_norm_eps: 1e-7}"),
        ["data.sources=[{type: text, path: 'no'}, {type: jsonl, path: 'a: b', max_tokens: 5M}]",
         "evaluation.samples.prompts=['', \"x\\n  y\", '500M', 'null']", "training.duration=123456789 tokens"],
    )  # fmt: skip
    again = load(write("b.yaml", to_yaml(config)))
    assert again == config
    assert dump(again) == dump(config)
    assert config.evaluation.samples.prompts == ("", "x\n  y", "500M", "null")


def test_sections_of_plain_values() -> None:
    training = build_section(TrainingConfig, {"duration": "2 epochs", "batch_size": "1k"})
    assert (training.duration, training.batch_size) == (Duration(2, "epochs"), 1000)
    assert build_section(TrainingConfig, dump(training)) == training
    with pytest.raises(ConfigError, match="values: batchsize: unknown key"):
        build_section(TrainingConfig, {"batchsize": 3})


def test_the_annotated_config_is_yaml_that_loads_back_equal(write) -> None:
    text = "seed: 7\ndata:\n  sources:\n    - type: stdlib\n    - {type: jsonl, path: x}\n"
    loaded = load_with_notes(write("a.yaml", text))
    annotated = annotated_yaml(loaded)
    assert load(write("b.yaml", annotated)) == loaded.config
    lines = [line.split("#") for line in annotated.splitlines()]
    origins = {parts[0].strip(" -").strip(): parts[1].strip() for parts in lines if len(parts) > 1}
    assert origins["seed: 7"] == "a.yaml:1"
    assert origins["path: x"] == "a.yaml:5"
    assert origins["out_dir: runs"] == "default"
    assert set(loaded.provenance.values()) == {"default", "a.yaml:1", "a.yaml:4", "a.yaml:5"}


def test_the_command_shows_values_with_their_origin() -> None:
    command = [sys.executable, "-m", "core.config", "configs/training/quickstart.yaml", "seed=3"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert shown.returncode == 0
    assert "name: quickstart" in shown.stdout
    assert any(line.split() == ["seed:", "3", "#", "command", "line"] for line in shown.stdout.splitlines())


def test_the_command_leaves_with_2_and_one_line_for_each_problem() -> None:
    failed = call(main, ROOT / "configs/training/quickstart.yaml", "seed=x", "foo=1")
    assert failed.returncode == 2
    assert failed.stdout == ""
    assert [line.split(" ")[:3] for line in failed.stderr.splitlines()] == [["error:", "command", "line:"]] * 2


def test_the_editor_schema_knows_every_table() -> None:
    schema = editor_schema()
    json.dumps(schema)
    tables = {"model": MODELS, "objective": OBJECTIVES, "optimizer": OPTIMIZERS, "schedule": SCHEDULES}
    for section, table in (tables | {"distributed": DISTRIBUTED}).items():
        rows = schema["properties"][section]["anyOf"][0]["oneOf"]
        assert [row["properties"]["type"].get("const") for row in rows] == list(table)
        assert all(row["additionalProperties"] is False for row in rows)
    assert "extends" in schema["properties"]
    assert schema["required"] == []
    references = [part.split('"')[0] for part in json.dumps(schema).split("#/$defs/")[1:]]
    assert set(references) <= set(schema["$defs"])


JUNK = [None, True, -1, 1e300, "", "no", "a:b", "os:path", [], [None], {}, {"type": None}, {"a": {"b": 1}}]


def test_no_value_anywhere_makes_more_than_a_config_error() -> None:
    defaults = dump(build_section(Config, {}))
    problems: list[str] = []
    for path, junk in itertools.product(_paths(defaults), JUNK):
        values = copy.deepcopy(defaults)
        section = values
        for key in path[:-1]:
            section = section[key]
        section[path[-1]] = junk
        try:
            assert build_section(Config, dump(config := build_section(Config, values))) == config
        except ConfigError as error:
            problems += error.problems
    assert len(problems) > 500
    assert [problem for problem in problems if not re.fullmatch(r"values: [\w.\[\]]+: [^\n]+", problem)] == []


def _paths(values: Any, path: tuple = ()) -> Iterator[tuple]:
    for key in values if isinstance(values, dict) else range(len(values)) if isinstance(values, list) else ():
        yield (*path, key)
        yield from _paths(values[key], (*path, key))


def test_text_is_not_sampled_from_what_cannot_generate(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("objective: {type: denoise}\nevaluation: {samples: {every: 5 steps}}\n")
    with pytest.raises(ConfigError, match=r"config.yaml:2: evaluation\.samples\.every: must be null: a 'denoise' run"):
        load(path)


@pytest.mark.parametrize(("text", "every"), [("none", 0), ("all", 1), ("every 1", 1), ("every 12", 12)])
def test_activation_checkpointing_is_none_all_or_every_so_many(text, every):
    assert build_section(Config, {"training": {"activation_checkpointing": text}}).training.recompute_every == every


@pytest.mark.parametrize("text", ["every 0", "every", "every 2.5", "some", "2"])
def test_any_other_activation_checkpointing_is_refused(text):
    with pytest.raises(ConfigError, match=f"activation_checkpointing: expected none, all or every N .* got '{text}'"):
        build_section(Config, {"training": {"activation_checkpointing": text}})


def test_a_micro_batch_is_a_number_or_auto():
    auto = build_section(Config, {"training": {"batch_size": 12, "micro_batch_size": "auto"}})
    assert (auto.given_micro_batch_size, auto.micro_batch_size_of(2)) == (None, 6)
    with pytest.raises(ConfigError, match="micro_batch_size: expected a whole number or auto, got 'most'"):
        build_section(Config, {"training": {"micro_batch_size": "most"}})
    with pytest.raises(ConfigError, match="micro_batch_size is 0; give some sequences, auto, or null") as caught:
        build_section(Config, {"training": {"micro_batch_size": 0}})
    assert len(caught.value.problems) == 1
