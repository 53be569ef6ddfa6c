"""Datasets of the Hugging Face Hub, read from their Parquet or JSON lines files, which are fetched when reached.

The commit is found once and kept in the state, so that a run that goes on reads the files it began with, whatever the
branch says meanwhile. Nothing of `datasets` is needed, and no code of a dataset is run. Files, cache and errors lie in
`data/hub_files.py`.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from data.cache import Report
from data.file_sources import json_lines
from data.hub_files import HubFile, Listing, cached, choose, download, list_local, list_remote, read_listing
from data.parquet_source import parquet_rows
from data.sources import Documents, Part, SourceConfig, State
from utils.errors import DataError


class HubSourceConfig(SourceConfig):
    """A dataset of the Hugging Face Hub, or a folder of the same layout."""

    unit: ClassVar[str] = "row"
    remedy: ClassVar[str] = "each row must hold UTF-8 text in data.sources.column; name another column or files"

    type: str = "hub"
    """Row of data.SOURCES."""
    dataset: str = Field(min_length=1)
    """`user/name` on the hub, or a folder; a folder of that name here is preferred."""
    revision: str | None = None
    """Branch, tag or commit; null: main. With a commit, a listed and cached dataset needs no network."""
    config: str | None = Field(default=None, min_length=1)
    """The folder of the configuration, such as `20231101.en` or `sample/10BT`; null: the only one, or `data`."""
    split: str = "train"
    """The split that files name in their path; all files are `train` when none names a split."""
    files: str | None = Field(default=None, min_length=1)
    """A glob over paths in the dataset, such as `data/*/000_*.parquet`, in place of `config` and `split`."""
    column: str = "text"
    """The column or JSON key that holds the document; a dot goes into a struct or object."""
    cache_dir: str | None = None
    """Where files are kept; null: the cache of huggingface_hub."""
    offline: bool = False
    """Use only what is cached; HF_HUB_OFFLINE=1 does the same."""
    max_document_bytes: int = Field(default=128_000_000, gt=0)
    """A longer line or value is left out, counted as broken."""

    def label(self) -> str:
        """See `SourceConfig.label`."""
        return self.name or self.dataset

    def is_local(self) -> bool:
        """Whether the dataset is a folder here. Raises DataError for what looks like one and is not there."""
        folder = Path(self.dataset).expanduser()
        if folder.is_dir():
            return True
        if self.dataset.startswith((".", "/", "~")) or self.dataset.count("/") > 1:
            raise DataError(f"{folder}: no such folder; check data.sources.dataset (seen from {Path.cwd()})")
        return False

    def is_offline(self) -> bool:
        """Whether the network must not be used."""
        return self.offline or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")

    def listing(self, revision: str | None = None) -> Listing:
        """The commit and the chosen files. Raises DataError when they cannot be known or there are none."""
        revision = revision or self.revision
        if self.is_local():
            listing = list_local(Path(self.dataset).expanduser())
        elif self.is_offline():
            listing = read_listing(self.dataset, revision, self.cache_dir)
        else:
            listing = list_remote(self.dataset, revision, self.cache_dir)
        return listing._replace(files=choose(listing.files, self.config, self.split, self.files, self.label()))

    def local_path(self, file: HubFile, revision: str) -> Path:
        """Where a file lies here, fetched if need be. Raises DataError when it cannot be had."""
        if self.is_local():
            return Path(self.dataset).expanduser() / file.path
        if not self.is_offline():
            return download(self.dataset, revision, file, self.cache_dir)
        found = cached(self.dataset, revision, file, self.cache_dir)
        if found is None:
            raise DataError(*self.missing(self.listing(revision)))
        return found

    def missing(self, listing: Listing) -> list[str]:
        """One line that names the files which are not in the cache, or none."""
        if self.is_local():
            return []
        absent = [
            file.path for file in listing.files if not cached(self.dataset, listing.revision, file, self.cache_dir)
        ]
        some = ", ".join(absent[:5]) + (", ..." if len(absent) > 5 else "")
        remedy = "run tools/prepare-data.py --download-only once with a connection"
        count = f"{len(absent)} of {len(listing.files)} files are not in the cache"
        return [f"{self.label()}: offline, and {count}: {some}; {remedy}"] if absent else []

    def download_all(self, report: Report = print) -> list[Path]:
        """Have every chosen file here. Raises DataError when one cannot be had."""
        listing = self.listing()
        size = sum(file.num_bytes for file in listing.files) / 1e6
        report(f"{self.label()}: {len(listing.files)} files, {size:,.1f} MB, revision {listing.revision}")
        return [self.local_path(file, listing.revision) for file in listing.files]

    def walk(self, state: State, report: Report) -> Documents:
        """See `SourceConfig.walk`; the state names the commit."""
        listing = self.listing(state.get("revision"))
        revision = listing.revision if not self.is_local() else None
        return self.walk_files(listing.files, {**state, "revision": revision}, report)

    def parts(self, file: HubFile, state: State) -> Iterator[Part]:
        """See `SourceConfig.parts`."""
        path = self.local_path(file, state["revision"])
        if file.path.endswith(".parquet"):
            return parquet_rows(path, state, self.column, self.max_document_bytes)
        return json_lines(path, state, self.column, self.max_document_bytes)

    def origin(self) -> dict[str, Any]:
        """See `SourceConfig.origin`: the commit, and path, size and etag of each file."""
        listing = self.listing()
        chosen = {"column": self.column, "max_document_bytes": self.max_document_bytes}
        return {"revision": listing.revision, "files": [list(file) for file in listing.files], **chosen}

    def find_problems(self) -> list[str]:
        """See `SourceConfig.find_problems`; asks no network, so a dataset that is not cached is no problem yet."""
        try:
            if self.is_local() or self.is_offline():
                return self.missing(self.listing()) if self.max_documents is None else []
        except DataError as error:
            return error.problems
        return []
