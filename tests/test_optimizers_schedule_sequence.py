"""Sequences: every part is its schedule over its own length, and whatever does not tile the run is refused."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.config import Config, build_section, dump, editor_schema, load_with_notes, to_yaml
from core.training import main
from optimizers.schedules import ScheduleConfig, Timeline
from tests.tiny_run import tiny_config
from utils.errors import exit_code_of

LINE = {"type": "linear", "warmup": 0}


def schedule_of(values: dict[str, Any]) -> ScheduleConfig:
    return build_section(Config, {"schedule": values}).schedule


def sequence(*parts: tuple[Any, dict[str, Any]], **more: Any) -> ScheduleConfig:
    listed = [{"from": start, "schedule": values, **more} for start, values in parts]
    return schedule_of({"type": "sequence", "parts": listed})


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    scales=st.lists(st.floats(0, 3), min_size=5, max_size=5),
    data=st.data(),
)
def test_a_sequence_is_its_schedules_one_after_another(
    lengths: list[int], scales: list[float], data: st.DataObject
) -> None:
    kinds = [data.draw(st.sampled_from(["constant", "cosine", "linear", "one_cycle", "polynomial"])) for _ in lengths]
    parts = [
        {"from": sum(lengths[:index]), "scale": scales[index], "schedule": {"type": kind}}
        for index, kind in enumerate(kinds)
    ]
    whole = schedule_of({"type": "sequence", "parts": parts})
    wanted = [
        scales[index] * schedule_of({"type": kind}).multiplier(step, Timeline(length))
        for index, (kind, length) in enumerate(zip(kinds, lengths, strict=True))
        for step in range(length)
    ]
    timeline = Timeline(sum(lengths))
    assert [whole.multiplier(step, timeline) for step in range(timeline.total_steps)] == wanted


def test_lengths_inside_a_part_are_the_parts() -> None:
    timeline = Timeline(total_steps=100, tokens_per_step=10, num_params=50, rows_per_epoch=20, batch_size=2)
    warm = {"type": "constant", "warmup": "10 %"}
    slow = {"type": "constant", "warmup": "40 tokens"}
    whole = sequence((0, LINE), ("400 tokens", warm), ("14 tokens_per_param", warm), ("8 epochs", slow), ("90 %", warm))
    values = [whole.multiplier(step, timeline) for step in range(100)]
    assert values[:40] == [1 - step / 39 for step in range(40)]
    assert values[40:45] == [1 / 3, 2 / 3, 1, 1, 1]
    assert values[70:72] == values[90:92] == [1, 1]
    assert values[80:85] == [0.25, 0.5, 0.75, 1, 1]


def test_the_warm_up_of_a_run_is_the_first_parts() -> None:
    whole = sequence((0, {"type": "cosine", "warmup": "10 %"}), ("50 %", {"type": "cosine", "warmup": "20 %"}))
    assert whole.warmup_steps(Timeline(100)) == 5
    assert whole.units() == {"steps", "fraction"}
    assert sequence((0, LINE), ("1 epochs", {"type": "wsd", "decay": "5 tokens"})).units() == {
        "steps",
        "epochs",
        "tokens",
        "fraction",
    }


def test_sequences_nest() -> None:
    inner = {"type": "sequence", "parts": [{"from": 0, "schedule": LINE}, {"from": 2, "schedule": LINE}]}
    whole = sequence((0, {"type": "constant", "warmup": 0}), (3, inner))
    assert [whole.multiplier(step, Timeline(8)) for step in range(8)] == [1, 1, 1, 1, 0, 1, 0.5, 0]


BAD: dict[str, tuple[list[dict[str, Any]], str]] = {
    "a gap at the start": ([{"from": 2, "schedule": LINE}], r"parts\[0\]\.from is 2 steps, which leaves a gap"),
    "a part after the end": (
        [{"from": 0, "schedule": LINE}, {"from": 20, "schedule": LINE}],
        r"parts\[1\]\.from is 20 steps but the run has only 20: the part would never begin; .*training\.duration",
    ),
    "parts in the wrong order": (
        [{"from": 0, "schedule": LINE}, {"from": 9, "schedule": LINE}, {"from": "25 %", "schedule": LINE}],
        r"parts\[2\]\.from is 5 steps and parts\[1\]\.from is 9: .*after the one before",
    ),
    "two parts at once": (
        [{"from": 0, "schedule": LINE}, {"from": "0 %", "schedule": LINE}],
        r"parts\[1\]\.from is 0 steps and parts\[0\]\.from is 0",
    ),
    "a warm-up longer than its part": (
        [{"from": 0, "schedule": LINE}, {"from": 15, "schedule": {"type": "cosine", "warmup": "6 steps"}}],
        r"parts\[1\], to whose schedule its 5 steps are the whole run: schedule\.warmup is 6 steps but .* only 5",
    ),
    "no parts": ([], r"schedule\.parts: expected at least 1 entry, got none$"),
    "a part without a start": ([{"schedule": LINE}], r"schedule\.parts\[0\]\.from: is required"),
    "a negative scale": ([{"from": 0, "scale": -1, "schedule": LINE}], r"schedule\.parts\[0\]\.scale: .*got -1"),
    "a misspelt key": (
        [{"form": 0, "schedule": LINE}],
        r"schedule\.parts\[0\]\.form: unknown key \(did you mean 'from'",
    ),
    "an unknown schedule": ([{"from": 0, "schedule": {"type": "sine"}}], r"parts\[0\]\.schedule\.type: .*'sine'"),
}


def override(parts: list[dict[str, Any]]) -> str:
    return "schedule=" + json.dumps({"type": "sequence", "parts": parts})


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("dry", [True, False])
def test_what_does_not_tile_the_run_is_refused_at_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str, dry: bool
) -> None:
    parts, words = BAD[case]
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(tiny_config(tmp_path)))
    arguments = ["--config", str(path), override(parts), *(["--dry-run"] if dry else [])]
    assert exit_code_of(lambda: main(arguments)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("error: ")
    assert any(re.search(words, line) for line in lines), lines
    assert not (tmp_path / "runs" / "tiny").exists()


def test_a_dry_run_in_epochs_knows_no_steps_and_refuses_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(tiny_config(tmp_path, training={"duration": "3 epochs"})))
    parts = [{"from": 0, "schedule": LINE}, {"from": 50, "schedule": {"type": "cosine", "warmup": "9 steps"}}]
    assert main(["--config", str(path), override(parts), "--dry-run"]) == 0
    assert "steps of an epoch are known once" in capsys.readouterr().err


def test_from_is_the_key_everywhere(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("schedule:\n  type: sequence\n  parts:\n    - from: 0\n      schedule: {type: constant}\n")
    loaded = load_with_notes(path)
    assert dump(loaded.config)["schedule"]["parts"][0]["from"] == "0 steps"
    assert loaded.provenance["schedule.parts[0].from"].endswith("config.yaml:4")
    assert loaded.provenance["schedule.parts[0].scale"] == "default"
    (tmp_path / "again.yaml").write_text(to_yaml(loaded.config))
    assert load_with_notes(tmp_path / "again.yaml").config == loaded.config
    part = editor_schema()["$defs"]["Part"]
    assert set(part["properties"]) == {"from", "scale", "schedule"}
    assert part["required"] == ["from", "schedule"]
