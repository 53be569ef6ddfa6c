"""The hub's side: which files are chosen, what is tried again, and what is said when it is of no use."""

from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import errors

from data.hub_files import HubFile, choose, list_remote, read_listing, split_of
from tests.fake_hub import COMMIT, NAME, FakeHub
from utils.errors import DataError


def files(*paths: str) -> list[HubFile]:
    return [HubFile(path, 1, "") for path in paths]


def chosen(paths: list[str], config=None, split="train", pattern=None) -> list[str]:
    return [file.path for file in choose(files(*paths), config, split, pattern, "x/y")]


STANDARD = [
    "README.md",
    "data/train-00000-of-00002.parquet",
    "data/train-00001-of-00002.parquet",
    "data/test-0.parquet",
]
CONFIGS = ["de/train-0.parquet", "de/test-0.parquet", "en/train-0.parquet", "en/validation/0000.parquet"]
FINEWEB = ["data/CC-MAIN-2013-20/000_0.parquet", "data/CC-MAIN-2014-10/000_0.parquet", "sample/10BT/000_0.parquet"]


@pytest.mark.parametrize(
    ("paths", "asked", "wanted"),
    [
        (STANDARD, {}, STANDARD[1:3]),
        (STANDARD, {"split": "test"}, STANDARD[3:]),
        (STANDARD, {"pattern": "data/*-0*1-*"}, STANDARD[2:3]),
        (CONFIGS, {"config": "en"}, ["en/train-0.parquet"]),
        (CONFIGS, {"config": "en", "split": "validation"}, ["en/validation/0000.parquet"]),
        (FINEWEB, {"config": "sample/10BT"}, FINEWEB[2:]),
        (FINEWEB, {"config": "10BT"}, FINEWEB[2:]),
        (FINEWEB, {"pattern": "data/*/*.parquet"}, FINEWEB[:2]),
        (["a.parquet", "b.jsonl"], {}, ["a.parquet"]),
        (["a.jsonl.gz", "b.json.gz", "c.txt"], {}, ["a.jsonl.gz", "b.json.gz"]),
        (["data/train.jsonl", "extra/train.jsonl"], {}, ["data/train.jsonl"]),
    ],
)
def test_the_files_of_a_split_are_chosen(paths, asked, wanted):
    assert chosen(paths, **asked) == wanted


@pytest.mark.parametrize(
    ("paths", "asked", "message"),
    [
        (FINEWEB, {}, r"several configurations \(data/CC-MAIN-2013-20, .*sample/10BT\); choose one with data.sources"),
        (CONFIGS, {}, r"several configurations \(de, en\)"),
        (CONFIGS, {"config": "fr"}, r"no configuration 'fr' .*there are: de/train-0.parquet"),
        (STANDARD, {"split": "dev"}, "no split 'dev'.*there are: data/train"),
        (["a.parquet"], {"split": "test"}, "no split 'test'.*its files name none"),
        (STANDARD, {"pattern": "*.csv"}, r"no file fits data.sources.files '\*\.csv'; there are: README"),
        (["README.md"], {}, "holds no Parquet or JSON lines file"),
    ],
)
def test_what_cannot_be_chosen_is_told_with_what_there_is(paths, asked, message):
    with pytest.raises(DataError, match=message):
        chosen(paths, **asked)


def test_split_words_stand_alone():
    assert split_of("en/c4-train.00000-of-01024.json.gz") == "train"
    assert split_of("test/my-train.parquet") == "train"
    assert split_of("default/validation/0000.parquet") == "validation"
    assert split_of("training/pretest.parquet") is None


def answered(status: int, kind=errors.HfHubHTTPError) -> Exception:
    response: Any = SimpleNamespace(status_code=status, headers={}, request=None)
    return kind("said no", response=response)


CONNECTION_ERROR: Any = errors.HfHubHTTPError.__mro__[1]
"""What the HTTP library below raises; which library that is changes with the version."""
PASSING = [
    answered(503),
    answered(429),
    CONNECTION_ERROR("no route"),
    ConnectionError("gone"),
    errors.LocalEntryNotFoundError("cannot reach"),
]
LASTING = [
    (answered(404, errors.RepositoryNotFoundError), "no such dataset on the hub; check data.sources.dataset"),
    (answered(401, errors.RepositoryNotFoundError), "no access to this dataset"),
    (answered(403, errors.GatedRepoError), "no access to this dataset"),
    (answered(404, errors.RevisionNotFoundError), "no such revision; check data.sources.revision"),
    (answered(400), "the hub answers 400"),
    (errors.OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE is set"),
    (errors.HFValidationError("bad name"), "not the name of a dataset or folder"),
    (OSError(28, "No space left on device"), "cannot be stored: No space left on device; .*data.sources.cache_dir"),
]


@pytest.mark.parametrize("failure", PASSING, ids=lambda error: type(error).__name__)
def test_what_may_pass_is_tried_again_a_few_times(tmp_path, monkeypatch, failure):
    hub = FakeHub({"a.parquet": b"x"}).install(monkeypatch)
    hub.failures = [failure] * 2
    assert list_remote(NAME, None, str(tmp_path)).revision == COMMIT
    assert hub.calls == ["info", "info", "info", "tree"]
    hub.calls, hub.failures = [], [failure] * 9
    with pytest.raises(DataError, match="user/name: the hub cannot be reached; data.sources.offline: true") as caught:
        list_remote(NAME, None, str(tmp_path))
    assert hub.calls == ["info"] * 3
    assert len(caught.value.problems) == 1
    assert "\n" not in caught.value.problems[0]


@pytest.mark.parametrize(("failure", "message"), LASTING, ids=[message[:20] for _, message in LASTING])
def test_what_will_not_pass_is_told_at_once(tmp_path, monkeypatch, failure, message):
    hub = FakeHub({}).install(monkeypatch)
    hub.failures = [failure]
    with pytest.raises(DataError, match=f"user/name: {message}"):
        list_remote(NAME, None, str(tmp_path))
    assert hub.calls == ["info"]


def test_a_listing_is_kept_and_a_commit_is_asked_for_once(tmp_path, monkeypatch):
    hub = FakeHub({"b.parquet": b"x", "a.parquet": b"xy"}).install(monkeypatch)
    listing = list_remote(NAME, None, str(tmp_path))
    assert [(file.path, file.num_bytes) for file in listing.files] == [("a.parquet", 2), ("b.parquet", 1)]
    hub.calls = []
    assert list_remote(NAME, COMMIT, str(tmp_path)) == listing
    assert hub.calls == []
    assert read_listing(NAME, None, str(tmp_path)) == read_listing(NAME, COMMIT, str(tmp_path)) == listing
    for branch in (None, "main"):
        hub.calls = []
        list_remote(NAME, branch, str(tmp_path))
        assert hub.calls == ["info", "tree"]
    kept = next(tmp_path.rglob(f"{COMMIT}.json"))
    for content in ("", "{}", "[1]", '{"revision": "x", "files": [[1]]}'):
        kept.write_text(content)
        with pytest.raises(DataError, match="offline, and no listing of revision 0123.* is cached.*--download-only"):
            read_listing(NAME, COMMIT, str(tmp_path))
