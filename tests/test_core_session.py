"""What a row of metrics says about the mixture: the share of each source, the same when a run is resumed."""

from pathlib import Path
from typing import Any

import pytest

from core.config import Config
from core.run import run_folder
from tests.tiny_run import assert_same_run, interrupt_after, metric_rows, quiet_train, tiny_config, write_sources

NAMES = ("data/share/a", "data/share/b")
STEPS = 12


def mixed_config(folder: Path, name: str, every: int = 1) -> Config:
    """Sources a and b, weights 3 and 1 by tokens, in windows of about three steps."""
    return tiny_config(
        folder,
        name=name,
        data={"sources": write_sources(folder, a=3, b=1), "mixture": {"by": "tokens", "window_tokens": 800}},
        training={"duration": f"{STEPS} steps"},
        evaluation={"every": None},
        logging={"every": f"{every} steps"},
    )


def shares_in(config: Config) -> dict[int, tuple[float, ...]]:
    """By step, the shares of a and b."""
    rows = metric_rows(run_folder(config))
    return {row["step"]: tuple(row[name] for name in NAMES) for row in rows if NAMES[0] in row}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run that was never stopped."""
    config = mixed_config(tmp_path_factory.mktemp("mixed"), "whole")
    quiet_train(config)
    return config


def given_by_step(config: Config) -> list[list[int]]:
    """Pairs of each source after 0, 1, ... steps, from the loader itself."""
    batches = config.data.build(config.seed, report=lambda line: None).batches(8)
    return [[0, 0], *(next(batches)[1]["tokens"] for _ in range(STEPS))]


def test_shares_are_what_the_loader_gave_since_the_last_row(whole: Config) -> None:
    shares, given = shares_in(whole), given_by_step(whole)
    assert list(shares) == list(range(1, STEPS + 1))
    for step, found in shares.items():
        since = [now - before for now, before in zip(given[step], given[step - 1], strict=True)]
        assert found == pytest.approx([tokens / sum(since) for tokens in since])
        assert sum(found) == pytest.approx(1)
    assert len(set(shares.values())) > 3
    assert sum(a for a, _ in shares.values()) / STEPS == pytest.approx(3 / 4, abs=0.03)


def test_rows_of_several_steps_share_all_of_them(whole: Config) -> None:
    config = mixed_config(Path(whole.out_dir).parent, "sparse", every=5)
    quiet_train(config)
    given = given_by_step(config)
    shares = shares_in(config)
    assert list(shares) == [5, 10, STEPS]
    for step, last in ((5, 0), (10, 5), (STEPS, 10)):
        since = [now - before for now, before in zip(given[step], given[last], strict=True)]
        assert shares[step] == pytest.approx([tokens / sum(since) for tokens in since])


def test_a_resumed_run_has_the_same_shares(whole: Config) -> None:
    config = mixed_config(Path(whole.out_dir).parent, "resumed")
    interrupt_after(config, step=5)
    assert shares_in(config) == {step: shares for step, shares in shares_in(whole).items() if step <= 5}
    quiet_train(config, resume=True)
    assert shares_in(config) == shares_in(whole)
    assert_same_run(run_folder(whole), run_folder(config))


def test_one_source_has_no_shares(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, training={"duration": "3 steps"}, evaluation={"every": None})
    quiet_train(config)
    rows: list[dict[str, Any]] = metric_rows(run_folder(config))
    assert any("train/loss" in row for row in rows)
    assert not [key for row in rows for key in row if key.startswith("data/share")]


def test_a_run_stopped_between_two_rows_has_the_same_shares(whole: Config) -> None:
    folder = Path(whole.out_dir).parent
    once, twice = (mixed_config(folder, name, every=5) for name in ("once", "twice"))
    quiet_train(once)
    interrupt_after(twice, step=7)
    quiet_train(twice, resume=True)
    assert shares_in(twice) == shares_in(once)
    assert_same_run(run_folder(once), run_folder(twice))
