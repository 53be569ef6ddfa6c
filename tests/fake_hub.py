"""A hub in a folder: the calls that Pippin makes of huggingface_hub, with its layout of the cache; it can fail."""

from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "user/name"


class FakeHub:
    """`files` by path; `failures` are raised first, one a call."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files, self.commit = files, COMMIT
        self.failures: list[Exception] = []
        self.calls: list[str] = []
        self.cut_downloads = 0

    def install(self, patch: pytest.MonkeyPatch) -> "FakeHub":
        patch.setattr(huggingface_hub, "HfApi", lambda: self)
        patch.setattr(huggingface_hub, "hf_hub_download", self.hf_hub_download)
        patch.setattr("data.hub_files.WAITS", (0.0, 0.0))
        patch.delenv("HF_HUB_OFFLINE", raising=False)
        return self

    def call(self, name: str) -> None:
        self.calls.append(name)
        if self.failures:
            raise self.failures.pop(0)

    def dataset_info(self, dataset: str, *, revision: str | None = None) -> SimpleNamespace:
        self.call("info")
        assert dataset == NAME
        return SimpleNamespace(sha=self.commit)

    def list_repo_tree(self, dataset: str, *, recursive: bool, revision: str, repo_type: str) -> list[SimpleNamespace]:
        self.call("tree")
        assert (recursive, revision, repo_type) == (True, self.commit, "dataset")
        files = [SimpleNamespace(path=path, size=len(raw), blob_id=str(hash(raw))) for path, raw in self.files.items()]
        return [SimpleNamespace(path="data"), *files]

    def hf_hub_download(
        self, dataset: str, path: str, *, repo_type: str, revision: str, cache_dir: str, force_download: bool = False
    ) -> str:
        self.call(path)
        found = Path(cache_dir) / f"datasets--{dataset.replace('/', '--')}" / "snapshots" / revision / path
        found.parent.mkdir(parents=True, exist_ok=True)
        content = self.files[path]
        if self.cut_downloads:
            self.cut_downloads -= 1
            content = content[:-1]
        found.write_bytes(content)
        return str(found)
