"""Which runs a comparison makes: equal numbers for all, grids that grow towards the best, and what is read off them."""

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.comparison import Result, Settings, Trial, grow, next_exponent, num_runs, summarise, tokens_at, wanted

SEEDS = (7, 8, 9)


def setup(num_trials: int = 5, shares: tuple[float, ...] = ()) -> Settings:
    names = ("base", "other")
    paths = {name: Path(f"{name}.yaml") for name in names}
    return Settings(Path("x.yaml"), paths, dict.fromkeys(names, 0.01), SEEDS, num_trials, 2.0, shares)


def outcome(trial: Trial, best: float) -> Result:
    """A loss that is lowest at `best`, on a curve that falls in a line from 10."""
    loss = 3.0 + abs(math.log2(trial.learning_rate / best)) + 0.01 * (trial.seed - SEEDS[0])
    tokens = round(1000 * trial.share)
    curve = tuple((tokens * part // 4, 10 - (10 - loss) * part / 4) for part in range(5))
    return Result(loss, loss / 3, tokens, curve)


def play(asked: Settings, name: str, best: float) -> dict[Trial, Result]:
    """All runs that an optimizer is given, in the order in which they are asked for."""
    results: dict[Trial, Result] = {}
    while due := wanted(asked, name, results):
        results |= {trial: outcome(trial, best) for trial in due}
    return results


@settings(max_examples=60, deadline=None)
@given(st.integers(3, 9), st.floats(-8.0, 8.0))
def test_each_gets_the_same_trials_on_a_grid_without_gaps(num_trials: int, octave: float) -> None:
    asked = setup(num_trials, shares=(0.5, 0.75))
    results = play(asked, "other", 0.01 * 2**octave)
    grid, missing = grow(asked, "other", results)
    assert missing == []
    assert len(grid) == num_trials
    assert all(high / low == pytest.approx(2.0, rel=0.01) for low, high in zip(grid, grid[1:], strict=False))
    assert len(results) == num_trials + 2 + 2 * 3
    assert {trial.seed for trial in results if trial.share == 0.5} == set(SEEDS)
    assert num_runs(asked) == len(results) + len(play(asked, "base", 0.01))
    if abs(octave) < num_trials - 2.5:
        best = min(grid, key=lambda rate: abs(math.log2(rate / 0.01) - octave))
        assert min(grid) < best < max(grid)


def test_runs_are_asked_for_one_after_the_other_only_where_it_matters() -> None:
    asked = setup()
    first = wanted(asked, "base", {})
    assert [trial.learning_rate for trial in first] == [0.005, 0.01, 0.02]
    results = {trial: outcome(trial, 0.04) for trial in first}
    assert wanted(asked, "base", results) == [Trial("base", 0.04, 7)]
    results |= {trial: outcome(trial, 0.04) for trial in wanted(asked, "base", results)}
    assert wanted(asked, "base", results) == [Trial("base", 0.08, 7)]
    results |= {trial: outcome(trial, 0.04) for trial in wanted(asked, "base", results)}
    assert wanted(asked, "base", results) == [Trial("base", 0.04, 8), Trial("base", 0.04, 9)]


def test_the_baseline_makes_no_shorter_runs() -> None:
    results = play(setup(shares=(0.75,)), "base", 0.01)
    assert {trial.share for trial in results} == {1.0}


def test_a_grid_grows_at_the_end_that_is_near_the_best_point() -> None:
    assert next_exponent([-1, 0, 1], [1.0, 2.0, 3.0]) == -2
    assert next_exponent([-1, 0, 1], [3.0, 2.0, 1.0]) == 2
    assert next_exponent([-1, 0, 1], [2.0, 1.0, 3.0]) == -2
    assert next_exponent([-1, 0, 1], [3.0, 1.0, 2.0]) == 2
    assert next_exponent([-1, 0, 1, 2], [3.0, 2.0, 1.0, 2.5]) == 3
    assert next_exponent([-1, 0, 1], [1.0, math.inf, math.inf]) == -2


def test_the_summary_is_what_the_runs_say() -> None:
    asked = setup(shares=(0.5,))
    results = play(asked, "base", 0.02) | play(asked, "other", 0.01)
    results |= {
        trial: result._replace(
            loss=result.loss - 1, curve=tuple((at, 10 - (11 - result.loss) * at / 1000) for at in (0, 500, 1000))
        )
        for trial, result in results.items()
        if trial.optimizer == "other" and trial.share == 1
    }
    base, other = summarise(asked, results)
    assert (base.learning_rate, other.learning_rate) == (0.02, 0.01)
    assert base.is_interior
    assert base.losses == pytest.approx((3.0, 3.01, 3.02))
    assert (base.mean, base.spread) == (pytest.approx(3.01), pytest.approx(0.01))
    assert base.tokens_to_baseline == pytest.approx(1.0)
    # A line from 10 to loss - 1 is at the baseline's loss, each for its own seed, after 7 / 8 or so of its way.
    expected = [(10 - 3 - 0.01 * i) / (10 - 2 - 0.01 * i) for i in range(3)]
    assert other.tokens_to_baseline == pytest.approx(sum(expected) / 3)
    assert other.shares == {0.5: pytest.approx((3.0, 3.01, 3.02))}


def test_an_optimizer_with_missing_runs_is_left_out_and_a_loss_not_reached_is_none() -> None:
    asked = setup()
    results = play(asked, "base", 0.01)
    assert [summary.name for summary in summarise(asked, results)] == ["base"]
    worse = {
        trial: result._replace(loss=result.loss + 6, curve=((0, 10.0), (1000, 9.0)))
        for trial, result in play(asked, "other", 0.01).items()
    }
    assert summarise(asked, results | worse)[1].tokens_to_baseline is None


@pytest.mark.parametrize(("best", "is_interior"), [(1.0, False), (0.01, True), (1e-4, False)])
def test_a_best_point_at_either_edge_is_said(best: float, is_interior: bool) -> None:
    asked = setup(num_trials=3)
    (base,) = summarise(asked, play(asked, "base", best))
    assert base.is_interior == is_interior


def diverged(result: Result) -> Result:
    return result._replace(loss=math.inf, bits_per_byte=math.inf, curve=result.curve[:2], note="step 5: not finite")


@pytest.mark.parametrize("name", ["base", "other"])
def test_with_a_seed_that_diverged_there_is_no_mean_no_spread_and_nothing_reached(name: str) -> None:
    asked = setup()
    results = play(asked, "base", 0.01) | play(asked, "other", 0.01)
    lost = Trial(name, 0.01, SEEDS[1])
    # Before it diverged it was far below what the baseline ended with.
    results[lost] = diverged(results[lost])._replace(curve=((0, 10.0), (500, 1.0)))
    rows = {summary.name: summary for summary in summarise(asked, results)}
    assert math.isinf(rows[name].mean)
    assert math.isnan(rows[name].spread)
    assert rows[name].num_diverged == 1
    assert rows["other"].tokens_to_baseline is None
    untouched = rows["other" if name == "base" else "base"]
    assert (untouched.num_diverged, untouched.spread) == (0, pytest.approx(0.01))


def test_one_seed_has_no_spread() -> None:
    asked = setup()._replace(seeds=SEEDS[:1])
    (base,) = summarise(asked, play(asked, "base", 0.01))
    assert math.isnan(base.spread)
    assert base.mean == 3.0


def test_all_learning_rates_may_diverge() -> None:
    asked = setup()
    results: dict[Trial, Result] = {}
    while due := wanted(asked, "base", results):
        results |= {trial: diverged(outcome(trial, 0.01)) for trial in due}
    (base,) = summarise(asked, results)
    # Lower ones are tried: what diverges was too high.
    assert [rate for rate, _ in base.grid] == [0.00125, 0.0025, 0.005, 0.01, 0.02]
    assert (base.num_diverged, base.tokens_to_baseline) == (3, None)


def test_tokens_at_a_loss() -> None:
    curve = ((0, 8.0), (100, 6.0), (200, 6.5), (300, 5.0))
    assert tokens_at(curve, 7.0) == 50
    assert tokens_at(curve, 6.0) == 100
    assert tokens_at(curve, 5.75) == 250
    assert tokens_at(curve, 9.0) == 0
    assert tokens_at(curve, 4.9) is None
