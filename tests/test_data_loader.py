"""The loader: every pair once an epoch, resuming anywhere, ranks, and the thread behind it."""

import threading
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.loader import Dataset, PackedRows, pad_rows, prefetch
from data.shards import Documents, Shards
from data.tokenizer import BytesTokenizerConfig
from utils.errors import ConfigError

tokenizer = BytesTokenizerConfig().build()
LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=15)


def documents_of(lengths, copies=None) -> Documents:
    """Documents whose tokens are all different: token t of the file is t."""
    offsets = np.cumsum([0, *(length + 1 for length in lengths)], dtype=int)
    return Documents(np.arange(offsets[-1]), offsets, np.array(copies or [1] * len(lengths), int))


def dataset_of(lengths, row_length=8, seed=3, validation=(3, 9, 2), copies=None) -> Dataset:
    manifest: dict[str, Any] = {
        "train_documents": len(lengths),
        "train_bytes": 100,
        "train_tokens": sum(lengths) + len(lengths),
    }
    manifest["files"] = {f"train{part}": {"crc32": "0"} for part in (".bin", "_offsets.npy", "_copies.npy")}
    shards = Shards(documents_of(lengths, copies), documents_of(validation), b"text", manifest)
    return Dataset(shards, tokenizer, row_length, seed)


def take(dataset, count, batch_size=2, **arguments):
    batches = dataset.batches(batch_size, **arguments)
    taken = [next(batches) for _ in range(count)]
    batches.close()
    return taken


def same(first, second) -> bool:
    return all((a == b).all() and a.dtype == b.dtype for a, b in zip(first, second, strict=True))


def pairs_of(batch) -> list[tuple[int, int]]:
    real = batch.weights > 0
    return list(zip(batch.tokens[real].tolist(), batch.targets[real].tolist(), strict=True))


@settings(max_examples=60, deadline=None)
@given(lengths=LENGTHS, row_length=st.integers(2, 12), seed=st.integers(0, 5), double=st.booleans())
def test_an_epoch_holds_every_pair_exactly_once_and_none_across_documents(lengths, row_length, seed, double):
    documents = documents_of(lengths, [1 + double] * len(lengths))
    rows = PackedRows(documents, row_length, seed)
    ends = set((documents.offsets[1:] - 1).tolist())
    expected = sorted((t, t + 1) for t in range(len(documents.tokens)) if t not in ends) * (1 + double)
    orders = []
    for epoch in range(3):
        batch = rows.batch(epoch * rows.num_rows, rows.num_rows)
        assert sorted(pairs_of(batch)) == sorted(expected)
        orders.append(batch.tokens.tolist())
        assert (batch.weights == (batch.segments > 0)).all()
        assert (batch.tokens[batch.segments == 0] == 0).all()
        assert (batch.targets[batch.segments == 0] == 0).all()
    assert rows.num_pairs == len(expected)


@settings(max_examples=40, deadline=None)
@given(lengths=LENGTHS)
def test_segments_follow_documents(lengths):
    documents = documents_of(lengths)
    rows = PackedRows(documents, 8, 0)
    owner = np.repeat(np.arange(len(lengths)), np.diff(documents.offsets))
    batch = rows.batch(0, rows.num_rows)
    for tokens, segments in zip(batch.tokens, batch.segments, strict=True):
        for position in range(1, 8):
            steps_on = tokens[position] == tokens[position - 1] + 1
            if segments[position] and segments[position] == segments[position - 1]:
                assert steps_on
                assert owner[tokens[position]] == owner[tokens[position - 1]]
            elif segments[position]:
                assert segments[position] == segments[position - 1] + 1


def test_epochs_differ_in_order_and_in_company():
    rows = PackedRows(documents_of([3] * 40), 7, 0)
    first, second = (rows.batch(epoch * rows.num_rows, rows.num_rows).tokens for epoch in range(2))
    assert (first != second).any()
    company = [{frozenset(row[row > 0].tolist()) for row in epoch} for epoch in (first, second)]
    assert company[0] != company[1]
    assert PackedRows(documents_of([3] * 40), 7, 1).batch(0, 5).tokens.tolist() != first[:5].tolist()


def test_epochs_differ_in_order_where_no_two_documents_could_change_places():
    rows = PackedRows(documents_of(range(1, 31)), 32, 0)
    epochs = [rows.batch(epoch * rows.num_rows, rows.num_rows).tokens.tolist() for epoch in range(3)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


@settings(max_examples=25, deadline=None)
@given(lengths=LENGTHS, batch_size=st.integers(1, 5), stop=st.integers(0, 7))
def test_resuming_at_any_row_equals_never_stopping(lengths, batch_size, stop):
    dataset = dataset_of(lengths)
    whole = take(dataset, 9, batch_size)
    state = whole[stop - 1][1] if stop else {"row": 0, "epoch": 0}
    rest = take(dataset_of(lengths), 9 - stop, batch_size, start_row=state["row"])
    for (batch, position), (again, position_again) in zip(whole[stop:], rest, strict=True):
        assert same(batch, again)
        assert position == position_again
    assert state == {"row": stop * batch_size, "epoch": stop * batch_size // dataset.rows_per_epoch}


def test_rows_do_not_depend_on_the_batch_size():
    dataset = dataset_of([5, 9, 2, 30, 7, 4])
    by_two = [batch for batch, _ in take(dataset, 12, 2)]
    by_eight = [batch for batch, _ in take(dataset, 3, 8)]
    for name in ("tokens", "targets", "weights", "segments", "keys"):
        joined = [np.concatenate([getattr(batch, name) for batch in batches]) for batches in (by_two, by_eight)]
        assert (joined[0] == joined[1]).all()


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_slices_of_all_ranks_are_the_global_batch(world_size):
    dataset = dataset_of([5, 9, 2, 30, 7, 4])
    whole = take(dataset, 5, 8)
    by_rank = [take(dataset, 5, 8, rank=rank, world_size=world_size) for rank in range(world_size)]
    for number, (batch, state) in enumerate(whole):
        parts = [taken[number][0] for taken in by_rank]
        assert same(batch, [np.concatenate(arrays) for arrays in zip(*parts, strict=True)])
        assert all(taken[number][1] == state for taken in by_rank)


def test_shapes_types_and_keys():
    batch, _ = take(dataset_of([5, 9, 2]), 1, 4)[0]
    assert [array.shape for array in batch] == [(4, 8)] * 4 + [(4, 2)]
    assert [array.dtype for array in batch] == [np.int32, np.int32, np.float32, np.int32, np.uint32]
    assert len({tuple(key) for key in batch.keys.tolist()}) == 4


def test_a_batch_that_does_not_divide_names_those_that_do():
    with pytest.raises(ConfigError, match=r"10 does not divide into 2 ranks of 4 sequences at once; 8 or 16 would"):
        dataset_of([5]).batches(10, world_size=2, micro_batch_size=4)
    with pytest.raises(ConfigError, match=r"; 4 would"):
        dataset_of([5]).batches(3, world_size=4)


def test_validation_rows_are_always_the_same_and_padded_to_full_batches():
    dataset = dataset_of([5], validation=[3, 9, 2, 30])
    batches = list(dataset.validation_batches(4))
    again = list(dataset_of([5], validation=[3, 9, 2, 30], seed=99).validation_batches(4))
    assert all(same(first, second) for first, second in zip(batches, again, strict=True))
    assert all(batch.tokens.shape == (4, 8) for batch in batches)
    assert sum(batch.weights.sum() for batch in batches) == 44 == dataset.summary()["validation_tokens"]
    small = list(dataset.validation_batches(3))
    assert sorted(sum(map(pairs_of, small), [])) == sorted(sum(map(pairs_of, batches), []))
    real = np.concatenate([batch.keys[batch.weights.any(axis=1)] for batch in batches])
    assert len({tuple(key) for key in real.tolist()}) == len(real)


def test_no_validation_gives_no_batches():
    assert list(dataset_of([5], validation=()).validation_batches(4)) == []


def test_padding_rows_are_zero():
    assert pad_rows(np.ones((2, 3), np.int32), 4).tolist() == [[1, 1, 1], [1, 1, 1], [0, 0, 0], [0, 0, 0]]


def prefetch_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_prefetch_gives_the_same_values_and_ends_its_thread():
    assert list(prefetch(iter(range(100)))) == list(range(100))
    assert not prefetch_threads()


def test_prefetch_works_ahead_but_not_without_bound():
    made = []

    def values():
        for number in range(100):
            made.append(number)
            yield number

    ahead = prefetch(values(), depth=2)
    next(ahead)
    deadline = time.monotonic() + 5
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert len(made) == 4
    ahead.close()
    assert not prefetch_threads()


def test_an_error_in_the_thread_surfaces_at_its_place():
    def values():
        yield 1
        raise ValueError("broken row")

    ahead = prefetch(values())
    assert next(ahead) == 1
    with pytest.raises(ValueError, match="broken row"):
        next(ahead)
    assert not prefetch_threads()


def test_an_interrupt_or_a_dropped_iterator_ends_the_thread():
    ahead = dataset_of([5, 9, 2]).batches(2)
    next(ahead)
    assert prefetch_threads()
    with pytest.raises(KeyboardInterrupt):
        ahead.throw(KeyboardInterrupt)
    assert not prefetch_threads()
    ahead = dataset_of([5, 9, 2]).batches(2)
    next(ahead)
    del ahead
    assert not prefetch_threads()
