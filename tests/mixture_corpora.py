"""Corpora that are only lengths, mixtures of them, and what came of a mixture; shared by the tests of mixtures."""

import itertools

import numpy as np
from hypothesis import strategies as st

from data.mixture import Budget, Extent, Mixture, MixtureConfig, StageConfig

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


def stages_of(*stages: dict) -> dict:
    return {"by": "tokens", "stages": stages}
