"""Two ways to choose the next documents: whole passes divided evenly over an epoch, or shares kept at every document.

By epochs, every window of a mixture epoch takes the same part of every source, by a division. By tokens or documents
it is fair queueing (as a router shares a line among senders; Demers, Keshav and Shenker, 1989): a document is due when
its source's share of all that was given reaches the document's middle, and documents come in the order in which they
are due. So no source is ever more than half a document from its share of a common total, whatever the lengths, and a
source that stops leaves its part to the others. To add a way: a subclass of `Mixture`, a branch in `MixtureConfig`.
"""

from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from data.order import WINDOW_STREAM, hash_words
from data.shuffle import documents_at
from data.stages import Stage
from data.windows import Mixture, State, Window
from utils.errors import CheckpointError


class EpochMixture(Mixture):
    """Weights are passes through a source in an epoch of the mixture; stages[0].shares holds them."""

    def _start(self) -> State:
        return {"window": 0}

    def _rates_of(self, stage: Stage) -> list[Fraction]:
        return [passes * extent.num_tokens for passes, extent in zip(stage.shares, self.extents, strict=True)]

    def _windows(self, state: State) -> Iterator[tuple[Window, State]]:
        while (epoch := self._next_epoch(state["epoch"])) is not None:
            first, counts, num_windows = self._layout(epoch)
            if state["window"] >= num_windows:
                raise CheckpointError(
                    f"data.mixture: the run stands in window {state['window']} of an epoch that has {num_windows}; "
                    "the sources, their weights or data.mixture.window_tokens are not those of the run"
                )
            for number in range(state["window"], num_windows):
                window, lengths = self._window(epoch, number, first, counts, num_windows)
                last = number + 1 == num_windows
                position = {"epoch": epoch + last, "window": 0 if last else number + 1}
                state = self._advance(state, window, lengths) | position
                yield window, state

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
        # No more windows than the largest source has documents, so that none is empty.
        return first, counts, max(1, min(max(counts), -int(-tokens // self.window_tokens)))

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

    def _rates_of(self, stage: Stage) -> list[Fraction]:
        if self.by == "tokens":
            return list(stage.shares)
        return [
            share * Fraction(extent.num_tokens, max(1, extent.num_documents))
            for share, extent in zip(stage.shares, self.extents, strict=True)
        ]

    def _windows(self, state: State) -> Iterator[tuple[Window, State]]:
        unit = self.by
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
        wanted = self.window_tokens
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
                raw.append((source, float(shares[source]) / (mean if self.by == "tokens" else 1), mean))
        total = sum(weight * mean for _, weight, mean in raw)
        return [(source, weight / total) for source, weight, _ in raw]

    def _ahead(self, state: State, source: int, count: int) -> Ahead:
        """The next `count` documents of a source, or as many as it has left."""
        unit, given, num_documents = self.by, state["documents"][source], self.extents[source].num_documents
        count = min(count, num_documents - given) if self.stops else count
        documents, epochs = documents_at(self._seeds[source], num_documents, np.arange(given, given + count))
        lengths = np.asarray(self.lengths(source, documents), np.int64)
        twice = 2 * (lengths if unit == "tokens" else np.ones_like(lengths))
        middles = 2 * (state[unit][source] - state["base"][source]) + np.cumsum(twice) - twice // 2
        due = middles / float(self.stages[state["stage"]].shares[source])
        window = Window(np.full(len(documents), source), documents, epochs)
        return Ahead(window, lengths, due, self.stops and given + count >= num_documents)
