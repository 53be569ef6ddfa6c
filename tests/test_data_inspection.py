"""Statistics of a store and of a batch against brute force over every document; positions against iterating to them."""

import hashlib
import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.inspection import (
    NO_LENGTHS,
    Course,
    HashSample,
    asked_of,
    follow,
    inspect_batch,
    stored_tokens,
    survey,
)
from data.loader import Dataset
from data.mixture import Budget, MixtureConfig
from data.packing import PackingConfig
from data.row_stream import State
from data.shard_file import write_shard
from data.stages import StageConfig
from data.store import StoredDocuments, open_store
from tests.stored_documents import dataset_over, tokenizer, with_fim, write_store
from utils.errors import DataError
from utils.units import Duration

SOURCES = [[5, 3, 9, 20, 2, 7], [4, 4, 30, 1]]
MIXED = {"by": "tokens", "window_tokens": 40}


def write_documents(folder: Path, sources: list[list[list[int]]], per_shard: int = 2) -> StoredDocuments:
    """A split that holds these token sequences; ordinals are 10 times the document's number."""
    facts = []
    (folder / "train").mkdir(parents=True)
    for source, documents in enumerate(sources):
        for first in range(0, len(documents), per_shard):
            some = documents[first : first + per_shard]
            tokens = np.array([token for each in some for token in each], np.uint16)
            name = f"train/{source:02}-{first // per_shard:05}.shard"
            ordinals = 10 * np.arange(first, first + len(some))
            shard = write_shard(folder / name, tokens, np.cumsum([0, *map(len, some)]), ordinals)
            facts.append({"file": name, "source": source, "text_bytes": 1, **shard})
    return StoredDocuments(folder, facts, len(sources))


def staged(folder: Path, **values: object) -> Dataset:
    """Two sources, the second one coming in after 60 tokens."""
    stages = (
        StageConfig(tokens=Duration(60, "tokens"), weights={"source0": 1}),
        StageConfig(weights={"source0": 1, "source1": 3}),
    )
    mixture = MixtureConfig(**{**MIXED, "stages": stages, **values})
    return dataset_over(write_store(folder, SOURCES), mixture=mixture)


@given(st.lists(st.lists(st.integers(1, 30), max_size=12), max_size=4), st.sampled_from([0.25, 0.5, 0.75, 1.0]))
@settings(max_examples=40, deadline=None)
def test_lengths_are_counted_and_their_quantiles_are_those_of_all_of_them(parts: list[list[int]], share: float) -> None:
    lengths = NO_LENGTHS
    for part in parts:
        lengths = lengths.plus(np.array(part, np.int64))
    every = sorted(itertools.chain(*parts))
    assert dict(zip(lengths.values.tolist(), lengths.counts.tolist(), strict=True)) == Counter(every)
    assert lengths.values.tolist() == sorted(set(every))
    assert lengths.at(share) == (np.quantile(every, share, method="inverted_cdf") if every else 0)


def brute_copies(sources: list[list[list[int]]]) -> tuple[list[int], int, Counter[tuple[int, ...]]]:
    """Copies in each source, texts in several sources, and how often each text occurs."""
    seen: dict[tuple[int, ...], set[int]] = {}
    counts: Counter[tuple[int, ...]] = Counter()
    copies = [0] * len(sources)
    for source, documents in enumerate(sources):
        for document in map(tuple, documents):
            copies[source] += document in seen
            seen.setdefault(document, set()).add(source)
            counts[document] += 1
    return copies, sum(len(each) > 1 for each in seen.values()), counts


DOCUMENTS = st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=4), max_size=9)


@given(sources=st.lists(DOCUMENTS, min_size=1, max_size=3), per_shard=st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_a_survey_finds_what_brute_force_finds(
    tmp_path_factory: pytest.TempPathFactory, sources: list[list[list[int]]], per_shard: int
) -> None:
    stored = write_documents(tmp_path_factory.mktemp("store"), sources, per_shard)
    found = survey(stored)
    for source, documents in enumerate(sources):
        lengths = found.lengths[source]
        assert np.repeat(lengths.values, lengths.counts).tolist() == sorted(map(len, documents))
    every = [(s, d, len(tokens)) for s, documents in enumerate(sources) for d, tokens in enumerate(documents)]
    longest = sorted(every, key=lambda each: (-each[2], *each[:2]))[:5]
    assert [(each.source, each.document, each.length) for each in found.longest] == longest
    assert all(each.ordinal == 10 * each.document for each in found.longest)
    copies, num_across, counts = brute_copies(sources)
    assert found.copies.by_source == copies
    assert found.copies.num_across == num_across
    assert (found.copies.num_documents, found.copies.sampled) == (len(every), 1.0)
    assert [times for times, _ in found.copies.most] == [n for _, n in counts.most_common(5) if n > 1]
    for times, places in found.copies.most:
        texts = {tuple(sources[place.source][place.document]) for place in places}
        assert len(texts) == 1
        assert counts[texts.pop()] == times
        assert len({place[:2] for place in places}) == len(places) == min(times, 5)


def test_hashes_are_those_of_the_tokens_and_a_sample_keeps_whole_groups(tmp_path: Path) -> None:
    documents = [[number % 40, 1, number % 40 + 1] for number in range(120)]
    stored = write_documents(tmp_path, [documents], per_shard=7)
    copies = survey(stored, most_hashes=60).copies
    hashes = [hashlib.blake2b(np.array(each, "<u2").tobytes(), digest_size=8).digest() for each in documents]
    numbers = [int.from_bytes(each, "little") for each in hashes]
    kept = [number for number in numbers if number < 2**64 * copies.sampled]
    assert copies.sampled < 1
    assert len(kept) == copies.num_documents <= 60 < 2 * 60
    assert sum(number < 2**65 * copies.sampled for number in numbers) > 60  # No more is thrown away than need be.
    assert sum(copies.by_source) == len(kept) - len(set(kept)) == 2 * len(set(kept))


def test_a_sample_does_not_grow_and_knows_places() -> None:
    sample = HashSample(100)
    numbers = np.random.default_rng(0).integers(0, 2**64, 3000, np.uint64)
    for part in np.split(numbers, 30):
        sample.add(part)
        assert len(sample.hashes) <= 100
    np.testing.assert_array_equal(numbers[sample.places], sample.hashes)
    np.testing.assert_array_equal(sample.places, np.flatnonzero(numbers < 2 ** (64 - sample.num_bits)))


def test_a_damaged_shard_is_an_error(tmp_path: Path) -> None:
    folder = write_store(tmp_path / "store", SOURCES)
    shard = folder / "train" / "00-00001.shard"
    content = bytearray(shard.read_bytes())
    content[40:48] = b"\xff" * 8
    shard.write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        survey(open_store(folder).train)


def dataset_of(kind: str, folder: Path) -> Dataset:
    if kind == "stages":
        return staged(folder)
    settings = with_fim(rate=0.5) if kind == "fim" else {}
    packing = PackingConfig(method="padded") if kind == "padded" else PackingConfig()
    by = settings.get("by", tokenizer)
    return dataset_over(write_store(folder, SOURCES, by=by), packing=packing, **settings)


@pytest.mark.parametrize("kind", ["plain", "stages", "fim", "padded"])
def test_a_batch_is_the_one_that_iterating_comes_to(tmp_path: Path, kind: str) -> None:
    dataset = dataset_of(kind, tmp_path / "store")
    documents = {
        (source, number): dataset.store.train.document(source, number).tolist()
        for source, count in enumerate(dataset.store.train.num_documents)
        for number in range(count)
    }
    states: list[State | None] = [None]
    for number, (batch, state) in enumerate(itertools.islice(dataset.batches(3), 12)):
        inspected = inspect_batch(dataset, 3, number, near=states[number // 2])
        for left, right in zip(inspected.batch, batch, strict=True):
            np.testing.assert_array_equal(left, right)
        assert inspected.after == state
        states.append(state)
        sources = inspected.sources()
        np.testing.assert_array_equal(sources >= 0, batch.weights > 0)
        assert inspected.counted(2) == [int((sources == source).sum()) for source in (0, 1)]
        for row, pieces in enumerate(inspected.pieces):
            for piece, (begin, end) in zip(pieces, inspected.places(row), strict=True):
                told = [*batch.tokens[row, begin:end].tolist(), int(batch.targets[row, end - 1])]
                original = documents[piece.source, piece.document][piece.start : piece.start + piece.length + 1]
                assert (sources[row, begin:end] == piece.source).all()
                assert piece.ordinal == 2 * piece.document + 1
                assert len(told) == len(original) + 3 * piece.transformed
                assert set(original) <= set(told) if piece.transformed else told == original


def test_the_last_batch_of_sources_that_stop_is_filled_up_and_none_follows(tmp_path: Path) -> None:
    dataset = staged(tmp_path, exhausted="stop", stages=())
    num_batches = len(list(batches_until_the_end(dataset, 4)))
    last = inspect_batch(dataset, 4, num_batches - 1)
    assert (last.batch.weights == 0).any()
    assert len(last.pieces) == 4
    np.testing.assert_array_equal(last.sources() < 0, last.batch.weights == 0)
    with pytest.raises(DataError, match="used up"):
        inspect_batch(dataset, 4, num_batches)
    with pytest.raises(DataError, match="used up"):
        inspect_batch(dataset, 4, num_batches + 5)


def batches_until_the_end(dataset: Dataset, batch_size: int):
    batches = dataset.batches(batch_size)
    while True:
        try:
            yield next(batches)
        except DataError:
            return


def test_what_is_observed_is_what_the_batches_count(tmp_path: Path) -> None:
    dataset = staged(tmp_path)
    num_steps, batch_size = 30, 2
    tokens = [np.array(state["tokens"]) for _, state in itertools.islice(dataset.batches(batch_size), num_steps)]
    counted = np.diff([np.zeros(2), *tokens], axis=0)
    asked, observed = follow(dataset, num_steps, batch_size)
    np.testing.assert_array_equal(observed.edges, np.arange(num_steps + 1))
    np.testing.assert_allclose(observed.shares, counted / counted.sum(axis=1, keepdims=True))
    np.testing.assert_array_equal(asked.edges, observed.edges)
    np.testing.assert_allclose(asked.shares[0], [1, 0])
    np.testing.assert_allclose(asked.shares[-1], [0.25, 0.75])
    np.testing.assert_allclose(asked.shares.sum(axis=1), 1)


def test_a_long_run_is_observed_at_its_beginning_in_few_parts(tmp_path: Path) -> None:
    dataset = staged(tmp_path)
    asked, observed = follow(dataset, 100_000, 2, most_tokens=200 * 2 * dataset.sequence_length)
    assert (observed.edges[0], observed.edges[-1], asked.edges[-1]) == (0, 200, 100_000)
    assert len(observed.shares) == len(asked.shares) == 64
    np.testing.assert_allclose(observed.within(np.array([100, 200])), [[0.25, 0.75]], atol=0.03)


def test_where_all_sources_stop_the_course_ends(tmp_path: Path) -> None:
    dataset = staged(tmp_path, exhausted="stop", stages=())
    num_batches = len(list(batches_until_the_end(dataset, 2)))
    asked, observed = follow(dataset, 60, 2)
    assert observed.edges[-1] == num_batches < 60
    assert asked.edges[-1] == 60
    assert np.isnan(asked.shares[-1]).all()
    assert not np.isnan(asked.shares[: num_batches - 1]).any()


@given(st.lists(st.integers(0, 30), min_size=1, max_size=8), st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_larger_parts_of_a_course_are_the_average_of_those_inside(tokens: list[int], every: int) -> None:
    shares = np.array([[each / 30, 1 - each / 30] for each in tokens])
    edges = np.arange(len(tokens) + 1) * 3
    chosen = np.unique([*range(0, len(tokens), every), len(tokens)])
    expected = [shares[a:b].mean(axis=0) for a, b in itertools.pairwise(chosen)]
    np.testing.assert_allclose(Course(edges, shares).within(edges[chosen]), expected)


def test_what_is_asked_of_a_batch_follows_the_stages(tmp_path: Path) -> None:
    dataset = staged(tmp_path)
    np.testing.assert_allclose(asked_of(dataset, inspect_batch(dataset, 2, 0)), [1, 0])
    np.testing.assert_allclose(asked_of(dataset, inspect_batch(dataset, 2, 20)), [0.25, 0.75])
    by_epochs = dataset_over(dataset.store, weights=[2.0, 1.0])
    tokens = np.multiply(dataset.store.train.num_tokens, [2, 1])
    asked = asked_of(by_epochs, inspect_batch(by_epochs, 2, 5))
    np.testing.assert_allclose(asked, tokens / tokens.sum())


def test_what_the_loss_does_not_count_is_no_token_of_its_source(tmp_path: Path) -> None:
    inspected = inspect_batch(dataset_over(write_store(tmp_path, [[15], [15]]), row_length=16), 2, 0)
    assert inspected.counted(2) == [15, 15]
    row = next(row for row, pieces in enumerate(inspected.pieces) if pieces[0].source == 1)
    inspected.batch.weights[row, 3:7] = 0
    assert inspected.counted(2) == [15, 11]


def test_a_mixture_counts_a_token_more_for_each_document_than_there_are_pairs(tmp_path: Path) -> None:
    dataset = dataset_over(write_store(tmp_path, [*SOURCES, []]))
    epoch = dataset.state_at(dataset.rows_per_epoch)["tokens"]
    assert stored_tokens(dataset, epoch) == pytest.approx(sum(dataset.store.train.num_tokens))
    assert stored_tokens(dataset, [sum(SOURCES[0]), 0, 0]) == pytest.approx(sum(SOURCES[0]) + len(SOURCES[0]))


def test_positions_follow_each_other_as_one_by_one(tmp_path: Path) -> None:
    dataset = staged(tmp_path)
    sizes = [1, 4, 2, 30]
    rows = np.cumsum(sizes).tolist()
    near = dataset.state_at(3)
    assert list(dataset.states(sizes)) == [dataset.state_at(row) for row in rows]
    assert list(dataset.states(sizes, near)) == [dataset.state_at(3 + row) for row in rows]
    assert json.loads(json.dumps(near)) == near


@pytest.mark.parametrize("by", ["epochs", "tokens", "documents"])
def test_what_is_expected_of_a_run_is_what_is_described(tmp_path: Path, by: str) -> None:
    dataset = dataset_over(
        write_store(tmp_path, SOURCES), mixture=MixtureConfig.model_validate({"by": by}), weights=[3.0, 1.0]
    )
    dataset.set_budget(Budget(1, 5000))
    mixture = dataset.mixture()
    given = mixture.expected(5000)
    assert sum(given) == pytest.approx(5000)
    for line, tokens in zip(mixture.describe(), given, strict=True):
        assert f"{100 * tokens / 5000:.1f} % of the mixture" in line
