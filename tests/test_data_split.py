"""The split: by text, stable, exact in bytes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.split import NUM_HASHES, LowestHashes, Split, hash_text, hold_out_by_hash, hold_out_sources
from utils.errors import DataError

TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8), max_size=40)


class InMemory:
    """Documents at hand, and which texts were asked for."""

    def __init__(self, texts: list[str]) -> None:
        self.all = texts
        self.hashes = np.array([hash_text(text) for text in texts], np.uint64)
        self.read: list[int] = []

    def texts(self, chosen: np.ndarray) -> list[str]:
        self.read += chosen.tolist()
        return [self.all[index] for index in chosen]


def in_parts(texts: list[str], size: int = 3) -> list[InMemory]:
    return [InMemory(texts[start : start + size]) for start in range(0, len(texts), size)]


def trained(split: Split, texts: list[str]) -> list[str]:
    kept = split.is_training(np.array([hash_text(text) for text in texts], np.uint64))
    return [text for text, keep in zip(texts, kept, strict=True) if keep]


def validation(split: Split) -> list[str]:
    return [text for _, text in split.validation]


@settings(max_examples=60, deadline=None)
@given(texts=TEXTS, max_bytes=st.integers(1, 60))
def test_lowest_hashes_equals_sorting_everything(texts, max_bytes):
    sample = LowestHashes(max_bytes)
    for text in texts:
        sample.add(hash_text(text), text)
    expected, total = [], 0
    for text in sorted(set(texts), key=hash_text):
        if total >= max_bytes:
            break
        expected.append(text)
        total += len(text.encode())
    assert [text for _, text in sample.sorted()] == expected
    assert sample.num_bytes == total
    cut = "".join(text for _, text in sample.cut()).encode()
    assert "".join(expected).encode().startswith(cut)
    assert max_bytes - 3 <= len(cut) <= max_bytes or (len(cut) == total <= max_bytes)


@settings(max_examples=60, deadline=None)
@given(texts=TEXTS, fraction=st.sampled_from([0.0, 0.2, 0.5, 1.0]), max_bytes=st.sampled_from([5, 30, 10_000]))
def test_no_text_is_on_both_sides_and_order_does_not_matter(texts, fraction, max_bytes):
    texts = texts + texts[:5]
    try:
        split = hold_out_by_hash(in_parts(texts), fraction, max_bytes)
    except DataError:
        assert all(hash_text(text) >= fraction * NUM_HASHES for text in texts)
        return
    training = trained(split, texts)
    held_out = set(texts) - set(training)
    assert all(text in held_out for text in validation(split)[:-1])
    assert not split.validation or any(text.startswith(validation(split)[-1]) for text in held_out)
    assert not held_out or max(map(hash_text, held_out)) < min(map(hash_text, training), default=NUM_HASHES)
    assert split[:2] == hold_out_by_hash(in_parts(sorted(texts), 7), fraction, max_bytes)[:2]


def test_texts_beyond_the_cap_are_trained_on_and_the_share_is_right():
    texts = [f"document {number}" for number in range(4000)]
    split = hold_out_by_hash([InMemory(texts)], 0.1, 10**9)
    assert 300 < len(split.validation) < 500
    small = hold_out_by_hash([InMemory(texts)], 0.1, 100)
    assert sum(len(text) for text in validation(small)) == 100
    assert small.validation[:-1] == split.validation[: len(small.validation) - 1]
    assert len(trained(small, texts)) == len(texts) - len(small.validation)


def test_only_texts_that_are_wanted_are_read():
    documents = InMemory([f"document {number}" for number in range(4000)])
    hold_out_by_hash([documents], 0.1, 10**9)
    assert documents.read == np.flatnonzero(documents.hashes < np.uint64(NUM_HASHES // 10 + 1)).tolist()


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_all_or_nothing_may_be_held_out(fraction: float) -> None:
    texts = [f"document {number}" for number in range(50)]
    split = hold_out_by_hash(in_parts(texts), fraction, 10**9)
    assert len(trained(split, texts)) == 50 * (1 - fraction)


def test_a_corpus_too_small_is_told():
    text = next(str(number) for number in range(100) if hash_text(str(number)) > 0.5 * NUM_HASHES)
    with pytest.raises(DataError, match="none of the 1 documents falls into the validation fraction of 0.05"):
        hold_out_by_hash([InMemory([text])], 0.05, 100)


def test_a_validation_corpus_replaces_the_fraction_and_its_documents_are_not_trained_on():
    split = hold_out_sources(in_parts(["b", "z", "b"], 1), 100)
    assert sorted(validation(split)) == ["b", "z"]
    assert trained(split, ["a", "b", "c", "b"]) == ["a", "c"]


def test_a_validation_corpus_cut_to_its_cap_is_not_trained_on_beyond_it():
    split = hold_out_sources(in_parts(["b" * 9, "z" * 9]), 4)
    assert sum(map(len, validation(split))) == 4
    assert trained(split, ["b" * 9, "z" * 9, "a"]) == ["a"]
