"""Mixtures: whole passes or shares, stages, stopping; resuming anywhere; against a queue that takes one at a time."""

import itertools
import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from data.mixture import Budget, Extent, Mixture, MixtureConfig, StageConfig, passes_of
from data.shuffle import documents_at, source_seed
from data.stages import exact, shares_of
from utils.errors import CheckpointError, ConfigError, DataError, UserError

PARAMETERS, RUN = 10, 1000
NAMES = ("stories", "code", "news", "mail")


class Corpus:
    """Documents of given lengths, and a record of how many lengths were asked for."""

    def __init__(self, *sources: list[int], weights=(1.0, 1.0, 1.0, 1.0)) -> None:
        self.sources = [np.array(lengths, dtype=np.int64) for lengths in sources]
        self.extents = [
            Extent(name, weight, len(lengths), int(lengths.sum()))
            for name, weight, lengths in zip(NAMES, weights, self.sources, strict=False)
        ]
        self.num_asked = 0

    def lengths(self, source: int, documents: np.ndarray) -> np.ndarray:
        self.num_asked += len(documents)
        return self.sources[source][documents]

    def build(self, config: MixtureConfig, seed: int = 0, total_tokens: int | None = RUN) -> Mixture:
        return config.build(self.extents, self.lengths, seed, Budget(PARAMETERS, total_tokens))

    def tokens_of(self, window) -> list[int]:
        pairs = zip(window.sources, window.documents, strict=True)
        return [int(self.sources[source][document]) for source, document in pairs]


LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=25)
WEIGHTS = st.sampled_from([0.3, 0.5, 1.0, 1.5, 2.0, 7.0])


@st.composite
def corpora(draw):
    sources = draw(st.lists(LENGTHS, min_size=1, max_size=4))
    return Corpus(*sources, weights=[draw(WEIGHTS) for _ in sources])


@st.composite
def configs(draw, corpus, by=("epochs", "documents", "tokens"), stages=True, **given):
    by = draw(st.sampled_from(by))
    parts = []
    if stages and by != "epochs" and draw(st.booleans()):
        names = [extent.name for extent in corpus.extents]
        for _ in range(draw(st.integers(1, 3))):
            tokens = draw(st.sampled_from(["1 tokens", "150 tokens", "20 tokens_per_param", "30 %"]))
            chosen = draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
            parts.append(StageConfig.model_validate({"tokens": tokens, "weights": {n: draw(WEIGHTS) for n in chosen}}))
    values = {
        "by": by,
        "temperature": draw(st.sampled_from([1.0, 2.0, 0.5])),
        "exhausted": draw(st.sampled_from(["repeat", "stop"])),
        "window_tokens": draw(st.sampled_from([1, 30, 100, 333, 10_000])),
        "stages": tuple(parts),
    }
    return MixtureConfig.model_validate(values | given)


def take(mixture: Mixture, count: int, state=None) -> list:
    return [(pairs(window), behind) for window, behind in itertools.islice(mixture.windows(state), count)]


def pairs(window) -> list[tuple[int, int, int]]:
    """(source, document, pass) of each document of a window."""
    assert all(column.dtype == np.int64 for column in window)
    return list(zip(*(column.tolist() for column in window), strict=True))


def flat(windows: list) -> list[tuple[int, int, int]]:
    return [document for window, _ in windows for document in window]


@settings(max_examples=25, deadline=None)
@given(data=st.data(), corpus=corpora(), seed=st.integers(0, 3), stop=st.integers(0, 8))
def test_resuming_at_any_window_equals_never_stopping(data, corpus, seed, stop):
    config = data.draw(configs(corpus))
    whole = take(corpus.build(config, seed), 9)
    assert all(window for window, _ in whole)
    stop = min(stop, len(whole))
    state = json.loads(json.dumps(whole[stop - 1][1])) if stop else None
    assert take(corpus.build(config, seed), 9 - stop, state) == whole[stop:]


@settings(max_examples=25, deadline=None)
@given(data=st.data(), corpus=corpora(), seed=st.integers(0, 3))
def test_each_source_comes_in_its_own_order_and_is_counted(data, corpus, seed):
    """Nothing is lost or doubled: what a source gave is the beginning of its passes, in their order."""
    config = data.draw(configs(corpus))
    windows = take(corpus.build(config, seed), 12)
    for end in range(1, len(windows) + 1):
        given_so_far, state = flat(windows[:end]), windows[end - 1][1]
        for source, extent in enumerate(corpus.extents):
            documents = [(document, epoch) for number, document, epoch in given_so_far if number == source]
            positions = np.arange(len(documents))
            expected = documents_at(source_seed(seed, source), extent.num_documents, positions)
            assert documents == list(zip(*(column.tolist() for column in expected), strict=True))
            assert state["documents"][source] == len(documents)
            assert state["tokens"][source] == sum(corpus.sources[source][document] for document, _ in documents)
            assert config.exhausted == "repeat" or len(documents) <= extent.num_documents


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


class TestShares:
    def test_temperature_flattens_and_sharpens(self):
        weights = [Fraction(1), Fraction(4), Fraction(0)]
        assert shares_of(weights, 1.0) == (Fraction(1, 5), Fraction(4, 5), 0)
        assert shares_of(weights, 2.0) == (Fraction(1, 3), Fraction(2, 3), 0)
        assert shares_of(weights, 0.5) == (Fraction(1, 17), Fraction(16, 17), 0)
        assert np.allclose([float(share) for share in shares_of(weights, 1e9)], [0.5, 0.5, 0])
        assert shares_of(weights, 1e-3)[1] == 1

    def test_decimals_are_exact(self):
        assert shares_of([exact(0.1), exact(0.2)], 1.0) == (Fraction(1, 3), Fraction(2, 3))
        corpus = Corpus([1] * 10, weights=[0.1])
        mixture = corpus.build(MixtureConfig())
        assert [len(window) for window, _ in take(mixture, 10)] == [1] * 10
        assert [state["epoch"] for _, state in take(mixture, 3)] == [1, 2, 3]

    def test_by_epochs_temperature_counts_sizes_and_keeps_the_length_of_an_epoch(self):
        extents = [Extent("large", 1.0, 900, 9000), Extent("small", 1.0, 10, 1000), Extent("none", 0.0, 0, 0)]
        passes = passes_of(extents, [exact(extent.weight) for extent in extents], 2.0)
        assert [float(each) for each in passes] == pytest.approx([10_000 * 0.75 / 9000, 2.5, 0])
        assert passes_of(extents, [Fraction(2), Fraction(1, 3), Fraction(0)], 1.0) == [2, Fraction(1, 3), 0]


@settings(max_examples=20, deadline=None)
@given(data=st.data(), corpus=corpora())
def test_the_flow_says_what_the_windows_give(data, corpus):
    """To about a document for each source and stage; totals worked out without planning."""
    config = data.draw(configs(corpus, exhausted=data.draw(st.sampled_from(["repeat", "stop"])), window_tokens=30))
    mixture = corpus.build(config)
    windows = take(mixture, 60)
    total = sum(windows[-1][1]["tokens"])
    if config.exhausted == "stop" and not take(mixture, 1, windows[-1][1]):
        assert abs(mixture.num_tokens() - total) <= 40 * (1 + len(mixture.stages) * len(corpus.extents))
    if config.by == "tokens":
        flow = [float(tokens) for tokens in mixture._flow(total)]
        bound = 40 * (1 + len(mixture.stages) * len(corpus.extents))
        assert np.abs(np.subtract(flow, windows[-1][1]["tokens"])).max() <= bound


def test_description_gives_shares_and_passes():
    corpus = Corpus([10] * 1000, [20] * 100, [500], weights=[1.0, 3.0, 0.0])
    by_tokens = MixtureConfig(by="tokens")
    assert corpus.build(by_tokens, total_tokens=20_000).describe() == [
        "stories: 1,000 documents, 10k tokens, 25.0 % of the mixture, 0.50 passes",
        "code: 100 documents, 2k tokens, 75.0 % of the mixture, 7.50 passes",
        "news: 1 documents, 500 tokens, 0.0 % of the mixture, 0.00 passes",
    ]
    assert corpus.build(by_tokens, total_tokens=None).describe()[1].endswith("75.0 % of the mixture")
    assert "37.5 % of the mixture, 3.00 passes" in corpus.build(MixtureConfig(), total_tokens=16_000).describe()[1]
    by_documents = MixtureConfig(by="documents", temperature=1e12)
    assert "66.7 % of the mixture" in corpus.build(by_documents).describe()[1]
    stopping = corpus.build(by_tokens.model_copy(update={"exhausted": "stop"}), total_tokens=20_000)
    assert stopping.describe()[1] == "code: 100 documents, 2k tokens, 16.7 % of the mixture, 1.00 passes"


EPOCH_ORDER = [(0, 1, 0), (0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 3, 0), (0, 2, 0), (1, 2, 0), (1, 2, 1)]
SHARE_ORDER = [(1, 0, 0), (0, 1, 0), (1, 1, 0), (0, 0, 0), (1, 2, 0), (1, 2, 1), (0, 3, 0)]


def test_the_order_is_the_same_for_ever():
    corpus = Corpus([10, 20, 30, 40, 50], [15, 25, 35], weights=[1.0, 2.0])
    assert flat(take(corpus.build(MixtureConfig(window_tokens=100), seed=42), 2)) == EPOCH_ORDER
    assert flat(take(corpus.build(MixtureConfig(by="tokens", window_tokens=150), seed=42), 1)) == SHARE_ORDER


def stages_of(*stages: dict) -> dict:
    return {"by": "tokens", "stages": stages}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"by": "words"}, "by"),
        ({"temperature": 0}, "temperature"),
        ({"window_tokens": 0}, "window_tokens"),
        ({"stages": [{"weights": {"code": 1}}]}, "stages need shares: set by: tokens or by: documents"),
        (stages_of({"weights": {"code": 1}}, {"weights": {"code": 1}}), "stages.0.tokens: only the last stage may go"),
        (stages_of({"weights": {}}), "at least 1 item"),
        (stages_of({"weights": {"code": 0}}), "expected a weight above 0"),
        (stages_of({"weights": {"code": -1}}), "expected weights of 0 or more, got -1.0 for 'code'"),
        (stages_of({"weights": {"code": float("nan")}}), "weights"),
        (stages_of({"weights": {"code": 1}, "tokens": 5}), "got '5 steps'"),
        (stages_of({"weights": {"code": 1}, "tokens": "2 epochs"}), "got '2 epochs'"),
        (stages_of({"weights": {"code": 1}, "tokens": "0 tokens"}), "got '0 tokens'"),
    ],
)
def test_bad_sections_are_refused(values, words):
    with pytest.raises(ValidationError) as error:
        MixtureConfig.model_validate(values)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("values", "error", "words"),
    [
        (
            stages_of({"weights": {"storys": 1}}),
            ConfigError,
            r"data.mixture.stages\[0\].weights: there is no source 'storys' \(did you mean 'stories'\?\); "
            "the sources are 'stories', 'code'",
        ),
        (stages_of({"weights": {"code": 1}, "tokens": "30 %"}), ConfigError, "the length of the run is not known"),
        (stages_of({"weights": {"stories": 1, "code": 1}}), DataError, "'code' has a weight, but no document"),
        ({"by": "tokens"}, DataError, "source 'code' has a weight, but no document"),
    ],
)
def test_what_does_not_fit_the_sources_is_named(values, error, words):
    corpus = Corpus([5, 5], [])
    with pytest.raises(error, match=words):
        corpus.build(MixtureConfig.model_validate(values), total_tokens=None)


def test_a_source_without_documents_is_fine_where_it_has_no_weight():
    config = MixtureConfig.model_validate(stages_of({"weights": {"stories": 1}}) | {"window_tokens": 20})
    assert len(take(Corpus([5, 5], []).build(config), 3)) == 3
    for by in ("epochs", "tokens", "documents"):
        config = MixtureConfig(by=by, window_tokens=20)
        assert len(take(Corpus([5, 5], [], weights=[1.0, 0.0]).build(config), 3)) == 3


def test_other_wrong_sources():
    with pytest.raises(ConfigError, match="no source has a weight above 0"):
        Corpus([5], weights=[0.0]).build(MixtureConfig())
    twins = [Extent("a", 1.0, 1, 5), Extent("a", 1.0, 1, 5)]
    staged = MixtureConfig.model_validate(stages_of({"weights": {"a": 1}}))
    with pytest.raises(ConfigError, match="two sources are called 'a'"):
        staged.build(twins, lambda source, documents: documents, 0, Budget(1, None))


@pytest.mark.parametrize("change", [{"by": "tokens"}, {"window": 9}, {"tokens": [0]}, {"by": None}, {"other": 1}])
def test_the_state_of_another_mixture_is_refused(change):
    mixture = Corpus([5] * 9, [5] * 9).build(MixtureConfig(window_tokens=20))
    state = take(mixture, 2)[-1][1]
    with pytest.raises(CheckpointError, match=r"data\.mixture: the run"):
        next(iter(mixture.windows(state | change)))
    assert isinstance(CheckpointError("x"), UserError)
