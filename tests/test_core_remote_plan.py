"""The plan for a rented card is the one that training makes there; its range holds what others have measured."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import memory_plan
from core.assembly import build_parts
from core.config import Config, load
from core.memory_plan import estimate_memory
from core.plan import due, make_plan
from core.remote import MOST_RETRIES
from core.remote_plan import (
    FASTER,
    SLOWER,
    STARTING,
    RemotePlan,
    check_before_data,
    described,
    flops_left,
    limit_on,
    plan_remote,
    rows,
    step_on,
)
from distributed.group import SingleConfig
from tests.planned_steps import config_of
from tests.prepared_data import silent
from tests.tiny_run import tiny_config, write_sources
from utils.chips import Chip, apple_chip
from utils.errors import ConfigError
from utils.gpus import CARDS, GPUS, Gpu, hourly_price

BIG = ("configs/models/model-config-400m.yaml", 32768)


def machine_with(monkeypatch: pytest.MonkeyPatch, chip: Chip, limit: int) -> None:
    """Let the planner believe that it runs on `chip`."""
    monkeypatch.setattr(memory_plan, "this_chip", lambda: chip)
    monkeypatch.setattr(memory_plan, "memory_limit", lambda: limit)


def tiny_plan(folder: Path, gpu: str = "A100-80GB", *, sections: Any = None, **asked: Any) -> RemotePlan:
    """The tiny run, planned for a card."""
    config = tiny_config(folder, **(sections or {}))
    return plan_remote(config, config.data.build(config.seed, report=silent), GPUS[gpu], **asked)


@pytest.mark.parametrize(
    ("name", "num_params", "share"),
    # MLX: mlx #2762, #2838, #3130. Others: llm.c #323 and modded-nanogpt's README, nanochat's leaderboard, TinyLlama.
    [("A100-80GB", 596e6, 0.25), ("B200", 600e6, 0.17), ("B200", 3.7e9, 0.25), ("A100-40GB", 124e6, 0.346),
     ("H100", 124e6, 0.348), ("H100", 700e6, 0.50), ("A100-40GB", 1.1e9, 0.56), ("H100", 8e9, 0.41)],
)  # fmt: skip
def test_the_range_holds_what_was_published(name: str, num_params: float, share: float) -> None:
    peak = GPUS[name].chip.peaks["bfloat16"]
    assert SLOWER.of(int(num_params), peak) < share < FASTER.of(int(num_params), peak)
    # A range that holds everything says nothing.
    assert FASTER.of(int(num_params), peak) < 6 * SLOWER.of(int(num_params), peak)


@given(st.integers(10**5, 10**11), st.integers(2, 50), st.floats(1e12, 5e15), st.floats(1.1, 50))
def test_larger_models_and_slower_cards_are_used_better(
    num_params: int, larger: int, peak: float, faster: float
) -> None:
    for efficiency in (SLOWER, FASTER):
        share = efficiency.of(num_params, peak)
        assert 0 < share < efficiency.of(num_params * larger, peak) < 0.6
        assert efficiency.of(num_params, peak * faster) < share
        # A faster card is never slower.
        assert efficiency.of(num_params, peak * faster) * peak * faster > share * peak


@pytest.mark.parametrize("precision", ["auto", "float32", "float16"])
@pytest.mark.parametrize("micro_batch_size", [None, 2, "auto"])
@pytest.mark.parametrize("gpu", [GPUS["T4"], GPUS["B200"]])
def test_the_plan_is_what_training_makes_on_that_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu: Gpu, micro_batch_size: Any, precision: str
) -> None:
    small = gpu._replace(gib=0.004)  # So that `auto` has to choose.
    training = {"batch_size": 48, "micro_batch_size": micro_batch_size, "precision": precision, "weight_ema": 0.99}
    if micro_batch_size is None:
        small = gpu
    config = tiny_config(tmp_path, training=training, data={"sequence_length": 32})
    dataset = config.data.build(config.seed, report=silent)
    planned = plan_remote(config, dataset, small).plan
    model_config, optimizer_bytes, keeps_average = described(config, dataset.tokenizer.vocab_size)
    machine_with(monkeypatch, small.chip, small.memory_limit)
    there = make_plan(
        config,
        model_config,
        precision=small.chip.default_precision if precision == "auto" else precision,
        optimizer_bytes=optimizer_bytes,
        keeps_average=keeps_average,
        rows_per_epoch=dataset.rows_per_epoch,
    )
    assert planned == there._replace(attention=None)
    if micro_batch_size == "auto":
        assert 1 <= planned.micro_batch_size < 48


def test_the_machine_at_home_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sections = {"training": {"micro_batch_size": "auto", "batch_size": 24}}
    on_cpu = tiny_plan(tmp_path, sections=sections)
    machine_with(monkeypatch, apple_chip({"device_name": "Apple M3"}), 10**6)
    assert tiny_plan(tmp_path, sections=sections) == on_cpu


@pytest.mark.parametrize("optimizer", ["adamw", "schedule_free_adamw"])
def test_steps_tokens_and_data_are_those_of_a_training_here(tmp_path: Path, optimizer: str) -> None:
    stages = [{"weights": {"a": 3, "b": 1}, "tokens": "25 %"}, {"weights": {"b": 1}}]
    config = tiny_config(
        tmp_path,
        optimizer={"type": optimizer},
        data={"sources": write_sources(tmp_path, a=1.0, b=1.0), "mixture": {"by": "tokens", "stages": stages}},
        training={"duration": "0.4 epochs"},
    )
    parts = build_parts(config, SingleConfig().build(), None, silent)
    remote = plan_remote(config, config.data.build(config.seed, report=silent), GPUS["L4"])
    for name in ("num_params", "total_steps", "total_tokens", "warmup_steps", "periods", "disk_bytes", "timeline"):
        assert getattr(remote.plan, name) == getattr(parts.plan, name), name
    assert remote.summary == parts.dataset.summary()
    printed = dict(rows(remote))
    assert printed["steps"].startswith(f"{parts.plan.total_steps:,}, ")
    assert printed["tokens"].startswith(f"{parts.plan.total_tokens:,} ")


class TestMemory:
    """What does not fit the card asked for is refused here, with a way out that works."""

    def config(self, **training: Any) -> Config:
        """400M parameters in rows of 2048, so many at once that only large cards hold it."""
        overrides = [f"training.{key}={value}" for key, value in {"micro_batch_size": 32, **training}.items()]
        return load(BIG[0], ["training.batch_size=64", *overrides])

    def test_the_refusal_names_the_cheapest_card_that_does(self) -> None:
        config = self.config()
        with pytest.raises(ConfigError, match="--gpu L4: a step needs about") as error:
            check_before_data(config, GPUS["L4"], BIG[1])
        other = GPUS[str(error.value).rsplit("--gpu ", 1)[1]]
        check_before_data(config, other, BIG[1])
        model_config, optimizer_bytes, _ = described(config, BIG[1])
        for gpu in CARDS:
            if (gpu.dollars_per_hour or 0) < (other.dollars_per_hour or 0):
                step = step_on(gpu, config, model_config, optimizer_bytes)
                assert estimate_memory(step).peak > gpu.memory_limit, gpu.name

    def test_a_setting_it_names_makes_it_fit(self) -> None:
        with pytest.raises(ConfigError) as error:
            check_before_data(self.config(), GPUS["L40S"], BIG[1])
        size = str(error.value).split("training.micro_batch_size: ")[1].split()[0]
        check_before_data(self.config(micro_batch_size=size), GPUS["L40S"], BIG[1])

    def test_a_limit_of_ones_own_is_kept(self) -> None:
        config = self.config(micro_batch_size=1, memory_limit="6G")
        with pytest.raises(ConfigError, match=r"limit is 6 GB") as error:
            check_before_data(config, GPUS["B200"], BIG[1])
        assert "as it is, it fits" not in str(error.value)
        assert limit_on(GPUS["B200"], config) == 6 * 10**9

    def test_a_limit_above_the_card_is_no_memory(self) -> None:
        """Training would choose its micro-batch by it, and run out of memory."""
        check_before_data(self.config(micro_batch_size="auto"), GPUS["L40S"], BIG[1])
        config = self.config(micro_batch_size="auto", memory_limit="400G")
        assert limit_on(GPUS["L40S"], config) == GPUS["L40S"].memory_limit
        with pytest.raises(ConfigError, match="--gpu L40S: a step needs"):
            check_before_data(config, GPUS["L40S"], BIG[1])

    def test_weights_alone_that_are_too_large(self) -> None:
        config = load("configs/models/model-config-7b.yaml", ["training.memory_limit=400G"])
        with pytest.raises(ConfigError, match="less than the weights alone") as error:
            check_before_data(config, GPUS["T4"], BIG[1])
        assert "training.memory_limit" not in str(error.value)

    def test_the_plan_refuses_as_well(self, tmp_path: Path) -> None:
        config = tiny_config(tmp_path, training={"batch_size": 64, "micro_batch_size": 64})
        dataset = config.data.build(config.seed, report=silent)
        with pytest.raises(ConfigError, match="--gpu T4: a step needs"):
            plan_remote(config, dataset, GPUS["T4"]._replace(gib=0.002))

    def test_nothing_is_refused_while_the_vocabulary_is_not_known(self) -> None:
        check_before_data(config_of(data={"tokenizer": {"type": "file", "path": "missing"}}), GPUS["T4"])


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"data": {"mixture": {"exhausted": "stop"}}, "training": {"duration": "9000 steps"}}, "the sources hold"),
        ({"training": {"early_stopping": 3}, "evaluation": {"every": None}}, "early_stopping needs held-out text"),
        ({"schedule": {"warmup": "20 steps"}}, "schedule.warmup is 20 steps"),
        ({"training": {"batch_size": 8, "micro_batch_size": 3}}, "training.batch_size: 8 sequences"),
    ],
)
def test_what_training_would_refuse_is_refused_before_it_costs(
    tmp_path: Path, sections: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        tiny_plan(tmp_path, sections=sections)


@pytest.mark.parametrize(("first_step", "recompute"), [(0, 0), (7, 1), (10, 2), (19, 0), (20, 1), (25, 0)])
def test_work_is_counted_step_by_step(tmp_path: Path, first_step: int, recompute: int) -> None:
    plan = tiny_plan(tmp_path, sections={"evaluation": {"every": "3 steps"}}).plan
    forward, expected = plan.flops_per_token / 3, 0.0
    for step in range(first_step + 1, plan.total_steps + 1):
        passes = 3 + (1 / recompute if recompute else 0)
        expected += passes * forward * 8 * 32
        expected += forward * 1000 if due(plan.periods.evaluate, step) else 0
    assert flops_left(plan, recompute, 1000, first_step) == pytest.approx(expected)
    without = plan._replace(periods=plan.periods._replace(evaluate=None))
    assert flops_left(without, 0, 1000, 0) == plan.total_flops


@pytest.mark.parametrize(("asked", "every"), [("none", 0), ("every 2", 2), ("all", 1)])
def test_the_plan_counts_held_out_text_and_recomputation(tmp_path: Path, asked: str, every: int) -> None:
    remote = tiny_plan(tmp_path, first_step=3, sections={"training": {"activation_checkpointing": asked}})
    assert remote.summary["validation_tokens"] > 0
    assert remote.flops == flops_left(remote.plan, every, remote.summary["validation_tokens"], 3)


def with_hours(remote: RemotePlan, hours: float) -> RemotePlan:
    """The same run so long that it trains for `hours` at worst."""
    assert remote.peak is not None
    assert remote.shares is not None
    return remote._replace(flops=remote.peak * remote.shares[0] * hours * 3600)


class TestTimeAndCost:
    """Ranges, from the work."""

    def test_time_is_work_over_speed_and_the_start_of_every_attempt(self, tmp_path: Path) -> None:
        remote = with_hours(tiny_plan(tmp_path), 60)
        assert remote.seconds is not None
        assert remote.shares is not None
        slower, faster = remote.shares
        low, high = remote.seconds
        assert high == pytest.approx(60 * 3600 + 3 * STARTING[1])
        trained = 60 * 3600 * slower / faster
        assert low == pytest.approx(trained + remote.attempts_of(trained) * STARTING[0])
        assert remote.attempts_of(trained) < 3
        shorter = remote._replace(attempt_hours=6).seconds
        assert shorter is not None
        assert shorter[1] == pytest.approx(60 * 3600 + 10 * STARTING[1])

    def test_half_of_the_steps_take_half_the_work(self, tmp_path: Path) -> None:
        whole, rest = tiny_plan(tmp_path), tiny_plan(tmp_path, first_step=10)
        assert rest.flops == whole.flops / 2
        assert dict(rows(rest))["left"] == "10 steps from step 10 on"
        assert "left" not in dict(rows(whole))

    def test_cost_is_time_at_the_price_of_the_whole_container(self, tmp_path: Path) -> None:
        asked: dict[str, Any] = {"cores": 8, "gib": 32, "region": "us"}
        remote = tiny_plan(tmp_path, "H100", **asked)
        assert remote.hourly == hourly_price(GPUS["H100"], 8, 32, "us")
        assert remote.seconds is not None
        assert remote.hourly is not None
        assert remote.dollars == pytest.approx([seconds * remote.hourly / 3600 for seconds in remote.seconds])

    def test_the_rows_say_both_ends(self, tmp_path: Path) -> None:
        remote = with_hours(tiny_plan(tmp_path, "A100-80GB"), 10)._replace(hourly=3.0)
        printed = dict(rows(remote))
        slower, faster = (f"{100 * share:.2g} %" for share in remote.shares or ())
        assert printed["time"].endswith(f"{faster} to {slower} of 312 TFLOP/s: assumed, nobody has measured it")
        assert " to 10 hours with starting, " in printed["time"]
        assert " to $31, at $3.00 an hour" in printed["cost"]
        assert "2026-" in printed["cost"]
        assert printed["GPU"] == "A100-80GB, 85 GB"
        assert "80 GB at this price" in dict(rows(remote._replace(gpu=GPUS["A100"])))["GPU"]

    def test_what_is_not_known_is_said(self, tmp_path: Path) -> None:
        remote = tiny_plan(tmp_path, "T4", sections={"training": {"precision": "bfloat16"}})
        assert remote.peak is remote.shares is remote.seconds is remote.dollars is None
        printed = dict(rows(remote))
        assert printed["time"].startswith("not known: T4 has no peak in bfloat16")
        assert printed["cost"].startswith("$0.")
        assert printed["at most"].endswith("; --max-hours stops it earlier")
        unpriced = dict(rows(with_hours(tiny_plan(tmp_path), 10)._replace(hourly=None, max_hours=3.0)))
        assert unpriced["cost"].startswith("not known: no price of A100-80GB")
        assert "$" not in unpriced["at most"]


@pytest.mark.parametrize(
    ("hours", "max_hours", "text"),
    [
        (10, None, "264 hours in 11 attempts of 24 or less, those that Modal interrupts not counted, = $528; "
         "--max-hours 11 stops it earlier"),
        (300, None, "264 hours in 11 attempts of 24 or less, those that Modal interrupts not counted, = $528; should "
         "the run take longer, --resume goes on from what it has saved"),
        (10, 24, "24 hours = $48"),
        (10, 4, "4 hours = $8.00; should the run take longer, --resume goes on from what it has saved"),
        (10, 1, "1 hour = $2.00; the run takes longer: what it has saved by then stays, and --resume goes on from it"),
        (10, 0.25, "0.25 hours = $0.50; the run takes longer: what it has saved by then stays, and --resume goes on "
         "from it"),
        (100, 120, "120 hours in 5 attempts of 24 or less = $240"),
        (90000, 9000, "264 hours in 11 attempts of 24 or less = $528; the run takes longer: what it has saved by then "
         "stays, and --resume goes on from it"),
    ],
)  # fmt: skip
def test_what_it_can_cost_at_most(tmp_path: Path, hours: float, max_hours: float | None, text: str) -> None:
    remote = with_hours(tiny_plan(tmp_path), hours)._replace(hourly=2.0, max_hours=max_hours)
    assert MOST_RETRIES == 10
    assert dict(rows(remote))["at most"] == text


def test_fewer_and_shorter_attempts_end_sooner(tmp_path: Path) -> None:
    remote = with_hours(tiny_plan(tmp_path, attempt_hours=2.5, most_attempts=6), 10)._replace(hourly=2.0)
    text = dict(rows(remote))["at most"]
    assert text.startswith("15 hours in 6 attempts of 2.5 or less, ")
    assert "= $30; --max-hours 11 " in text


def test_nothing_is_said_of_this_machine(tmp_path: Path) -> None:
    remote = tiny_plan(tmp_path)
    printed = rows(remote)
    names = [name for name, _ in printed]
    assert names[:2] == ["training text", "held-out text"]
    assert {"attention", "disk"}.isdisjoint(names)
    assert not any(" free" in text for name, text in printed if name == "volume")
    assert str(mx.default_device()) not in str(printed)
    assert " of 80.7 GB at the peak" in dict(printed)["memory"]
    assert dict(printed)["precision"] == "bfloat16"
