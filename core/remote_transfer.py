"""A run travels: its folder goes to the volume (`push_run`) and comes back (`pull_run`).

Neither way may cost what the other end is ahead by, so the two are compared first: a later step at the end that would
be written, the same step with other contents or another config are refused unless forced. On the way there metrics go
before checkpoints: rows behind a checkpoint are dropped when the run resumes, a hole would stay for ever. On the way
back all is fetched and verified beside the run before anything of it is replaced. So a transfer that breaks off loses
nothing, and the next one goes on from there. To let another file travel, add it to `core.run.OWN_FILES`.
"""

import contextlib
import os
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from core.checkpoint import (
    BEST,
    LATEST,
    MANIFEST,
    TEMPORARY,
    best_checkpoint,
    checkpoint_name,
    checkpoint_step,
    find_damage,
    list_checkpoints,
    newest_valid,
    point_at,
    publish,
    put_back,
)
from core.remote import CLIENT
from core.remote_checkpoints import (
    CHECKPOINTS,
    INCOMING,
    Changed,
    Side,
    check_history,
    delete,
    differing_config,
    fetch_checkpoint,
    parting,
    read_if_there,
    send_checkpoint,
    side_here,
    side_there,
    whole_manifest,
)
from core.remote_files import RemoteFolder, Say, missing_run, send, steps_there
from core.run import DISK_ERRORS, OWN_FILES, acquire_lock
from utils.errors import CheckpointError, ConfigError
from utils.files import sync
from utils.memory import format_bytes
from utils.yaml_file import Mapping, Place, Scalar, parse_yaml

Which = Literal["last", "best", "all", "none"]
RUN_FILES = OWN_FILES - {"lock", CHECKPOINTS}
REPLACED = "replaced"
"""In `INCOMING`: what a forced pull takes out of the run."""
MAX_TRIES = 3
"""A run that goes on deletes checkpoints while they are being read."""


def push_run(volume: Any, run_folder: Path, which: Which, say: Say, force: bool = False) -> int | None:
    """Bring a run to the volume: its files, and the newest, the best, all or none of its whole checkpoints.

    Returns the newest step that is on the volume then; None: no checkpoint.

    Raises:
        CheckpointError: there is no run, another process uses it, or without `force` the volume's is not one that
            this one goes on from.
    """
    if not (run_folder / "config.yaml").is_file():
        raise CheckpointError(f"there is no run to push at {run_folder}: it holds no config.yaml")
    with locked(run_folder):
        folder, remote = run_folder / CHECKPOINTS, RemoteFolder(volume, run_folder.name)
        put_back(folder)
        newest, sizes = newest_valid(folder, say), remote.sizes()
        here = side_here(run_folder, newest)
        try:
            there = side_there(remote, sizes, here.weights, say)
        except Changed as error:
            raise CheckpointError(f"the run {run_folder.name} is at work on the volume: stop it first") from error
        if check_history(run_folder.name, here, there, differing_config(run_folder, remote), force):
            clear_there(remote, sizes, folder)
            sizes = remote.sizes()
        pairs = [(run_folder / name, name) for name in files_here(run_folder)]
        say(f"sending {len(pairs)} files of the run: {format_bytes(sum(file.stat().st_size for file, _ in pairs))}")
        send(remote, pairs, say)
        for checkpoint in choose_here(folder, which, newest, say):
            send_checkpoint(remote, sizes, checkpoint, say)
        return point_there(remote, read_pointer(folder / BEST), run_folder, say)


def refuse_another_life(volume: Any, run_folder: Path, say: Say) -> None:
    """Raise CheckpointError when the run here and the one on the volume are not one, whichever is ahead."""
    folder, remote = run_folder / CHECKPOINTS, RemoteFolder(volume, run_folder.name)
    here = side_here(run_folder, newest_valid(folder, say))
    if problems := parting(run_folder.name, here, side_there(remote, remote.sizes(), here.weights, say)):
        raise CheckpointError(
            *problems,
            f"to keep one, replace the other with {CLIENT} pull or push, and --force; to keep both, rename one",
        )


def pull_run(
    volume: Any, run_folder: Path, which: Which, say: Say, force: bool = False, *, replace: bool = False
) -> int | None:
    """Bring a run home into `run_folder`, whose name is the run's; as `push_run` the other way.

    `force`: also over a run that the volume's does not go on from; `replace`: nothing stays here but what is there too,
    for a run that was started anew, whatever the two look like.

    Raises:
        CheckpointError: the volume has no such run, another process uses the one here, a checkpoint did not arrive
            whole, or without `force` the one here is not one that the volume's goes on from.
    """
    remote = RemoteFolder(volume, run_folder.name)
    sizes = remote.sizes()
    if not sizes:
        raise missing_run(volume, run_folder.name)
    if "config.yaml" not in sizes:
        raise CheckpointError(f"the run {run_folder.name} has written nothing yet, so there is nothing to pull")
    with locked(run_folder):
        put_back(run_folder / CHECKPOINTS)
        for _ in range(MAX_TRIES):
            try:
                return _pull(remote, run_folder, which, say, force, replace)
            except Changed:
                say("the run went on meanwhile and what was being read is gone: looking again")
        raise CheckpointError(f"the run {run_folder.name} deletes its checkpoints faster than they come: stop it first")


def _pull(remote: RemoteFolder, run_folder: Path, which: Which, say: Say, force: bool, replace: bool) -> int | None:
    folder, sizes = run_folder / CHECKPOINTS, remote.sizes()
    try:
        newest = newest_valid(folder, say)
    except CheckpointError:
        newest = None  # All are damaged, which is what a copy from the volume repairs.
    here = side_here(run_folder, newest)
    there = side_there(remote, sizes, here.weights, say)
    is_replaced = replace or check_history(run_folder.name, there, here, differing_config(run_folder, remote), force)
    best = read_best(remote)
    chosen = choose_there(remote, sizes, which, there, best, say)
    stale = [path for path in stale_here(run_folder, remote, sizes) if path.name not in chosen] if is_replaced else []
    arrived = [name for name, manifest in chosen.items() if fetch_checkpoint(remote, name, manifest, folder, say)]
    fetch_run_files(remote, sizes, folder / INCOMING, say)
    # From here on nothing is asked of the volume, and wherever it ends the metrics reach the newest checkpoint.
    if not is_replaced:
        install_run_files(folder / INCOMING, run_folder)
    for name in arrived:
        publish(folder / INCOMING / name, folder / name)
    if is_replaced:
        (folder / BEST).unlink(missing_ok=True)  # Of the life that goes; what the volume calls best is set below.
        set_aside(stale, folder / INCOMING)
        install_run_files(folder / INCOMING, run_folder)
    delete(folder / INCOMING)
    verified = {*chosen, *([newest.name] if newest else [])}
    return point_here(folder, best, verified, say, is_bare=which == "none")


def files_here(run_folder: Path) -> list[str]:
    """Names of the files of a run folder that travel beside the checkpoints; the config last, as it makes it a run."""
    paths = [path for name in RUN_FILES for path in (run_folder / name, *(run_folder / name).rglob("*"))]
    names = [path.relative_to(run_folder).as_posix() for path in paths if path.is_file()]
    return sorted(names, key=lambda name: (name == "config.yaml", name))


def choose_here(folder: Path, which: Which, newest: Path | None, say: Say) -> list[Path]:
    """The checkpoints that are to go; damaged ones never do."""
    if which == "all":
        chosen = [path for path in list_checkpoints(folder) if path == newest or not find_damage(path)]
    else:
        only = {"last": newest, "best": best_checkpoint(folder) if which == "best" else None}.get(which)
        chosen = [only] if only is not None else []
    if not chosen and which != "none":
        say(f"there is no {'best ' if which == 'best' else ''}checkpoint here to send")
    return chosen


def choose_there(
    remote: RemoteFolder, sizes: dict[str, int], which: Which, newest: Side, best: str, say: Say
) -> dict[str, bytes]:
    """Name -> manifest of the checkpoints that are to come; incomplete ones never do.

    Raises:
        Changed: the run has saved or deleted meanwhile what was to come.
    """
    known = {} if newest.step is None or newest.manifest is None else {checkpoint_name(newest.step): newest.manifest}
    if which == "last":
        chosen = known
    else:
        names = {"all": [checkpoint_name(step) for step in steps_there(sizes)], "best": [best] * bool(best)}
        manifests = {name: whole_manifest(remote, sizes, name) for name in names.get(which, []) if name not in known}
        chosen = {name: manifest for name, manifest in manifests.items() if manifest is not None}
        chosen |= {name: manifest for name, manifest in known.items() if name in names.get(which, [])}
    if which in ("all", "best") and best and best not in chosen and is_new(sizes, best) and there_too(remote, best):
        raise Changed
    if not chosen and which == "best" and newest.step is not None:
        say(
            f"there is no best checkpoint on the volume: nothing has been evaluated, or it is not whole; "
            f"to bring the newest, step {newest.step}: {CLIENT} pull --run {shlex.quote(remote.path)}"
        )
    elif not chosen and which != "none":
        say("there is no checkpoint on the volume yet")
    return chosen


def is_new(sizes: dict[str, int], name: str) -> bool:
    """Whether a checkpoint was not there when `sizes` were read."""
    return f"{CHECKPOINTS}/{name}/{MANIFEST}" not in sizes


def fetch_run_files(remote: RemoteFolder, sizes: dict[str, int], incoming: Path, say: Say) -> None:
    """Bring what lies beside the checkpoints to `incoming`, after them: metrics may be ahead, never behind."""
    for name in RUN_FILES:
        delete(incoming / name)
    names = [name for name in sizes if name.partition("/")[0] in RUN_FILES]
    say(f"fetching {len(names)} files of the run: {format_bytes(sum(sizes[name] for name in names))}")
    try:
        for name in names:
            remote.download(name, incoming / name)
    except FileNotFoundError as error:
        raise Changed from error


def install_run_files(incoming: Path, run_folder: Path) -> None:
    """Replace the files of the run one by one, its tokenizer as a whole."""
    tokenizer = incoming / "tokenizer"
    if tokenizer.is_dir() and contents(tokenizer) != contents(run_folder / "tokenizer"):
        delete(run_folder / "tokenizer")
        os.rename(tokenizer, run_folder / "tokenizer")
    for name in files_here(incoming):
        if not name.startswith("tokenizer/"):
            (run_folder / name).parent.mkdir(exist_ok=True)
            os.replace(incoming / name, run_folder / name)
    sync(run_folder)


def clear_there(remote: RemoteFolder, sizes: dict[str, int], folder: Path) -> None:
    """Remove another life of the run: files that are not here, then checkpoints that are not here too.

    The newest goes last, so that a transfer which breaks off is still seen to replace something when done again.
    """
    for name in sizes:
        if name.partition("/")[0] in RUN_FILES and not (folder.parent / name).is_file():
            remote.remove(name)
    remote.remove(f"{CHECKPOINTS}/{BEST}")
    for step in steps_there(sizes):
        name = checkpoint_name(step)
        if read_if_there(folder / name / MANIFEST) != remote.read(f"{CHECKPOINTS}/{name}/{MANIFEST}"):
            remote.remove(f"{CHECKPOINTS}/{name}")


def stale_here(run_folder: Path, remote: RemoteFolder, sizes: dict[str, int]) -> list[Path]:
    """What `clear_there` would remove, here, in the same order."""
    checkpoints = list_checkpoints(run_folder / CHECKPOINTS)
    others = [path for path in checkpoints if read_if_there(path / MANIFEST) != there_too(remote, path.name)]
    return [run_folder / name for name in files_here(run_folder) if name not in sizes] + others


def set_aside(paths: list[Path], incoming: Path) -> None:
    """Move files and folders to where they are cleared away with the rest: half of a checkpoint is never left."""
    (incoming / REPLACED).mkdir(exist_ok=True)
    for path in paths:
        delete(incoming / REPLACED / path.name)
        os.rename(path, incoming / REPLACED / path.name)


def there_too(remote: RemoteFolder, name: str) -> bytes:
    """The manifest of a checkpoint on the volume; empty when there is none."""
    return remote.read(f"{CHECKPOINTS}/{name}/{MANIFEST}") or b""


def point_there(remote: RemoteFolder, best_here: str, run_folder: Path, say: Say) -> int | None:
    """Set LATEST and BEST on the volume, after the checkpoints they name; the newest step."""
    steps = steps_there(remote.sizes())
    names = [checkpoint_name(step) for step in steps]
    if names:
        remote.write(f"{CHECKPOINTS}/{LATEST}", f"{names[-1]}\n".encode())
    else:
        remote.remove(f"{CHECKPOINTS}/{LATEST}")
    best_there = read_best(remote)
    best = best_here or best_there
    if best and best not in names:
        say(f"the best checkpoint, {best}, is not on the volume; to bring it there: {best_command('push', run_folder)}")
        remote.remove(f"{CHECKPOINTS}/{BEST}")
    elif best != best_there:
        remote.write(f"{CHECKPOINTS}/{BEST}", f"{best}\n".encode())
    return steps[-1] if steps else None


def point_here(folder: Path, best_there: str, verified: set[str], say: Say, *, is_bare: bool) -> int | None:
    """Set LATEST and BEST here, after the checkpoints they name; the newest step that is whole.

    `is_bare`: no checkpoints were asked for, so what is best of those here stays the best.
    """

    def is_sound(path: Path) -> bool:
        return path.is_dir() and (path.name in verified or not find_damage(path))

    best_here = read_pointer(folder / BEST)
    best = best_there or best_here
    if best and not is_sound(folder / best):
        say(f"the best checkpoint, {best}, is not here; to bring it: {best_command('pull', folder.parent)}")
        best = best_here if is_bare and best_here and is_sound(folder / best_here) else ""
    if not best:
        (folder / BEST).unlink(missing_ok=True)
    elif best != best_here:
        temporary = folder / f"{TEMPORARY}{BEST}"
        temporary.write_text(best + "\n", encoding="utf-8")
        sync(temporary)
        os.replace(temporary, folder / BEST)
    newest = next((path for path in reversed(list_checkpoints(folder)) if is_sound(path)), None)
    if newest is None:
        (folder / LATEST).unlink(missing_ok=True)
        return None
    point_at(newest, is_best=False)
    return checkpoint_step(newest.name)


def folder_here(name: str, config: bytes | None) -> Path:
    """Where a run lies here, or shall: below the out_dir of its config there, below `runs` if it lies there instead.

    An absolute out_dir of a machine that has it and not of this one counts for nothing.
    """
    try:
        node = parse_yaml((config or b"").decode(), Place("config.yaml"))
    except (ConfigError, UnicodeDecodeError):
        node = None
    found = node.get("out_dir") if isinstance(node, Mapping) else None
    out_dir = Path(found.text) if isinstance(found, Scalar) else Path("runs")
    is_elsewhere = out_dir.is_absolute() and not out_dir.is_dir()
    folders = [*([] if is_elsewhere else [out_dir / name]), Path("runs", name)]
    return next((folder for folder in folders if (folder / "config.yaml").is_file()), folders[0])


def best_command(way: str, run_folder: Path) -> str:
    """What to type for the best checkpoint, whoever brought the rest."""
    return f"{CLIENT} {way} --run {shlex.quote(str(run_folder))} --checkpoints best"


def read_best(remote: RemoteFolder) -> str:
    """What BEST names on the volume; empty when there is none."""
    return (remote.read(f"{CHECKPOINTS}/{BEST}") or b"").decode().strip()


def read_pointer(file: Path) -> str:
    """What LATEST or BEST names here; empty when there is none."""
    return (read_if_there(file) or b"").decode().strip()


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.is_dir() else {}


@contextlib.contextmanager
def locked(run_folder: Path) -> Iterator[None]:
    """Hold the run's lock; a folder that nothing came into is not left behind. A full disk is told as such."""
    lock = acquire_lock(run_folder)
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        reason = f"cannot write {error.filename or run_folder}: {error.strerror}"
        raise CheckpointError(f"{reason}; what was there before is whole: make room and do it again") from error
    finally:
        if {path.name for path in run_folder.iterdir()} == {"lock"}:
            shutil.rmtree(run_folder)
        lock.close()
