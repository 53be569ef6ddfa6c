"""One checkpoint on its way to a volume or back, and what decides whether one end of the way may replace the other.

On the volume a checkpoint is whole when every file that its manifest names is there in the size it names; contents are
verified where they arrive here. The manifest goes last on the way there, and comes first on the way back, since it says
which files an interrupted transfer had already brought. To compare more than steps, manifests and configs, edit
`check_history`; which checkpoints travel is decided in `core/remote_transfer.py`.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

from core.checkpoint import ASIDE, MANIFEST, TEMPORARY, checkpoint_name, checkpoint_step, find_damage, sha256_of
from core.config import load
from core.remote_files import RemoteFolder, Say, send, steps_there
from core.run import MAY_DIFFER, differing_keys
from utils.errors import CheckpointError, ConfigError
from utils.files import sync
from utils.memory import format_bytes

CHECKPOINTS = "checkpoints"
INCOMING = f"{TEMPORARY}pull"
"""Below `checkpoints`, where the next save or `--overwrite` would clear it away."""


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


def side_here(newest: Path | None) -> Side:
    """`newest`: the newest whole checkpoint here."""
    if newest is None:
        return Side("here", None, None)
    return Side("here", checkpoint_step(newest.name), (newest / MANIFEST).read_bytes())


def side_there(remote: RemoteFolder, sizes: dict[str, int], say: Say) -> Side:
    """The newest checkpoint on the volume whose files are all there; newer ones are named."""
    for step in reversed(steps_there(sizes)):
        if manifest := whole_manifest(remote, sizes, checkpoint_name(step)):
            return Side("on the volume", step, manifest)
        say(f"{checkpoint_name(step)} on the volume is not complete: passed over")
    return Side("on the volume", None, None)


def check_history(name: str, source: Side, target: Side, config_problems: list[str], force: bool) -> bool:
    """Whether `source` would replace what is at `target` instead of going on from it.

    Raises:
        CheckpointError: it would, and that was not asked for with `force`.
    """
    first = "pull it first" if source.place == "here" else "push it first"
    problems = [f"the config of {name} differs in {line}" for line in config_problems]
    if target.step is not None and (source.step is None or target.step > source.step):
        at = f"at step {source.step}" if source.step is not None else "without a checkpoint"
        problems.append(f"the run {name} is at step {target.step} {target.place} and {at} {source.place}: {first}")
    elif target.step is not None and target.step == source.step and target.manifest != source.manifest:
        problems.append(f"step {target.step} of {name} {target.place} is another one than {source.place}")
    if problems and not force:
        raise CheckpointError(*problems, f"to replace the run {target.place}, add --force; to keep both, rename one")
    return bool(problems)


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
    """The manifest of a checkpoint on the volume; None when it is unreadable or not all of its files are there."""
    place = f"{CHECKPOINTS}/{name}"
    content = remote.read(f"{place}/{MANIFEST}") if f"{place}/{MANIFEST}" in sizes else None
    try:
        files = read_manifest(content or b"")
    except (ValueError, KeyError, TypeError, AttributeError):
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


def install_checkpoint(incoming: Path, final: Path) -> None:
    """Rename a verified checkpoint into place; `put_back` undoes the half of it that a kill leaves."""
    aside = final.with_name(ASIDE + final.name)
    delete(aside)
    if final.exists():
        os.rename(final, aside)
    os.rename(incoming, final)
    delete(aside)


def delete(path: Path) -> None:
    """A file or a folder, or nothing."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
