"""Whole passes and shares, window by window; shares against a queue that takes one document at a time."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.mixture import Mixture, MixtureConfig, StageConfig
from data.shuffle import documents_at, source_seed
from tests.mixture_corpora import Corpus, configs, corpora, flat, pairs, stages_of, take


@settings(max_examples=25, deadline=None)
@given(data=st.data(), corpus=corpora(), seed=st.integers(0, 3))
def test_an_epoch_takes_each_source_as_often_as_its_weight_says(data, corpus, seed):
    config = data.draw(configs(corpus, by=["epochs"], temperature=1.0))
    mixture = corpus.build(config, seed)
    given_of = [[0] * len(corpus.extents)]
    for window, state in itertools.islice(mixture.windows(), 40):
        assert len(window.sources)
        if state["epoch"] >= len(given_of):  # epochs that are passed over held nothing
            given_of += [given_of[-1]] * (state["epoch"] - len(given_of)) + [state["documents"]]
    for epoch, documents in enumerate(given_of):
        for extent, count in zip(corpus.extents, documents, strict=True):
            expected = math.floor(Fraction(str(extent.weight)) * epoch * extent.num_documents)
            assert count == (min(expected, extent.num_documents) if config.exhausted == "stop" else expected)


def test_weight_2_gives_every_document_twice_an_epoch_and_a_half_each_in_every_other():
    corpus = Corpus([5] * 20, [7] * 31, [3] * 10, weights=[2.0, 1.0, 0.5])
    windows = corpus.build(MixtureConfig(window_tokens=50)).windows()
    counts, epoch = [np.zeros((3, 31), int) for _ in range(4)], 0
    while epoch < 4:
        window, state = next(windows)
        np.add.at(counts[epoch], (window.sources, window.documents), 1)
        epoch = state["epoch"]
    for count in counts:
        assert (count[0, :20] == 2).all()
        assert (count[1] == 1).all()
    for first, second in (counts[:2], counts[2:]):
        assert first[2].sum() == second[2].sum() == 5
        assert ((first + second)[2, :10] == 1).all()


@settings(max_examples=20, deadline=None)
@given(data=st.data(), corpus=corpora(), seed=st.integers(0, 3))
def test_every_window_of_an_epoch_is_the_same_mix(data, corpus, seed):
    config = data.draw(configs(corpus, by=["epochs"]))
    windows = take(corpus.build(config, seed), 30)
    epochs = [0, *(state["epoch"] for _, state in windows[:-1])]
    for _, group in itertools.groupby(zip(epochs, windows, strict=True), lambda pair: pair[0]):
        counts = np.array([np.bincount([source for source, _, _ in window], minlength=4) for _, (window, _) in group])
        assert (counts.max(0) - counts.min(0) <= 1).all()


def test_windows_of_an_epoch_are_about_as_large_as_asked():
    corpus = Corpus([10] * 1000, [20] * 100, [500], weights=[1.0, 2.0, 1.0])
    for wanted in (700, 2000, 14_499, 14_500, 10**6):
        windows = take(corpus.build(MixtureConfig(window_tokens=wanted)), 40)
        in_epoch = 1 + next(number for number, (_, state) in enumerate(windows) if state["epoch"])
        assert in_epoch == math.ceil(14_500 / wanted)
        sizes = np.diff([0, *(sum(state["tokens"]) for _, state in windows[:in_epoch])])
        assert (abs(sizes - 14_500 / in_epoch) <= 10 + 20 + 500).all()


def test_small_sources_do_not_all_come_at_the_end_of_an_epoch():
    corpus = Corpus([10] * 1000, [10], [10], [10])
    where = set()
    for seed in range(10):
        windows = take(corpus.build(MixtureConfig(window_tokens=1000), seed), 10)
        where |= {number for number, (window, _) in enumerate(windows) for source, _, _ in window if source}
    assert len(where) >= 7


def first_documents(mixture: Mixture, count: int) -> list[tuple[int, int, int]]:
    documents = itertools.chain.from_iterable(pairs(window) for window, _ in mixture.windows())
    return list(itertools.islice(documents, count))


def queue_of(corpus: Corpus, mixture: Mixture, config: MixtureConfig, num_tokens: int) -> list[tuple[int, int]]:
    """(source, number given before) one document at a time: always of the source whose next one is due first."""
    given_documents, given_tokens = [0] * len(corpus.extents), [0] * len(corpus.extents)
    order: list[tuple[int, int]] = []
    in_order = [
        lengths[documents_at(source_seed(0, source), len(lengths), np.arange(num_tokens + 1))[0]].tolist()
        for source, lengths in enumerate(corpus.sources)
    ]
    stages = iter(mixture.stages)
    stage, base = next(stages), [0] * len(corpus.extents)
    while sum(given_tokens) < num_tokens:
        due = {}
        for source, extent in enumerate(corpus.extents):
            stopped = config.exhausted == "stop" and given_documents[source] == extent.num_documents
            if stage.shares[source] and not stopped:
                length = in_order[source][given_documents[source]]
                cost, so_far = (length, given_tokens) if config.by == "tokens" else (1, given_documents)
                due[source] = (2 * (so_far[source] - base[source]) + cost) / float(stage.shares[source]), length
        if not due or (stage.end is not None and sum(given_tokens) >= stage.end):
            stage = next(stages, None)
            if stage is None:
                break
            base = list(given_tokens if config.by == "tokens" else given_documents)
            continue
        source = min(due, key=lambda source: (due[source][0], source))
        order.append((source, given_documents[source]))
        given_documents[source] += 1
        given_tokens[source] += due[source][1]
    return order


SHARES = ["documents", "tokens"]


@settings(max_examples=40, deadline=None)
@given(data=st.data(), corpus=corpora())
def test_shares_come_in_the_order_of_a_queue_that_takes_one_document_at_a_time(data, corpus):
    config = data.draw(configs(corpus, by=SHARES))
    mixture = corpus.build(config)
    order, count = [], [0] * 4
    expected = queue_of(corpus, mixture, config, num_tokens=400)
    for source, _, _ in first_documents(mixture, len(expected)):
        order.append((source, count[source]))
        count[source] += 1
    assert order == expected


@pytest.mark.parametrize("window_tokens", [50, 400, 3000])
def test_more_documents_than_estimated_are_found_where_they_are_short(window_tokens):
    corpus = Corpus([1] * 400 + [20_000], [50] * 30)
    config = MixtureConfig(by="tokens", window_tokens=window_tokens)
    mixture = corpus.build(config)
    expected = [source for source, _ in queue_of(corpus, mixture, config, num_tokens=1500)]
    assert expected.count(0) > 100
    assert [source for source, _, _ in first_documents(mixture, len(expected))] == expected


@settings(max_examples=20, deadline=None)
@given(data=st.data(), corpus=corpora())
def test_shares_are_kept_to_half_a_document_at_every_window(data, corpus):
    config = data.draw(configs(corpus, by=SHARES, stages=False, exhausted="repeat"))
    mixture = corpus.build(config)
    for _, state in itertools.islice(mixture.windows(), 30):
        bounds = []
        for source, share in enumerate(mixture.stages[0].shares):
            half = corpus.sources[source].max() / 2 if config.by == "tokens" else 0.5
            bounds.append([(state[config.by][source] + sign * half) / float(share) for sign in (-1, 1)])
        lower, upper = np.array(bounds).T
        assert lower.max() <= upper.min() * (1 + 1e-12)


@settings(max_examples=20, deadline=None)
@given(data=st.data(), corpus=corpora())
def test_windows_of_shares_are_as_large_as_asked_and_end_with_their_stage(data, corpus):
    config = data.draw(configs(corpus, by=SHARES, exhausted="repeat"))
    mixture = corpus.build(config)
    ends = sorted({stage.end for stage in mixture.stages if stage.end})
    longest = max(lengths.max() for lengths in corpus.sources)
    before, wanted = 0, config.window_tokens
    for window, state in itertools.islice(mixture.windows(), 40):
        tokens = corpus.tokens_of(window)
        total = sum(state["tokens"])
        assert total == before + sum(tokens)
        end = next((end for end in ends if end > before), None)
        goal = wanted if end is None or end - before > wanted + wanted // 2 else end - before
        assert total - tokens[-1] < before + goal <= total < before + goal + longest
        before = total
    assert mixture.num_tokens() is None


@settings(max_examples=20, deadline=None)
@given(data=st.data(), corpus=corpora(), sizes=st.tuples(st.integers(1, 400), st.integers(1, 400)))
def test_the_order_of_shares_does_not_depend_on_the_windows(data, corpus, sizes):
    config = data.draw(configs(corpus, by=SHARES))
    mixtures = [corpus.build(config.model_copy(update={"window_tokens": size})) for size in sizes]
    one, other = (first_documents(mixture, 40) for mixture in mixtures)
    assert one == other
    assert len(one) == 40 or config.exhausted == "stop"


@settings(max_examples=20, deadline=None)
@given(data=st.data(), corpus=corpora())
def test_when_all_sources_have_stopped_each_document_was_given_once(data, corpus):
    config = data.draw(configs(corpus, stages=False, exhausted="stop"))
    mixture = corpus.build(config)
    windows = take(mixture, 200)
    expected = [(source, document) for source, extent in enumerate(corpus.extents) for document in range(extent[2])]
    assert sorted((source, document) for source, document, _ in flat(windows)) == expected
    assert mixture.num_tokens() == sum(windows[-1][1]["tokens"])
    assert take(mixture, 1, windows[-1][1]) == []


def test_a_source_that_stops_leaves_its_share_to_the_others_as_they_are():
    corpus = Corpus([10] * 100, [10] * 900, [10] * 900, weights=[4.0, 2.0, 1.0])
    config = MixtureConfig(by="tokens", exhausted="stop", window_tokens=70)
    state = take(corpus.build(config), 50)[-1][1]
    assert state["tokens"][0] == 1000
    assert abs(state["tokens"][1] - 2 * state["tokens"][2]) <= 20
    assert state["epoch"] == 0


def test_stages_that_find_no_source_left_give_way_to_the_next():
    corpus = Corpus([10] * 10, [10] * 50, [10] * 50)
    stages = [
        StageConfig.model_validate({"tokens": "300 tokens", "weights": {"stories": 1}}),
        StageConfig.model_validate({"tokens": "300 tokens", "weights": {"stories": 1, "code": 1}}),
        StageConfig.model_validate({"weights": {"news": 1}}),
    ]
    config = MixtureConfig(by="tokens", exhausted="stop", stages=tuple(stages), window_tokens=50)
    mixture = corpus.build(config)
    windows = take(mixture, 200)
    assert windows[-1][1]["tokens"] == [100, 500, 500]
    assert mixture.num_tokens() == 1100
    assert [window[0][0] for window, _ in windows[:12]] == [0] * 2 + [1] * 10


def test_stages_change_the_weights_and_the_last_one_goes_on():
    corpus = Corpus([7] * 30, [11] * 30, [5] * 30)
    stages = [
        StageConfig.model_validate({"tokens": "20 tokens_per_param", "weights": {"stories": 3, "code": 1}}),
        StageConfig.model_validate({"tokens": "50 %", "weights": {"code": 1, "news": 0}}),
        StageConfig.model_validate({"tokens": "100 tokens", "weights": {"news": 1, "code": 1}}),
    ]
    mixture = corpus.build(MixtureConfig(by="tokens", stages=tuple(stages), window_tokens=60))
    assert [stage.end for stage in mixture.stages] == [200, 700, None]
    after = {sum(state["tokens"]): state["tokens"] for _, state in take(mixture, 100)}
    first, second = (min(total for total in after if total >= end) for end in (200, 700))
    assert first < 211
    assert second < 711
    assert abs(after[first][0] - 150) <= 11
    assert after[first][2] == 0
    assert np.subtract(after[second], after[first]).tolist() == [0, second - first, 0]
    last = max(after)
    assert abs(after[last][1] - after[second][1] - (after[last][2])) <= 11
    assert last > 4000


def test_a_stage_is_rounded_up_to_whole_tokens():
    stages = [{"tokens": "0.25 tokens_per_param", "weights": {"code": 1}}, {"weights": {"code": 1}}]
    mixture = Corpus([1], [1] * 9).build(MixtureConfig.model_validate(stages_of(*stages)))
    assert [stage.end for stage in mixture.stages] == [3, None]


def test_a_share_too_small_for_a_window_is_carried_on():
    corpus = Corpus([10] * 100, [10] * 100, weights=[1.0, 0.001])
    config = MixtureConfig(by="tokens", window_tokens=1000)
    tokens = [state["tokens"][1] for _, state in take(corpus.build(config), 100)]
    assert tokens[4] == 0
    assert tokens[-1] == 100


def test_one_long_document_makes_no_window_longer_than_itself():
    corpus = Corpus([100_000, 10], [10] * 50, weights=[1.0, 9.0])
    config = MixtureConfig(by="tokens", window_tokens=100)
    windows = take(corpus.build(config), 3)
    assert [sum(int(corpus.sources[s][d]) for s, d, _ in window) for window, _ in windows] == [100] * 3


def test_state_says_how_often_sources_were_passed_through():
    corpus = Corpus([10] * 10, [10] * 40)
    mixture = corpus.build(MixtureConfig(by="tokens", window_tokens=100))
    states = [state for _, state in take(mixture, 20)]
    assert [state["epoch"] for state in states] == [state["documents"][1] // 40 for state in states]
    assert states[-1]["documents"] == [100, 100]


@pytest.mark.parametrize("by", ["tokens", "documents", "epochs"])
def test_planning_looks_little_further_than_the_window(by):
    generator = np.random.default_rng(0)
    corpus = Corpus(*(generator.geometric(1 / mean, 30_000).tolist() for mean in (300, 1000, 3000)))
    windows = corpus.build(MixtureConfig(by=by)).windows()
    given_documents = sum(len(next(windows)[0].sources) for _ in range(5))
    assert corpus.num_asked < 1.5 * given_documents
