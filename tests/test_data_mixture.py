"""What holds for every mixture: resuming anywhere, nothing lost or doubled, totals, and what is refused."""

import json
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from data.mixture import Budget, Extent, MixtureConfig, passes_of
from data.shuffle import documents_at, source_seed
from data.stages import exact, shares_of
from tests.mixture_corpora import Corpus, configs, corpora, flat, stages_of, take
from utils.errors import CheckpointError, ConfigError, DataError


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
    stopping = corpus.build(by_tokens.model_copy(update={"exhausted": "stop"}), total_tokens=2000)
    assert stopping.describe()[1] == "code: 100 documents, 2k tokens, 75.0 % of the mixture, 0.75 passes"


EPOCH_ORDER = [(0, 1, 0), (0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 3, 0), (0, 2, 0), (1, 2, 0), (1, 2, 1)]
SHARE_ORDER = [(1, 0, 0), (0, 1, 0), (1, 1, 0), (0, 0, 0), (1, 2, 0), (1, 2, 1), (0, 3, 0)]


def test_the_order_is_the_same_for_ever():
    corpus = Corpus([10, 20, 30, 40, 50], [15, 25, 35], weights=[1.0, 2.0])
    assert flat(take(corpus.build(MixtureConfig(window_tokens=100), seed=42), 2)) == EPOCH_ORDER
    assert flat(take(corpus.build(MixtureConfig(by="tokens", window_tokens=150), seed=42), 1)) == SHARE_ORDER


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
