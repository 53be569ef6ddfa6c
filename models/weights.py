"""Weights in the Hugging Face folder layout: read one, load it into a model strictly, write one.

A folder holds `config.json` and `model.safetensors`, or shards with `model.safetensors.index.json`. Each file's header
is compared with its size before it is read, because a download or a full disk can cut a file short. Writing takes
NumPy arrays and touches no MLX, so a background thread may do it while the device trains; MLX arrays are
written by MLX, for dtypes that NumPy lacks.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from safetensors.numpy import save_file

from utils.errors import CheckpointError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_SHARD_BYTES = 5 * 1000**3
METADATA = {"format": "mlx"}


def read_folder(folder: str | Path) -> tuple[dict[str, Any], dict[str, mx.array]]:
    """`config.json` and every array by name, still lazy.

    When the config does not say whether the embedding is tied (mlx-lm and transformers assume different things), the
    presence of `lm_head.weight` decides.

    Raises:
        CheckpointError: a file is missing, cut short or not what its name says.
    """
    folder = Path(folder)
    hf_config = read_json(folder / "config.json")
    weights: dict[str, mx.array] = {}
    for path in find_files(folder):
        check_whole(path)
        weights |= mx.load(str(path))  # pyright: ignore[reportOperatorIssue]
    hf_config.setdefault("tie_word_embeddings", "lm_head.weight" not in weights)
    return hf_config, weights


def find_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder: the single one, or the shards its index names."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        raise CheckpointError(f"{folder} holds neither {SINGLE} nor {INDEX}; give a folder that mlx-lm can load")
    shards = sorted(set(read_json(folder / INDEX).get("weight_map", {}).values()))
    missing = [name for name in shards if not (folder / name).is_file()]
    if missing or not shards:
        raise CheckpointError(f"{folder / INDEX} names {', '.join(missing) or 'no file'}; copy the folder again")
    return [folder / name for name in shards]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises CheckpointError naming the file."""
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; give a folder that mlx-lm can load")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not JSON ({error}); copy the folder again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}, not an object; copy the folder again")
    return value


def check_whole(path: Path) -> None:
    """Raise CheckpointError unless the file is as long as its safetensors header says."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise CheckpointError(f"{path} is no whole safetensors file ({size} bytes); copy it again")
        try:
            header = json.loads(file.read(length))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{path} has a broken safetensors header ({error}); copy it again") from error
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        raise CheckpointError(f"{path} has {size} bytes where its header says {expected}; copy it again")


def load_weights(model: nn.Module, weights: Mapping[str, Any]) -> None:
    """Give `model` exactly these weights, each in the dtype of the parameter it replaces.

    Precomputed rotary tables are ignored, and `lm_head.weight` too when the model's embedding is tied, as mlx-lm does.

    Raises:
        CheckpointError: one line for each missing or unknown name and each shape that differs; the model is unchanged.
    """
    parameters: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
    given = {name: mx.array(array) for name, array in weights.items() if not is_ignored(name, parameters)}
    problems = [
        f"the weights lack {name} {parameters[name].shape}" for name in sorted(parameters.keys() - given.keys())
    ]
    problems += [f"the model has no {name} {given[name].shape}" for name in sorted(given.keys() - parameters.keys())]
    problems += [
        f"{name}: the weights have shape {given[name].shape}, the model {parameters[name].shape}"
        for name in sorted(parameters.keys() & given.keys())
        if given[name].shape != parameters[name].shape
    ]
    if problems:
        raise CheckpointError(*problems)
    model.load_weights([(name, given[name].astype(parameters[name].dtype)) for name in parameters])


def is_ignored(name: str, parameters: Mapping[str, Any]) -> bool:
    """Names that a folder may hold and a model need not."""
    return name.endswith("rotary_emb.inv_freq") or (name == "lm_head.weight" and name not in parameters)


def save_weights(folder: str | Path, weights: Mapping[str, Any], max_shard_bytes: int = MAX_SHARD_BYTES) -> list[Path]:
    """Write `model.safetensors`, or shards of at most `max_shard_bytes` (one array may exceed it) and their index.

    All NumPy arrays (no MLX call is made: any thread may do it) or all MLX arrays. Returns the files written.
    """
    folder = Path(folder)
    shards = split_into_shards(weights, max_shard_bytes)
    if len(shards) == 1:
        write_file(folder / SINGLE, shards[0])
        return [folder / SINGLE]
    names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        write_file(folder / name, shard)
    index = {
        "metadata": {"total_size": sum(array.nbytes for array in weights.values())},
        "weight_map": {key: name for name, shard in zip(names, shards, strict=True) for key in shard},
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return [*(folder / name for name in names), folder / INDEX]


def split_into_shards(weights: Mapping[str, Any], max_shard_bytes: int) -> list[dict[str, Any]]:
    """Fill one shard after the other, in the given order."""
    shards: list[dict[str, Any]] = [{}]
    room = max_shard_bytes
    for name, array in weights.items():
        if shards[-1] and array.nbytes > room:
            shards.append({})
            room = max_shard_bytes
        shards[-1][name] = array
        room -= array.nbytes
    return shards


def write_file(path: Path, arrays: Mapping[str, Any]) -> None:
    """One safetensors file. Raises OSError when the disk is full."""
    if any(isinstance(array, mx.array) for array in arrays.values()):
        mx.save_safetensors(str(path), dict(arrays), METADATA)
        return
    # The safetensors library writes an array's memory as it lies, so it must lie in order.
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, str(path), metadata=METADATA)
