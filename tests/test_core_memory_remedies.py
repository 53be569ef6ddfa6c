"""What a person reads when a step does not fit: both numbers, and settings that, once typed, do make it fit."""

import re
from typing import Any

import pytest

from core import memory_remedies
from core.config import Config, build_section, dump, load
from core.memory_plan import Step, estimate_memory, limit_of
from core.memory_remedies import check_fits
from tests.planned_steps import H200, config_of, planned, with_vocabulary
from tests.tiny_run import merge
from utils.errors import ConfigError


def error_of(step: Step, limit: int) -> str:
    with pytest.raises(ConfigError) as error:
        check_fits(step, limit)
    return str(error.value)


def named(text: str) -> list[tuple[str, str]]:
    """(key, value) of the settings that an error names."""
    return re.findall(r"\b((?:training|objective|model|data)\.[\w.]+): (\w+(?: \d+)?)", text)


def with_settings(config: Config, found: list[tuple[str, str]]) -> Step:
    """The step of the config after a person has typed these settings."""
    values = dump(config)
    for path, text in found:
        change: Any = None if text == "null" else int(text) if text.isdigit() else text
        for key in reversed(path.split(".")):
            change = {key: change}
        values = merge(values, change)
    return planned(build_section(Config, values))


class TestErrors:
    """What a person reads when it does not fit."""

    def test_a_limit_below_the_weights_says_both(self) -> None:
        config = config_of(training={"memory_limit": 1_000_000})
        text = error_of(planned(config), limit_of(config))
        assert "training.memory_limit, 1 MB," in text
        assert "3.7" in text
        assert "weights alone" in text

    def test_what_fits_is_let_through(self) -> None:
        step = planned(config_of())
        estimate = estimate_memory(step)
        assert check_fits(step, estimate.peak) == estimate
        assert str(estimate.peak)[:2] in error_of(step, estimate.peak - 1)

    @pytest.mark.parametrize("share", [0.9, 0.7, 0.5, 0.35, 0.25])
    @pytest.mark.parametrize("attention", ["simple", "auto"])
    def test_the_settings_it_names_do_fit(self, share: float, attention: str) -> None:
        config = config_of(
            model={"attention": {"type": attention}, "num_hidden_layers": 8},
            data={"sequence_length": 1024},
            training={"batch_size": 4, "weight_ema": 0.99},
        )
        step = planned(config)
        limit = round(estimate_memory(step).peak * share)
        text = error_of(step, limit)
        alone = text.split("alone: " if "together" in text else "cheapest first: ")
        for setting in named(alone[1]) if len(alone) > 1 else []:
            assert estimate_memory(with_settings(config, [setting])).peak <= limit, setting
        if "together" in text:
            both = named(text.split("together")[1].split("; each of these alone")[0])
            assert estimate_memory(with_settings(config, both)).peak <= limit, both
            for left_out in range(len(both)):
                fewer = both[:left_out] + both[left_out + 1 :]
                assert estimate_memory(with_settings(config, fewer)).peak > limit, fewer
        assert len(alone) > 1 or "together" in text

    def test_what_nothing_can_save_says_so(self) -> None:
        step = planned(config_of())
        text = error_of(step, 4 * step.model_config.num_params() + 1)
        assert "smaller model" in text
        assert "training.activation_checkpointing: all" in text
        assert "every 2" not in text

    def test_half_precision_is_named_where_the_device_has_it(self) -> None:
        config = config_of(training={"micro_batch_size": 1})
        step = planned(config, chip=H200)
        assert "training.precision: bfloat16" in error_of(step, round(estimate_memory(step).peak * 0.8))
        step = step._replace(precision="bfloat16")
        assert "training.precision" not in error_of(step, round(estimate_memory(step).peak * 0.8))

    def test_a_context_of_32k_is_refused_with_simple_and_fits_with_flash(self) -> None:
        overrides = ["data.sequence_length=32768", "model.max_position_embeddings=32768", "training.memory_limit=24G"]
        overrides += ["training.batch_size=16", "training.micro_batch_size=1"]
        for attention in ("simple", "flash"):
            config = load(
                "configs/models/model-config-10m.yaml", [*overrides, f"model.attention={{type: {attention}}}"]
            )
            step = planned(with_vocabulary(config, 16384))
            if attention == "simple":
                assert "model.attention.type: flash" in error_of(step, limit_of(config))
            else:
                check_fits(step, limit_of(config))


def test_a_micro_batch_that_helps_others_is_no_smaller_than_it_must_be() -> None:
    config = config_of(
        model={"attention": {"type": "simple"}}, data={"sequence_length": 4096}, training={"batch_size": 16}
    )
    step = planned(config)
    with_flash = {
        size: with_settings(config, [("model.attention.type", "flash")])._replace(micro_batch_size=size)
        for size in (1, 2, 4, 8, 16)
    }
    limit = estimate_memory(with_flash[4]).peak
    assert estimate_memory(step._replace(micro_batch_size=1)).peak > limit
    names, changed = memory_remedies.applied(
        step, [memory_remedies.smaller_micro_batch, memory_remedies.linear_attention], limit
    )
    assert names == ["model.attention.type: flash", "training.micro_batch_size: 4"]
    assert estimate_memory(changed).peak <= limit
