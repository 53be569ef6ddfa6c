"""The folder of shards: what was written comes back, damage is named, and little is held open."""

import json
import shutil
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import data.store
from data.shard_file import write_shard
from data.store import groups_of, open_store
from data.text import ShardsDataConfig
from tests.stored_documents import dataset_over, tokenizer, write_store
from utils.errors import DataError

SOURCES = [[5, 9, 2, 30, 7, 4, 1], [3, 3, 12, 1], [], [40]]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("store") / "s", SOURCES, (3, 9, 2, 8))


@pytest.fixture
def folder(written, tmp_path):
    return shutil.copytree(written, tmp_path / "copy")


@pytest.fixture
def store(folder):
    return open_store(folder, tokenizer.hash)


def documents_of(sources, first_token=1000):
    """The tokens of each document, in the order of `write_store`."""
    result = []
    for lengths in sources:
        result.append([])
        for length in lengths:
            result[-1].append(list(range(first_token, first_token + length + 1)))
            first_token += length + 1
    return result


def test_every_document_comes_back(store):
    expected = documents_of(SOURCES)
    for source, documents in enumerate(expected):
        numbers = np.arange(len(documents))
        assert [store.train.document(source, number).tolist() for number in numbers] == documents
        assert store.train.lengths(source, numbers).tolist() == [len(tokens) for tokens in documents]
        assert store.train.ordinals(source, numbers).tolist() == [2 * number + 1 for number in numbers]
    assert store.train.num_documents == [7, 4, 0, 1]
    assert store.train.num_tokens == [65, 23, 0, 41]
    assert store.validation.num_documents == [4, 0, 0, 0]
    assert store.validation.document(0, 0)[0] == 1000 + 65 + 23 + 41
    assert store.validation_text() == b"held out"
    assert store.text_bytes("train") == [195, 69, 0, 123]


@settings(max_examples=40, deadline=None)
@given(chosen=st.lists(st.sampled_from([(s, d) for s, each in enumerate(SOURCES) for d in range(len(each))])))
def test_reading_many_equals_reading_one_by_one(written, chosen):
    stored = open_store(written).train
    sources, documents = (np.array([pair[i] for pair in chosen], np.int64) for i in range(2))
    tokens, firsts = stored.read(sources, documents)
    expected = documents_of(SOURCES)
    for (source, document), first in zip(chosen, firsts.tolist(), strict=True):
        wanted = expected[source][document]
        assert tokens[first : first + len(wanted)].tolist() == wanted
    assert len(tokens) == sum(len(expected[s][d]) for s, d in chosen)
    if len(set(chosen)) == len(chosen):
        assert tokens.tolist() == sorted(tokens.tolist())  # In the order of the disk.


@pytest.mark.parametrize("token_type", [np.uint16, np.uint32])
def test_both_kinds_of_token(tmp_path, token_type):
    stored = open_store(write_store(tmp_path / "s", [[3, 4]], token_type=token_type)).train
    assert stored.document(0, 1).dtype == token_type
    assert stored.document(0, 1).tolist() == [1004, 1005, 1006, 1007, 1008]


def test_a_document_that_is_not_there(store):
    for wrong in (-1, 7):
        with pytest.raises(IndexError, match="source 0 has 7 documents"):
            store.train.lengths(0, np.array([wrong]))


def test_another_tokenizer_is_a_hard_stop(folder):
    with pytest.raises(DataError, match=f"made with tokenizer {tokenizer.hash[:12]}, not with the given one abc"):
        open_store(folder, "abc")


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_a_shard_cut_short_or_missing_is_found_at_open(folder):
    shard = folder / "train" / "00-00001.shard"
    shard.write_bytes(shard.read_bytes()[:-4])
    with pytest.raises(DataError, match=r"00-00001\.shard: damaged \(260 bytes where 264 were written\); delete"):
        open_store(folder)
    shard.unlink()
    with pytest.raises(DataError, match=r"00-00001\.shard: damaged \(No such file"):
        open_store(folder)


@pytest.mark.parametrize("place", [3, 8, 24, -1, -20])
def test_a_flipped_byte_is_found_when_the_shard_is_read(folder, place):
    flip(folder / "train" / "00-00001.shard", place)
    store = open_store(folder)
    store.train.read(np.array([0, 1]), np.array([2, 0]))
    with pytest.raises(DataError, match=r"00-00001\.shard: damaged \(its (checksum|header)"):
        store.train.read(np.array([0]), np.array([3]))
    with pytest.raises(DataError, match=r"00-00001\.shard: damaged"):
        store.verify()


@pytest.mark.parametrize("place", [3, 8, 16, 24])
def test_a_flipped_header_is_found_without_reading_tokens(folder, place):
    flip(folder / "train" / "00-00001.shard", place)
    with pytest.raises(DataError, match=r"00-00001\.shard: damaged \(its header does not fit the manifest"):
        open_store(folder).train.lengths(0, np.array([3]))


def test_flipped_offsets_are_found_without_reading_tokens(folder):
    flip(folder / "train" / "00-00001.shard", 32 + 8 + 2)
    with pytest.raises(DataError, match=r"00-00001\.shard: damaged \(its offsets make no sense"):
        open_store(folder).train.lengths(0, np.array([3]))


def test_verify_names_everything_and_counts_bytes(folder):
    seen = []
    open_store(folder).verify(lambda done, total: seen.append((done, total)))
    sizes = sum(path.stat().st_size for path in folder.rglob("*.*") if path.name != "manifest.json")
    assert seen[-1] == (sizes, sizes)
    flip(folder / "validation.txt", 0)
    flip(folder / "validation" / "00-00000.shard", -1)
    with pytest.raises(DataError) as caught:
        open_store(folder).verify()
    assert len(caught.value.problems) == 2
    with pytest.raises(DataError, match=r"validation\.txt: damaged \(its checksum"):
        open_store(folder).validation_text()


def test_a_manifest_that_is_none(folder):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    for content, message in (
        (manifest | {"format": 1}, "format 1, this program reads 2"),
        ({"format": 2, "tokenizer_hash": ""}, r"manifest\.json: vocab_size is missing"),
        ([], r"manifest\.json: unreadable"),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(DataError, match=message):
            open_store(folder)
    path.unlink()
    with pytest.raises(DataError, match=r"manifest\.json: unreadable .*No such file"):
        open_store(folder)


MANIFEST_KEYS = ("tokenizer_hash", "vocab_size", "sources", "shards", "validation_text")
SHARD_KEYS = ("file", "source", "documents", "tokens", "text_bytes", "bytes", "crc32")
KEYS = [
    *((key,) for key in MANIFEST_KEYS),
    *(("validation_text", key) for key in ("bytes", "crc32")),
    *(("shards", split) for split in ("train", "validation")),
    *(("shards", "train", 1, key) for key in SHARD_KEYS),
    ("shards", "validation", 0, "crc32"),
]


def edit(folder, keys, value=None):
    """Another value at a place of the manifest, or none."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    at = manifest
    for key in keys[:-1]:
        at = at[key]
    if value is None:
        del at[keys[-1]]
    else:
        at[keys[-1]] = value
    path.write_text(json.dumps(manifest))


def refusal(folder, tokenizer_hash=None):
    """The one line with which the folder is refused."""
    with pytest.raises(DataError) as caught:
        open_store(folder, tokenizer_hash)
    (line,) = caught.value.problems
    assert line.startswith(f"{folder / 'manifest.json'}: ")
    assert line.endswith("; prepare the data again")
    return line


@pytest.mark.parametrize("keys", KEYS, ids=lambda keys: ".".join(map(str, keys)))
def test_a_key_of_the_manifest_that_is_missing_or_of_another_kind(written, tmp_path, keys):
    name = ".".join(map(str, keys))
    for value, message in ((None, f"{name} is missing"), (1.5, f"{name} is '1.5', expected ")):
        edit(folder := shutil.copytree(written, tmp_path / str(value)), keys, value)
        for tokenizer_hash in (None, "abc"):
            assert message in refusal(folder, tokenizer_hash)
        assert message in ShardsDataConfig(path=str(folder)).find_problems()[0]
        assert ShardsDataConfig(path=str(folder)).expected_vocab_size() is None


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("shards", "train", 0, "source"), 7, "shards.train.0.source is 7, there are 4 sources"),
        (("shards", "validation", 0, "source"), 4, "shards.validation.0.source is 4, there are 4 sources"),
        (("shards", "train", 0, "source"), -1, "shards.train.0.source is '-1', expected a whole number of 0 or more"),
        (("shards", "train", 0, "documents"), True, "shards.train.0.documents is 'True', expected a whole number"),
        (("shards", "train", 2), [], r"shards.train.2 is '[]', expected a mapping"),
        (("sources", 1), 3, "sources.1 is '3', expected text"),
        (("sources",), "abcd", "sources is 'abcd', expected a list"),
    ],
)
def test_a_manifest_with_wrong_values(folder, keys, value, message):
    edit(folder, keys, value)
    assert message in refusal(folder)


def test_the_last_source_may_have_shards(folder):
    edit(folder, ("shards", "validation", 0, "source"), 3)
    assert open_store(folder).validation.num_documents == [1, 0, 0, 3]


def test_maps_are_closed_and_checks_are_spread(store, monkeypatch):
    checked = []
    monkeypatch.setattr(data.store, "MAX_MAPPED_BYTES", 600)
    monkeypatch.setattr(data.store, "CHECKED_BYTES", 600)
    monkeypatch.setattr(data.store, "check_file", lambda path, facts: checked.append(path.name))
    stored = store.train
    everything = [(s, d) for s, each in enumerate(SOURCES) for d in range(len(each))]
    sources, documents = (np.array([pair[i] for pair in everything]) for i in range(2))
    counts = []
    for _ in range(5):
        tokens, _ = stored.read(sources, documents)
        assert tokens.tolist() == sum(sum(documents_of(SOURCES), []), [])
        counts.append(len(checked))
        assert stored._mapped_bytes == sum(stored.shards[number]["bytes"] for number in stored._open) <= 600
    assert counts[0] < counts[1] <= counts[-1] == len(stored.shards) == len(set(checked))


def write_many(folder, num_documents, per_shard=2000):
    """A store of many equal documents, quickly."""
    write_store(folder, [[7]])
    manifest, rows = json.loads((folder / "manifest.json").read_text()), []
    for first in range(0, num_documents, per_shard):
        name, count = f"train/00-{first:07}.shard", min(per_shard, num_documents - first)
        tokens, offsets = np.tile(np.arange(8, dtype=np.uint16), count), np.arange(count + 1) * 8
        facts = write_shard(folder / name, tokens, offsets, np.arange(first, first + count))
        rows.append({"file": name, "source": 0, "text_bytes": 1, **facts})
    manifest["shards"]["train"] = rows
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_memory_does_not_grow_with_the_corpus(tmp_path, monkeypatch):
    monkeypatch.setattr("data.shard_file.BLOCK_BYTES", 1 << 12)  # How many threads hold a block is a matter of time.
    peaks = []
    for name, num_documents in (("warm", 4_000), ("few", 4_000), ("many", 40_000)):
        folder = write_many(tmp_path / name, num_documents)
        tracemalloc.start()
        dataset = dataset_over(folder)
        batches = dataset.batches(8)
        for _ in range(12):
            next(batches)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        batches.close()
    assert peaks[2] - peaks[1] < 100_000  # 36,000 more documents, 18 more shards


def test_groups():
    found = groups_of(np.array([3, 1, 3, 0, 1]))
    assert [(value, places.tolist()) for value, places in found] == [(0, [3]), (1, [1, 4]), (3, [0, 2])]
    assert groups_of(np.zeros(0, int)) == []
