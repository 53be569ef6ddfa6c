"""What a run trains on, in numbers: the documents of a store, the pieces of a batch, the mixture along the run.

Documents are passed over once, shard by shard, and what is kept does not grow with the corpus: a count for each length
that occurs (T tokens have at most sqrt(2 T) different ones) and 64-bit hashes of token sequences. Beyond `MOST_HASHES`
documents, only hashes that begin with a zero bit are kept, then with two, and so on: all copies of a text stay or go
together, so the share of copies is estimated without bias. What is said about it is in `data/inspection_report.py`.
"""

import hashlib
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from data.batch import Batch
from data.fill_in_the_middle import NUM_SENTINELS
from data.loader import Dataset
from data.row_stream import State
from data.rows import PieceInfo
from data.shard_file import Shard
from data.store import StoredDocuments

MOST_HASHES = 4_000_000
NUM_SHOWN = 5
NUM_POINTS = 64
MOST_PLANNED_TOKENS = 1_000_000_000
"""Rows of so many positions are planned to see the mixture: some seconds."""


class Lengths(NamedTuple):
    """How many documents have each length, in stored tokens."""

    values: np.ndarray
    """int64 [K], rising."""
    counts: np.ndarray
    """int64 [K], 1 or more."""

    def plus(self, lengths: np.ndarray) -> "Lengths":
        """With these documents, int64 [n], added."""
        values, places = np.unique(np.concatenate([self.values, lengths]), return_inverse=True)
        counts = np.concatenate([self.counts, np.ones(len(lengths), np.int64)])
        return Lengths(values, np.bincount(places, counts, len(values)).astype(np.int64))

    def at(self, share: float) -> int:
        """The smallest length that this share of the documents does not exceed; 0 when there are none."""
        if not len(self.values):
            return 0
        ends = np.cumsum(self.counts)
        return int(self.values[np.searchsorted(ends, share * ends[-1])])


NO_LENGTHS = Lengths(np.zeros(0, np.int64), np.zeros(0, np.int64))


class Found(NamedTuple):
    """A stored document, and where it was found."""

    source: int
    document: int
    """Its number among the stored documents of the source."""
    ordinal: int
    """Its number in the source as it was read, from 0."""
    length: int
    """Stored tokens."""


class Copies(NamedTuple):
    """Documents whose tokens are exactly those of an earlier one."""

    num_documents: int
    """Documents looked at: all, or a fair sample of the texts."""
    sampled: float
    """Share of all texts that were looked at: 1, 1/2, 1/4, ..."""
    by_source: list[int]
    """Copies in each source; the first of its kind is no copy."""
    num_across: int
    """Texts that are in more than one source."""
    most: list[tuple[int, list[Found]]]
    """The most frequent texts: how often, and the first few places."""


class Survey(NamedTuple):
    """The documents of one split."""

    lengths: list[Lengths]
    """Of each source."""
    longest: list[Found]
    copies: Copies


def survey(stored: StoredDocuments, most_hashes: int = MOST_HASHES) -> Survey:
    """Pass over all documents once. Raises DataError when a file is damaged."""
    lengths = [NO_LENGTHS] * len(stored.num_documents)
    longest: list[tuple[int, int, int]] = []
    firsts, hashes = [0] * len(lengths), HashSample(most_hashes)
    for number, facts in enumerate(stored.shards):
        source, count = facts["source"], facts["documents"]
        documents = firsts[source] + np.arange(count)
        each = stored.lengths(source, documents)
        top = np.argsort(-each, kind="stable")[:NUM_SHOWN]
        longest = sorted([*longest, *((-int(each[p]), source, int(documents[p])) for p in top)])[:NUM_SHOWN]
        lengths[source] = lengths[source].plus(each)
        hashes.add(hash_documents(stored.shard(number)))
        firsts[source] += count
    found = [find(stored, source, document) for _, source, document in longest]
    return Survey(lengths, found, count_copies(hashes, stored))


def find(stored: StoredDocuments, source: int, document: int) -> Found:
    """A document with its ordinal and length."""
    chosen = np.array([document])
    return Found(source, document, int(stored.ordinals(source, chosen)[0]), int(stored.lengths(source, chosen)[0]))


def hash_documents(shard: Shard) -> np.ndarray:
    """[D] uint64: a hash of each document's tokens (BLAKE2b): two different ones collide once in 2^64 pairs."""
    content, edges = memoryview(shard.tokens.tobytes()), shard.offsets * shard.tokens.itemsize
    digests = [hashlib.blake2b(content[a:b], digest_size=8).digest() for a, b in pairwise(edges.tolist())]
    return np.frombuffer(b"".join(digests), np.uint64)


class HashSample:
    """At most so many hashes of documents, with the document's place: its number over all sources."""

    def __init__(self, most: int) -> None:
        self.most, self.num_bits, self._seen = most, 0, 0
        self.hashes, self.places = np.zeros(0, np.uint64), np.zeros(0, np.int64)

    def add(self, hashes: np.ndarray) -> None:
        """The next documents, uint64 [n]; where there are too many, twice as few texts are looked at."""
        self.hashes = np.concatenate([self.hashes, hashes])
        self.places = np.concatenate([self.places, self._seen + np.arange(len(hashes))])
        self._seen += len(hashes)
        self._keep()
        while len(self.hashes) > self.most:
            self.num_bits += 1
            self._keep()

    def _keep(self) -> None:
        chosen = self.hashes <= np.uint64((1 << (64 - self.num_bits)) - 1)
        self.hashes, self.places = self.hashes[chosen], self.places[chosen]


def count_copies(sample: HashSample, stored: StoredDocuments) -> Copies:
    """Group equal hashes; within a group documents stand in the order of the store."""
    order = np.argsort(sample.hashes, kind="stable")
    hashes, places = sample.hashes[order], sample.places[order]
    ends = np.cumsum([0, *stored.num_documents])
    sources = np.searchsorted(ends, places, side="right") - 1
    is_first = np.concatenate([[True], hashes[1:] != hashes[:-1]])[: len(hashes)]
    starts = np.flatnonzero(is_first)
    sizes = np.diff(np.append(starts, len(hashes)))
    most = []
    for group in np.argsort(-sizes, kind="stable")[:NUM_SHOWN]:
        chosen = slice(starts[group], starts[group] + min(int(sizes[group]), NUM_SHOWN))
        if sizes[group] > 1:
            pairs = zip(sources[chosen].tolist(), (places - ends[sources])[chosen].tolist(), strict=True)
            most.append((int(sizes[group]), [find(stored, source, document) for source, document in pairs]))
    return Copies(
        num_documents=len(hashes),
        sampled=0.5**sample.num_bits,
        by_source=np.bincount(sources[~is_first], minlength=len(stored.num_documents)).tolist(),
        num_across=int((sources[starts] != sources[starts + sizes - 1]).sum()),
        most=most,
    )


class Inspected(NamedTuple):
    """One batch with the origin of everything in it."""

    batch: Batch
    pieces: list[list[PieceInfo]]
    """Of each row, from left to right; none for a row of padding."""
    before: State
    """The position before the batch."""
    after: State

    def places(self, row: int) -> list[tuple[int, int]]:
        """Where each piece of a row begins and ends."""
        sizes = [piece.length + NUM_SENTINELS * piece.transformed for piece in self.pieces[row]]
        edges = [0, *np.cumsum(sizes).tolist()]
        expected = np.repeat(np.arange(1, len(sizes) + 1), sizes)
        assert np.array_equal(self.batch.segments[row, : edges[-1]], expected), "pieces are not those of the batch"
        return list(pairwise(edges))

    def sources(self) -> np.ndarray:
        """[B, L] int64: the source of each position; -1 where there is padding."""
        sources = np.full(self.batch.segments.shape, -1)
        for row, pieces in enumerate(self.pieces):
            for piece, (begin, end) in zip(pieces, self.places(row), strict=True):
                sources[row, begin:end] = piece.source
        return sources

    def counted(self, num_sources: int) -> list[int]:
        """Positions of each source that the loss counts."""
        sources = self.sources()
        return np.bincount(sources[(sources >= 0) & (self.batch.weights > 0)], minlength=num_sources).tolist()


def inspect_batch(dataset: Dataset, batch_size: int, number: int, near: State | None = None) -> Inspected:
    """Batch `number`, counted from 0, found from the position `near` on.

    Raises DataError when the sources end before.
    """
    before = dataset.state_at(number * batch_size, near)
    pieces = dataset.describe_rows(before, batch_size)
    batches = dataset.batches(batch_size, start=before)
    batch, after = next(batches)
    batches.close()
    return Inspected(batch, pieces + [[]] * (batch_size - len(pieces)), before, after)


class Course(NamedTuple):
    """The share of each source [P, S] in P parts of the run, which begin and end at `edges` [P + 1], in updates.

    A row is not a number where every source has stopped.
    """

    edges: np.ndarray
    shares: np.ndarray

    def within(self, edges: np.ndarray) -> np.ndarray:
        """The same in other parts, inside of these [N + 1]: shares [N, S]."""
        filled = np.nan_to_num(self.shares) * np.diff(self.edges)[:, None]
        sums = np.concatenate([np.zeros((1, filled.shape[1])), np.cumsum(filled, axis=0)])
        return shares_of(np.diff([np.interp(edges, self.edges, column) for column in sums.T], axis=1).T)


def follow(
    dataset: Dataset, num_steps: int, batch_size: int, most_tokens: int = MOST_PLANNED_TOKENS
) -> tuple[Course, Course]:
    """What the config asks of the run, and what its rows hold, by planning them.

    The second has the beginning only when the run is longer than `most_tokens`, or than the sources.
    """
    num_planned = min(num_steps, max(1, most_tokens // (batch_size * dataset.sequence_length)))
    edges = edges_of(num_planned)
    sizes = (np.diff(edges) * batch_size).tolist()
    given = [[0] * len(dataset.source_names), *(state["tokens"] for state in dataset.states(sizes))]
    observed = Course(edges[: len(given)], shares_of(np.diff(given, axis=0)))
    pace = stored_tokens(dataset, given[-1]) / max(1, observed.edges[-1])
    edges, mixture = edges_of(num_steps), dataset.mixture()
    expected = [mixture.expected(round(pace * edge)) for edge in edges.tolist()]
    return Course(edges, shares_of(np.diff(expected, axis=0))), observed


def asked_of(dataset: Dataset, inspected: Inspected) -> list[float]:
    """The share of each source that the config asks for where the batch lies."""
    begin, end = (round(stored_tokens(dataset, state["tokens"])) for state in (inspected.before, inspected.after))
    mixture = dataset.mixture()
    expected = [mixture.expected(begin), mixture.expected(max(end, begin + 1))]
    return shares_of(np.diff(expected, axis=0))[0].tolist()


def edges_of(num_steps: int) -> np.ndarray:
    """At most NUM_POINTS parts of so many updates, as equal as can be."""
    return np.unique(np.linspace(0, num_steps, NUM_POINTS + 1).round().astype(np.int64))


def shares_of(tokens: np.ndarray) -> np.ndarray:
    """Each row divided by its sum; not a number where that is 0."""
    sums = tokens.sum(axis=1, keepdims=True)
    return np.divide(tokens, sums, out=np.full(tokens.shape, np.nan), where=sums > 0)


def stored_tokens(dataset: Dataset, pairs: Sequence[int]) -> float:
    """The tokens that a mixture counts when so many pairs of each source are in rows: one more for each document."""
    stored = dataset.store.train
    columns = zip(pairs, stored.num_tokens, stored.num_documents, strict=True)
    return sum(count * tokens / max(1, tokens - documents) for count, tokens, documents in columns)
