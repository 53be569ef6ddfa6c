"""One checkpoint on its way to a volume or back, and what decides whether one end of the way may replace the other.

On the volume a checkpoint is whole when every file that its manifest names is there in the size it names; contents are
verified where they arrive here. The manifest goes last on the way there, and comes first on the way back, since it says
which files an interrupted transfer had already brought. Two ends hold one run when the weights of every step that both
kept are equal and, where none is left that would tell, the losses up to the end that is behind. To compare more, edit
`check_history`; which checkpoints travel is decided in `core/remote_transfer.py`.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

from core.checkpoint import (
    MANIFEST,
    TEMPORARY,
    checkpoint_name,
    checkpoint_step,
    find_damage,
    list_checkpoints,
    sha256_of,
)
from core.config import load
from core.remote_files import RemoteFolder, Say, send, steps_there
from core.run import MAY_DIFFER, differing_keys
from utils.errors import CheckpointError, ConfigError
from utils.files import sync
from utils.memory import format_bytes
from utils.metrics import parse_lines

METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
INCOMING = f"{TEMPORARY}pull"
"""Below `checkpoints`, where the next save or `--overwrite` would clear it away."""

NOT_A_MANIFEST = (ValueError, KeyError, TypeError, AttributeError)


class Changed(Exception):
    """The volume no longer holds what was being read."""


class Side(NamedTuple):
    """What decides whether one end of a transfer may take the place of the other."""

    place: str
    """`here` or `on the volume`."""
    step: int | None
    """The newest whole checkpoint; None: there is none."""
    manifest: bytes | None
    """Of that checkpoint."""
    weights: dict[int, dict[str, str]]
    """Of the checkpoints up to that one, at the other end only of the steps that are here too: see `weights_of`."""
    read_metrics: Callable[[], bytes | None]
    """The content of metrics.jsonl, which may be long."""


def side_here(run_folder: Path, newest: Path | None) -> Side:
    """`newest`: the newest whole checkpoint here."""

    def read_metrics() -> bytes | None:
        return read_if_there(run_folder / METRICS)

    if newest is None:
        return Side("here", None, None, {}, read_metrics)
    manifests = {path: read_if_there(path / MANIFEST) for path in list_checkpoints(newest.parent) if path <= newest}
    weights = {checkpoint_step(path.name) or 0: weights_of(content) for path, content in manifests.items()}
    return Side("here", checkpoint_step(newest.name), manifests[newest], weights, read_metrics)


def side_there(remote: RemoteFolder, sizes: dict[str, int], steps_here: Collection[int], say: Say) -> Side:
    """The newest checkpoint on the volume whose files are all there; newer ones are named."""

    def read_metrics() -> bytes | None:
        return remote.read(METRICS)

    steps = steps_there(sizes)
    for step in reversed(steps):
        if manifest := whole_manifest(remote, sizes, checkpoint_name(step)):
            common = [each for each in steps if each < step and each in steps_here]
            weights = {each: weights_of(whole_manifest(remote, sizes, checkpoint_name(each))) for each in common}
            return Side("on the volume", step, manifest, weights | {step: weights_of(manifest)}, read_metrics)
        say(f"{checkpoint_name(step)} on the volume is not complete: passed over")
    return Side("on the volume", None, None, {}, read_metrics)


def weights_of(manifest: bytes | None) -> dict[str, str]:
    """File name -> SHA-256 of a checkpoint's weights, the same when that step is saved again; empty: not known."""
    try:
        files = read_manifest(manifest or b"")
    except NOT_A_MANIFEST:
        return {}
    return {name: digest for name, (_, digest) in files.items() if Path(name).match("model*.safetensors")}


def losses_of(metrics: bytes | None) -> dict[int, Any]:
    """Step -> loss in training, as written."""
    rows = (row for _, row in parse_lines((metrics or b"").splitlines(keepends=True)) if row is not None)
    return {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}


def check_history(name: str, source: Side, target: Side, config_problems: list[str], force: bool) -> bool:
    """Whether `source` would replace what is at `target` instead of going on from it.

    Raises:
        CheckpointError: it would, and that was not asked for with `force`.
    """
    first = "pull it first" if source.place == "here" else "push it first"
    parted = parting(name, source, target)
    problems = [f"the config of {name} differs in {line}" for line in config_problems]
    if target.step is not None and (source.step is None or target.step > source.step):
        at = f"at step {source.step}" if source.step is not None else "without a checkpoint"
        advice = "" if parted else f": {first}"
        problems.append(f"the run {name} is at step {target.step} {target.place} and {at} {source.place}{advice}")
    problems += parted
    if problems and not force:
        raise CheckpointError(*problems, f"to replace the run {target.place}, add --force; to keep both, rename one")
    return bool(problems)


def parting(name: str, source: Side, target: Side) -> list[str]:
    """Why the two ends are not one run, in a line; empty when they are, or nothing would tell."""
    if source.step is None or target.step is None:
        return []
    common = [step for step in sorted(source.weights.keys() & target.weights) if source.weights[step]]
    common = [step for step in common if target.weights[step]]
    for step in common:
        if source.weights[step] != target.weights[step]:
            return [f"step {step} of {name} {target.place} is another one than {source.place}"]
    behind = min(source.step, target.step)
    if behind in common:
        return []
    losses, others = losses_of(target.read_metrics()), losses_of(source.read_metrics())
    for step in sorted(losses.keys() & others):
        if step <= behind and losses[step] != others[step]:
            there = f"{losses[step]} {target.place}, {others[step]} {source.place}"
            return [f"{name} is another run {target.place} than {source.place}: at step {step} the loss was {there}"]
    return []


def differing_config(run_folder: Path, remote: RemoteFolder) -> list[str]:
    """Every key in which the configs of the two sides differ and may not; none when a side has no config."""
    file, content = run_folder / "config.yaml", remote.read("config.yaml")
    if content is None or not file.is_file() or file.read_bytes() == content:
        return []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "config.yaml")
        copy.write_bytes(content)
        try:
            lines = differing_keys(load(file), load(copy))
        except ConfigError as error:
            reason = f"the configs of {run_folder.name} here and on the volume cannot be compared"
            raise CheckpointError(reason, *error.problems) from error
    return [line for line in lines if not line.startswith(MAY_DIFFER)]


def whole_manifest(remote: RemoteFolder, sizes: dict[str, int], name: str) -> bytes | None:
    """The manifest of a checkpoint on the volume; None when it is unreadable or not all of its files are there.

    Raises:
        Changed: it has been deleted since `sizes` were read.
    """
    place = f"{CHECKPOINTS}/{name}"
    if f"{place}/{MANIFEST}" not in sizes:
        return None
    content = remote.read(f"{place}/{MANIFEST}")
    if content is None:
        raise Changed
    try:
        files = read_manifest(content)
    except NOT_A_MANIFEST:
        return None
    is_complete = all(sizes.get(f"{place}/{file}") == size for file, (size, _) in files.items())
    return content if is_complete else None


def read_manifest(content: bytes) -> dict[str, tuple[int, str]]:
    """File name -> (bytes, SHA-256)."""
    return {name: (entry["bytes"], entry["sha256"]) for name, entry in json.loads(content)["files"].items()}


def is_whole(file: Path, size: int, checksum: str) -> bool:
    """Whether a file is as a manifest says."""
    return file.is_file() and file.stat().st_size == size and sha256_of(file) == checksum


def send_checkpoint(remote: RemoteFolder, sizes: dict[str, int], checkpoint: Path, say: Say) -> None:
    """Send a verified checkpoint, unless it is there; another one of the same step is none from the first file on."""
    place, manifest = f"{CHECKPOINTS}/{checkpoint.name}", (checkpoint / MANIFEST).read_bytes()
    if whole_manifest(remote, sizes, checkpoint.name) == manifest:
        say(f"{checkpoint.name}: already on the volume")
        return
    names = list(read_manifest(manifest))
    there = [file for file in sizes if file.startswith(f"{place}/")]
    if f"{place}/{MANIFEST}" in there:
        remote.remove(f"{place}/{MANIFEST}")
    for file in there:
        # A file that the manifest does not name would be read all the same: averaged weights, a further shard.
        if file.removeprefix(f"{place}/") not in (*names, MANIFEST):
            remote.remove(file)
    size = format_bytes(sum((checkpoint / name).stat().st_size for name in names))
    say(f"{checkpoint.name}: sending {len(names)} files, {size}")
    send(remote, [(checkpoint / name, f"{place}/{name}") for name in names], say)
    remote.upload([(checkpoint / MANIFEST, f"{place}/{MANIFEST}")])


def fetch_checkpoint(remote: RemoteFolder, name: str, manifest: bytes, folder: Path, say: Say) -> bool:
    """Bring a checkpoint to `INCOMING` unless it is whole in `folder`; whether it is to be installed.

    Raises:
        Changed: the run has deleted or replaced it meanwhile.
        CheckpointError: what has arrived does not verify.
    """
    own, incoming = folder / name, folder / INCOMING / name
    if (own / MANIFEST).is_file() and (own / MANIFEST).read_bytes() == manifest and not find_damage(own):
        say(f"{name}: already here")
        return False
    files = read_manifest(manifest)
    missing = [file for file, entry in files.items() if not is_whole(incoming / file, *entry)]
    size = format_bytes(sum(files[file][0] for file in missing))
    say(f"{name}: fetching {len(missing)} of {len(files)} files, {size}")
    incoming.mkdir(parents=True, exist_ok=True)
    for path in incoming.iterdir():
        if path.name not in files:
            path.unlink()
    try:
        for file in missing:
            remote.download(f"{CHECKPOINTS}/{name}/{file}", incoming / file)
    except FileNotFoundError as error:
        raise Changed from error
    (incoming / MANIFEST).write_bytes(manifest)
    sync(incoming / MANIFEST)
    damage = find_damage(incoming)
    if damage and remote.read(f"{CHECKPOINTS}/{name}/{MANIFEST}") != manifest:
        raise Changed
    if damage:
        raise CheckpointError(f"{name} did not arrive whole: pull again, or take another checkpoint", *damage)
    return True


def read_if_there(file: Path) -> bytes | None:
    """A file's content; None when it is missing."""
    return file.read_bytes() if file.is_file() else None


def delete(path: Path) -> None:
    """A file or a folder, or nothing."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
