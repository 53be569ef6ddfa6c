"""The memory planner against MLX's own counter, and the micro-batch that it chooses against trying all."""

import gc
import itertools
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core import memory_plan
from core.assembly import Parts, copy_tree, set_recomputation
from core.config import Config, load
from core.diagnostics import movement
from core.guard import initial_guard
from core.memory_plan import (
    choose_micro_batch_size,
    divisors,
    estimate_memory,
    limit_of,
    moments,
)
from core.memory_remedies import check_fits
from core.plan import make_plan
from core.training import make_step, to_micro_batches
from data.batch import Batch
from distributed.group import SingleConfig
from models.base import ModelConfig
from tests.memory_peaks import highest_peak
from tests.planned_steps import H200, config_of, planned, with_vocabulary
from tests.tiny_run import needs_compiler
from utils.errors import ConfigError

GB = 10**9


def random_batch(config: Config) -> Batch:
    """Tokens without meaning."""
    random = np.random.default_rng(0)
    shape = (config.rows_per_batch, config.data.sequence_length)
    tokens = random.integers(0, config.model.known_vocab_size() - 1, shape).astype(np.int32)
    keys = random.integers(0, 2**31, (shape[0], 2)).astype(np.uint32)
    return Batch(tokens, tokens, np.ones(shape, np.float32), np.ones(shape, np.int32), keys)


def steps_of(config: Config) -> tuple[Iterator[int], int]:
    """(peaks by MLX's counter of one compiled step after the other, bytes of the optimizer's state)."""
    gc.collect()
    before = mx.get_active_memory()
    model_config = config.model
    model = model_config.build(seed=0)
    set_recomputation(model, config)
    objective = config.objective.build(model_config.known_vocab_size() - config.objective.num_reserved_tokens)
    optimizer = config.optimizer.build(model.trainable_parameters())
    optimizer_bytes = sum(array.nbytes for array in optimizer.state_dict().values())
    plan = make_plan(config, model_config, precision="float32", optimizer_bytes=optimizer_bytes)
    ema = copy_tree(model.trainable_parameters()) if config.training.weight_ema else None
    guard = initial_guard("float32")
    parts = Parts(None, model_config, model, objective, optimizer, guard, ema, plan)
    mx.eval(model.state, optimizer.state, guard)
    step = make_step(parts, SingleConfig().build(), config)
    batch = random_batch(config)

    def peaks() -> Iterator[int]:
        for num_updates in itertools.count(10, 10):
            mx.reset_peak_memory()
            refreshed = optimizer.refresh(num_updates)
            old_weights = model.trainable_parameters() if config.logging.layers_every else None
            found = step(to_micro_batches(batch, plan.micro_batch_size))
            optimizer.install(refreshed)
            del refreshed
            mx.async_eval(found, model.state, optimizer.state, guard, ema or {})
            mx.eval([] if old_weights is None else movement(old_weights, model.trainable_parameters()))
            del old_weights
            mx.eval(found, model.state)
            yield mx.get_peak_memory() - before

    return peaks(), optimizer_bytes


MEASURED: dict[str, dict[str, Any]] = {
    "small vocabulary, short rows": {"model": {"num_hidden_layers": 2, "hidden_size": 64, "vocab_size": 512}},
    "grouped heads, six blocks": {
        "model": {"num_hidden_layers": 6, "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 2000},
        "data": {"sequence_length": 256},
        "training": {"batch_size": 4},
    },
    "simple attention": {
        "model": {"attention": {"type": "simple"}, "vocab_size": 300},
        "data": {"sequence_length": 512},
        "training": {"batch_size": 2},
    },
    "block by block": {
        "model": {
            "num_key_value_heads": 2,
            "attention": {"type": "flex", "mods": [{"type": "sliding_window", "window": 256}, {"type": "alibi"}]},
        },
        "data": {"sequence_length": 2048},
        "training": {"batch_size": 1},
    },
    "flash, 1024 positions": {
        "model": {"attention": {"type": "flash"}, "num_key_value_heads": 2},
        "data": {"sequence_length": 1024},
        "training": {"batch_size": 2},
    },
    "flash, 2048 positions": {
        "model": {"attention": {"type": "flash"}, "num_hidden_layers": 2},
        "data": {"sequence_length": 2048},
        "training": {"batch_size": 1, "activation_checkpointing": "all"},
    },
    "auto, the last length in causal blocks": {
        "data": {"sequence_length": 511},
        "training": {"batch_size": 2},
    },
    "auto, 512 positions": {"data": {"sequence_length": 512}, "training": {"batch_size": 2}},
    "auto, 1024 positions, all recomputed": {
        "model": {"num_attention_heads": 8, "vocab_size": 300},
        "data": {"sequence_length": 1024},
        "training": {"batch_size": 1, "activation_checkpointing": "all"},
    },
    "a sliding window": {
        "model": {"attention": {"type": "flex", "mods": [{"type": "sliding_window", "window": 128}]}},
        "data": {"sequence_length": 1024},
        "training": {"batch_size": 1},
    },
    "simple attention, all recomputed": {
        "model": {"attention": {"type": "simple"}, "num_hidden_layers": 2, "vocab_size": 300},
        "data": {"sequence_length": 600},
        "training": {"batch_size": 2, "activation_checkpointing": "all"},
    },
    "all savers, 12 blocks": {
        "model": {"num_hidden_layers": 12, "hidden_size": 192, "intermediate_size": 512, "num_attention_heads": 6,
                  "vocab_size": 4096, "attention": {"type": "flash"}},
        "objective": {"chunk_size": 128},
        "data": {"sequence_length": 512},
        "training": {"batch_size": 2, "activation_checkpointing": "all"},
    },
    "muon, a large vocabulary, flash": {
        "model": {"num_hidden_layers": 6, "hidden_size": 256, "intermediate_size": 704, "vocab_size": 4096,
                  "attention": {"type": "flash"}},
        "optimizer": {"type": "muon"},
        "data": {"sequence_length": 512},
        "training": {"batch_size": 1},
    },
    "large vocabulary": {
        "model": {"hidden_size": 256, "intermediate_size": 704, "vocab_size": 8192, "num_attention_heads": 8}
    },
    "all logits at once": {
        "model": {"hidden_size": 256, "intermediate_size": 704, "vocab_size": 8192, "num_attention_heads": 8},
        "objective": {"chunk_size": None},
    },
    "all recomputed, chunks of 128 tokens": {
        "model": {"num_hidden_layers": 8, "vocab_size": 8192},
        "objective": {"chunk_size": 128},
        "training": {"activation_checkpointing": "all"},
    },
    "micro-batches": {
        "model": {"hidden_size": 256, "intermediate_size": 704, "vocab_size": 8192, "num_attention_heads": 8},
        "training": {"micro_batch_size": 2},
    },
    "muon": {
        "model": {"num_hidden_layers": 12, "hidden_size": 192, "intermediate_size": 512, "num_attention_heads": 6},
        "optimizer": {"type": "muon"},
        "training": {"batch_size": 4},
    },
    "averaged weights, mostly parameters": {
        "model": {"hidden_size": 384, "intermediate_size": 1024, "num_attention_heads": 6, "vocab_size": 4000},
        "data": {"sequence_length": 64},
        "training": {"batch_size": 2, "weight_ema": 0.99},
    },
    "layers logged, mostly parameters": {
        "model": {"hidden_size": 384, "intermediate_size": 1024, "num_attention_heads": 6, "vocab_size": 4000},
        "data": {"sequence_length": 64},
        "training": {"batch_size": 2},
        "logging": {"layers_every": "1 steps"},
    },
    "layers logged, muon, averaged weights": {
        "model": {"num_hidden_layers": 12, "hidden_size": 192, "intermediate_size": 512, "num_attention_heads": 6},
        "optimizer": {"type": "muon"},
        "data": {"sequence_length": 64},
        "training": {"batch_size": 2, "weight_ema": 0.99},
        "logging": {"layers_every": "1 steps"},
    },
    "denoise, micro-batches": {
        "objective": {"type": "denoise"},
        "training": {"batch_size": 16, "micro_batch_size": 2},
    },
    "muon, averaged weights, micro-batches": {
        "model": {"num_hidden_layers": 3, "hidden_size": 64, "intermediate_size": 176},
        "optimizer": {"type": "muon"},
        "training": {"batch_size": 16, "micro_batch_size": 4, "weight_ema": 0.99},
    },
    "normalised heads": {
        "model": {"type": "qwen3", "head_dim": 32, "num_attention_heads": 8, "num_key_value_heads": 4,
                  "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4, "vocab_size": 1000,
                  "max_position_embeddings": 512},
        "training": {"batch_size": 6},
    },
    "all recomputed": {
        "model": {"num_hidden_layers": 12},
        "data": {"sequence_length": 256},
        "training": {"batch_size": 4, "activation_checkpointing": "all"},
    },
    "every third recomputed, denoising": {
        "model": {"num_hidden_layers": 9},
        "objective": {"type": "denoise"},
        "training": {"activation_checkpointing": "every 3"},
    },
    "soap": {
        "model": {"num_hidden_layers": 6, "hidden_size": 128, "intermediate_size": 352, "vocab_size": 1000},
        "optimizer": {"type": "soap"},
        "data": {"sequence_length": 64},
        "training": {"batch_size": 1},
    },
    "shampoo": {
        "model": {"num_hidden_layers": 6, "hidden_size": 128, "intermediate_size": 352, "vocab_size": 1000},
        "optimizer": {"type": "shampoo"},
        "data": {"sequence_length": 64},
        "training": {"batch_size": 1},
    },
    "sgd, a head of its own": {"model": {"tie_word_embeddings": False}, "optimizer": {"type": "sgd"}},
}  # fmt: skip


LONG = {
    "flash, 2048 positions",
    "all savers, 12 blocks",
    "muon, a large vocabulary, flash",
    "layers logged, muon, averaged weights",
}
"""Combinations of what others measure one by one."""


@needs_compiler
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in MEASURED]
)
def test_the_estimate_is_within_15_percent_of_what_a_step_takes(name: str) -> None:
    config = config_of(**MEASURED[name])
    peaks, optimizer_bytes = steps_of(config)
    estimate = estimate_memory(planned(config, optimizer_bytes=optimizer_bytes))
    next(peaks)  # In the first step averaged weights still share the arrays of the weights.
    peak = highest_peak(lambda: next(peaks), enough=estimate.peak / 1.15)
    assert 0.85 < estimate.peak / peak < 1.15, (estimate, peak)


class TestWhatTheEstimateIsMadeOf:
    """The parts that are exact, and the order of estimates."""

    def test_weights_state_and_averages_are_counted_exactly(self) -> None:
        config = config_of(training={"weight_ema": 0.9})
        estimate = estimate_memory(planned(config, optimizer_bytes=77))
        assert (estimate.weights, estimate.optimizer, estimate.ema) == (
            4 * config.model.num_params(),
            77,
            estimate.weights,
        )
        assert estimate.peak == sum(estimate[1:])

    def test_the_peak_is_the_largest_moment(self) -> None:
        step = planned(config_of())
        assert estimate_memory(step).peak == max(moment.peak for moment in moments(step))
        assert len({moment.moment for moment in moments(step)}) == len(list(moments(step)))

    def test_half_precision_keeps_half_and_a_copy_of_the_weights(self) -> None:
        # Heads of 64 have a fused kernel in both precisions.
        config = config_of(model={"attention": {"type": "flash"}, "num_attention_heads": 2})
        single = estimate_memory(planned(config, chip=H200))
        half = estimate_memory(planned(config, chip=H200, precision="bfloat16"))
        assert half.weights == single.weights * 3 // 2
        assert 0.45 < half.activations / single.activations < 0.6
        assert half.logits == single.logits * 3 // 4

    def test_a_model_of_ones_own_is_counted_as_far_as_it_tells(self) -> None:
        class Own(ModelConfig):
            def num_params(self) -> int:
                return 1000

        step = planned(config_of())._replace(model_config=Own(type="own"))
        assert estimate_memory(step).peak == max(m.peak for m in moments(step)) >= 4000 + step.optimizer_bytes
        muon = planned(config_of(optimizer={"type": "muon"}))._replace(model_config=Own(type="own"))
        assert estimate_memory(muon).workspace == 4000

    @given(
        changes=st.fixed_dictionaries(
            {
                "num_hidden_layers": st.integers(1, 8),
                "rows": st.sampled_from([1, 2, 4]),
                "length": st.sampled_from([64, 96, 256, 1024]),
                "attention": st.sampled_from(["auto", "simple", "flash"]),
                "every": st.sampled_from(["none", "all", "every 2"]),
                "chunk_size": st.sampled_from([None, 32]),  # With auto, more tokens may be what makes it cut them.
            }
        ),
        grown=st.sampled_from(["num_hidden_layers", "rows", "length", "vocab_size", "weight_ema"]),
    )
    @settings(max_examples=60, deadline=None)
    def test_more_of_anything_never_takes_less(self, changes: dict[str, Any], grown: str) -> None:
        def peak(values: dict[str, Any]) -> int:
            config = config_of(
                model={
                    "num_hidden_layers": values["num_hidden_layers"],
                    "attention": {"type": values["attention"]},
                    "vocab_size": values.get("vocab_size", 1000),
                },
                objective={"chunk_size": values["chunk_size"]},
                data={"sequence_length": values["length"]},
                training={
                    "batch_size": values["rows"] * 2,
                    "micro_batch_size": values["rows"],
                    "activation_checkpointing": values["every"],
                    "weight_ema": values.get("weight_ema"),
                },
            )
            return estimate_memory(planned(config)).peak

        more = {"vocab_size": 2000, "weight_ema": 0.9}.get(grown) or changes[grown] * 2
        assert peak(changes) <= peak({**changes, grown: more})


class TestAuto:
    """The micro-batch that `auto` stands for."""

    @given(rows=st.integers(1, 48), megabytes=st.integers(1, 2000))
    @settings(max_examples=60, deadline=None)
    def test_it_is_the_largest_divisor_that_fits(self, rows: int, megabytes: int) -> None:
        step, limit = planned(config_of(training={"batch_size": rows})), megabytes * 10**6
        peaks = {size: estimate_memory(step._replace(micro_batch_size=size)).peak for size in range(1, rows + 1)}
        fitting = [size for size, peak in peaks.items() if rows % size == 0 and peak <= limit]
        assert choose_micro_batch_size(step, limit) == max(fitting, default=1)

    def test_it_divides_the_rows_of_a_rank(self) -> None:
        step = planned(config_of(training={"batch_size": 24}), world_size=2)
        assert choose_micro_batch_size(step, 10**15) == 12
        assert divisors(12) == [12, 6, 4, 3, 2, 1]

    def test_a_limit_of_the_config_comes_before_the_devices(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(memory_plan, "memory_limit", lambda: 5)
        assert limit_of(config_of()) == 5
        assert limit_of(config_of(training={"memory_limit": 7})) == 7


def test_32_billion_parameters_are_planned_without_an_array() -> None:
    config = with_vocabulary(load("configs/models/model-config-32b.yaml"), 32768)
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    estimate = estimate_memory(planned(config))
    assert estimate.weights == 4 * config.model.num_params() > 120 * GB
    with pytest.raises(ConfigError, match="smaller model"):
        check_fits(planned(config), 200 * GB)
    assert mx.get_peak_memory() - before < 10**6
