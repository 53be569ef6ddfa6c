"""A run as the folder that mlx-lm, transformers, LM Studio and others load.

A checkpoint is such a folder already; an export leaves the optimizer behind, picks raw or averaged weights, stores
them in the type asked for, and adds generation_config.json. It is written beside its destination, read back and
compared, and only then renamed: a folder of that name is always a whole one. To add a file other programs look for,
edit `write_folder`.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from core.loading import Loaded, load_model
from models.weights import read_folder, save_weights
from utils.errors import CheckpointError

DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}


def export_run(
    run: str | Path,
    out_path: str | Path,
    *,
    dtype: str = "float32",
    weights: str | None = None,
    checkpoint: str | int = "last",
    overwrite: bool = False,
) -> Loaded:
    """Write the model of `run` to the new folder `out_path`; the model that was exported.

    `dtype`: float32 (exact), float16 or bfloat16. `weights`, `checkpoint`: as in `load_model`.

    Raises:
        CheckpointError: the run cannot be loaded, the folder exists and `overwrite` is off or it is no export,
            the disk cannot be written, or weights do not fit into the type.
    """
    destination = Path(out_path)
    refuse_destination(destination, Path(run), overwrite)
    loaded = load_model(run=run, weights=weights, checkpoint=checkpoint)
    if loaded.config is not None and loaded.config.objective.cannot_generate is not None:
        raise CheckpointError(f"{run}: no other program can use this model: {loaded.config.objective.cannot_generate}")
    if beyond := loaded.model_config.beyond_mlx_lm():
        raise CheckpointError(
            f"{run}: mlx-lm and others cannot load this model, for they have no {', no '.join(beyond)};"
            f" use it here, by --run {run} or --model {loaded.source}"
        )
    temporary = destination.with_name(f".{destination.name}.tmp-{os.getpid()}")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        write_folder(loaded, temporary, dtype)
        verify_folder(loaded, temporary, dtype)
        replace_folder(temporary, destination)
    except OSError as error:
        raise CheckpointError(f"cannot write {destination}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return loaded


def refuse_destination(destination: Path, run: Path, overwrite: bool) -> None:
    """Raise CheckpointError when `destination` must not be written or replaced."""
    if not destination.exists():
        return
    if not overwrite:
        raise CheckpointError(f"{destination} exists: choose another --out-path, or replace it with --overwrite")
    is_export = (destination / "generation_config.json").is_file() and not (destination / "config.yaml").exists()
    is_empty = destination.is_dir() and not any(destination.iterdir())
    if not (is_export or is_empty) or destination.resolve() == run.resolve():
        raise CheckpointError(f"{destination} is not an exported model, so --overwrite will not delete it")


def convert(loaded: Loaded, dtype: str) -> dict[str, mx.array]:
    """The weights by Hugging Face name in `dtype`. Raises CheckpointError for values float16 cannot hold."""
    flat = dict(tree_flatten(loaded.model.parameters()))
    converted = {name: array.astype(DTYPES[dtype]) for name, array in flat.items()}
    broken = [name for name, array in converted.items() if not mx.isfinite(array).all().item()]
    if broken:
        raise CheckpointError(f"{dtype} cannot hold the values of {', '.join(broken)}; use bfloat16 or float32")
    return converted


def describe(loaded: Loaded, dtype: str) -> dict[str, Any]:
    """config.json: the architecture, its type and the ids that start and end a text."""
    ends: dict[str, Any] = {"bos_token_id": loaded.tokenizer.bos_id, "eos_token_id": loaded.tokenizer.eos_id}
    return {**loaded.model_config.to_hf(), **ends, "torch_dtype": dtype}


def write_folder(loaded: Loaded, folder: Path, dtype: str) -> None:
    """Weights, config.json, generation_config.json and tokenizer files into `folder`."""
    arrays = convert(loaded, dtype)
    try:
        save_weights(folder, arrays)
    except RuntimeError as error:
        # What MLX raises when a write falls short; NumPy has no bfloat16, so MLX writes.
        raise OSError(str(error)) from error
    config = describe(loaded, dtype)
    generation = {key: config[key] for key in ("bos_token_id", "eos_token_id")} | {"do_sample": True}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")
    loaded.tokenizer.save(folder)


def verify_folder(loaded: Loaded, folder: Path, dtype: str) -> None:
    """Read `folder` back; raises CheckpointError when any weight or the tokenizer is not what was meant."""
    _, written = read_folder(folder)
    expected = convert(loaded, dtype)
    wrong = sorted(written.keys() ^ expected.keys())
    wrong += [
        name for name in written.keys() & expected.keys() if not mx.array_equal(written[name], expected[name]).item()
    ]
    if wrong:
        raise CheckpointError(f"the exported weights do not read back as they were written: {', '.join(wrong)}")
    if type(loaded.tokenizer).load(folder).hash != loaded.tokenizer.hash:
        raise CheckpointError("the exported tokenizer does not read back as it was written")


def replace_folder(temporary: Path, destination: Path) -> None:
    """Rename `temporary` to `destination`, in whose place nothing or an older export stands."""
    if destination.exists():
        shutil.rmtree(destination)
    os.rename(temporary, destination)
