"""The Hugging Face Hub as a list of files and a way to have one of them here: through `huggingface_hub` and its cache.

A listing (commit, files, sizes, etags) is kept beside the cached files, so that offline work knows what is missing, and
a commit hash as revision needs no network at all once listed. What may pass (no connection, a busy hub) is tried again
a few times; what will not (no such dataset, no access) is said at once. A dataset that is a folder here has the same
interface, which is how all of this is tested. To choose files in another way, edit `choose`.
"""

import fnmatch
import json
import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from data.file_sources import JSONL_SUFFIXES
from data.folders import search
from utils.errors import DataError
from utils.optional import optional

WAITS = (1.0, 2.0, 4.0, 8.0)
"""Seconds between attempts."""
COMMIT = re.compile(r"[0-9a-f]{40}")
SPLITS = ("train", "validation", "valid", "val", "dev", "test", "eval")
KINDS = ((".parquet",), JSONL_SUFFIXES)
"""Read formats, the preferred one first: a dataset that holds both holds the same text twice."""
Result = TypeVar("Result")


class HubFile(NamedTuple):
    """A file of a dataset: path in it, bytes, and what changes when its content does."""

    path: str
    num_bytes: int
    etag: str


class Listing(NamedTuple):
    """What a dataset holds at one commit."""

    revision: str
    files: list[HubFile]


def list_local(root: Path) -> Listing:
    """A folder of the layout of a dataset. Raises DataError when it cannot be listed."""
    suffixes = [".json", *(suffix for kind in KINDS for suffix in kind)]
    paths = [path for path in search(root, suffixes) if os.path.isfile(path)]
    stats = [(path.relative_to(root).as_posix(), path.stat()) for path in paths]
    return Listing("local", sorted(HubFile(name, stat.st_size, str(stat.st_mtime_ns)) for name, stat in stats))


def list_remote(dataset: str, revision: str | None, cache_dir: str | None) -> Listing:
    """What the hub holds, asked now unless `revision` is a commit listed before. Raises DataError, see `attempt`."""
    kept = _listing_path(dataset, revision, cache_dir)
    if revision and COMMIT.fullmatch(revision) and kept.is_file():
        return read_listing(dataset, revision, cache_dir)
    api = optional("huggingface_hub", "data").HfApi()
    commit = attempt(lambda: api.dataset_info(dataset, revision=revision).sha, dataset)
    tree = attempt(
        lambda: list(api.list_repo_tree(dataset, recursive=True, revision=commit, repo_type="dataset")), dataset
    )
    files = [HubFile(file.path, file.size, file.blob_id) for file in tree if hasattr(file, "blob_id")]
    listing = Listing(commit, sorted(files))
    for name in {revision, commit}:
        _write_listing(_listing_path(dataset, name, cache_dir), listing)
    return listing


def read_listing(dataset: str, revision: str | None, cache_dir: str | None) -> Listing:
    """The listing kept when the hub was last asked. Raises DataError when there is none."""
    path = _listing_path(dataset, revision, cache_dir)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Listing(content["revision"], [HubFile(*file) for file in content["files"]])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{dataset}: offline, and no listing of revision {revision or 'main'} is cached in {path.parent.parent}; "
            "run tools/prepare-data.py --download-only once with a connection"
        ) from error


def cache_root(cache_dir: str | None) -> Path:
    """Where files are cached: as given, or where `huggingface_hub` keeps them."""
    if cache_dir:
        return Path(cache_dir).expanduser()
    return Path(optional("huggingface_hub.constants", "data").HF_HUB_CACHE)


def _listing_path(dataset: str, revision: str | None, cache_dir: str | None) -> Path:
    name = (revision or "main").replace("/", "--")
    return cache_root(cache_dir) / f"datasets--{dataset.replace('/', '--')}" / "listings" / f"{name}.json"


def _write_listing(path: Path, listing: Listing) -> None:
    """Written aside and renamed. Raises DataError when the cache cannot be written."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(listing._asdict()), encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}; set data.sources.cache_dir") from error


def choose(files: Sequence[HubFile], config: str | None, split: str, pattern: str | None, label: str) -> list[HubFile]:
    """The files of a split of a configuration, or those that a glob names. Raises DataError when none or unclear."""
    if pattern:
        found = [file for file in files if fnmatch.fnmatchcase(file.path, pattern)]
        return found or _refuse(f"{label}: no file fits data.sources.files '{pattern}'", files)
    kinds = ([file for file in files if file.path.endswith(kind)] for kind in KINDS)
    data = next((some for some in kinds if some), [])
    if config:
        data = [file for file in data if f"/{config}/" in f"/{file.path}"] or _refuse(
            f"{label}: no configuration '{config}' (data.sources.config)", data
        )
    if any(split_of(file.path) for file in data):
        same = {"validation", "valid", "val", "dev"}
        wanted = same if split in same else {split}
        data = [file for file in data if split_of(file.path) in wanted] or _refuse(
            f"{label}: no split '{split}' (data.sources.split)", data
        )
    elif split != "train":
        _refuse(f"{label}: no split '{split}' (data.sources.split): its files name none", data)
    return _one_group(data, config, label)


def _one_group(data: list[HubFile], config: str | None, label: str) -> list[HubFile]:
    """Files of several folders may be several configurations; reading all of them is asked for, never guessed."""
    groups: dict[str, list[HubFile]] = {}
    for file in data:
        folders = [part for part in Path(file.path).parent.parts if part not in SPLITS]
        groups.setdefault("/".join(folders), []).append(file)
    if not groups:
        raise DataError(f"{label}: holds no Parquet or JSON lines file; check data.sources.dataset and revision")
    if config or len(groups) == 1:
        return data
    for usual in ("", "data", "default"):
        if usual in groups:
            return groups[usual]
    names = ", ".join(list(groups)[:8])
    raise DataError(f"{label}: has several configurations ({names}); choose one with data.sources.config, or files")


def _refuse(message: str, files: Sequence[HubFile]) -> list[HubFile]:
    some = ", ".join(file.path for file in files[:6]) + (", ..." if len(files) > 6 else "")
    raise DataError(f"{message}; there are: {some or 'no Parquet or JSON lines files'}")


def split_of(path: str) -> str | None:
    """The split that a file's name or one of its folders says."""
    words = re.split(r"[/._-]", path)
    return next((word for word in reversed(words) if word in SPLITS), None)


def download(dataset: str, revision: str, file: HubFile, cache_dir: str | None) -> Path:
    """The file in the cache, fetched if it is not there or not whole. Raises DataError, see `attempt`."""
    path = cached(dataset, revision, file, cache_dir)
    if path:
        return path
    hub = optional("huggingface_hub", "data")
    where = {"repo_type": "dataset", "revision": revision, "cache_dir": str(cache_root(cache_dir))}
    found = Path(attempt(lambda: hub.hf_hub_download(dataset, file.path, **where), dataset))
    if found.stat().st_size != file.num_bytes:
        again = lambda: hub.hf_hub_download(dataset, file.path, force_download=True, **where)  # noqa: E731
        found = Path(attempt(again, dataset))
    if found.stat().st_size != file.num_bytes:
        raise DataError(f"{found}: has {found.stat().st_size:,} bytes, the hub says {file.num_bytes:,}; fetch it again")
    return found


def cached(dataset: str, revision: str, file: HubFile, cache_dir: str | None) -> Path | None:
    """The file when the cache holds it whole; no network."""
    hub = optional("huggingface_hub", "data")
    found = hub.try_to_load_from_cache(
        dataset, file.path, cache_dir=cache_root(cache_dir), revision=revision, repo_type="dataset"
    )
    is_whole = isinstance(found, str) and os.path.isfile(found) and os.path.getsize(found) == file.num_bytes
    return Path(found) if is_whole else None


def attempt(ask: Callable[[], Result], dataset: str) -> Result:
    """What `ask` gives, tried again while the hub cannot be reached or is busy. Raises DataError in one line."""
    errors = optional("huggingface_hub.errors", "data")
    failures = (OSError, RuntimeError, errors.HTTPError, errors.EntryNotFoundError, errors.HFValidationError)
    last, problem = None, None
    for wait in (*WAITS, None):
        try:
            return ask()
        except failures as error:
            last, problem = error, _explain(error, errors)
        if problem or wait is None:
            break
        time.sleep(wait)
    reason = " ".join(str(last).split())[:200] or type(last).__name__
    problem = problem or "the hub cannot be reached; data.sources.offline: true uses what is cached"
    raise DataError(f"{dataset}: {problem} ({reason})") from last


def _explain(error: Exception, errors: Any) -> str | None:
    """What is wrong for good; None when trying again may help."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError) or status in (401, 403):
        return "no access to this dataset: it is private, gated or does not exist; log in with `hf auth login`"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "no such dataset on the hub; check data.sources.dataset"
    if isinstance(error, errors.RevisionNotFoundError):
        return "no such revision; check data.sources.revision"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    if isinstance(error, errors.HFValidationError):
        return "not the name of a dataset or folder; data.sources.dataset is `user/name` or a folder"
    if status is not None:
        return None if status in (408, 429) or status >= 500 else f"the hub answers {status}"
    if isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError | TimeoutError):
        return f"cannot be stored: {error.strerror}; check the disk, or set data.sources.cache_dir"
    return None
