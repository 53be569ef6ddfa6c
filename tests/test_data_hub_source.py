"""Hub datasets: from a folder of the same layout, from a fake hub, offline, half cached; the commit stays."""

import json
import shutil
from typing import Any

import pytest

from data.hub_source import HubSourceConfig
from tests.fake_hub import COMMIT, NAME, FakeHub
from tests.source_oracles import assert_resumes, json_line, pack, read, write_parquet
from utils.errors import DataError

PATHS = ["data/train-0.parquet", "data/train-1.parquet"]


@pytest.fixture
def hub(tmp_path, monkeypatch) -> FakeHub:
    for number, path in enumerate([*PATHS, "data/test-0.parquet"]):
        write_parquet(tmp_path / "repo" / path, [f"{number}-{row}" for row in range(3)])
    (tmp_path / "repo/README.md").write_text("# name\n")
    repo = tmp_path / "repo"
    files = {path.relative_to(repo).as_posix(): path.read_bytes() for path in repo.rglob("*") if path.is_file()}
    return FakeHub(files).install(monkeypatch)


def source(tmp_path, **values: Any) -> HubSourceConfig:
    defaults: dict[str, Any] = {"dataset": NAME, "cache_dir": str(tmp_path / "cache")}
    return HubSourceConfig(**(defaults | values))


TEXTS = ["0-0", "0-1", "0-2", "1-0", "1-1", "1-2"]


def test_the_hub_and_a_folder_of_its_layout_give_the_same(tmp_path, hub):
    local = source(tmp_path, dataset=str(tmp_path / "repo"))
    assert read(local)[0] == read(source(tmp_path))[0] == TEXTS
    assert read(local.model_copy(update={"split": "test"}))[0] == ["2-0", "2-1", "2-2"]
    assert_resumes(local)
    assert_resumes(source(tmp_path))
    assert local.download_all(lambda line: None) == [tmp_path / "repo" / path for path in PATHS]


def test_files_are_fetched_when_they_are_reached_and_once(tmp_path, hub):
    documents = source(tmp_path).documents()
    assert [next(documents)[0] for _ in range(3)] == TEXTS[:3]
    assert hub.calls == ["info", "tree", PATHS[0]]
    assert [text for text, _ in documents] == TEXTS[3:]
    hub.calls = []
    assert read(source(tmp_path))[0] == TEXTS
    assert hub.calls == ["info", "tree"]


def test_a_run_that_goes_on_keeps_the_commit_it_began_with(tmp_path, hub):
    states = [state for _, state in source(tmp_path).documents()]
    assert states[0]["revision"] == COMMIT
    hub.commit = "f" * 40
    hub.files = {PATHS[0]: b"something else"}
    assert read(source(tmp_path), json.loads(json.dumps(states[1])))[0] == TEXTS[2:]
    assert source(tmp_path).origin()["revision"] == "f" * 40


def test_offline_uses_the_cache_and_names_what_is_missing(tmp_path, hub, monkeypatch):
    offline = source(tmp_path, offline=True)
    with pytest.raises(
        DataError, match="user/name: offline, and no listing of revision main is cached.*--download-only"
    ):
        read(offline)
    assert len(offline.find_problems()) == 1
    lines: list[str] = []
    source(tmp_path).download_all(lines.append)
    assert lines[0].startswith("user/name: 2 files, 0.0 MB, revision 0123")
    hub.calls = []
    assert read(offline)[0] == TEXTS
    assert offline.find_problems() == []
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert read(source(tmp_path))[0] == TEXTS
    (tmp_path / "cache/datasets--user--name/snapshots" / COMMIT / PATHS[1]).unlink()
    message = "user/name: offline, and 1 of 2 files are not in the cache: data/train-1.parquet; .*--download-only"
    found: list[str] = []
    with pytest.raises(DataError, match=message):
        found.extend(text for text, _ in offline.documents())
    assert len(offline.find_problems()) == 1
    assert read(offline.model_copy(update={"max_documents": 3}))[0] == TEXTS[:3]
    assert hub.calls == []


def test_a_file_that_is_not_whole_is_fetched_again_and_missing_offline(tmp_path, hub):
    hub.cut_downloads = 1
    assert read(source(tmp_path))[0] == TEXTS
    assert hub.calls[2:] == [PATHS[0], PATHS[0], PATHS[1]]
    cached = tmp_path / "cache/datasets--user--name/snapshots" / COMMIT / PATHS[0]
    cached.write_bytes(cached.read_bytes()[:-1])
    with pytest.raises(DataError, match="1 of 2 files are not in the cache: data/train-0"):
        read(source(tmp_path, offline=True))
    hub.cut_downloads = 9
    with pytest.raises(DataError, match=r"train-0\.parquet: has .* bytes, the hub says"):
        read(source(tmp_path))


def test_json_lines_packed_or_not_are_read_too(tmp_path):
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo/train-0.jsonl").write_bytes(json_line("a", "body"))
    (tmp_path / "repo/train-1.json.gz").write_bytes(pack([json_line("b", "body"), json_line("c", "body")], ".gz"))
    (tmp_path / "repo/train-2.jsonl.zst").write_bytes(pack([json_line("d", "body")], ".zst"))
    local = source(tmp_path, dataset=str(tmp_path / "repo"), column="body")
    assert read(local)[0] == list("abcd")
    assert_resumes(local)


def test_a_folder_that_is_not_there_is_told_without_asking_the_hub(tmp_path, hub):
    for dataset in (str(tmp_path / "nothing"), "./nothing", "a/b/c"):
        with pytest.raises(DataError, match="no such folder; check data.sources.dataset"):
            read(source(tmp_path, dataset=dataset))
        assert len(source(tmp_path, dataset=dataset).find_problems()) == 1
    shutil.rmtree(tmp_path / "repo")
    (tmp_path / "repo").mkdir()
    with pytest.raises(DataError, match="holds no Parquet or JSON lines file"):
        read(source(tmp_path, dataset=str(tmp_path / "repo")))
    assert hub.calls == []


def test_origin_holds_sizes_and_etags_of_the_chosen_files(tmp_path, hub):
    origin = source(tmp_path).origin()
    assert origin["revision"] == COMMIT
    assert [(path, size) for path, size, _ in origin["files"]] == [(path, len(hub.files[path])) for path in PATHS]
    assert source(tmp_path, column="other").origin() != origin
