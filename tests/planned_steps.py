"""Configs without data, and the step that the memory planner makes of them."""

from typing import Any

from core.config import Config, build_section
from core.memory_plan import Step, step_of
from tests.tiny_run import merge
from utils.chips import Chip

CPU = Chip("a CPU", "cpu", "float32", {})
H200 = Chip("NVIDIA H200", "cuda", "bfloat16", {})


def config_of(**changes: Any) -> Config:
    """A run without data; `changes` are merged into its sections."""
    values: dict[str, Any] = {
        "name": "memory",
        "model": {
            "type": "llama",
            "vocab_size": 1000,
            "hidden_size": 128,
            "intermediate_size": 352,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "max_position_embeddings": 2**16,
        },
        "optimizer": {"type": "adamw"},
        "data": {"type": "text", "sources": [{"type": "stdlib"}], "sequence_length": 128},
        "training": {"duration": "10 steps", "batch_size": 8},
        "schedule": {"warmup": 0},
    }
    return build_section(Config, merge(values, changes))


def planned(config: Config, **changes: Any) -> Step:
    """The step of `config` on one rank of a CPU, with AdamW's state unless `optimizer_bytes` says otherwise."""
    known: dict[str, Any] = {
        "micro_batch_size": config.micro_batch_size_of(1),
        "optimizer_bytes": 8 * config.model.num_params(),
        "precision": "float32",
        "chip": CPU,
    }
    return step_of(config, config.model, **{**known, **changes})


def with_vocabulary(config: Config, vocab_size: int) -> Config:
    """As the tokenizer would complete it."""
    return config.model_copy(update={"model": config.model.model_copy(update={"vocab_size": vocab_size})})
