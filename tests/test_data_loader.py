"""The loader: nothing lost or doubled, and one order whatever the ranks, the threads and the interruptions."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.mixture import Budget, MixtureConfig, StageConfig
from data.packing import PackingConfig
from data.store import open_store
from tests.stored_documents import dataset_over, expected_pairs, fim_tokenizer, pairs_in, with_fim, write_store
from utils.errors import CheckpointError, ConfigError, DataError

SOURCES = [[5, 9, 2, 30, 7, 4, 13, 1, 6, 22], [3, 3, 12, 1, 8], [17]]
VALIDATION = (3, 9, 2, 30)
SHUFFLES = [
    {},
    {"mixture": MixtureConfig(by="tokens", window_tokens=30), "weights": [1.0, 3.0, 0.5]},
    {"packing": PackingConfig(method="concat"), "weights": [2.0, 0.5, 1.0]},
    {"packing": PackingConfig(method="padded"), "mixture": MixtureConfig(by="documents", window_tokens=70)},
    with_fim(rate=0.7),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("loader") / "s", SOURCES, VALIDATION)


@pytest.fixture(scope="module")
def store(folder):
    return open_store(folder)


def take(dataset, count, batch_size=4, **arguments):
    batches = dataset.batches(batch_size, **arguments)
    taken = [next(batches) for _ in range(count)]
    batches.close()
    return taken


def same(first, second) -> bool:
    return all((a == b).all() and a.dtype == b.dtype for a, b in zip(first, second, strict=True))


def joined(batches):
    return [np.concatenate(arrays) for arrays in zip(*batches, strict=True)]


@settings(max_examples=25, deadline=None)
@given(
    sources=st.lists(st.lists(st.integers(1, 25), min_size=1, max_size=12), min_size=1, max_size=3),
    row_length=st.integers(2, 12),
    window_tokens=st.integers(10, 200),
    seed=st.integers(0, 5),
    method=st.sampled_from(["best_fit", "concat", "padded"]),
)
def test_an_epoch_holds_every_pair_exactly_once(tmp_path_factory, sources, row_length, window_tokens, seed, method):
    folder = write_store(tmp_path_factory.mktemp("epoch") / "s", sources)
    settings = {"mixture": MixtureConfig(window_tokens=window_tokens), "packing": PackingConfig(method=method)}
    dataset = dataset_over(folder, row_length, seed, **settings)
    rows, epochs = dataset.batches(1), []
    for epoch in range(2):
        pairs = []
        while not epochs or sum(len(each) for each in epochs) + len(pairs) < (epoch + 1) * len(expected_pairs(sources)):
            batch, state = next(rows)
            pairs += pairs_in(batch)
            assert (batch.weights == (batch.segments > 0)).all()
            assert not batch.tokens[batch.segments == 0].any()
            assert not batch.targets[batch.segments == 0].any()
            if state["epoch"] > epoch:
                break
        epochs.append(pairs)
        assert sorted(pairs) == expected_pairs(sources)
        assert state["tokens"] == [(epoch + 1) * sum(lengths) for lengths in sources]
    rows.close()


def test_segments_follow_documents_and_rows_begin_with_one(store):
    owner = dict(enumerate(np.repeat(np.arange(16), np.concatenate(SOURCES) + 1), start=1000))
    firsts = {token for token in owner if owner[token] != owner.get(token - 1)}
    for batch, _ in take(dataset_over(store, 32), 6):
        assert set(batch.tokens[:, 0].tolist()) <= firsts | {0}  # Every document fits a row.
        for tokens, segments in zip(batch.tokens.tolist(), batch.segments.tolist(), strict=True):
            for place in range(1, 32):
                if segments[place] and segments[place] == segments[place - 1]:
                    assert tokens[place] == tokens[place - 1] + 1
                    assert owner[tokens[place]] == owner[tokens[place - 1]]
                elif segments[place]:
                    assert segments[place] == segments[place - 1] + 1


@settings(max_examples=30, deadline=None)
@given(
    options=st.sampled_from(SHUFFLES),
    batch_size=st.integers(1, 9),
    stop=st.integers(0, 6),
    workers=st.integers(0, 4),
    workers_again=st.integers(0, 4),
)
def test_resuming_anywhere_equals_never_stopping(store, options, batch_size, stop, workers, workers_again):
    whole = take(dataset_over(store, workers=workers, **options), 7, batch_size)
    state = json.loads(json.dumps(whole[stop - 1][1])) if stop else None
    rest = take(dataset_over(store, workers=workers_again, **options), 7 - stop, batch_size, start=state)
    for (batch, position), (again, position_again) in zip(whole[stop:], rest, strict=True):
        assert same(batch, again)
        assert position == position_again
    assert state is None or state["row"] == stop * batch_size


@settings(max_examples=20, deadline=None)
@given(options=st.sampled_from(SHUFFLES), world_size=st.integers(1, 3), workers=st.integers(0, 4))
def test_the_order_is_that_of_one_rank_without_threads(store, options, world_size, workers):
    whole = take(dataset_over(store, **options), 5, 6)
    dataset = dataset_over(store, workers=workers, **options)
    by_rank = [take(dataset, 5, 6, rank=rank, world_size=world_size) for rank in range(world_size)]
    for number, (batch, state) in enumerate(whole):
        assert same(batch, joined([taken[number][0] for taken in by_rank]))
        assert all(taken[number][1] == state for taken in by_rank)


@pytest.mark.parametrize("options", SHUFFLES)
def test_rows_and_states_do_not_depend_on_the_batch_size(store, options):
    by_two, by_twelve = (take(dataset_over(store, **options), 24 // size, size) for size in (2, 12))
    assert same(joined([batch for batch, _ in by_two]), joined([batch for batch, _ in by_twelve]))
    assert by_two[5][1] == by_twelve[0][1]
    assert by_two[-1][1] == by_twelve[-1][1]


@pytest.mark.parametrize("options", SHUFFLES)
def test_tokens_of_each_source_are_those_of_the_rows(store, options):
    dataset, given = dataset_over(store, **options), 0
    edges = 1000 + np.cumsum([0, *(sum(lengths) + len(lengths) for lengths in SOURCES)])
    for batch, state in take(dataset, 20, 3):
        given += int(batch.weights.sum())
        assert sum(state["tokens"]) == given
    if "fill_in_the_middle" not in options:
        inputs = np.concatenate([batch.tokens[batch.weights > 0] for batch, _ in take(dataset, 20, 3)])
        assert np.histogram(inputs, edges)[0].tolist() == state["tokens"]


@pytest.mark.parametrize("options", SHUFFLES)
def test_a_position_can_be_found_and_described_without_reading(store, options, monkeypatch):
    taken = take(dataset_over(store, **options), 9, 5)
    dataset = dataset_over(store, **options)
    monkeypatch.setattr(dataset.store.train, "read", None)
    for row, near in ((0, None), (5, None), (35, None), (35, taken[2][1]), (15, taken[2][1])):
        state = dataset.state_at(row, near)
        assert state == (taken[row // 5 - 1][1] if row else dataset.state_at(0))
        batch, rows = taken[row // 5][0], dataset.describe_rows(state, 5)
        assert len(rows) == 5
        for tokens, segments, pieces in zip(batch.tokens, batch.segments, rows, strict=True):
            assert len(pieces) == segments.max()
            for number, piece in enumerate(pieces, start=1):
                assert piece.ordinal == 2 * piece.document + 1
                stored = store.train.document(piece.source, piece.document)
                chosen = stored[piece.start : piece.start + piece.length + 1].tolist()
                found = tokens[segments == number].tolist()
                assert len(found) == piece.length + 3 * piece.transformed
                if not piece.transformed:
                    assert found == chosen[:-1]
                else:
                    assert len(set(found) & set(chosen)) >= piece.length


def test_going_on_far_along_plans_one_window(store, monkeypatch):
    dataset, calls = dataset_over(store), []
    _, window = next(dataset.mixture().windows())
    epoch = 10**7
    counts = [epoch * number for number in store.train.num_documents]
    state = {"row": 10**9, "epoch": epoch, "tokens": counts, "within": 1}
    lengths = store.train.lengths
    monkeypatch.setattr(store.train, "lengths", lambda *values: calls.append(values) or lengths(*values))
    batch, behind = take(dataset, 1, 2, start=state | {"window": window | {"epoch": epoch, "documents": counts}})[0]
    assert batch.weights.any()
    assert behind["row"] == 10**9 + 2
    assert behind["epoch"] == epoch
    assert len(calls) <= 2 * 2 * len(SOURCES)  # By the mixture and for the rows, of two windows at most.
    assert {piece.epoch for row in dataset.describe_rows(behind, 4) for piece in row} <= {epoch, epoch + 1}


def test_stages_follow_the_budget_and_leave_the_epoch_alone(store):
    half = StageConfig.model_validate({"tokens": "50 %", "weights": {"source0": 1}})
    rest = StageConfig.model_validate({"weights": {"source1": 1, "source2": 1}})
    mixture = MixtureConfig(by="tokens", window_tokens=40, stages=(half, rest))
    dataset = dataset_over(store, mixture=mixture)
    assert (
        dataset.rows_per_epoch == dataset_over(store, mixture=mixture.model_copy(update={"stages": ()})).rows_per_epoch
    )
    with pytest.raises(ConfigError):
        dataset.batches(2)
    dataset.set_budget(Budget(10, 400))
    given = [state["tokens"] for _, state in take(dataset, 60, 1)]
    assert 150 < given[-1][0] < 250
    assert [each for each in given if each[0] < given[-1][0] and sum(each[1:])] == []
    assert min(given[-1][1:]) > 0


def test_filling_in_the_middle_keeps_every_token(store):
    dataset = dataset_over(store, 16, **with_fim(rate=0.5))
    sentinels = {fim_tokenizer.special_id(f"fim_{part}") for part in ("prefix", "suffix", "middle")}
    state, transformed, total, longest = None, 0, 0, 0
    for _ in range(60):
        described = dataset.describe_rows(state, 1)
        batch, state = take(dataset, 1, 1, start=state)[0]
        for number, piece in enumerate(described[0], start=1):
            chosen = batch.segments[0] == number
            told = [*batch.tokens[0][chosen].tolist(), int(batch.targets[0][chosen][-1])]
            assert batch.targets[0][chosen][:-1].tolist() == told[1:-1]
            stored = store.train.document(piece.source, piece.document)
            original = stored[piece.start : piece.start + piece.length + 1].tolist()
            ordinary = [token for token in told if token not in sentinels]
            assert sorted(ordinary) == original
            assert len(told) - len(ordinary) == 3 * piece.transformed
            longest = max(longest, piece.length)
            if piece.start == 0:
                assert told[0] == stored[0]
            if piece.start + piece.length + 1 == len(stored):
                assert told[-1] == stored[-1]
            transformed, total = transformed + piece.transformed, total + 1
    assert 0.3 < transformed / total < 0.7
    assert longest == 13


def test_epochs_and_seeds_differ_in_order_and_company(store):
    dataset = dataset_over(store, mixture=MixtureConfig(window_tokens=10_000))
    count = dataset.rows_per_epoch
    first, second = (take(dataset, 1, count, start=dataset.state_at(epoch * count))[0][0] for epoch in range(2))
    other = take(dataset_over(store, seed=4), 1, count)[0][0]
    orders = [{tuple(row) for row in batch.tokens.tolist()} for batch in (first, second, other)]
    assert orders[0] != orders[1]
    assert first.tokens.tolist() != other.tokens.tolist()
    assert len({tuple(key) for batch in (first, second) for key in batch.keys.tolist()}) == 2 * count


def test_shapes_and_types(store):
    batch, _ = take(dataset_over(store), 1, 4)[0]
    assert [array.shape for array in batch] == [(4, 8)] * 4 + [(4, 2)]
    assert [array.dtype for array in batch] == [np.int32, np.int32, np.float32, np.int32, np.uint32]


@pytest.mark.parametrize("workers", [0, 2])
def test_sources_that_stop_end_with_a_batch_filled_up_and_then_an_error(store, workers):
    options = {"mixture": MixtureConfig(exhausted="stop", window_tokens=40), "workers": workers}
    dataset, pairs = dataset_over(store, **options), []
    num_batches = -(-dataset.rows_per_epoch // 4)
    assert dataset.rows_per_epoch % 4
    batches = dataset.batches(4)
    for _ in range(num_batches):
        batch, state = next(batches)
        pairs += pairs_in(batch)
    assert sorted(pairs) == expected_pairs(SOURCES)
    message = rf"used up after {4 * num_batches} rows \({num_batches} batches\): set data.mixture.exhausted to repeat"
    with pytest.raises(DataError, match=message):
        next(batches)
    with pytest.raises(DataError, match=message):
        next(dataset.batches(4, start=state))
    assert len(dataset.describe_rows(None, 1000)) == dataset.rows_per_epoch
    with pytest.raises(DataError, match="used up before row 1000"):
        dataset.state_at(1000)


def test_validation_rows_are_always_the_same_and_padded_to_full_batches(store):
    batches = list(dataset_over(store).validation_batches(4))
    again = list(dataset_over(store, seed=99, **with_fim()).validation_batches(4))
    assert all(same(first, second) for first, second in zip(batches, again, strict=True))
    assert all(batch.tokens.shape == (4, 8) for batch in batches)
    first_token = 1000 + sum(sum(lengths) + len(lengths) for lengths in SOURCES)
    assert sorted(sum(map(pairs_in, batches), [])) == expected_pairs([list(VALIDATION)], first_token)
    assert dataset_over(store).summary()["validation_tokens"] == 44
    small = list(dataset_over(store).validation_batches(3))
    assert sorted(sum(map(pairs_in, small), [])) == sorted(sum(map(pairs_in, batches), []))
    real = np.concatenate([batch.keys[batch.weights.any(axis=1)] for batch in batches])
    assert len({tuple(key) for key in real.tolist()}) == len(real)


def test_validation_goes_through_windows_too(store, monkeypatch):
    monkeypatch.setattr("data.loader.VALIDATION_WINDOW_TOKENS", 12)
    batches = list(dataset_over(store).validation_batches(2))
    assert sorted(sum(map(pairs_in, batches), []))[0][0] == 1000 + sum(sum(each) + len(each) for each in SOURCES)
    assert len(sum(map(pairs_in, batches), [])) == 44


def test_no_validation_and_no_training(tmp_path):
    assert list(dataset_over(write_store(tmp_path / "a", [[5]])).validation_batches(4)) == []
    dataset = dataset_over(write_store(tmp_path / "b", [[]], VALIDATION))
    assert (dataset.rows_per_epoch, dataset.num_train_tokens) == (0, 0)
    assert dataset.summary()["bytes_per_token"] == 0
    with pytest.raises(DataError, match="no training document"):
        dataset.batches(4)


def test_summary_and_fingerprint(store, tmp_path):
    summary = dataset_over(store).summary()
    assert summary["sources"][1] == {"name": "source1", "documents": 5, "tokens": 32}
    assert (summary["train_documents"], summary["train_tokens"]) == (16, sum(map(sum, SOURCES)))
    assert summary["validation_documents"] == 4
    same_again = write_store(tmp_path / "again", SOURCES, VALIDATION)
    manifest = json.loads((same_again / "manifest.json").read_text())
    manifest["shards"]["train"].reverse()
    (same_again / "manifest.json").write_text(json.dumps(manifest))
    assert dataset_over(same_again).fingerprint == dataset_over(store, workers=3, seed=8).fingerprint
    others = [dataset_over(store, **options) for options in SHUFFLES[1:]]
    others += [dataset_over(store, 9), dataset_over(write_store(tmp_path / "other", SOURCES, (3, 9)))]
    others += [dataset_over(write_store(tmp_path / "third", SOURCES[:2], VALIDATION))]
    assert len({each.fingerprint for each in [dataset_over(store), *others]}) == 1 + len(others)


def test_damage_stops_the_run_at_its_place(tmp_path):
    folder = write_store(tmp_path / "s", [[5, 9, 2, 30, 7, 4, 13, 1, 6, 22]])
    content = bytearray((folder / "train" / "00-00002.shard").read_bytes())
    content[-1] ^= 1
    (folder / "train" / "00-00002.shard").write_bytes(content)
    with pytest.raises(DataError, match=r"00-00002\.shard: damaged \(its checksum"):
        take(dataset_over(folder, workers=2), 30)


def test_what_does_not_fit_is_refused(store):
    with pytest.raises(ConfigError, match=r"10 does not divide into 2 ranks of 4 sequences at once; 8 or 16 would"):
        dataset_over(store).batches(10, world_size=2, micro_batch_size=4)
    with pytest.raises(ConfigError, match=r"; 4 would"):
        dataset_over(store).batches(3, world_size=4)
    with pytest.raises(ConfigError, match=r"packing.method concat .*; use best_fit or padded"):
        dataset_over(store, packing=PackingConfig(method="concat"), **with_fim())
    with pytest.raises(ConfigError, match="sequence_length 3 leaves no room"):
        dataset_over(store, 3, **with_fim())
    with pytest.raises(DataError, match="no 'fim_prefix' token"):
        dataset_over(store, fill_in_the_middle=with_fim()["fill_in_the_middle"])
    with pytest.raises(CheckpointError, match=r"\['epoch', 'row'\], expected .*another version"):
        next(dataset_over(store).batches(4, start={"row": 8, "epoch": 0}))


def test_a_source_that_has_nothing_left_to_give_is_passed_over(tmp_path):
    dataset = dataset_over(write_store(tmp_path / "gap", [[5] * 6, [], [3] * 4]))
    assert dataset.num_train_tokens == 5 * 6 + 3 * 4
    (_, state), *_ = take(dataset, 1)
    assert state["tokens"][1] == 0


def test_an_epoch_by_shares_is_as_much_as_there_is(tmp_path):
    folder = write_store(tmp_path / "shares", [[5] * 300, [5] * 3])
    weights = [0.01, 1.0]
    dataset = dataset_over(folder, mixture=MixtureConfig(by="tokens", window_tokens=40), weights=weights)
    assert 303 * 5 <= dataset.num_train_tokens <= 303 * 5 + 60
