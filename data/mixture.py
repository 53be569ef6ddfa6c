"""Which documents come next: sources mixed by their weights, window by window, a function of seed and position only.

By epochs, every window of a mixture epoch takes the same part of every source, by a division. By tokens or documents
it is fair queueing (as packets of several senders share a line): a document is due when its source's share of all that
was given reaches the document's middle, and documents come in the order in which they are due. So no source is ever
more than half a document from its share, whatever the lengths, and a source that stops leaves its part to the others.
To add a way of mixing: a subclass of `Mixture` and its branch in `MixtureConfig.build`.
"""

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from data.order import WINDOW_STREAM, hash_words
from data.shuffle import documents_at, source_seed
from data.stages import Budget, Stage, StageConfig, exact, resolve, rounded, shares_of
from utils.errors import CheckpointError, ConfigError, DataError
from utils.schema import Misfits, Section

State = dict[str, Any]
Lengths = Callable[[int, np.ndarray], np.ndarray]
"""lengths(source, documents int64 [n]) -> int64 [n], the stored tokens of each, 1 or more."""


class Extent(NamedTuple):
    """How much a source holds for training."""

    name: str
    weight: float
    num_documents: int
    num_tokens: int
    """Stored tokens of all its documents."""


class Window(NamedTuple):
    """The documents that are shuffled and packed together, int64 [D] each."""

    sources: np.ndarray
    """Number of the source."""
    documents: np.ndarray
    """Number of the document in its source."""
    epochs: np.ndarray
    """How often the source had been passed through before."""


class MixtureConfig(Section):
    """How much of each source is trained on, and when."""

    by: Literal["epochs", "documents", "tokens"] = "epochs"
    """What a source's weight means: how often its documents come in an epoch, or its share of the documents or of the
    tokens."""
    temperature: float = Field(default=1.0, gt=0)
    """Flattens shares to share^(1/temperature): 1 leaves them, large values make sources equal. By epochs the shares
    are those of weight times size, so sources are flattened by their size, and an epoch keeps its length."""
    exhausted: Literal["repeat", "stop"] = "repeat"
    """A source that has given each of its documents once begins again, or gives no more; after all, the run ends."""
    stages: tuple[StageConfig, ...] = ()
    """Weights that change during the run (by documents or tokens), in place of the weights of the sources. If they
    hold fewer tokens than the run, the last one goes on."""
    window_tokens: int = Field(default=2_000_000, gt=0)
    """Tokens that are shuffled and packed together, about."""

    @model_validator(mode="after")
    def _stages_fit(self) -> "MixtureConfig":
        if self.stages and self.by == "epochs":
            reason = "stages need shares: set by: tokens or by: documents (by: epochs counts whole passes)"
            raise Misfits(("stages", reason))
        early = [number for number, stage in enumerate(self.stages[:-1]) if stage.tokens is None]
        if early:
            reason = "only the last stage may go on to the end of the run; write how long this one is"
            raise Misfits(*((f"stages.{number}.tokens", reason) for number in early))
        return self

    def build(self, extents: Sequence[Extent], lengths: Lengths, seed: int, budget: Budget) -> "Mixture":
        """The mixture of the sources `extents`.

        Raises ConfigError for stages that do not fit the sources or the run, DataError for a source that has a weight
        but no documents.
        """
        weights = [exact(extent.weight) for extent in extents]
        if self.stages:
            stages = resolve(self.stages, [extent.name for extent in extents], self.temperature, budget)
        elif not any(weights):
            raise ConfigError("data.sources: no source has a weight above 0")
        elif self.by == "epochs":
            stages = [Stage(None, tuple(passes_of(extents, weights, self.temperature)))]
        else:
            stages = [Stage(None, shares_of(weights, self.temperature))]
        empty = [
            f"source '{extent.name}' has a weight, but no document to train on; remove it or check data.sources"
            for number, extent in enumerate(extents)
            if not extent.num_documents and any(stage.shares[number] for stage in stages)
        ]
        if empty:
            raise DataError(*empty)
        kind = EpochMixture if self.by == "epochs" else ShareMixture
        return kind(self, list(extents), lengths, seed, budget, stages)


def passes_of(extents: Sequence[Extent], weights: Sequence[Fraction], temperature: float) -> list[Fraction]:
    """How often an epoch of the mixture passes through each source: its weight, unless there is a temperature."""
    if temperature == 1:
        return list(weights)
    sizes = [weight * extent.num_tokens for weight, extent in zip(weights, extents, strict=True)]
    shares = shares_of(sizes, temperature)
    return [
        rounded(float(share * sum(sizes) / extent.num_tokens)) if share else Fraction(0)
        for share, extent in zip(shares, extents, strict=True)
    ]


class Mixture:
    """The windows of a run, and what they amount to."""

    def __init__(
        self,
        config: MixtureConfig,
        extents: list[Extent],
        lengths: Lengths,
        seed: int,
        budget: Budget,
        stages: list[Stage],
    ) -> None:
        self.config, self.extents, self.budget, self.stages = config, extents, budget, stages
        self.lengths, self.seed = lengths, seed
        self.stops = config.exhausted == "stop"
        self._seeds = [source_seed(seed, number) for number in range(len(extents))]
        self._used = [any(stage.shares[number] for stage in stages) for number in range(len(extents))]

    def windows(self, state: State | None = None) -> Iterator[tuple[Window, State]]:
        """The windows behind `state` (None: from the start), each with the state behind it.

        A state holds "epoch": whole epochs of the mixture that were given (by epochs) or passes of the source with
        the fewest; "tokens" and "documents": given so far, by source. A window is never empty. Ends when all sources
        have stopped. Raises CheckpointError for the state of another kind of mixture.
        """
        zeros = [0] * len(self.extents)
        start = {"by": self.config.by, "epoch": 0, "tokens": zeros, "documents": zeros} | self._start()
        state = state or start
        if state.get("by") != start["by"] or state.keys() != start.keys() or len(state["tokens"]) != len(zeros):
            raise CheckpointError(
                f"data.mixture: the run was saved mixing {len(state.get('tokens', []))} sources by {state.get('by')}, "
                f"the config has {len(zeros)} by {start['by']}; go on with the config of the run"
            )
        return self._windows(state)

    def _start(self) -> State:
        """What the state at the start holds besides the common entries."""
        raise NotImplementedError

    def _windows(self, state: State) -> Iterator[tuple[Window, State]]:
        raise NotImplementedError

    def _advance(self, state: State, window: Window, lengths: np.ndarray) -> State:
        """The state with the window's documents counted."""
        num_sources = len(self.extents)
        documents = np.bincount(window.sources, minlength=num_sources).tolist()
        tokens = _totals(window.sources, lengths, num_sources)
        return state | {
            "tokens": [before + more for before, more in zip(state["tokens"], tokens, strict=True)],
            "documents": [before + more for before, more in zip(state["documents"], documents, strict=True)],
        }


def _totals(sources: np.ndarray, lengths: np.ndarray, num_sources: int) -> list[int]:
    """Sum of `lengths` for each source, exact."""
    totals = np.zeros(num_sources, np.int64)
    np.add.at(totals, sources, lengths)
    return totals.tolist()


class EpochMixture(Mixture):
    """Weights are passes through a source in an epoch of the mixture; stages[0].shares holds them."""

    def _start(self) -> State:
        return {"window": 0}

    def _windows(self, state: State) -> Iterator[tuple[Window, State]]:
        while (epoch := self._next_epoch(state["epoch"])) is not None:
            first, counts, num_windows = self._layout(epoch)
            for number in range(state["window"], num_windows):
                window, lengths = self._window(epoch, number, first, counts, num_windows)
                last = number + 1 == num_windows
                position = {"epoch": epoch + last, "window": 0 if last else number + 1}
                state = self._advance(state, window, lengths) | position
                if len(window.sources):
                    yield window, state
            state = state | {"epoch": epoch + 1, "window": 0}

    def _given(self, source: int, epoch: int) -> int:
        """Positions of a source that the epochs before `epoch` have used up."""
        num_documents = self.extents[source].num_documents
        given = int(epoch * self.stages[0].shares[source] * num_documents)
        return min(given, num_documents) if self.stops else given

    def _next_epoch(self, epoch: int) -> int | None:
        """The first epoch from `epoch` on that holds a document; None: all sources have stopped."""
        candidates = []
        for source, (extent, passes) in enumerate(zip(self.extents, self.stages[0].shares, strict=True)):
            given = self._given(source, epoch)
            if passes and not (self.stops and given == extent.num_documents):
                candidates.append(-(-(given + 1) // (passes * extent.num_documents)) - 1)
        return min(candidates, default=None)

    def _layout(self, epoch: int) -> tuple[list[int], list[int], int]:
        """First position and number of documents of each source, and the number of windows."""
        first = [self._given(source, epoch) for source in range(len(self.extents))]
        counts = [self._given(source, epoch + 1) - begin for source, begin in enumerate(first)]
        tokens = sum(
            Fraction(count * extent.num_tokens, max(1, extent.num_documents))
            for count, extent in zip(counts, self.extents, strict=True)
        )
        return first, counts, max(1, min(sum(counts), -int(-tokens // self.config.window_tokens)))

    def _window(
        self, epoch: int, number: int, first: list[int], counts: list[int], num_windows: int
    ) -> tuple[Window, np.ndarray]:
        """The documents of one window of an epoch, and their lengths."""
        parts, lengths = [], [np.zeros(0, np.int64)]
        for source, count in enumerate(counts):
            # Shifted by a hash, or all sources with few documents would come in the last window.
            word = hash_words(self._seeds[source], WINDOW_STREAM, np.array([epoch]))[0]
            begin, end = ((count * bound + int(word) % num_windows) // num_windows for bound in (number, number + 1))
            if end > begin:
                positions = np.arange(first[source] + begin, first[source] + end)
                documents, epochs = documents_at(self._seeds[source], self.extents[source].num_documents, positions)
                parts.append(Window(np.full(len(documents), source), documents, epochs))
                lengths.append(self.lengths(source, documents))
        return _joined(parts), np.concatenate(lengths)


def _joined(parts: list[Window]) -> Window:
    none = np.zeros(0, np.int64)
    return Window(*(np.concatenate([none, *columns]) for columns in (zip(*parts, strict=True) if parts else [()] * 3)))


class Ahead(NamedTuple):
    """The next documents of one source."""

    window: Window
    lengths: np.ndarray
    due: np.ndarray
    """float64 [D], not decreasing: when each is due, in tokens (or documents) of the whole stage."""
    ends: bool
    """Whether the source has no more behind these."""


class ShareMixture(Mixture):
    """Weights are shares of the tokens or of the documents, stage by stage."""

    def _start(self) -> State:
        return {"stage": 0, "base": [0] * len(self.extents)}

    def _windows(self, state: State) -> Iterator[tuple[Window, State]]:
        unit = self.config.by
        while state["stage"] < len(self.stages):
            goal = self._goal(self.stages[state["stage"]].end, sum(state["tokens"]))
            found = self._plan(state, goal) if goal > 0 else None
            if found is None:
                state = state | {"stage": state["stage"] + 1, "base": state[unit]}
                continue
            state = self._advance(state, *found)
            state = state | {"epoch": self._passes(state["documents"])}
            yield found[0], state

    def _goal(self, end: int | None, given: int) -> int:
        """Tokens of the next window: the last one of a stage is not left with little."""
        wanted = self.config.window_tokens
        if end is None or end - given > wanted + wanted // 2:
            return wanted
        return end - given

    def _passes(self, documents: list[int]) -> int:
        """Passes of the least passed source that the mixture uses."""
        counts = zip(documents, self.extents, self._used, strict=True)
        return min(given // extent.num_documents for given, extent, used in counts if used)

    def _plan(self, state: State, goal: int) -> tuple[Window, np.ndarray] | None:
        """The next documents in the order they are due, until they hold `goal` tokens, and their lengths.

        None when every source of the stage has stopped. What is asked of each source is an estimate, enlarged until
        all that is due before the window's end is seen.
        """
        rates = self._rates(state)
        if not rates:
            return None
        factor = 1.0
        while True:
            counts = {source: int(factor * (rate * goal + 3 * (rate * goal) ** 0.5)) + 8 for source, rate in rates}
            ahead = [self._ahead(state, source, count) for source, count in counts.items()]
            window = _joined([part.window for part in ahead])
            lengths, due = (np.concatenate([part[column] for part in ahead]) for column in (1, 2))
            order = np.argsort(due, kind="stable")
            seen = min((part.due[-1] for part in ahead if not part.ends), default=np.inf)
            num_seen = int(np.searchsorted(due[order], seen))
            num_needed = int(np.searchsorted(np.cumsum(lengths[order]), goal)) + 1
            if num_needed <= num_seen or seen == np.inf:
                chosen = order[:num_needed]
                return Window(*(column[chosen] for column in window)), lengths[chosen]
            factor *= 2

    def _rates(self, state: State) -> list[tuple[int, float]]:
        """The sources that give in this stage, with the documents of each that a token of the mixture takes."""
        shares = self.stages[state["stage"]].shares
        raw: list[tuple[int, float, float]] = []
        for source, extent in enumerate(self.extents):
            if shares[source] and not (self.stops and state["documents"][source] >= extent.num_documents):
                mean = extent.num_tokens / extent.num_documents
                raw.append((source, float(shares[source]) / (mean if self.config.by == "tokens" else 1), mean))
        total = sum(weight * mean for _, weight, mean in raw)
        return [(source, weight / total) for source, weight, _ in raw]

    def _ahead(self, state: State, source: int, count: int) -> Ahead:
        """The next `count` documents of a source, or as many as it has left."""
        unit, given, num_documents = self.config.by, state["documents"][source], self.extents[source].num_documents
        count = min(count, num_documents - given) if self.stops else count
        documents, epochs = documents_at(self._seeds[source], num_documents, np.arange(given, given + count))
        lengths = np.asarray(self.lengths(source, documents), np.int64)
        twice = 2 * (lengths if unit == "tokens" else np.ones_like(lengths))
        middles = 2 * (state[unit][source] - state["base"][source]) + np.cumsum(twice) - twice // 2
        due = middles / float(self.stages[state["stage"]].shares[source])
        window = Window(np.full(len(documents), source), documents, epochs)
        return Ahead(window, lengths, due, self.stops and given + count >= num_documents)
