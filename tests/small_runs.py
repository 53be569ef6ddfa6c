"""Run folders made in a second, for tests of what reads them: tiny models, lively weights, the real writer."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map_with_path

from core.checkpoint import Snapshot, write_checkpoint
from core.config import Config, build_section, to_yaml
from data.tokenizer import BPETokenizerConfig, BytesTokenizerConfig, Tokenizer
from tests.tiny_run import TINY_LLAMA

WORDS = "the cat sat on the mat and the dog lay by the door while rain fell on \u00e9t\u00e9 and \u20ac and \U0001f600 "


def small_tokenizer(kind: str = "bytes") -> Tokenizer:
    """`bytes`, or `bpe` trained on a few words."""
    return BytesTokenizerConfig().build() if kind == "bytes" else BPETokenizerConfig(vocab_size=300).build([WORDS * 20])


def lively(model: Any, seed: int = 0, spread: float = 0.3) -> Any:
    """The model with every parameter drawn anew, wide enough that a wrong one changes the logits."""
    rng = np.random.default_rng(seed)

    def draw(name: str, parameter: mx.array) -> mx.array:
        noise = rng.normal(size=parameter.shape).astype(np.float32) * spread
        return mx.array(1 + noise if name.endswith("norm.weight") else noise)

    model.update(tree_map_with_path(draw, model.parameters()))
    return model.eval()


def small_config(model: dict[str, Any] | None = None, **sections: Any) -> Config:
    """A config whose model is TINY_LLAMA with `model`'s changes."""
    values = {"name": "small", "model": {"type": "llama", **TINY_LLAMA, **(model or {})}, **sections}
    data = {"type": "text", "sources": [{"type": "stdlib"}], "sequence_length": 32}
    return build_section(Config, {"data": data, **values})


def small_model(vocab_size: int, seed: int = 0, **changes: Any) -> Any:
    """A lively tiny model."""
    config = small_config(changes).model.model_copy(update={"vocab_size": vocab_size})
    return lively(config.build(seed=0), seed)


def save_run(
    folder: Path,
    config: Config,
    tokenizer: Tokenizer,
    steps: dict[int, int],
    *,
    best: int | None = None,
    ema: bool = False,
) -> Path:
    """A run folder with a checkpoint per step, whose weights are drawn from the seed given for it."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    tokenizer.save(folder / "tokenizer")
    vocab_size = tokenizer.vocab_size + config.objective.num_reserved_tokens
    model_config = config.model.model_copy(update={"vocab_size": vocab_size})
    for step, seed in steps.items():
        weights = host_weights(lively(model_config.build(seed=0), seed))
        snapshot = Snapshot(
            step=step,
            model=weights,
            optimizer={"step": np.zeros((), dtype=np.int32)},
            ema={name: array / 2 for name, array in weights.items()} if ema else None,
            state={"step": step},
            hf_config=model_config.to_hf(),
            is_best=step == best,
        )
        write_checkpoint(folder / "checkpoints", snapshot, folder / "tokenizer", keep_last=9)
    return folder


def host_weights(model: Any) -> dict[str, np.ndarray]:
    """Parameters by dotted name."""
    return {name: np.array(array) for name, array in tree_flatten(model.parameters())}


def logits_of(model: Any, tokens: list[int]) -> np.ndarray:
    """[L, V] float32 logits of one row of tokens."""
    from models.attention.mask import Mask

    return np.array(model(mx.array([tokens]), Mask("causal"))[0].astype(mx.float32))
