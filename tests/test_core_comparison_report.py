"""The report says what the runs did, marks what is weak about them, and finds its place in a page."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from core.comparison import Result, Settings, Summary, Trial, summarise, wanted
from core.comparison_report import (
    BEGIN,
    END,
    Cost,
    about,
    all_runs,
    cost_of,
    draw,
    put_into,
    read_costs,
    read_page,
    row,
    save_costs,
    share_lines,
    text_of,
)
from utils.benchmark_report import Outcome
from utils.errors import DataError
from utils.yaml_file import write_yaml

GRID = ((0.005, 3.5), (0.01, 3.0), (0.02, math.inf))
BASE = Summary("base", 0.01, GRID, (3.0, 3.2, 3.4), 1.5, 1.0, {})
OTHER = Summary("other", 0.01, GRID, (2.8, 3.0, 3.2), 1.4, 0.625, {0.5: (3.5, 3.3, 3.3), 0.75: (2.9, 3.2, 3.5)})


def test_a_row_is_the_summary() -> None:
    cells = row(OTHER, BASE, Cost(0.25, 1.25, 24_000_000))
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
    edge = row(OTHER._replace(learning_rate=0.02, tokens_to_baseline=None), BASE, None)
    assert "**best at the edge**" in edge[1]
    assert edge[4:] == ["not reached", "-", "-", "-"]


def test_shorter_runs_are_set_beside_the_whole_ones_of_the_baseline() -> None:
    half, line = share_lines([BASE, OTHER])
    assert half.endswith("at or below for 1 of 3 seeds")
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


def setup_file(folder: Path) -> Path:
    path = folder / "setup.yaml"
    path.write_text(
        write_yaml(
            {
                "name": "setup",
                "data": {"type": "text", "sources": [{"type": "stdlib"}], "sequence_length": 64},
                "training": {"duration": "200 steps", "batch_size": 4},
            }
        )
    )
    return path


def test_the_setting_is_told(tmp_path: Path) -> None:
    path = setup_file(tmp_path)
    settings = Settings(path, {"base": path}, {"base": 0.01}, (5, 6), 5, 2.0, ())
    text = about(settings, "a chip")
    assert "schedule cosine; 5" in text
    for part in ("200 steps of 4 x 64 tokens", "5 learning rates", "2x apart", "seed 5", "seeds 5, 6", "a chip"):
        assert part in text


def test_one_seed_is_one_seed(tmp_path: Path) -> None:
    path = setup_file(tmp_path)
    settings = Settings(path, {"base": path}, {"base": 0.01}, (5,), 5, 2.0, ())
    assert "with seed 5. Losses in nats per token on the held-out text, of one seed" in about(settings, "")
    single = BASE._replace(losses=(3.0,))
    assert row(single, single, None)[2] == "3.0000"
    (line,) = share_lines([single, single._replace(name="other", shares={0.5: (3.1,)})])
    assert line.endswith("at or below for 0 of 1 seed")


def test_a_schedule_of_an_optimizers_own_is_named(tmp_path: Path) -> None:
    path = setup_file(tmp_path)
    own = {name: tmp_path / f"{name}.yaml" for name in ("plain", "steady", "slow")}
    own["plain"].write_text("optimizer: {type: sgd}\n")
    own["steady"].write_text("schedule: {type: constant, warmup: 5 %}\n")
    own["slow"].write_text("schedule: {warmup: 9 %}\n")
    text = about(Settings(path, own, dict.fromkeys(own, 0.01), (5, 6)), "")
    assert (
        "schedule cosine warmup=2 % final_ratio=0.1 "
        "(but steady: constant warmup=5 %; slow: cosine warmup=9 % final_ratio=0.1); " in text
    )


def made(folder: Path, is_lost: Callable[[Trial], bool]) -> tuple[Settings, list[Summary], dict[Trial, Result]]:
    """A comparison with shorter runs of which some diverge after their first evaluation; 0.01 is the best rate."""
    path = setup_file(folder)
    names = ("base", "other")
    settings = Settings(path, dict.fromkeys(names, path), dict.fromkeys(names, 0.01), (5, 6, 7), 3, 2.0, (0.5,))
    results: dict[Trial, Result] = {}
    while due := [trial for name in names for trial in wanted(settings, name, results)]:
        for trial in due:
            loss = 3.0 + abs(math.log2(trial.learning_rate / 0.01)) + 0.01 * trial.seed
            whole = Result(loss, loss / 2, 200, ((0, 8.0), (100, 5.0), (200, loss)))
            lost = Result(math.inf, math.inf, 100, whole.curve[:1], "step 3: loss or gradient was not finite")
            results[trial] = lost if is_lost(trial) else whole
    return settings, summarise(settings, results), results


LOST = {
    "a seed": (
        lambda trial: trial.optimizer == "other" and trial.seed == 6 and trial.share == 1,
        "| base | 0.01 (3 of 0.005 to 0.02) | 3.0600 \u00b1 0.0100 | 1.530 | 1.00x |",
        "| other | 0.01 (3 of 0.005 to 0.02) | **diverged** (1 of 3 seeds) | - | - |",
        ": 3.0600 (3.0500, 3.0600, 3.0700); base with all of them 3.0600: +0.0000, at or below for 3 of 3 seeds",
    ),
    "every rate": (
        lambda trial: trial.optimizer == "other",
        "| base | 0.01 (3 of 0.005 to 0.02) | 3.0600 \u00b1 0.0100 | 1.530 | 1.00x |",
        "| other | none (3 of 0.005 to 0.02, **all diverged**) | **diverged** (3 of 3 seeds) | - | - |",
        ": diverged (diverged, diverged, diverged); base with all of them 3.0600, at or below for 0 of 3 seeds",
    ),
    "a seed of the baseline": (
        lambda trial: trial.optimizer == "base" and trial.seed == 6,
        "| base | 0.01 (3 of 0.005 to 0.02) | **diverged** (1 of 3 seeds) | - | - |",
        "| other | 0.01 (3 of 0.005 to 0.02) | 3.0600 \u00b1 0.0100 | 1.530 | - |",
        ": 3.0600 (3.0500, 3.0600, 3.0700); base with all of them diverged, at or below for 3 of 3 seeds",
    ),
    "a shorter run": (
        lambda trial: trial.share != 1 and trial.seed == 6,
        "| base | 0.01 (3 of 0.005 to 0.02) | 3.0600 \u00b1 0.0100 | 1.530 | 1.00x |",
        "| other | 0.01 (3 of 0.005 to 0.02) | 3.0600 \u00b1 0.0100 | 1.530 | 1.00x |",
        ": diverged (3.0500, diverged, 3.0700); base with all of them 3.0600, at or below for 2 of 3 seeds",
    ),
    "everything": (
        lambda trial: True,
        "| base | none (3 of 0.005 to 0.02, **all diverged**) | **diverged** (3 of 3 seeds) | - | - |",
        "| other | none (3 of 0.005 to 0.02, **all diverged**) | **diverged** (3 of 3 seeds) | - | - |",
        ": diverged (diverged, diverged, diverged); base with all of them diverged, at or below for 0 of 3 seeds",
    ),
}


@pytest.mark.parametrize("case", LOST)
def test_the_report_of_runs_that_diverged_says_so_and_no_false_number(tmp_path: Path, case: str) -> None:
    is_lost, *said = LOST[case]
    settings, summaries, results = made(tmp_path, is_lost)
    text = text_of(settings, summaries, results, {}, "command", "a chip")
    for line in said:
        assert line in text
    assert "inf" not in text.replace("information", "")
    assert "nan" not in text
    draw(settings, summaries, results, tmp_path / "comparison.png")
    assert (tmp_path / "comparison.png").stat().st_size > 10_000


@pytest.mark.parametrize("text", ["no marks\n", f"{BEGIN}\n", f"{END}\n{BEGIN}\n"])
def test_a_page_without_the_marks_in_order_is_refused(tmp_path: Path, text: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(DataError, match=r"page\.md lacks the lines"):
        read_page(page)
    with pytest.raises(DataError, match="lacks the lines"):
        put_into(page, "text")
    assert page.read_text() == text


def test_a_report_replaces_the_one_before_and_nothing_else(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"above\n{BEGIN}\nold\n{END}\nbelow\n")
    put_into(page, "one \\1\n")
    put_into(page, "two \\g<0>\n")
    assert page.read_text() == f"above\n{BEGIN}\n\ntwo \\g<0>\n\n{END}\nbelow\n"
