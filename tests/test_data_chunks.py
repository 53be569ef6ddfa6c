"""Chunks: the same cuts wherever reading begins, every document in exactly one count, whole files or none."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.chunks import Treatment, cut_into_chunks, list_chunks, open_chunk, read_facts, treat
from data.cleaning import CleaningConfig
from data.deduplication import DeduplicationConfig
from data.filters import FilterConfig
from data.split import hash_text
from tests.prepared_data import silent, write_jsonl
from utils.errors import DataError

PLAIN = Treatment(None, (), None)


class NoFox(FilterConfig):
    """Drops foxes."""

    type: str = "no_fox"

    def reason(self, text: str) -> str | None:
        return "fox" if "fox" in text else None


@settings(max_examples=40, deadline=None)
@given(
    texts=st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=12), min_size=1, max_size=25),
    max_bytes=st.integers(1, 60),
    stopped=st.integers(0, 25),
)
def test_reading_on_behind_a_chunk_gives_the_chunks_of_reading_once(tmp_path_factory, texts, max_bytes, stopped):
    folder = tmp_path_factory.mktemp("chunks")
    source = write_jsonl(folder / "corpus.jsonl", texts)
    whole = list(cut_into_chunks(source, "train-00", folder, None, silent, max_bytes))
    assert [text for raw in whole for text in raw.texts] == texts
    assert [raw.first for raw in whole] == [sum(len(raw.texts) for raw in whole[:i]) for i in range(len(whole))]
    assert all(raw.num_bytes == sum(len(text.encode()) for text in raw.texts) for raw in whole)
    assert all(raw.num_bytes >= max_bytes for raw in whole[:-1])
    if stopped < len(whole):
        state = json.loads(json.dumps(whole[stopped].state))
        assert list(cut_into_chunks(source, "train-00", folder, state, silent, max_bytes)) == whole[stopped + 1 :]


def test_a_chunk_holds_what_was_kept_and_counts_the_rest(tmp_path: Path) -> None:
    texts = ["a dog", "the fox", "tab\there\x07", "zwei \u00fc", "fox two"]
    source = write_jsonl(tmp_path / "corpus.jsonl", texts)
    (raw,) = cut_into_chunks(source, "train-00", tmp_path, None, silent)
    path = treat(raw, Treatment(CleaningConfig(), (NoFox(),), DeduplicationConfig()))
    chunk = open_chunk(path)
    assert list_chunks(tmp_path, "train-00") == [path]
    assert chunk.ordinals.tolist() == [0, 2, 3]
    assert chunk.texts(np.array([0, 1, 2])) == ["a dog", "tab\there", "zwei \u00fc"]
    assert chunk.texts(np.array([2])) == ["zwei \u00fc"]
    assert chunk.hashes.tolist() == [hash_text(text) for text in ["a dog", "tab\there", "zwei \u00fc"]]
    assert chunk.facts["read"] == {"documents": 5, "bytes": sum(len(text.encode()) for text in texts)}
    assert chunk.facts["dropped"] == {"fox": 2}
    assert chunk.facts["samples"] == {"fox": ["the fox", "fox two"]}
    assert sum(chunk.facts["cleaned"].values()) >= 1
    assert chunk.facts["state"] == raw.state == read_facts(path)["state"]
    assert len(chunk.fingerprints.hashes) == 3


def test_what_cleaning_empties_is_counted(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "corpus.jsonl", ["\x07\x07", "text"])
    (raw,) = cut_into_chunks(source, "train-00", tmp_path, None, silent)
    facts = read_facts(treat(raw, Treatment(CleaningConfig(), (), None)))
    assert facts["dropped"] == {"empty": 1}


def test_a_gap_ends_the_list_of_finished_chunks(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "corpus.jsonl", ["one", "two", "three"])
    paths = [treat(raw, PLAIN) for raw in cut_into_chunks(source, "train-00", tmp_path, None, silent, 1)]
    assert list_chunks(tmp_path, "train-00") == paths
    paths[1].unlink()
    assert list_chunks(tmp_path, "train-00") == paths[:1]


@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_a_damaged_chunk_is_named(tmp_path: Path, damage: str) -> None:
    source = write_jsonl(tmp_path / "corpus.jsonl", ["some text " * 50])
    (raw,) = cut_into_chunks(source, "train-00", tmp_path, None, silent)
    path = treat(raw, PLAIN)
    content = bytearray(path.read_bytes())
    place = content.find(b"some text some")
    content[place] ^= 1
    path.write_bytes(content if damage == "flip" else content[: len(content) // 2])
    with pytest.raises(DataError, match=f"{path.name}: damaged"):
        open_chunk(path).texts(np.array([0]))


def test_a_failed_write_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_jsonl(tmp_path / "corpus.jsonl", ["text"])
    (raw,) = cut_into_chunks(source, "train-00", tmp_path / "chunks", None, silent)
    raw.path.parent.mkdir()

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space"):
        treat(raw, PLAIN)
    assert list(raw.path.parent.iterdir()) == []
