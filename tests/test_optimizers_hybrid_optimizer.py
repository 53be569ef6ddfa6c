"""Hybrid: each part trains exactly as its optimizer alone, states and schedules apart; globs that mean nothing."""

import json
import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from pydantic import ValidationError

from core.config import Config, build_section, dump, editor_schema, load, load_with_notes, to_yaml
from core.training import main
from optimizers import OPTIMIZERS
from optimizers.base import Optimizer
from optimizers.enhanced_optimizers import LionConfig, SGDConfig
from optimizers.hybrid_optimizer import HybridConfig
from optimizers.schedules import Timeline
from tests.tiny_run import assert_same_run, interrupt_after, metric_rows, needs_compiler, quiet_train, tiny_config
from tests.update_oracles import peak_of_update
from utils.errors import ConfigError, exit_code_of

ROOT = Path(__file__).parents[1]
BLOCK = {
    "input_layernorm.weight": (6,),
    "up_proj.weight": (10, 6),
    "up_proj.bias": (10,),
    "down_proj.weight": (6, 10),
}
SHAPES = {
    "embed_tokens.weight": (12, 6),
    **{f"layers.{index}.{name}": shape for index in (0, 1) for name, shape in BLOCK.items()},
    "norm.weight": (6,),
    "lm_head.weight": (12, 6),
}
OTHERS = sorted(set(OPTIMIZERS) - {"hybrid"})
SOON: dict[str, dict[str, Any]] = {
    "shampoo": {"update_period": 2, "start_preconditioning_step": 1},
    "soap": {"precondition_frequency": 2},
}
"""Settings with which a few updates meet everything an optimizer does."""


def hybrid(*groups: dict[str, Any], **settings: Any) -> HybridConfig:
    values = {"type": "hybrid", **settings, **({"groups": list(groups)} if groups else {})}
    config = build_section(Config, {"optimizer": values}).optimizer
    assert isinstance(config, HybridConfig)
    return config


def group(match: str | list[str], kind: str, schedule: dict[str, Any] | None = None, **settings: Any) -> dict[str, Any]:
    globs = [match] if isinstance(match, str) else match
    return {"match": globs, "optimizer": {"type": kind, **settings}, **({"schedule": schedule} if schedule else {})}


def drawn(names: Any, seed: int) -> dict[str, mx.array]:
    """Random arrays by name, the same for a name whatever else is asked for."""
    random = np.random.default_rng(seed)
    values = {name: random.standard_normal(shape) for name, shape in SHAPES.items()}
    return {name: mx.array(values[name].astype(np.float32)) for name in names}


def train(optimizer: Optimizer, parameters: dict[str, mx.array], schedule: Any, num_steps: int = 6) -> Any:
    """As the loop does: schedule, refresh, update, install."""
    for step in range(num_steps):
        optimizer.follow(schedule, step, Timeline(num_steps))
        refreshed = optimizer.refresh(step)
        parameters = optimizer.apply_gradients(drawn(parameters, step), parameters)
        optimizer.install(refreshed)
    return parameters


@pytest.mark.parametrize("row", OTHERS)
def test_every_part_trains_as_its_optimizer_alone(row: str) -> None:
    config = hybrid(
        group("*layers.0.*", row, schedule={"type": "linear", "warmup": 2}, **SOON.get(row, {})),
        group(["*layers.*"], row, learning_rate=0.02, weight_decay=0.3, **SOON.get(row, {})),
        group("*", "lion", learning_rate=1e-3),
    )
    parameters = drawn(SHAPES, 99)
    run = build_section(Config, {"schedule": {"type": "cosine", "warmup": 1}}).schedule
    together = config.build(parameters)
    ends = train(together, parameters, run)
    for member, pattern in zip(config.members, (r"layers\.0", r"layers\.1", r"(?!layers)"), strict=True):
        own = {name: array for name, array in parameters.items() if re.match(pattern, name)}
        assert own
        alone = member.optimizer.build(own)
        alone_ends = train(alone, own, member.schedule or run)
        for name, array in alone_ends.items():
            np.testing.assert_array_equal(np.array(ends[name]), np.array(array), err_msg=name)
        for name, array in alone.state_dict().items():
            if name.startswith("parameters."):
                np.testing.assert_array_equal(np.array(together.state_dict()[name]), np.array(array), err_msg=name)
    names = [found.name for found in together.groups]
    assert len(set(names)) == len(names)
    assert {name.split("-")[0] for name in names} == {"0", "1", "2"}


def test_averaged_weights_are_those_of_the_group_alone() -> None:
    parameters = drawn(SHAPES, 99)
    built = hybrid(group("*layers.*", "schedule_free_adamw"), group("*", "adamw")).build(parameters)
    assert hybrid(group("*", "adamw")).build(parameters).averaged(parameters) is None
    run = build_section(Config, {"schedule": {"type": "constant", "warmup": 1}}).schedule
    ends = train(built, parameters, run)
    averaged: Any = built.averaged(ends)
    moved = {name for name, array in ends.items() if not mx.array_equal(array, averaged[name])}
    assert moved == {name for name in SHAPES if "layers." in name}


def test_the_first_match_wins() -> None:
    config = hybrid(group("*up_proj*", "sgd"), group(["*layers.0.*", "norm*"], "lion"), group("*", "adamw"))
    found = {found.name: sorted(found.decay) for found in config.groups(SHAPES)}
    assert found["0-sgd"] == [f"layers.{i}.up_proj.{kind}" for i in (0, 1) for kind in ("bias", "weight")]
    assert found["1-lion"] == ["layers.0.down_proj.weight", "layers.0.input_layernorm.weight", "norm.weight"]
    assert found["2-adamw"] == sorted(SHAPES.keys() - {*found["0-sgd"], *found["1-lion"]})


def test_what_a_group_does_not_state_it_takes_from_the_hybrid() -> None:
    groups = (group("*layers.*", "muon", learning_rate=0.5), group("*", "adamw", weight_decay=0.0, no_decay=[]))
    muon, adamw = (member.optimizer for member in hybrid(*groups, learning_rate=0.25, weight_decay=0.75).members)
    assert (muon.learning_rate, muon.weight_decay, adamw.learning_rate, adamw.weight_decay) == (0.5, 0.75, 0.25, 0.0)
    muon, adamw = (member.optimizer for member in hybrid(*groups).members)
    assert (muon.weight_decay, adamw.learning_rate) == (0.1, 1e-3)
    lion, sgd = (member.optimizer for member in hybrid(group("*a", "lion"), group("*", "sgd")).members)
    assert (lion.learning_rate, lion.weight_decay, sgd.learning_rate, sgd.weight_decay) == (2e-4, 0.5, 0.1, 0.0)


@pytest.mark.parametrize(
    ("settings", "rates", "ignores", "gives"),
    [
        ({}, (None, None), False, False),
        ({"learning_rate": 0.25}, (None, None), False, True),
        ({"learning_rate": 0.25}, (0.5, None), False, False),
        ({"learning_rate": 0.25}, (0.5, 0.25), True, False),
        ({}, (0.5, 0.25), True, False),
    ],
)
def test_whether_a_learning_rate_of_the_hybrid_changes_anything(
    settings: dict[str, float], rates: tuple[float | None, ...], ignores: bool, gives: bool
) -> None:
    stated: list[dict[str, Any]] = [{} if rate is None else {"learning_rate": rate} for rate in rates]
    groups = group("*layers.*", "muon", **stated[0]), group("*", "adamw", **stated[1])
    config = hybrid(*groups, **settings)
    assert (config.ignores_learning_rate, config.gives_learning_rate) == (ignores, gives)
    others = hybrid(*groups, **settings | {"learning_rate": 0.75})
    assert ignores == (config.members == others.members)
    assert all(member.optimizer.learning_rate == 0.75 for member in others.members) == (rates == (None, None))


def test_what_is_handed_down_comes_from_where_the_hybrid_states_it(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        "optimizer:\n  type: hybrid\n  weight_decay: 0.3\n  groups:\n"
        "    - match: ['*']\n      optimizer: {type: sgd, momentum: 0.8}\n"
    )
    loaded = load_with_notes(tmp_path / "config.yaml", ["optimizer.learning_rate=0.2"])
    origins = {key: loaded.provenance[f"optimizer.groups[0].optimizer.{key}"] for key in loaded_keys(loaded.config)}
    assert {key: origin.rpartition("/")[2] for key, origin in origins.items()} == {
        "type": "config.yaml:6",
        "momentum": "config.yaml:6",
        "nesterov": "default",
        "learning_rate": "command line",
        "weight_decay": "config.yaml:3",
        "no_decay": "default",
    }


def loaded_keys(config: Config) -> list[str]:
    return list(dump(config.optimizer)["groups"][0]["optimizer"])


def test_a_saved_config_says_what_was_used_and_loads_back_to_it(tmp_path: Path) -> None:
    config = build_section(
        Config,
        {
            "optimizer": {
                "type": "hybrid",
                "learning_rate": 0.02,
                "groups": [group("*layers.*", "lion", schedule={"type": "wsd"}), group("*", "sgd", learning_rate=1)],
            }
        },
    )
    saved = dump(config)["optimizer"]["groups"]
    assert [entry["optimizer"]["learning_rate"] for entry in saved] == [0.02, 1.0]
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load(tmp_path / "config.yaml") == config
    assert load(tmp_path / "config.yaml").optimizer.groups(SHAPES)[0].learning_rate == 0.02


def test_no_decay_of_the_hybrid_is_for_the_whole_model() -> None:
    config = hybrid(
        group("*layers.*", "sgd", weight_decay=0.5), group("*", "adamw"), no_decay=["*down_proj*", "lm_head*"]
    )
    layers, rest = config.groups(SHAPES)
    assert {name for name, decay in layers.decay.items() if not decay} == {
        "layers.0.down_proj.weight",
        "layers.1.down_proj.weight",
    }
    assert {name for name, decay in rest.decay.items() if not decay} == {"lm_head.weight"}
    assert set(layers.decay.values()) == {0.0, 0.5}
    own = hybrid(group("*layers.*", "sgd", no_decay=["*lm_head*"]), group("*", "adamw"))
    with pytest.raises(ConfigError, match=r"optimizer\.groups\[0\]\.optimizer\.no_decay: '\*lm_head\*' matches no"):
        own.groups(SHAPES)


def test_schedules_and_learning_rates_are_kept_apart_and_saved() -> None:
    schedule = {"type": "linear", "warmup": 0}
    config = hybrid(group("*layers.*", "muon", schedule=schedule, learning_rate=0.5), group("*", "lion"))
    assert {where: found.type for where, found in config.schedules().items()} == {"optimizer.groups[0].": "linear"}
    built = config.build(drawn(SHAPES, 99))
    run = build_section(Config, {"schedule": {"type": "constant", "warmup": 0}}).schedule
    assert built.follow(run, 2, Timeline(5)) == {"0-muon": 0.25, "0-adamw": 0.25, "1-lion": 2e-4}
    arrays = built.state_dict()
    assert {name: arrays[name].item() for name in arrays if name.startswith("schedule")} == {
        "schedule": 1.0,
        "schedules.0-muon": 0.5,
        "schedules.0-adamw": 0.5,
    }
    other = config.build(drawn(SHAPES, 99))
    other.load_state(arrays)
    assert other.state["schedules"]["0-muon"].item() == 0.5


BAD: dict[str, tuple[list[dict[str, Any]], list[str]]] = {
    "a glob that matches nothing": (
        [group(["*self_atn*", "*mlp*"], "muon"), group("*", "adamw")],
        [r"^optimizer\.groups\[0\]\.match: '\*self_atn\*' matches no parameter; nearest: .*self_attn"],
    ),
    "globs that come too late": (
        [
            group("*layers.*", "muon"),
            group("*embed*", "sgd"),
            group(["*embed*", "*proj*"], "lion"),
            group("*", "adamw"),
        ],
        [
            r"groups\[2\]\.match: all that '\*embed\*' matches belongs to groups\[1\] already: the first match wins",
            r"groups\[2\]\.match: all that '\*proj\*' matches belongs to groups\[0\] already",
        ],
    ),
    "a rest that is none": (
        [group("*layers.*", "muon"), group("*e*", "sgd"), group("*", "adamw")],
        [r"groups\[2\]\.match: all that '\*' matches belongs to groups\[0\] and groups\[1\] already"],
    ),
    "parameters without a group": (
        [group("*layers.*", "muon")],
        [
            r"^optimizer\.groups: no group matches the parameter model\.embed_tokens\.weight",
            r"^optimizer\.groups: no group matches the parameter model\.norm\.weight",
            r"match: \['\*'\] takes all that is left",
        ],
    ),
    "an optimizer that cannot use its part": (
        [group("*norm*", "muon"), group("*", "adamw")],
        [r"^optimizer\.groups\[0\]\.optimizer\.matrices: no matrix matches"],
    ),
    "a hybrid in a hybrid": (
        [group("*layers.*", "hybrid"), group("*", "adamw")],
        [r"optimizer\.groups: the optimizer of groups\[0\] is a hybrid again"],
    ),
    "no groups": ([], [r"optimizer\.groups: expected at least 1 entry, got none$"]),
    "no globs": ([group([], "sgd")], [r"optimizer\.groups\[0\]\.match: expected at least 1 entry, got none$"]),
    "a glob that is no list": (
        [{"match": "*", "optimizer": {"type": "sgd"}}],
        [r"groups\[0\]\.match: expected a list, got '\*'; try \['\*'\]$"],
    ),
    "an unknown optimizer": (
        [group("*", "adamx")],
        [r"groups\[0\]\.optimizer\.type: unknown optimizer 'adamx' \(did you mean 'adam"],
    ),
    "no type": ([{"match": ["*"], "optimizer": {}}], [r"groups\[0\]\.optimizer\.type: expected one of .*missing"]),
    "a bad number": ([group("*", "sgd", momentum=1)], [r"groups\[0\]\.optimizer\.momentum: .*less than 1, got 1"]),
    "a misspelt key": (
        [{"macth": ["*"], "optimizer": {"type": "sgd"}}],
        [r"groups\[0\]\.macth: .*mean 'match'", r"groups\[0\]\.match: is required"],
    ),
    "a schedule that does not fit": (
        [group("*", "sgd", schedule={"type": "linear", "warmup": "30 steps"})],
        [r"schedule\.warmup is 30 steps but the run has only 20"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_groups_that_mean_nothing_are_refused_at_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    groups, patterns = BAD[case]
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(tiny_config(tmp_path)))
    value = json.dumps({"type": "hybrid", "groups": groups})
    assert exit_code_of(lambda: main(["--config", str(path), f"optimizer={value}", "--dry-run"])) == 2
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("error: ") for line in lines)
    problems = [line.removeprefix("error: ").removeprefix("command line: ") for line in lines]
    for pattern in patterns:
        assert any(re.search(pattern, problem) for problem in problems), problems
    assert len(problems) == len(patterns)
    assert not (tmp_path / "runs").exists()


def test_many_parameters_without_a_group_are_counted() -> None:
    shapes = {f"w{index:03}": (2,) for index in range(60)}
    with pytest.raises(ConfigError) as caught:
        hybrid(group("w000", "sgd")).groups(shapes)
    assert caught.value.problems[20] == "... and 39 more"


def test_bad_values_to_hand_down_are_refused_once() -> None:
    cases: list[dict[str, Any]] = [{"learning_rate": 0}, {"weight_decay": float("nan")}, {"no_decay": 3}]
    for settings in cases:
        with pytest.raises(ValidationError, match=next(iter(settings))) as caught:
            HybridConfig(**settings)
        assert caught.value.error_count() == 1


@needs_compiler
@pytest.mark.parametrize(("first", "second"), [("lion", "lion"), ("lion", "sgd"), ("muon", "muon")])
def test_an_update_holds_no_more_than_the_bytes_that_are_promised(first: str, second: str) -> None:
    size, num_layers = 128, 8
    shapes = {f"layers.{index}.{part}.weight": (size, size) for index in range(num_layers) for part in "ab"}
    config = hybrid(group("*.a.*", first), group("*.b.*", second))
    built = config.build({name: mx.zeros(shape) for name, shape in shapes.items()})
    # No lower bound: how much of it is alive at the same time is a matter of when MLX's threads run.
    assert peak_of_update(built, shapes) < 1.05 * config.update_bytes(shapes)


def test_what_the_groups_hold_adds_up() -> None:
    shapes = {"layers.0.a.weight": (4, 8), "layers.0.b.weight": (16, 8)}
    config = hybrid(group("*.a.*", "lion"), group("*.b.*", "lion"))
    assert config.update_bytes(shapes) == 4 * (4 * 8 + 16 * 8)


def test_all_groups_may_refresh_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, factor in ((SGDConfig, 3), (LionConfig, 5)):
        monkeypatch.setattr(kind, "refresh_bytes", lambda self, shapes, factor=factor: factor * len(shapes))
    assert hybrid(group("*layers.*", "sgd"), group("*", "lion")).refresh_bytes(SHAPES) == 8 * 3 + 3 * 5


def test_the_editor_schema_offers_groups_and_ends() -> None:
    rows = editor_schema()["properties"]["optimizer"]["anyOf"][0]["oneOf"]
    (row,) = (row for row in rows if row["properties"]["type"]["const"] == "hybrid")
    assert row["properties"]["groups"]["items"] == {"$ref": "#/$defs/HybridGroup"}
    assert set(editor_schema()["$defs"]["HybridGroup"]["properties"]) == {"match", "optimizer", "schedule"}


def test_a_run_logs_every_group_and_resumes_to_the_bit(tmp_path: Path) -> None:
    optimizer = load(ROOT / "configs" / "optimizers" / "hybrid.yaml").optimizer
    whole, cut = (tiny_config(tmp_path, name=name, optimizer=dump(optimizer)) for name in ("whole", "cut"))
    quiet_train(whole)
    interrupt_after(cut, 7)
    quiet_train(cut, resume=True)
    assert_same_run(tmp_path / "runs" / "whole", tmp_path / "runs" / "cut")
    row = next(row for row in metric_rows(tmp_path / "runs" / "whole") if row["step"] == 20)
    rates = {name: rate for name, rate in row.items() if name.startswith("optim/learning_rate")}
    assert rates == pytest.approx(
        {
            "optim/learning_rate": 3e-4,
            "optim/learning_rate/0-muon": 3e-4,
            "optim/learning_rate/0-adamw": 3e-4,
            "optim/learning_rate/1-adamw": 2e-4,
            "optim/learning_rate/2-adamw": 1e-4,
        }
    )
