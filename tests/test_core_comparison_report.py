"""The report says what the runs did, marks what is weak about them, and finds its place in a page."""

import math
from pathlib import Path

import pytest

from core.comparison import Result, Settings, Summary, Trial
from core.comparison_report import (
    BEGIN,
    END,
    Cost,
    about,
    all_runs,
    cost_of,
    put_into,
    read_costs,
    row,
    save_costs,
    share_lines,
)
from utils.benchmark_report import Outcome
from utils.errors import DataError
from utils.yaml_file import write_yaml

GRID = ((0.005, 3.5), (0.01, 3.0), (0.02, math.inf))
BASE = Summary("base", 0.01, GRID, (3.0, 3.2, 3.4), 1.5, 1.0, {})
OTHER = Summary("other", 0.01, GRID, (2.8, 3.0, 3.2), 1.4, 0.625, {0.75: (2.9, 3.2, 3.5)})


def test_a_row_is_the_summary() -> None:
    cells = row(OTHER, Cost(0.25, 1.25, 24_000_000))
    assert cells == [
        "other",
        "0.01 (3 of 0.005 to 0.02)",
        "3.0000 \u00b1 0.2000",
        "1.400",
        "0.62x",
        "250 ms",
        "1.25",
        "24 MB",
    ]


def test_what_is_weak_is_said() -> None:
    edge = row(OTHER._replace(learning_rate=0.02, tokens_to_baseline=None), None)
    assert "**best at the edge**" in edge[1]
    assert edge[4:] == ["not reached", "-", "-", "-"]


def test_shorter_runs_are_set_beside_the_whole_ones_of_the_baseline() -> None:
    (line,) = share_lines([BASE, OTHER])
    assert line.startswith(
        "- **other, a whole run of 0.75 of the tokens**: 3.2000 (2.9000, 3.2000, 3.5000); base with "
    )
    assert line.endswith("3.2000: +0.0000, at or below for 2 of 3 seeds")


def test_every_run_is_listed_also_one_that_diverged() -> None:
    results = {
        Trial("other", 0.02, 1): Result(math.inf, math.inf, 10, (), "step 3: loss or gradient was not finite"),
        Trial("base", 0.01, 1, 0.75): Result(3.0, 1.5, 10, ()),
    }
    lines = all_runs(results).splitlines()
    assert lines[2:] == [
        "| base | 0.01 | 1 | 0.75 | 3.0000 | 1.500 |",
        "| other | 0.02 | 1 | 1 | step 3: loss or gradient was not finite | - |",
    ]


def test_costs_are_medians_and_paired_ratios_and_are_kept(tmp_path: Path) -> None:
    first = Outcome("ok", "", {"state_bytes": 5}, [{"seconds": 1.0}, {"seconds": 2.0}, {"seconds": 4.0}])
    other = Outcome("ok", "", {"state_bytes": 7}, [{"seconds": 2.0}, {"seconds": 3.0}, {"seconds": 6.0}])
    cost = cost_of(other, first)
    assert cost == Cost(3.0, 1.5, 7)
    assert read_costs(tmp_path / "costs.json") == {}
    save_costs(tmp_path / "costs.json", {"other": cost})
    assert read_costs(tmp_path / "costs.json") == {"other": cost}


def test_the_setting_is_told(tmp_path: Path) -> None:
    path = tmp_path / "setup.yaml"
    path.write_text(
        write_yaml(
            {
                "name": "setup",
                "data": {"type": "text", "sources": [{"type": "stdlib"}], "sequence_length": 64},
                "training": {"duration": "200 steps", "batch_size": 4},
            }
        )
    )
    settings = Settings(path, {"base": path}, {"base": 0.01}, (5, 6), 5, 2.0, ())
    text = about(settings, "a chip")
    for part in ("200 steps of 4 x 64 tokens", "5 learning rates", "2x apart", "seed 5", "seeds 5, 6", "a chip"):
        assert part in text


def test_a_report_replaces_the_one_before_and_nothing_else(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"above\n{BEGIN}\nold\n{END}\nbelow\n")
    put_into(page, "one \\1\n")
    put_into(page, "two \\g<0>\n")
    assert page.read_text() == f"above\n{BEGIN}\n\ntwo \\g<0>\n\n{END}\nbelow\n"
    page.write_text("no marks\n")
    with pytest.raises(DataError, match="lacks the lines"):
        put_into(page, "text")
    assert page.read_text() == "no marks\n"
