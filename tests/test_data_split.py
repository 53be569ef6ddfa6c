"""The split: by text, stable, exact in bytes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.split import NUM_HASHES, LowestHashes, copies, hash_text, split_by_hash, split_by_source
from utils.errors import DataError

TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8), max_size=40)


def trained(split, texts):
    return [text for text in texts if split.is_training(hash_text(text))]


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
    cut = "".join(sample.texts()).encode()
    assert "".join(expected).encode().startswith(cut)
    assert max_bytes - 3 <= len(cut) <= max_bytes or (len(cut) == total <= max_bytes)


@settings(max_examples=60, deadline=None)
@given(texts=TEXTS, fraction=st.sampled_from([0.0, 0.2, 0.5, 1.0]), max_bytes=st.sampled_from([5, 30, 10_000]))
def test_no_text_is_on_both_sides_and_order_does_not_matter(texts, fraction, max_bytes):
    texts = texts + texts[:5]
    try:
        split = split_by_hash(texts, fraction, max_bytes, LowestHashes(100))
    except DataError:
        assert all(hash_text(text) >= fraction * NUM_HASHES for text in texts)
        return
    training = trained(split, texts)
    held_out = set(texts) - set(training)
    assert all(text in held_out for text in split.validation[:-1])
    assert not split.validation or any(text.startswith(split.validation[-1]) for text in held_out)
    assert not held_out or max(map(hash_text, held_out)) < min(map(hash_text, training), default=NUM_HASHES)
    assert split == split_by_hash(sorted(texts), fraction, max_bytes, LowestHashes(100))


def test_texts_beyond_the_cap_are_trained_on_and_the_share_is_right():
    texts = [f"document {number}" for number in range(4000)]
    split = split_by_hash(texts, 0.1, 10**9, LowestHashes(1))
    assert 300 < len(split.validation) < 500
    small = split_by_hash(texts, 0.1, 100, LowestHashes(1))
    assert sum(len(text) for text in small.validation) == 100
    assert small.validation[:-1] == split.validation[: len(small.validation) - 1]
    assert len(trained(small, texts)) == len(texts) - len(small.validation)


def test_the_tokenizer_sample_never_holds_candidates_for_validation():
    texts = [f"document {number}" for number in range(500)]
    sample = LowestHashes(10**9)
    split = split_by_hash(texts, 0.3, 50, sample)
    assert all(hash_text(text) >= 0.3 * NUM_HASHES for text in sample.texts())
    assert not set(sample.texts()) & set(split.validation)


def test_a_corpus_too_small_is_told_and_fraction_zero_holds_out_nothing():
    text = next(str(number) for number in range(100) if hash_text(str(number)) > 0.5 * NUM_HASHES)
    with pytest.raises(DataError, match="none of the 1 documents falls into the validation fraction of 0.05"):
        split_by_hash([text], 0.05, 100, LowestHashes(1))
    assert trained(split_by_hash([text], 0.0, 100, LowestHashes(1)), [text]) == [text]


def test_a_validation_corpus_replaces_the_fraction_and_its_documents_are_not_trained_on():
    split = split_by_source(["a", "b", "c", "b"], ["b", "z", "b"], 100, LowestHashes(10))
    assert sorted(split.validation) == ["b", "z"]
    assert trained(split, ["a", "b", "c", "b"]) == ["a", "c"]


@pytest.mark.parametrize("weight", [0.25, 1.0, 2.0, 2.5])
def test_copies_are_fixed_and_average_to_the_weight(weight):
    texts = [f"document {number}" for number in range(4000)]
    drawn = [copies(text, weight) for text in texts]
    assert drawn == [copies(text, weight) for text in texts]
    assert set(drawn) <= {int(weight), int(weight) + 1}
    assert abs(sum(drawn) / len(drawn) - weight) < 0.05
