"""The hash behind every order: fixed values, bijections and no visible pattern."""

import numpy as np

import data.order
from data.order import ROW_STREAM, hash_words, permutation, row_keys


def reference_mix(word: int) -> int:
    mask = (1 << 64) - 1
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & mask
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & mask
    return word ^ (word >> 31)


def reference_hash(seed: int, stream: int, index: int) -> int:
    mask, golden = (1 << 64) - 1, 0x9E3779B97F4A7C15
    key = reference_mix((reference_mix((seed + golden) & mask) + stream * golden) & mask)
    return reference_mix((reference_mix((index * golden + key) & mask) + key) & mask)


def test_hash_equals_the_same_arithmetic_in_python_integers():
    indices = np.array([0, 1, 2, 1000, 2**40, 2**63 - 1])
    for seed, stream in ((0, 1), (42, 3), (2**64 - 1, 2)):
        expected = [reference_hash(seed, stream, int(index)) for index in indices]
        assert hash_words(seed, stream, indices).tolist() == expected


def test_order_is_the_same_for_ever():
    assert permutation(8, seed=42, stream=ROW_STREAM, epoch=0).tolist() == [4, 1, 2, 6, 5, 7, 3, 0]
    assert row_keys(np.array([0, 1]), seed=42).tolist() == [[3049450509, 2779073128], [552544122, 3699535994]]


def test_permutations_are_permutations_and_differ_by_epoch_and_seed():
    seen = set()
    for seed in (0, 1):
        for epoch in range(3):
            order = permutation(100, seed, ROW_STREAM, epoch)
            assert sorted(order) == list(range(100))
            seen.add(tuple(order))
    assert len(seen) == 6


def test_every_place_is_equally_likely():
    counts = np.zeros((6, 6))
    for epoch in range(3000):
        counts[np.arange(6), permutation(6, 7, ROW_STREAM, epoch)] += 1
    assert abs(counts / 3000 - 1 / 6).max() < 0.03


def test_keys_are_a_function_of_the_row_and_all_differ():
    keys = row_keys(np.arange(10_000), seed=1)
    assert keys.dtype == np.uint32
    assert keys.shape == (10_000, 2)
    assert len({tuple(key) for key in keys.tolist()}) == 10_000
    assert (row_keys(np.arange(500, 600), seed=1) == keys[500:600]).all()
    assert abs((keys / 2**32).mean() - 0.5) < 0.01


def test_no_two_uses_of_the_seed_share_a_stream():
    streams = [value for name, value in vars(data.order).items() if name.endswith("_STREAM")]
    assert len(streams) == len(set(streams)) > 5
    words = {int(hash_words(0, stream, np.array([0]))[0]) for stream in streams}
    assert len(words) == len(streams)
