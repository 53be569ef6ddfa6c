"""Finds documents that came before, equal or nearly so: first come, first kept; what is dropped is compared to no more.

Equal means the same 128-bit BLAKE2b of the text. Near means a MinHash estimate above a line (`data/minhash.py`); only
pairs that share the key of one band (or the hash) are compared, through an index on disk (`data/duplicate_index.py`).
Held-out documents come first; what equals or nears one of them later is LEAKED, whatever else it is. The verdicts
depend on the order of documents alone, not on how they are cut into batches. Fingerprints are made in worker
processes, the verdicts in one. Where 32 kept documents share a band's key, later ones are not found by it: templates
make such keys, and a copy shares other bands with its original. To change what is compared, edit `Duplicates._rank`.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np

from data.cache import Report
from data.duplicate_index import BUCKET, Index
from data.minhash import NearConfig, unpack
from utils.schema import Section

KEEP, EXACT, NEAR, LEAKED = range(4)
BY_RANK = np.array([KEEP, NEAR, EXACT, LEAKED], np.uint8)
"""Which verdict wins where several are right: the last."""
RANK_NEAR, RANK_EXACT, RANK_LEAKED = 1, 2, 3
BATCH, PAIRS = 8192, 8192
"""Documents judged and pairs compared at once."""
HASH_WIDTH = 4


class Fingerprints(NamedTuple):
    """What is known of D documents: enough to judge them."""

    hashes: np.ndarray
    """uint64 [D, 2]."""
    signatures: np.ndarray
    """uint32 [D, W]: sketches of `NearConfig.sketch`; W = 0 without."""


class DeduplicationConfig(Section):
    """Which repeated documents are dropped."""

    exact: bool = True
    """Drop a document that equals an earlier one, character by character."""
    near: NearConfig | None = None
    """Drop a document that shares most of its runs of words with an earlier one; null: not looked for."""

    def fingerprint(self, texts: Sequence[str]) -> Fingerprints:
        """Of each text; runs in workers. Raises BackendError when near-duplicates are wanted without datasketch."""
        digests = (hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest() for text in texts)
        hashes = np.frombuffer(b"".join(digests), "<u8").astype(np.uint64).reshape(len(texts), 2)
        none = np.empty((len(texts), 0), np.uint32)
        return Fingerprints(hashes, none if self.near is None else self.near.sketch(texts))

    def open(self, folder: Path, report: Report) -> "Duplicates":
        """An empty index in `folder`, deleted when it is closed. OSError when it cannot be written there."""
        return Duplicates(self, folder, report)


class Duplicates:
    """The documents kept so far; a context manager."""

    def __init__(self, config: DeduplicationConfig, folder: Path, report: Report) -> None:
        self._exact, self._near, self._report = config.exact, config.near, report
        self._num_bands, width = 0, 0
        if config.near is not None:
            self._num_bands, width = config.near.plan().num_bands, config.near.num_perm // 2
            self._least_equal = config.near.least_equal()
        self._index = Index(folder, config.exact + self._num_bands, HASH_WIDTH + width)
        self._num_held_out = 0

    def __enter__(self) -> "Duplicates":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._index.num_left_out:
            self._report(
                f"near-duplicates: {self._index.num_left_out} bands were shared by more than {BUCKET} documents kept, "
                "as from a template; near-duplicates among those may have stayed"
            )
        self._index.close()

    def judge(self, fingerprints: Fingerprints, held_out: bool) -> np.ndarray:
        """uint8 [D]: KEEP, EXACT, NEAR or LEAKED for each. All held-out documents must have come before the others."""
        assert not held_out or self._num_held_out == self._index.num_rows, "held-out documents come first"
        verdicts = np.zeros(len(fingerprints.hashes), np.uint8)
        for start in range(0, len(verdicts), BATCH):
            cut = slice(start, start + BATCH)
            hashes, signatures = fingerprints.hashes[cut], fingerprints.signatures[cut]
            verdicts[cut] = BY_RANK[self._judge(hashes, signatures, held_out)]
        return verdicts

    def _judge(self, hashes: np.ndarray, signatures: np.ndarray, held_out: bool) -> np.ndarray:
        keys = signatures[:, : self._num_bands]
        if self._exact:
            keys = np.concatenate([(hashes[:, :1] >> np.uint64(32)).astype(np.uint32), keys], axis=1)
        rows = np.concatenate([hashes.view(np.uint32), signatures[:, self._num_bands :]], axis=1)
        found = self._index.find(keys)
        ranks = np.zeros(len(rows), np.uint8)
        for start in range(0, len(found.news), PAIRS):
            news, olds = found.news[start : start + PAIRS], found.rows[start : start + PAIRS]
            pair_ranks = self._rank(rows[news], self._index.read(olds))
            is_leak = (pair_ranks > 0) & (olds < self._num_held_out) & (not held_out)
            np.maximum.at(ranks, news, np.where(is_leak, RANK_LEAKED, pair_ranks).astype(np.uint8))
        is_entered = found.counts < BUCKET
        self._resolve(rows, keys, found.counts, ranks, is_entered)
        kept = ranks == 0
        self._index.add(rows[kept], keys[kept], is_entered[kept])
        if held_out:
            self._num_held_out = self._index.num_rows
        return ranks

    def _rank(self, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
        """uint8 [N]: what each row [N, W] is to the other one [N, W]."""
        ranks = np.zeros(len(rows), np.uint8)
        if self._near is not None:
            num_equal = (unpack(rows[:, HASH_WIDTH:]) == unpack(others[:, HASH_WIDTH:])).sum(axis=1)
            ranks[num_equal >= self._least_equal] = RANK_NEAR
        if self._exact:
            ranks[(rows[:, :HASH_WIDTH] == others[:, :HASH_WIDTH]).all(axis=1)] = RANK_EXACT
        return ranks

    def _resolve(
        self, rows: np.ndarray, keys: np.ndarray, counts: np.ndarray, ranks: np.ndarray, is_entered: np.ndarray
    ) -> None:
        """Judge the documents of a batch among themselves, one after the other; writes `ranks` and `is_entered`."""
        is_shared = find_shared(keys, ranks == 0)
        buckets: dict[tuple[int, int], list[int]] = {}
        for document in np.flatnonzero(is_shared.any(axis=1)).tolist():
            columns = np.flatnonzero(is_shared[document]).tolist()
            names = list(zip(columns, keys[document, columns].tolist(), strict=True))
            others = sorted({other for name in names for other in buckets.get(name, ())})
            rank = self._rank(np.broadcast_to(rows[document], (len(others), rows.shape[1])), rows[others])
            ranks[document] = rank.max(initial=0)
            if ranks[document]:
                continue
            for column, name in zip(columns, names, strict=True):
                bucket = buckets.setdefault(name, [])
                is_entered[document, column] = counts[document, column] + len(bucket) < BUCKET
                if is_entered[document, column]:
                    bucket.append(document)


def find_shared(keys: np.ndarray, is_left: np.ndarray) -> np.ndarray:
    """bool [D, C]: whether another document of those left has the same key uint32 in the same column."""
    is_shared = np.zeros(keys.shape, bool)
    for column in range(keys.shape[1]):
        _, places, numbers = np.unique(keys[is_left, column], return_inverse=True, return_counts=True)
        is_shared[is_left, column] = numbers[places] > 1
    return is_shared
