"""The order inside a source: a bijection for any size, at any position, for ever, local on disk and without pattern."""

from math import isqrt

import numpy as np
import pytest

import data.shuffle
from data.order import CHUNK_STREAM, GROUP_STREAM, TAIL_STREAM, hash_words
from data.shuffle import CHUNK_DOCUMENTS, GROUP_DOCUMENTS, NUM_ROUNDS, documents_at, permute, source_seed

EDGES = [(1, 0, -1), (1, 0, 0), (1, 0, 1), (1, 1, -1), (1, 1, 0), (1, 1, 1), (2, -1, 0), (2, 0, 1), (3, 7, 9)]
BOUNDARIES = [GROUP_DOCUMENTS * groups + CHUNK_DOCUMENTS * chunks + rest for groups, chunks, rest in EDGES]


def word(seed: int, stream: int, index: int) -> int:
    return int(hash_words(seed, stream, np.array([index]))[0])


def reference_chunk(slot: int, count: int, seed: int, epoch: int) -> int:
    """The same network in Python integers, one chunk at a time."""
    high = isqrt(count)
    low = (count + high - 1) // high
    while True:
        a, b = slot // low, slot % low
        for number in range(NUM_ROUNDS):
            index = (epoch * NUM_ROUNDS + number) * 2**32
            if number % 2 == 0:
                a = (a + word(seed, CHUNK_STREAM, index + b) % high) % high
            else:
                b = (b + word(seed, CHUNK_STREAM, index + a) % low) % low
        slot = a * low + b
        if slot < count:
            return slot


def reference_order(seed: int, num_documents: int, epoch: int, chunk: int, group: int) -> list[int]:
    """The order of a whole pass, made as lists: deal out chunks, put the short one in, sort each group."""
    places = list(range(num_documents))
    if num_documents > group:
        num_chunks = num_documents // chunk
        pieces = [reference_chunk(slot, num_chunks, seed, epoch) for slot in range(num_chunks)]
        dealt = [list(range(chunk * piece, chunk * (piece + 1))) for piece in pieces]
        rest = list(range(chunk * num_chunks, num_documents))
        dealt.insert(word(seed, TAIL_STREAM, epoch) % (num_chunks + 1), rest)
        places = sum(dealt, [])
    order = []
    for first in range(0, num_documents, group):
        inside = range(first, min(first + group, num_documents))
        order += [places[p] for p in sorted(inside, key=lambda p: word(seed, GROUP_STREAM, epoch * num_documents + p))]
    return order


@pytest.fixture
def small_sizes(monkeypatch):
    monkeypatch.setattr(data.shuffle, "CHUNK_DOCUMENTS", 2)
    monkeypatch.setattr(data.shuffle, "GROUP_DOCUMENTS", 8)


def test_order_is_that_of_lists_dealt_and_sorted(small_sizes):
    for num_documents in (1, 2, 3, 7, 8, 9, 10, 16, 17, 40, 41):
        for epoch in (0, 1, 5):
            positions = np.arange(epoch * num_documents, (epoch + 1) * num_documents)
            documents, epochs = documents_at(11, num_documents, positions)
            assert documents.tolist() == reference_order(11, num_documents, epoch, chunk=2, group=8)
            assert (epochs == epoch).all()


@pytest.mark.parametrize("sizes", [range(1, 301), BOUNDARIES], ids=["up to 300", "around chunks and groups"])
def test_every_pass_holds_every_document_once(sizes):
    for num_documents in sizes:
        documents, epochs = documents_at(3, num_documents, np.arange(2 * num_documents))
        assert documents.dtype == epochs.dtype == np.int64
        for epoch in (0, 1):
            assert (np.sort(documents[epochs == epoch]) == np.arange(num_documents)).all()


def test_small_sizes_are_bijections_across_many_groups(small_sizes):
    for num_documents in range(1, 120):
        documents, _ = documents_at(5, num_documents, np.arange(num_documents))
        assert sorted(documents) == list(range(num_documents))


def test_chunks_change_places_by_a_bijection_of_any_number():
    for count in [*range(1, 70), 127, 128, 129, 1000]:
        for epoch in (0, 9):
            assert sorted(permute(np.arange(count), count, 2, np.full(count, epoch))) == list(range(count))


def test_any_position_is_reached_without_the_others():
    for num_documents in (1, 2, 77, 4097, 9000):
        whole, passes = documents_at(8, num_documents, np.arange(3 * num_documents))
        chosen = np.random.default_rng(0).integers(0, 3 * num_documents, 40)
        documents, epochs = documents_at(8, num_documents, chosen)
        assert (documents == whole[chosen]).all()
        assert (epochs == passes[chosen]).all()
    documents, epochs = documents_at(8, 9, np.zeros(0, np.int64))
    assert len(documents) == len(epochs) == 0


def test_a_source_of_any_size_costs_the_same():
    documents, epochs = documents_at(1, 10**12, np.arange(10**12 - 1000, 10**12 + 1000))
    assert len(np.unique(documents[epochs == 0])) == len(np.unique(documents[epochs == 1])) == 1000
    assert documents.min() >= 0
    assert documents.max() < 10**12


def test_what_is_read_together_lies_together():
    num_documents = 200 * CHUNK_DOCUMENTS + 5
    documents, _ = documents_at(4, num_documents, np.arange(num_documents))
    for first in range(0, num_documents, GROUP_DOCUMENTS):
        together = documents[first : first + GROUP_DOCUMENTS] // CHUNK_DOCUMENTS
        assert len(np.unique(together)) <= GROUP_DOCUMENTS // CHUNK_DOCUMENTS + 2


def test_passes_and_sources_differ():
    orders = [documents_at(source_seed(seed, source), 50, np.arange(100))[0] for seed in (0, 1) for source in (0, 1)]
    assert len({tuple(half) for order in orders for half in (order[:50], order[50:])}) == 8
    chunks = [permute(np.arange(300), 300, seed, np.full(300, epoch)) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in chunks}) == 4


def places_reached(num_documents: int, num_epochs: int) -> np.ndarray:
    documents, _ = documents_at(6, num_documents, np.arange(num_documents * num_epochs))
    counts = np.zeros((num_documents, num_documents))
    np.add.at(counts, (np.tile(np.arange(num_documents), num_epochs), documents), 1)
    return counts


@pytest.mark.parametrize("num_documents", [20, 8, 5])
def test_every_document_reaches_every_place_equally_often(small_sizes, num_documents):
    expected = 4000 / num_documents
    statistic = ((places_reached(num_documents, 4000) - expected) ** 2 / expected).sum()
    freedom = (num_documents - 1) ** 2
    assert abs(statistic - freedom) < 5 * (2 * freedom) ** 0.5


def test_with_a_short_chunk_every_document_reaches_every_place(small_sizes):
    """Not quite equally often: the short chunk takes any slot with equal chance, others shift by half a chunk."""
    counts = places_reached(21, 4000) / 4000
    assert abs(counts - 1 / 21).max() < 0.4 / 21


def test_no_pattern_joins_place_and_document():
    for num_documents in (1000, 20_000):
        documents, _ = documents_at(9, num_documents, np.arange(num_documents))
        for shift in (0, 1, CHUNK_DOCUMENTS):
            correlation = np.corrcoef(np.arange(num_documents), np.roll(documents, shift))[0, 1]
            assert abs(correlation) < 0.1
        assert abs(np.diff(documents) == 1).mean() < 0.05


def test_order_is_the_same_for_ever():
    assert documents_at(42, 10, np.arange(12))[0].tolist() == [0, 3, 2, 8, 1, 6, 4, 7, 5, 9, 3, 8]
    assert documents_at(42, 10_000, np.array([0, 1, 5000, 9999, 10_000]))[0].tolist() == [1723, 7803, 5869, 6079, 5800]
    assert source_seed(42, 1) == 14761365102743696391
