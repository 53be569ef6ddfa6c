"""`init_from`: the weights, and with them the tokenizer, of a run or of a folder that mlx-lm loads.

What the weights were trained with decides: the tokenizer there is taken, and a setting that computes something else
with the same arrays is told. To compare another key of config.json, add it to `DECISIVE`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from core.checkpoint import newest_valid
from data.tokenizer import Tokenizer
from models.weights import load_weights, read_folder
from utils.cli import warn
from utils.errors import CheckpointError

DECISIVE = (
    "model_type",
    "num_attention_heads",
    "num_key_value_heads",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_traditional",
    "final_logit_softcapping",
    "attention_sinks",
    "pippin_attention",
)
"""Keys of config.json that shapes do not tell."""


def initial_tokenizer(source: Path, say: Callable[[str], None]) -> Tokenizer | None:
    """The tokenizer that belongs to the weights of `init_from`: other ids would make them worthless."""
    folder = source / "tokenizer" if (source / "tokenizer").is_dir() else source
    if not (folder / "tokenizer.json").exists():
        return None
    say(f"tokenizer from {folder}, which init_from's weights were trained with; data.tokenizer is not used")
    return Tokenizer.load(folder)


def initial_folder(source: Path) -> Path:
    """The folder whose weights `init_from` means: a run's newest whole checkpoint, or an mlx-lm folder itself.

    Raises:
        CheckpointError: nothing there holds weights.
    """
    if not source.is_dir():
        raise CheckpointError(f"init_from: there is no folder {source}")
    if (source / "checkpoints").is_dir():
        checkpoint = newest_valid(source / "checkpoints", warn)
        if checkpoint is None:
            raise CheckpointError(f"init_from: the run {source} has saved nothing yet")
        return checkpoint
    if not (source / "config.json").is_file():
        raise CheckpointError(f"init_from: {source} holds no config.json; give a run, or a folder that mlx-lm loads")
    return source


def initialise_from(folder: Path, model: nn.Module, model_config: Any) -> None:
    """Load the weights in `folder` into `model`; warn when the folder's config computes something else with them.

    Raises:
        CheckpointError: names or shapes do not fit, each listed, or the weights are quantized.
    """
    hf_config, weights = read_folder(folder)
    if "quantization" in hf_config or "quantization_config" in hf_config:
        raise CheckpointError(f"init_from: {folder} holds quantized weights; give the folder they were made from")
    own_head, embedding = weights.get("lm_head.weight"), weights.get("model.embed_tokens.weight")
    is_tied = embedding is not None and own_head is not None and bool(mx.array_equal(own_head, embedding).item())
    if "lm_head" not in model and own_head is not None and not is_tied:
        raise CheckpointError(
            f"init_from: {folder} has an output layer of its own (lm_head.weight), which a tied model would drop; "
            "set model.tie_word_embeddings: false"
        )
    try:
        load_weights(model, {name: array.astype(mx.float32) for name, array in weights.items()})
    except CheckpointError as error:
        raise CheckpointError(f"init_from: {folder} does not fit the model section", *error.problems) from error
    try:
        hf_config = type(model_config).from_hf(hf_config).to_hf()
    except NotImplementedError:
        pass  # A class of one's own need not read config.json.
    except ValueError as error:
        raise CheckpointError(f"init_from: {folder / 'config.json'}: {error}") from error
    for line in differing_settings(model_config.to_hf(), hf_config):
        warn(f"init_from: {line} in {folder}: the weights were trained with that")


def differing_settings(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """`model.key is x here, y` for each key of two config.json that decides what the same weights compute."""
    return [
        f"model.{key} is {ours[key]} here, {theirs[key]}"
        for key in DECISIVE
        if key in ours and theirs.get(key) is not None and ours[key] != theirs[key]
    ]
