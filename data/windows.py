"""What every mixture has in common: sources in, windows of documents out, and what a run takes of each source.

A window is what is shuffled and packed together, a few million tokens: the only part of a corpus that training holds
in memory. Totals over a run are worked out as a flow of tokens, exactly, without planning the windows. How the next
documents are chosen is in `data/mixing.py`.
"""

from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from data.shuffle import source_seed
from data.stages import Budget, Stage
from utils.errors import CheckpointError
from utils.units import format_count

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


class Mixture:
    """The windows of a run, and what they amount to."""

    def __init__(
        self,
        by: str,
        stops: bool,
        window_tokens: int,
        extents: list[Extent],
        lengths: Lengths,
        seed: int,
        budget: Budget,
        stages: list[Stage],
    ) -> None:
        self.by, self.stops, self.window_tokens = by, stops, window_tokens
        self.extents, self.lengths, self.budget, self.stages = extents, lengths, budget, stages
        self._seeds = [source_seed(seed, number) for number in range(len(extents))]
        self._used = [any(stage.shares[number] for stage in stages) for number in range(len(extents))]

    def windows(self, state: State | None = None) -> Iterator[tuple[Window, State]]:
        """The windows behind `state` (None: from the start), each with the state behind it.

        A state holds "epoch": whole epochs of the mixture that were given (by epochs) or passes of the source with
        the fewest; "tokens" and "documents": given so far, by source. A window is never empty. Ends when all sources
        have stopped. Raises CheckpointError for the state of another kind of mixture.
        """
        zeros = [0] * len(self.extents)
        start = {"by": self.by, "epoch": 0, "tokens": zeros, "documents": zeros} | self._start()
        state = state or start
        if state.get("by") != start["by"] or state.keys() != start.keys() or len(state["tokens"]) != len(zeros):
            raise CheckpointError(
                f"data.mixture: the run was saved mixing {len(state.get('tokens', []))} sources by {state.get('by')}, "
                f"the config has {len(zeros)} by {start['by']}; go on with the config of the run"
            )
        return self._windows(state)

    def num_tokens(self) -> int | None:
        """Stored tokens there are before all sources have stopped, to about a document; None: without end."""
        return round(sum(self._flow(self._capacity()))) if self.stops else None

    def expected(self, tokens: int) -> list[float]:
        """Stored tokens of each source among the first `tokens` of the run; fewer in all where every source stops."""
        return [float(given) for given in self._flow(tokens)]

    def describe(self) -> list[str]:
        """One line for each source: what it holds, its share of the run and how often it is passed through."""
        total = self.budget.total_tokens or (self._capacity() if self.stops else None)
        given = self._flow(total or self._capacity())
        lines = []
        for extent, tokens in zip(self.extents, given, strict=True):
            line = f"{extent.name}: {extent.num_documents:,} documents, {format_count(extent.num_tokens)} tokens, "
            line += f"{float(100 * tokens / sum(given)):.1f} % of the mixture"
            lines.append(f"{line}, {float(tokens / max(1, extent.num_tokens)):.2f} passes" if total else line)
        return lines

    def _capacity(self) -> int:
        """Tokens of all sources: no less than a run whose sources stop can give."""
        return sum(extent.num_tokens for extent in self.extents)

    def _flow(self, total: int) -> list[Fraction]:
        """Tokens that each source gives in a run of `total`, as if documents could be divided."""
        given = [Fraction(0)] * len(self.extents)
        for stage in self.stages:
            end, rates = min(total, stage.end or total), self._rates_of(stage)
            while (room := end - sum(given, Fraction(0))) > 0:
                left = {s: extent.num_tokens - given[s] for s, extent in enumerate(self.extents)}
                flowing = [s for s, rate in enumerate(rates) if rate and not (self.stops and left[s] <= 0)]
                if not flowing:
                    break
                time = room / sum((rates[s] for s in flowing), Fraction(0))
                time = min([time, *(left[s] / rates[s] for s in flowing if self.stops)])
                for s in flowing:
                    given[s] += rates[s] * time
        return given

    def _rates_of(self, stage: Stage) -> list[Fraction]:
        """How fast each source gives tokens, against the others."""
        raise NotImplementedError

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
