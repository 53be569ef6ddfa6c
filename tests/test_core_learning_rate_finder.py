"""The finder: its steps are training's, it leaves no trace, and it reads known curves rightly."""

import math
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

import core.learning_rate_finder as finder
from core.assembly import Parts, build_parts
from core.config import Config
from core.learning_rate_finder import (
    Curve,
    Point,
    Range,
    check_memory,
    check_range,
    find,
    reference_of,
    smoothed,
    suggest,
    unchanged,
)
from distributed.group import SingleConfig
from optimizers import OPTIMIZERS
from tests.tiny_run import losses, quiet_train, tiny_config
from utils.errors import ConfigError

TRIED = Range(1e-4, 1.0, 20)
GROUP = SingleConfig().build()


def parts_of(config: Config) -> Parts:
    return build_parts(config, GROUP, None, lambda line: None)


def everything(parts: Parts) -> dict[str, np.ndarray]:
    """All that the finder could have changed, on the host."""
    random: Any = mx.random.state
    trees = {
        "model": parts.model.parameters(),
        "optimizer": parts.optimizer.state_dict(),
        "guard": parts.guard,
        "ema": parts.ema or {},
        "random": {"key": random[0]},
    }
    return {f"{kind}.{name}": np.array(array) for kind, tree in trees.items() for name, array in tree_flatten(tree)}


def assert_untouched(before: dict[str, np.ndarray], parts: Parts) -> None:
    after = everything(parts)
    assert before.keys() == after.keys()
    for name, array in before.items():
        np.testing.assert_array_equal(array, after[name], err_msg=name)


def curve_of(function: Any, rates: list[float], *, diverged: bool = True) -> Curve:
    """What a search would see of a loss that is a function of log10(rate)."""
    return Curve(function(-9.0), [Point(rate, function(math.log10(rate))) for rate in rates], diverged)


@pytest.mark.parametrize("row", OPTIMIZERS)
def test_every_optimizer_is_searched_and_left_as_it_was(tmp_path: Path, row: str) -> None:
    average = None if row.startswith("schedule_free") else 0.9
    config = tiny_config(
        tmp_path,
        optimizer={"type": row, "learning_rate": 1e-3},
        training={"weight_ema": average},
    )
    parts = parts_of(config)
    mx.random.seed(7 << 32 | 5)  # Both halves of a key count.
    before = everything(parts)
    seen: list[float] = []
    curve = find(parts, GROUP, config, TRIED, lambda step, loss: seen.append(loss))
    assert_untouched(before, parts)
    assert seen == [curve.first_loss, *(point.loss for point in curve.points)]
    rates = [point.learning_rate for point in curve.points]
    np.testing.assert_allclose(rates, np.geomspace(1e-4, 1.0, 20)[: len(rates)])
    assert min(seen) < seen[0]


def test_what_breaks_inside_is_put_back_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(tmp_path)
    parts = parts_of(config)
    before = everything(parts)

    def stop(step: int, loss: float) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find(parts, GROUP, config, TRIED, stop)
    assert_untouched(before, parts)
    with unchanged(parts):
        mx.random.normal((3,))
        parts.guard["skipped"] = mx.array(3, mx.int32)
    assert_untouched(before, parts)


@pytest.mark.parametrize(
    "changes",
    [
        {"training": {"micro_batch_size": 4}},
        {"optimizer": {"type": "muon", "learning_rate": 1e-2}, "model": {"residual_dropout": 0.1}},
    ],
    ids=["adamw, accumulation", "muon, dropout"],
)
def test_at_one_rate_it_trains_as_the_loop_does(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = tiny_config(tmp_path, schedule={"type": "constant", "warmup": "0 steps"}, **changes)
    quiet_train(config)
    rate = config.optimizer.learning_rate
    curve = find(parts_of(config), GROUP, config, Range(rate, rate, 19))
    assert [curve.first_loss, *(point.loss for point in curve.points)] == losses(tmp_path / "runs" / "tiny")


def test_every_group_gets_the_multiplier_also_those_with_a_schedule_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The optimizer itself is asked, in each update, what its groups' rates are."""
    groups = [
        {"match": ["*.self_attn.*"], "optimizer": {"type": "muon", "learning_rate": 0.02},
         "schedule": {"type": "linear", "warmup": "1 steps"}},
        {"match": ["*"], "optimizer": {"type": "adamw", "learning_rate": 0.005}},
    ]  # fmt: skip
    config = tiny_config(tmp_path, optimizer={"type": "hybrid", "learning_rate": 1e-2, "groups": groups})
    parts, asked = parts_of(config), []
    original = finder.make_step

    def watched(*arguments: Any) -> Any:
        step = original(*arguments)

        def call(batch: Any) -> Any:
            asked.append([float(parts.optimizer._rate_of(group).item()) for group in parts.optimizer.groups])
            return step(batch)

        return call

    monkeypatch.setattr(finder, "make_step", watched)
    find(parts, GROUP, config, Range(1e-5, 1e-3, 20))
    own = np.array([group.learning_rate for group in parts.optimizer.groups])
    expected = (
        np.geomspace(1e-5, 1e-3, 20)[:, None] / 0.02 * own
    )  # No group has the hybrid's: so the largest of theirs.
    np.testing.assert_allclose(asked[:20], expected, rtol=1e-5)
    assert len(asked) == 21


@pytest.mark.parametrize(
    ("rates", "expected"),
    [((None, None), (0.01, None)), ((0.001, None), (0.01, "1-adamw")), ((0.03, 0.2), (0.2, "1-adamw"))],
)
def test_whose_learning_rate_is_searched_in_a_hybrid(
    tmp_path: Path, rates: tuple[float | None, ...], expected: tuple[float, str | None]
) -> None:
    stated = [{} if rate is None else {"learning_rate": rate} for rate in rates]
    groups = [
        {"match": ["*layers.*"], "optimizer": {"type": "lion", **stated[0]}},
        {"match": ["*"], "optimizer": {"type": "adamw", **stated[1]}},
    ]
    config = tiny_config(tmp_path, optimizer={"type": "hybrid", "learning_rate": 0.01, "groups": groups})
    assert reference_of(parts_of(config), config) == expected


def test_refreshes_happen_as_in_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(tmp_path)
    parts = parts_of(config)
    events: list[Any] = []
    monkeypatch.setattr(parts.optimizer, "refresh", lambda count: events.append(count) or {"at": count})
    monkeypatch.setattr(parts.optimizer, "install", lambda refreshed: events.append(refreshed))
    find(parts, GROUP, config, TRIED)
    assert events[:6] == [0, {"at": 0}, 1, {"at": 1}, 2, {"at": 2}]


def test_a_loss_that_is_not_finite_ends_it(tmp_path: Path) -> None:
    objective = {"type": "tests.toy_objectives:BrokenConfig", "row": 40}
    config = tiny_config(tmp_path, objective=objective)
    parts = parts_of(config)
    before = everything(parts)
    curve = find(parts, GROUP, config, TRIED)
    assert_untouched(before, parts)
    assert curve.diverged
    assert len(curve.points) == 5
    assert math.isnan(curve.points[-1].loss)


def test_a_gradient_that_is_not_finite_ends_it(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, objective={"type": "tests.toy_objectives:SteepConfig", "row": 40})
    seen: list[float] = []
    curve = find(parts_of(config), GROUP, config, TRIED, lambda step, loss: seen.append(loss))
    assert curve.diverged
    assert len(curve.points) == 5
    assert len(seen) == 6
    assert all(math.isfinite(loss) for loss in seen)


def test_a_loss_that_rises_ends_it(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, optimizer={"type": "sgd", "learning_rate": 1.0, "momentum": 0.9})
    curve = find(parts_of(config), GROUP, config, Range(1e-2, 1e5, 30))
    assert curve.diverged
    assert len(curve.points) < 30
    assert not find(parts_of(config), GROUP, config, Range(1e-5, 1e-2, 20)).diverged


def bowl(log_rate: float) -> float:
    """8 until 10^-4, straight down to 3 at 10^-2, flat until 10^-1.6, and up again."""
    if log_rate < -1.6:
        return 8 - 2.5 * min(max(log_rate + 4, 0), 2)
    return 3 + 7 * (log_rate + 1.6)


class TestTheSuggestion:
    """Curves whose answer is known."""

    rates = np.geomspace(1e-6, 10**-1.3, 200).tolist()

    def test_it_is_where_most_of_the_fall_was_made(self) -> None:
        suggestion = suggest(curve_of(bowl, self.rates))
        assert suggestion.learning_rate is not None
        # 90 % of a straight fall from 10^-4 to 10^-2, but for what smoothing rounds off at the bottom.
        assert math.log10(suggestion.learning_rate) == pytest.approx(-2.2, abs=0.1)
        assert "8" in suggestion.reason
        assert "--max" not in suggestion.reason

    def test_noise_and_what_diverges_at_the_end_move_it_little(self) -> None:
        random = np.random.default_rng(0)
        found = []
        for _ in range(20):
            curve = curve_of(lambda x: bowl(x) + 0.2 * random.normal(), self.rates)
            ends = [Point(0.1, 1e9), Point(0.2, math.nan)]
            found.append(suggest(curve._replace(points=[*curve.points, *ends])).learning_rate)
        assert max(found) / min(found) < 1.5
        assert math.log10(np.median(found)) == pytest.approx(-2.2, abs=0.1)

    def test_a_range_that_ends_too_soon_is_said(self) -> None:
        rates = np.geomspace(1e-6, 1e-3, 100).tolist()
        assert "still falls at --max 0.001" in suggest(curve_of(bowl, rates, diverged=False)).reason
        whole = suggest(curve_of(bowl, self.rates, diverged=False)).reason
        assert "did not diverge up to --max 0.05" in whole

    @pytest.mark.parametrize(("diverged", "advice"), [(False, "larger --max"), (True, "smaller --min")])
    def test_a_curve_that_never_falls_suggests_nothing(self, diverged: bool, advice: str) -> None:
        flat = curve_of(lambda x: 8.0 + 0.01 * (x > -3), self.rates, diverged=diverged)
        assert suggest(flat).learning_rate is None
        assert advice in suggest(flat).reason

    def test_no_point_at_all(self) -> None:
        assert suggest(Curve(math.nan, [], diverged=True)).learning_rate is None

    def test_smoothing_keeps_a_straight_line_where_it_is(self) -> None:
        line = smoothed(curve_of(lambda x: 8 - x / 10, self.rates))
        np.testing.assert_allclose(line[30:-30], [8 - math.log10(rate) / 10 for rate in self.rates[30:-30]], rtol=1e-6)


@pytest.mark.parametrize(
    ("tried", "word"),
    [
        (Range(1.0, 1e-3, 100), "0 < min < max"),
        (Range(1e-3, 1e-3, 100), "0 < min < max"),
        (Range(0.0, 1.0, 100), "0 < min < max"),
        (Range(-1.0, 1.0, 100), "0 < min < max"),
        (Range(math.nan, 1.0, 100), "0 < min < max"),
        (Range(1e-3, math.inf, 100), "0 < min < max"),
        (Range(1e-3, 1.0, 19), "at least 20"),
    ],
)
def test_ranges_that_cannot_be_are_refused(tried: Range, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        check_range(tried)


def test_what_is_kept_must_fit_into_the_memory(tmp_path: Path) -> None:
    parts = parts_of(tiny_config(tmp_path))
    plan = parts.plan
    kept = 4 * plan.num_params + plan.optimizer_bytes
    assert check_memory(parts) == plan.memory.peak + kept
    with pytest.raises(ConfigError, match="keeps a copy"):
        check_memory(parts._replace(plan=plan._replace(memory_limit=plan.memory.peak + kept - 1)))
