"""The loader: batches of global rows whose order depends on the seed and the position only.

A batch is a range of the global rows of `data/row_stream.py`; a rank's batch is a slice of that range, and threads fill
batches ahead of the consumer. So neither ranks nor threads can change what comes when, and resuming plans one window.
To change what a row holds, see `data/packing.py`; which documents come when, `data/mixture.py`.
"""

import functools
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data.batch import Batch
from data.cache import fingerprint
from data.epoch_size import EpochSize, measure_epoch, remembered
from data.fill_in_the_middle import NUM_SENTINELS, FillInTheMiddleConfig, sentinels_of
from data.mixture import Budget, Extent, Mixture, MixtureConfig
from data.order import VALIDATION_KEY_STREAM, row_keys
from data.packing import PackingConfig, packed_fraction
from data.prefetch import prefetch
from data.row_stream import Part, RowStream, State, documents_in_order, fill_batch, part_of
from data.rows import PieceInfo, RowSettings
from data.store import Store
from data.tokenizer import Tokenizer
from utils.errors import ConfigError, DataError

ROWS_AT_ONCE = 4096
VALIDATION_WINDOW_TOKENS = 4_000_000


class Dataset:
    """Training and validation rows of one corpus, ready to be read."""

    def __init__(
        self,
        store: Store,
        tokenizer: Tokenizer,
        *,
        sequence_length: int,
        seed: int,
        mixture: MixtureConfig,
        packing: PackingConfig,
        fill_in_the_middle: FillInTheMiddleConfig | None = None,
        workers: int = 1,
        weights: list[float],
        names: list[str],
        plan_cache: Path | None = None,
    ) -> None:
        """`weights` and `names` of the sources; `plan_cache`: a JSON file that remembers how large an epoch is.

        Raises ConfigError for settings that do not fit each other, DataError when filling in the middle is asked of a
        tokenizer without its special tokens.
        """
        sentinels = None
        if fill_in_the_middle:
            refuse_unfillable(packing, sequence_length)
            sentinels = sentinels_of(tokenizer)
        self.store, self.tokenizer, self.sequence_length, self.seed = store, tokenizer, sequence_length, seed
        self.source_names = names
        self._mixture_config, self._weights, self._workers, self._plan_cache = mixture, weights, workers, plan_cache
        self._settings = RowSettings(sequence_length, packing, seed, fill_in_the_middle, sentinels)
        self._budget = Budget(0, None)
        self.num_validation_documents = sum(store.validation.num_documents)
        self.validation_bytes: int = store.manifest["validation_text"]["bytes"]
        """UTF-8 bytes of the held-out text."""

    @functools.cached_property
    def fingerprint(self) -> str:
        """Equal on two machines when the training rows of equal seeds and the held-out text are."""
        shards = [facts["crc32"] for split in (self.store.train, self.store.validation) for facts in split.shards]
        fim = self._settings.fill_in_the_middle
        settings = [section.model_dump(mode="json") for section in (self._mixture_config, self._settings.packing)]
        parts = [shards, self.store.manifest["validation_text"]["crc32"], settings, fim and fim.model_dump(mode="json")]
        # Names are paths, which differ between machines; only stages look sources up by them.
        names = self.source_names if self._mixture_config.stages else None
        return fingerprint([*parts, self._weights, names, self.sequence_length])

    @property
    def rows_per_epoch(self) -> int:
        """Rows of the first epoch of the mixture (without stages); those of others differ by little."""
        return self._epoch.num_rows

    @property
    def num_train_tokens(self) -> int:
        """(input, target) pairs of the first epoch of the mixture."""
        return self._epoch.num_pairs

    @functools.cached_property
    def _epoch(self) -> EpochSize:
        if not sum(self.store.train.num_documents):
            return EpochSize(0, 0)
        plain = self._mixture_config.model_copy(update={"stages": ()})
        key = f"{self.fingerprint}-{self.seed}"
        return remembered(
            self._plan_cache, key, lambda: measure_epoch(self._stream(plain), sum(self.store.train.num_tokens))
        )

    def set_budget(self, budget: Budget) -> None:
        """What stages of the mixture refer to; to be called before `batches` where there are any in such units."""
        self._budget = budget

    def mixture(self) -> Mixture:
        """What decides which documents come. Raises UserError when it does not fit the sources or the run."""
        return self._mixture(self._mixture_config)

    def _mixture(self, config: MixtureConfig) -> Mixture:
        stored = self.store.train
        # A source of which all was held out or dropped has nothing to give; the others share.
        weights = [weight if count else 0.0 for weight, count in zip(self._weights, stored.num_documents, strict=True)]
        columns = (self.source_names, weights, stored.num_documents, stored.num_tokens)
        extents = [Extent(*values) for values in zip(*columns, strict=True)]
        return config.build(extents, stored.lengths, self.seed, self._budget)

    def _stream(self, config: MixtureConfig | None = None) -> RowStream:
        if not sum(self.store.train.num_documents):
            raise DataError("there is no training document; check data.sources")
        mixture = self._mixture(config or self._mixture_config)
        return RowStream(mixture.windows, self.store.train, self._settings)

    def batches(
        self,
        batch_size: int,
        *,
        start: State | None = None,
        rank: int = 0,
        world_size: int = 1,
        micro_batch_size: int | None = None,
    ) -> Generator[tuple[Batch, State], None, None]:
        """Batches of `batch_size` global rows, of which this rank gets its `batch_size / world_size`.

        Each comes with the state behind it (`data.row_stream.State`); `start=state` goes on there. Endless, unless all
        sources stop: then the last batch is filled up with weight 0, and a further one raises DataError. Raises
        ConfigError when the batch cannot be divided. Closing the iterator ends its threads.
        """
        check_divides(batch_size, world_size, micro_batch_size)
        jobs = self._jobs(self._stream(), batch_size, start, rank, batch_size // world_size)
        return prefetch(jobs, self._workers)

    def _jobs(
        self, stream: RowStream, batch_size: int, state: State | None, rank: int, share: int
    ) -> Iterator[Callable[[], tuple[Batch, State]]]:
        for take in stream.takes(itertools.repeat(batch_size), state, load=True):
            parts = part_of(take.parts, rank * share, share)
            numbers = np.arange(share) + take.first_row + rank * share
            yield functools.partial(self._fill, parts, row_keys(numbers, self.seed), take.state)
            state = take.state
        num_rows = state["row"] if state else 0
        raise DataError(
            f"all sources are used up after {num_rows} rows ({num_rows // batch_size} batches): set "
            "data.mixture.exhausted to repeat, or shorten training.duration"
        )

    def _fill(self, parts: list[Part], keys: np.ndarray, state: State) -> tuple[Batch, State]:
        return fill_batch(parts, keys, self.sequence_length), state

    def state_at(self, row: int, near: State | None = None) -> State:
        """The position before the global row `row`, found from `near` (None: the start) on, reading lengths only.

        Raises DataError when the sources end before.
        """
        stream = self._stream()
        state = near or stream.start()
        assert state["row"] <= row
        whole, rest = divmod(row - state["row"], ROWS_AT_ONCE)
        missing = row - state["row"]
        for take in stream.takes([ROWS_AT_ONCE] * whole + [rest] * (rest > 0), state):
            state, missing = take.state, missing - take.num_rows
        if missing:
            raise DataError(f"the sources are used up before row {row}")
        return state

    def states(self, sizes: Iterable[int], near: State | None = None) -> Iterator[State]:
        """The positions behind the next rows, `sizes` at a time, from `near` (None: the start) on.

        Reads lengths only. Ends where the sources do; the last position then counts the rows that are missing as given.
        """
        return (take.state for take in self._stream().takes(sizes, near))

    def describe_rows(self, state: State | None, count: int) -> list[list[PieceInfo]]:
        """For each of the next `count` rows behind `state`, where its pieces come from; fewer where sources end."""
        takes = self._stream().takes([count], state)
        stored, parts = self.store.train, [part for take in takes for part in take.parts]
        return [part.rows.describe(row, stored) for part in parts for row in range(part.first, part.stop)]

    def validation_batches(self, batch_size: int) -> Iterator[Batch]:
        """All validation rows, always the same ones in the same order; the last batch is filled up with weight 0."""
        stored = self.store.validation
        settings = RowSettings(self.sequence_length, self._settings.packing, None)
        stream = RowStream(documents_in_order(stored, VALIDATION_WINDOW_TOKENS), stored, settings)
        for take in stream.takes(itertools.repeat(batch_size), load=True):
            numbers = np.arange(take.first_row, take.first_row + batch_size)
            yield fill_batch(take.parts, row_keys(numbers, 0, VALIDATION_KEY_STREAM), self.sequence_length)

    def validation_text(self) -> bytes:
        """The held-out text, its documents one behind the other, UTF-8. Raises DataError when it is damaged."""
        return self.store.validation_text()

    def summary(self) -> dict[str, Any]:
        """Numbers for the plan."""
        train, validation = self.store.train, self.store.validation
        num_documents, num_bytes = sum(train.num_documents), sum(self.store.text_bytes("train"))
        columns = (self.source_names, train.num_documents, train.num_tokens)
        return {
            "train_documents": num_documents,
            "train_bytes": num_bytes,
            "train_tokens": self.num_train_tokens,
            "bytes_per_token": num_bytes / max(1, sum(train.num_tokens) - 2 * num_documents),
            "rows_per_epoch": self.rows_per_epoch,
            "packed_fraction": packed_fraction(self.num_train_tokens, self.rows_per_epoch, self.sequence_length),
            "validation_documents": self.num_validation_documents,
            "validation_bytes": self.validation_bytes,
            "validation_tokens": sum(validation.num_tokens) - self.num_validation_documents,
            "vocab_size": self.tokenizer.vocab_size,
            "mixture": self.mixture().describe() if len(self.source_names) > 1 and num_documents else [],
            "sources": [
                {"name": name, "documents": documents, "tokens": tokens}
                for name, documents, tokens in zip(*columns, strict=True)
            ],
        }


def check_divides(batch_size: int, world_size: int, micro_batch_size: int | None) -> None:
    """Raises ConfigError, naming the nearest sizes that do, when the batch does not divide."""
    unit = world_size * (micro_batch_size or 1)
    if batch_size % unit:
        below = batch_size // unit * unit
        near = f"{below} or {below + unit}" if below else f"{unit}"
        raise ConfigError(
            f"training.batch_size {batch_size} does not divide into {world_size} ranks of "
            f"{micro_batch_size or 1} sequences at once; {near} would"
        )


def refuse_unfillable(packing: PackingConfig, sequence_length: int) -> None:
    """Raises ConfigError where pieces could not be told with a middle to fill in."""
    if packing.method == "concat":
        raise ConfigError(
            "data.packing.method concat cuts where a row ends, where data.fill_in_the_middle has no room for its three "
            "tokens; use best_fit or padded"
        )
    if sequence_length <= NUM_SENTINELS:
        raise ConfigError(
            f"data.sequence_length {sequence_length} leaves no room beside the three tokens of data.fill_in_the_middle"
        )
