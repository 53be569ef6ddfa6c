"""Sketches: the minima of datasketch itself, similarities by sets, texts cut in pieces as in one."""

import pickle

import datasketch
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import minhash
from data.minhash import NearConfig, WordHashes, band_keys, minima_of, pieces, segments, shingle_hashes, unpack
from tests.near_texts import jaccard, runs_of, text_of

WORDS = st.lists(st.sampled_from("abcde"), max_size=30)


def rolled_hash(words, ngram):
    """The hash of one run by Python's integers: Horner's rule, MurmurHash3's finalizer, the upper half."""
    value, known = 0, WordHashes()
    for word in [*words, *[""] * (ngram - len(words))]:
        value = (value * int(minhash.ROLL) + known[word]) % 2**64
    for shift, factor in ((33, 0xFF51AFD7ED558CCD), (33, 0xC4CEB9FE1A85EC53), (33, 1)):
        value = (value ^ value >> shift) * factor % 2**64
    return value >> 32


def sketch_by_datasketch(text, near):
    oracle = datasketch.MinHash(near.num_perm, hashfunc=lambda words: rolled_hash(words, near.ngram))
    oracle.update_batch(runs_of(text, near.ngram))
    return oracle


@pytest.mark.parametrize(("num_perm", "ngram"), [(64, 1), (256, 5)])
def test_the_minima_are_those_of_datasketch_and_the_estimate_is_its_own(num_perm, ngram):
    near = NearConfig(num_perm=num_perm, ngram=ngram)
    texts = [text_of(count, seed) for seed, count in enumerate((0, 1, 3, 5, 6, 40, 300, 700))] + [text_of(280, 6)]
    oracles = [sketch_by_datasketch(text, near) for text in texts]
    minima = minima_of(texts, ngram, near.plan())
    assert minima.tolist() == [oracle.hashvalues.tolist() for oracle in oracles]
    packed = unpack(near.sketch(texts)[:, near.plan().num_bands :])
    for one, other in ((6, 8), (6, 7), (0, 1), (5, 5)):
        share = (packed[one] == packed[other]).mean()
        assert share == oracles[one].jaccard(oracles[other])


def test_two_sketches_share_a_band_where_datasketch_finds_a_pair():
    near = NearConfig(jaccard=0.6, num_perm=64)
    original = text_of(200)
    texts = [" ".join(original.split()[shift:]) + " " + text_of(shift, shift) for shift in range(0, 200, 4)]
    plan = near.plan()
    keys = near.sketch(texts)[:, : plan.num_bands]
    index = datasketch.MinHashLSH(num_perm=64, params=(plan.num_bands, plan.num_rows))
    index.insert(0, sketch_by_datasketch(texts[0], near))
    found = [bool(index.query(sketch_by_datasketch(text, near))) for text in texts]
    assert [bool((row == keys[0]).any()) for row in keys] == found
    assert 5 < sum(found) < 45


@settings(max_examples=50, deadline=None)
@given(one=WORDS, other=WORDS, ngram=st.integers(1, 7))
def test_runs_have_equal_hashes_just_where_their_words_are_equal(one, other, ngram):
    parts = [words for _, words in segments([" ".join(one), " ".join(other)], ngram)]
    hashes = shingle_hashes(parts, ngram, WordHashes())
    of_one = hashes[: len(parts[0]) - ngram + 1]
    of_other = hashes[len(parts[0]) : len(parts[0]) + len(parts[1]) - ngram + 1]
    union = len(set(of_one.tolist()) | set(of_other.tolist()))
    assert len(set(of_one.tolist()) & set(of_other.tolist())) / union == jaccard(" ".join(one), " ".join(other), ngram)


def test_estimates_are_as_far_from_the_truth_as_theory_says():
    original = text_of(1000)
    texts = [" ".join(original.split()[shift:]) + " " + text_of(shift, shift) for shift in range(0, 1000, 5)]
    near = NearConfig()
    packed = unpack(near.sketch(texts)[:, near.plan().num_bands :])
    estimates = (packed == packed[0]).mean(axis=1)
    truths = np.array([jaccard(original, text, 5) for text in texts])
    deviations = np.sqrt(truths * (1 - truths) / near.num_perm)
    assert estimates[0] == 1
    assert np.all(np.abs(estimates - truths) <= 4.5 * deviations)
    # Errors of neighbours go together, so the mean square is not near 1 to many digits.
    assert 0.3 < np.mean(((estimates - truths)[1:] / deviations[1:]) ** 2) < 2.5


def test_case_and_white_space_change_nothing_and_one_word_does():
    near = NearConfig()
    num_bands = near.plan().num_bands
    sketches = near.sketch(["One two\tthree\n four five", "one TWO three four five", "one two three four six"])
    assert np.array_equal(sketches[0], sketches[1])
    assert not (unpack(sketches[0, num_bands:]) == unpack(sketches[2, num_bands:])).any()


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_long_text_in_pieces_and_texts_in_groups_give_the_same_minima(data):
    texts = data.draw(st.lists(st.text(st.sampled_from("ab  \n\x1c\u2003"), max_size=80), min_size=1, max_size=6))
    ngram = data.draw(st.integers(1, 4))
    plan = NearConfig(num_perm=64).plan()
    expected = np.concatenate([minima_of([text], ngram, plan) for text in texts])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(minhash, "PIECE", data.draw(st.integers(1, 9)))
        patch.setattr(minhash, "GROUP_WORDS", data.draw(st.integers(1, 20)))
        patch.setattr(minhash, "BLOCK", data.draw(st.integers(1, 9)))
        patch.setattr(minhash, "NUM_CACHED", 1)
        found = minima_of(texts, ngram, plan)
        assert all("".join(pieces(text)) == text for text in texts)
    assert np.array_equal(found, expected)


def test_a_long_text_is_cut_between_words_and_held_in_parts():
    text = text_of(300_000, vocabulary=50)
    parts = [words for _, words in segments([text], 5)]
    assert len(parts) == 2
    assert parts[0] + parts[1][4:] == text.split()
    assert minima_of([text + "x" * (1 << 20)], 5, NearConfig(num_perm=64).plan()).max() < 2**32 - 1


def test_empty_texts_are_alike_and_unlike_all_others():
    near = NearConfig()
    num_bands = near.plan().num_bands
    sketches = near.sketch(["", "  \n", "a", "\ud800"])
    equal = (unpack(sketches[:, num_bands:]) == unpack(sketches[:1, num_bands:])).mean(axis=1)
    assert equal.tolist() == [1, 1, 0, 0]
    assert near.sketch([]).shape == (0, num_bands + 128)


def test_the_words_kept_are_bounded():
    known = WordHashes()
    long = "x" * (minhash.LONGEST_CACHED + 1)
    values = [known[word] for word in ("a", long, "a")]
    assert values[0] == values[2] != values[1]
    assert set(known) == {"a"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(minhash, "NUM_CACHED", 2)
        assert [known[word] for word in ("b", "c", "a")][2] == values[0]
        assert set(known) == {"c", "a"}


def test_a_config_travels_and_its_sketches_are_the_same_in_every_process():
    near = NearConfig(jaccard=0.7, num_perm=64)
    texts = ["the quick brown fox jumps over the lazy dog"]
    sketch = near.sketch(texts)
    assert np.array_equal(pickle.loads(pickle.dumps(near)).sketch(texts), sketch)
    assert sketch[0, :3].tolist() == [1540793821, 879988368, 929355676]


@pytest.mark.parametrize("jaccard", [0.5, 0.8, 1.0])
@pytest.mark.parametrize("num_perm", [64, 512])
def test_the_bands_find_nearly_all_at_the_line(jaccard, num_perm):
    near = NearConfig(jaccard=jaccard, num_perm=num_perm)
    plan = near.plan()
    assert plan.num_bands > 1
    assert plan.num_bands * plan.num_rows <= num_perm
    assert 1 - (1 - jaccard**plan.num_rows) ** plan.num_bands > 0.9
    assert jaccard - 0.07 < near.least_equal() / num_perm <= jaccard
    assert near.least_equal() < num_perm or jaccard == 1


def test_every_minimum_of_a_band_is_in_its_key():
    plan = NearConfig().plan()
    minima = np.random.default_rng(0).integers(0, 2**32, (1, 256), dtype=np.uint32)
    keys = band_keys(minima, plan)
    for place in range(256):
        changed = minima.copy()
        changed[0, place] ^= 1
        assert np.flatnonzero(band_keys(changed, plan)[0] != keys[0]).tolist() == (
            [place // plan.num_rows] if place < plan.num_bands * plan.num_rows else []
        )
