"""A trained model from where it lies: a run of ours, or any folder that mlx-lm loads with a llama or qwen3 inside.

A checkpoint is itself such a folder, so both roads end in the same few lines; a run adds its config (whose model
section may be a class of one's own) and the choice of checkpoint and of raw or averaged weights. Whatever does not
fit (vocabulary, shapes, names) is refused here and not found out later as odd text. To read another architecture,
add a row to `models.MODELS`.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from core.checkpoint import best_checkpoint, checkpoint_name, find_damage, list_checkpoints, newest_valid
from core.config import Config, load
from data.tokenizer import Tokenizer
from models import MODELS
from models.huggingface import base_type
from models.weights import check_whole, load_weights, read_folder, read_json
from utils.cli import warn
from utils.errors import CheckpointError
from utils.fast_blas import fit_threads
from utils.memory import set_cache_limit
from utils.registry import look_up

PROMPT_LENGTH = 512
"""Tokens of the prompt or evaluation row for which the number of BLAS threads is chosen."""


@dataclass(frozen=True)
class Loaded:
    """A model ready to use."""

    model: Any
    """The module, with its weights."""
    model_config: Any
    """The ModelConfig it was built from."""
    tokenizer: Tokenizer
    """Its tokenizer."""
    config: Config | None
    """The run's config; None for a folder that is no run."""
    eos_ids: frozenset[int]
    """Tokens that end a text."""
    source: Path
    """The checkpoint or model folder the weights came from."""
    weights: str
    """`raw` or `ema`."""


def load_model(
    run: str | Path | None = None,
    model: str | Path | None = None,
    weights: str | None = None,
    checkpoint: str | int = "last",
) -> Loaded:
    """Load from a run folder or from a model folder (give one of them).

    `weights`: `raw`, `ema`, or None for ema when the checkpoint has it. `checkpoint`: `last`, `best` or a step.

    Raises:
        CheckpointError: nothing is there, it is damaged, or model, weights and tokenizer do not belong together.
    """
    set_cache_limit()
    if (run is None) == (model is None):
        raise CheckpointError("give either a run folder or a model folder")
    if model is not None:
        if checkpoint != "last":
            raise CheckpointError(f"a model folder holds one model, so checkpoint {checkpoint} means nothing for it")
        return load_folder(_existing(Path(model), "model folder"), weights, config=None)
    run_folder = _existing(Path(str(run)), "run")
    if not (run_folder / "config.yaml").is_file():
        raise CheckpointError(f"{run_folder} is no run: it holds no config.yaml; give a model folder as --model")
    return load_folder(find_checkpoint(run_folder, checkpoint), weights, load(run_folder / "config.yaml"))


def find_checkpoint(run_folder: Path, which: str | int = "last") -> Path:
    """The folder of the newest whole checkpoint, of the best one, or of a step. Raises CheckpointError."""
    folder = run_folder / "checkpoints"
    if which == "last":
        found = newest_valid(folder, warn)
        if found is None:
            raise CheckpointError(f"{run_folder} holds no checkpoint yet: nothing has been saved")
        return found
    if which == "best":
        found = best_checkpoint(folder)
        if found is None:
            raise CheckpointError(f"{run_folder} holds no best checkpoint{_there_are(folder)}")
        return found
    digits = str(which).removeprefix("step_")
    if not digits.isdecimal():
        raise CheckpointError(f"checkpoint is {which}; give last, best or a step{_there_are(folder)}")
    named = folder / checkpoint_name(int(digits))
    if not named.is_dir():
        raise CheckpointError(f"{run_folder} holds no checkpoint of step {int(digits)}{_there_are(folder)}")
    if damage := find_damage(named):
        raise CheckpointError(*damage)
    return named


def load_folder(folder: Path, weights: str | None, config: Config | None) -> Loaded:
    """The model in one checkpoint or mlx-lm folder; `config` is the run's, when it belongs to one."""
    chosen = choose_weights(folder, weights)
    hf_config, arrays = read_folder(folder)
    if "quantization" in hf_config or "quantization_config" in hf_config:
        raise CheckpointError(f"{folder} holds quantized weights; give the folder they were made from")
    if chosen == "ema":
        check_whole(folder / "ema.safetensors")
        arrays: Any = mx.load(str(folder / "ema.safetensors"))
    model_config = read_model_config(folder, hf_config, config)
    tokenizer = Tokenizer.load(folder)
    if tokenizer.vocab_size > model_config.vocab_size:
        raise CheckpointError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens and the model {model_config.vocab_size}:"
            " they do not belong together"
        )
    model = model_config.build(seed=0)
    load_weights(model, arrays)
    model.eval()
    fit_threads(model_config.flops_per_token(PROMPT_LENGTH) / 3 * PROMPT_LENGTH)
    return Loaded(model, model_config, tokenizer, config, read_eos_ids(folder, hf_config, tokenizer), folder, chosen)


def choose_weights(folder: Path, weights: str | None) -> str:
    """`raw` or `ema`; None takes ema when there is one. Raises CheckpointError when ema is asked for and absent."""
    has_ema = (folder / "ema.safetensors").is_file()
    if weights is None:
        return "ema" if has_ema else "raw"
    if weights not in ("raw", "ema"):
        raise CheckpointError(f"weights is {weights}; give raw or ema")
    if weights == "ema" and not has_ema:
        raise CheckpointError(f"{folder} holds no averaged weights (training.weight_ema was not set); use raw")
    return weights


def read_model_config(folder: Path, hf_config: dict[str, Any], config: Config | None) -> Any:
    """The run's model section with the vocabulary it was trained with, or what config.json describes."""
    if config is not None:
        return config.model.model_copy(update={"vocab_size": hf_config["vocab_size"]})
    kind = base_type(str(hf_config.get("model_type")))
    try:
        return look_up(MODELS, kind, "model_type").from_hf(hf_config)
    except ValueError as error:
        raise CheckpointError(f"{folder / 'config.json'}: {error}") from error


def read_eos_ids(folder: Path, hf_config: dict[str, Any], tokenizer: Tokenizer) -> frozenset[int]:
    """Every token that ends a text: the tokenizer's and those config.json and generation_config.json name."""
    path = folder / "generation_config.json"
    generation = read_json(path) if path.is_file() else {}
    ends = {tokenizer.eos_id}
    for named in (hf_config.get("eos_token_id"), generation.get("eos_token_id")):
        ends.update(named if isinstance(named, list) else [] if named is None else [named])
    return frozenset(ends)


def add_model_arguments(parser: argparse.ArgumentParser, model_folder: bool = True) -> None:
    """The flags that say which model: --run or --model, --weights, --checkpoint."""
    source = parser.add_mutually_exclusive_group(required=True) if model_folder else parser
    source.add_argument("--run", required=not model_folder, help="run folder, such as runs/quickstart")
    if model_folder:
        source.add_argument("--model", help="instead: a folder that mlx-lm loads, llama or qwen3")
    parser.add_argument("--weights", choices=("raw", "ema"), help="raw or averaged weights (ema when present)")
    parser.add_argument("--checkpoint", default="last", help="last, best or a step (%(default)s)")


def _existing(folder: Path, kind: str) -> Path:
    if not folder.is_dir():
        near = Path("runs") / folder
        hint = f"; did you mean {near}?" if kind == "run" and near.is_dir() else ""
        raise CheckpointError(f"there is no {kind} {folder}{hint}")
    return folder


def _there_are(folder: Path) -> str:
    steps = [str(int(path.name.removeprefix("step_"))) for path in list_checkpoints(folder)]
    return f"; there are steps {', '.join(steps)}" if steps else "; nothing has been saved"
