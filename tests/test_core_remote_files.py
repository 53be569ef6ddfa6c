"""Data and weights reach the volume once, under a name that says what they are; what is there is told as it is."""

import hashlib
import inspect
import shutil
from pathlib import Path

import modal
import modal.exception
import modal.volume
import numpy as np
import pytest
from modal.types import FileEntry, FileEntryType

from core import remote_files
from core.remote import LAUNCH, Attempt, attempt_file, write_attempt
from core.remote_files import (
    FILE,
    RemoteFolder,
    RemoteState,
    list_runs,
    missing_run,
    remote_state,
    remove_run,
    upload_data,
    upload_weights,
)
from data.store import open_store
from models.weights import read_folder, save_weights
from tests.folder_volume import Entry, FolderVolume, Lost
from tests.stored_documents import write_store
from tests.travelling_runs import write_run
from utils.errors import CheckpointError, DataError


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_store(tmp_path_factory.mktemp("store") / "s", [[5, 9, 2], [3, 30], [40]], (3, 9))
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture
def data(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "shards"))


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Two shards with what lies beside them in a checkpoint, and what no model is started from."""
    folder = tmp_path / "weights"
    folder.mkdir()
    save_weights(folder, {"a": np.ones((4, 8), np.float32), "b": np.zeros((4, 8), np.float32)}, max_shard_bytes=200)
    for name in ("config.json", "tokenizer.json", "state.json", "MANIFEST.json"):
        (folder / name).write_text("{}")
    for name in ("optimizer.safetensors", "ema.safetensors", "pytorch_model.bin"):
        (folder / name).write_bytes(b"large")
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_the_stand_in_takes_the_calls_of_the_real_volume() -> None:
    for name in ("listdir", "read_file", "remove_file", "batch_upload"):
        real, ours = (list(inspect.signature(getattr(kind, name)).parameters) for kind in (modal.Volume, FolderVolume))
        assert real == ours, name
    put_file = inspect.signature(modal.volume.VolumeUploadContextManager2.put_file)
    assert list(put_file.parameters)[1:3] == ["local_file", "remote_path"]
    assert FileEntryType.FILE == FILE
    assert {"path", "type", "size"} <= set(FileEntry.__dataclass_fields__) & set(Entry._fields)


def test_a_folder_of_a_volume_holds_what_was_put_there(volume: FolderVolume, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(range(256)) * 5)
    folder, other = RemoteFolder(volume, "/one/"), RemoteFolder(volume, "one more")
    other.write("x", b"other")
    folder.upload([(file, "a/b"), (file, "c")])
    folder.write("d", b"small")
    assert folder.sizes() == {"a/b": 1280, "c": 1280, "d": 5}
    assert RemoteFolder(volume, "").sizes() == {"one more/x": 5, "one/a/b": 1280, "one/c": 1280, "one/d": 5}
    assert (folder.read("d"), folder.read("e")) == (b"small", None)
    folder.download("a/b", tmp_path / "new" / "copy")
    assert (tmp_path / "new" / "copy").read_bytes() == file.read_bytes()
    with pytest.raises(FileNotFoundError, match="/one/none is not on the volume"):
        folder.download("none", tmp_path / "none")
    folder.remove("a")
    folder.remove("none")
    assert list(folder.sizes()) == ["c", "d"]
    folder.remove()
    assert folder.sizes() == {}
    assert other.sizes() == {"x": 5}
    with pytest.raises(AssertionError):
        RemoteFolder(volume, "/").remove()


def test_a_listing_by_prefix_is_cut_to_the_folder(volume: FolderVolume, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Modal's own words, "all files under a path prefix", would allow."""
    for name in ("run", "run 2"):
        RemoteFolder(volume, name).write("x", b"x")
    everything = volume.listdir("/", recursive=True)
    monkeypatch.setattr(volume, "listdir", lambda path, recursive: everything)
    assert RemoteFolder(volume, "run").sizes() == {"x": 1}


@pytest.mark.parametrize("error", [FileNotFoundError, modal.exception.NotFoundError])
def test_a_volume_that_is_not_there_is_empty(error: type[Exception], tmp_path: Path) -> None:
    class Missing(FolderVolume):
        def listdir(self, path: str, *, recursive: bool = False) -> list[Entry]:
            raise error("no such volume")

        def read_file(self, path: str) -> list[bytes]:  # pyright: ignore[reportIncompatibleMethodOverride]
            raise error("no such volume")

        def remove_file(self, path: str, recursive: bool = False) -> None:
            raise error("no such volume")

    volume = Missing(tmp_path / "none")
    assert list_runs(volume) == []
    assert remote_state(volume, "run") == RemoteState(False, None, None, None, [])
    RemoteFolder(volume, "run").remove()
    with pytest.raises(CheckpointError, match="there is no run x on the volume; it holds no runs"):
        remove_run(volume, "x")


def test_data_is_sent_once_whole_and_with_the_manifest_last(volume: FolderVolume, data: Path) -> None:
    (data / ".DS_Store").write_text("of a Mac")
    news: list[str] = []
    key = upload_data(volume, data, news.append)
    assert key == hashlib.sha256((data / "manifest.json").read_bytes()).hexdigest()[:32]
    (data / ".DS_Store").unlink()
    assert files_of(volume.root / key) == files_of(data)
    assert volume.sent[-1] == f"{key}/manifest.json"
    open_store(volume.root / key).verify()
    assert news[0].startswith(f"prepared data: sending {len(files_of(data))} of {len(files_of(data))} files, ")

    sent = volume.sent_bytes
    (data / "manifest.json").touch()
    assert upload_data(volume, data, news.append) == key
    assert volume.sent_bytes == sent
    assert volume.read_bytes == 0
    assert news[1:] == [f"prepared data: already on the volume ({key})"]


def test_other_data_get_another_name(volume: FolderVolume, data: Path, tmp_path: Path) -> None:
    other = write_store(tmp_path / "other", [[5, 9, 3]], (3,))
    assert upload_data(volume, data, print) != upload_data(volume, other, print)
    assert len(list(volume.root.iterdir())) == 2


def test_an_upload_that_breaks_off_is_filled_up(volume: FolderVolume, data: Path) -> None:
    num_files, at = len(files_of(data)), 0
    while True:
        at, volume.operations = at + 1, 0
        shutil.rmtree(volume.root)
        volume.root.mkdir()
        volume.fail_at = at
        try:
            upload_data(volume, data, lambda line: None)
            break
        except Lost:
            assert not list(volume.root.rglob("manifest.json"))
        volume.fail_at, volume.sent = None, []
        key = upload_data(volume, data, lambda line: None)
        assert files_of(volume.root / key) == files_of(data)
        assert len(volume.sent) == num_files - (at - 1)
    assert at == num_files + 1


def test_a_shard_that_is_gone_or_cut_short_there_is_sent_again(volume: FolderVolume, data: Path) -> None:
    key = upload_data(volume, data, lambda line: None)
    shards = sorted((volume.root / key).rglob("*.shard"))
    shards[0].unlink()
    shards[1].write_bytes(shards[1].read_bytes()[:-1])
    volume.sent = []
    upload_data(volume, data, lambda line: None)
    assert files_of(volume.root / key) == files_of(data)
    assert len(volume.sent) == 3


def test_damaged_data_do_not_leave_the_house(volume: FolderVolume, data: Path) -> None:
    shard = max(data.rglob("*.shard"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match=shard.name):
        upload_data(volume, data, print)
    assert volume.sent == []


def test_a_folder_without_data_is_refused(volume: FolderVolume, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no prepared data"):
        upload_data(volume, tmp_path, print)


def test_large_data_go_in_groups_with_news(volume: FolderVolume, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_files, "GROUP_BYTES", 100)
    batches: list[int] = []
    batch_upload = volume.batch_upload
    monkeypatch.setattr(
        volume, "batch_upload", lambda force: (batches.append(len(volume.sent)), batch_upload(force))[1]
    )
    news: list[str] = []
    key = upload_data(volume, data, news.append)
    assert files_of(volume.root / key) == files_of(data)
    total = sum(path.stat().st_size for path in data.rglob("*") if path.is_file() and path.name != "manifest.json")
    assert news[-1] == f"sent {total} bytes of {total} bytes"
    sizes = [len((volume.root / name).read_bytes()) for name in volume.sent]
    groups = [sizes[start:end] for start, end in zip(batches, [*batches[1:], len(sizes)], strict=True)]
    assert all(sum(group[:-1]) < 100 for group in groups)
    assert all(sum(group) >= 100 for group in groups[:-2])
    assert len(groups) == len(news)


def test_weights_travel_with_their_config_and_tokenizer(volume: FolderVolume, weights: Path) -> None:
    key = upload_weights(volume, weights, print)
    assert key.startswith("weights-")
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
    assert sorted(files_of(volume.root / key)) == sorted(["config.json", "tokenizer.json", *shards])
    assert volume.sent[-1] == f"{key}/config.json"
    assert read_folder(volume.root / key)[1]["a"].tolist() == np.ones((4, 8)).tolist()
    volume.sent = []
    assert upload_weights(volume, weights, print) == key
    assert volume.sent == []


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model-00002-of-00002.safetensors"])
def test_other_weights_get_another_name(volume: FolderVolume, weights: Path, name: str) -> None:
    key = upload_weights(volume, weights, print)
    (weights / "state.json").write_text('{"step": 5}')
    assert upload_weights(volume, weights, print) == key
    (weights / name).write_bytes((weights / name).read_bytes()[:-1] + b" ")
    assert upload_weights(volume, weights, print) != key


def test_a_folder_without_weights_is_refused(volume: FolderVolume, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds neither model\.safetensors"):
        upload_weights(volume, tmp_path, print)


def test_the_state_of_a_run(volume: FolderVolume) -> None:
    write_run(volume.root / "travels", 10, 20, 30, best=10)
    remote = RemoteFolder(volume, "travels")
    assert remote_state(volume, "travels") == RemoteState(True, 30, 10, None, [])
    (volume.root / "travels" / "checkpoints" / "step_00000030" / "MANIFEST.json").unlink()
    (volume.root / "travels" / "checkpoints" / "step_00000010" / "MANIFEST.json").unlink()
    attempts = [Attempt(1, "A100", 5.0, 9.0, 10.0, "crashed", 0, 20, "why"), Attempt(2, "A100", 11.0, 12.0)]
    remote.write(LAUNCH, b'{"call_id": "fc-1"}')
    for attempt in reversed(attempts):
        remote.write(attempt_file(attempt.number), write_attempt(attempt).encode())
    assert remote_state(volume, "travels") == RemoteState(True, 20, None, {"call_id": "fc-1"}, attempts)
    remote.write(attempt_file(7), b'{"num')
    assert remote_state(volume, "travels").attempts[2].number == 7, "half written: what is known of it"
    remote.write(LAUNCH, b'{"call')
    with pytest.raises(CheckpointError, match="what the volume says about the run travels is unreadable"):
        remote_state(volume, "travels")


def test_runs_are_listed_named_when_misspelt_and_removed(volume: FolderVolume) -> None:
    for name in ("quickstart", "slow start"):
        write_run(volume.root / name, 10)
    RemoteFolder(volume, "launched").write(LAUNCH, b"{}")
    RemoteFolder(volume, "no run").write("notes.txt", b"of a person")
    assert list_runs(volume) == ["launched", "quickstart", "slow start"]
    assert str(missing_run(volume, "quikstart")).endswith(
        "there is no run quikstart on the volume; did you mean quickstart?"
    )
    assert str(missing_run(volume, "xyz")).endswith("; it holds 3 runs")
    with pytest.raises(CheckpointError, match="no run start on the volume"):
        remove_run(volume, "start")
    remove_run(volume, "quickstart")
    assert list_runs(volume) == ["launched", "slow start"]
