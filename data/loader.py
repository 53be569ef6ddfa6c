"""The loader: global rows in an order that depends on seed and row number only, one thread ahead of the consumer.

A run is a sequence of global rows 0, 1, 2, ...; `num_rows` of them are an epoch, and the row after the last one of an
epoch is the first of the next. A batch is a range of global rows and a rank's batch is a slice of that range, so the
position is one number, resuming is a division, and ranks cannot disagree. The thread fills NumPy arrays while the
accelerator computes. To change what a row holds, see `data/packing.py`; to change the order, `data/order.py`.
"""

import queue
import threading
from collections.abc import Generator, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np

from data.batch import Batch
from data.order import PIECE_STREAM, ROW_STREAM, VALIDATION_KEY_STREAM, permutation, row_keys
from data.packing import assign, cut, pack, packed_fraction
from data.shards import Documents, Shards
from data.tokenizer import Tokenizer
from utils.errors import ConfigError

Value = TypeVar("Value")
POLL_SECONDS = 0.1


class PackedRows:
    """The rows of one split. `seed` None: always in the same order (validation)."""

    def __init__(self, documents: Documents, row_length: int, seed: int | None) -> None:
        self.tokens, self.row_length, self.seed = documents.tokens, row_length, seed
        chosen = np.repeat(np.arange(len(documents.copies)), documents.copies)
        lengths = np.diff(documents.offsets)[chosen] - 1
        self.pieces = cut(lengths, row_length)
        self.first_tokens = documents.offsets[chosen][self.pieces.documents] + self.pieces.starts
        self.layout = pack(self.pieces.lengths, row_length)
        self.num_rows = len(self.layout.row_starts) - 1
        self.num_pairs = int(lengths.sum())
        self._epochs: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def order_of(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The pieces from longest to shortest and the order of the rows in this epoch; the last two are kept."""
        found = self._epochs.get(epoch)
        if found is None:
            num_pieces = len(self.pieces.lengths)
            if self.seed is None:
                ties, rows = np.arange(num_pieces), np.arange(self.num_rows)
            else:
                ties = permutation(num_pieces, self.seed, PIECE_STREAM, epoch)
                rows = permutation(self.num_rows, self.seed, ROW_STREAM, epoch)
            found = assign(self.pieces.lengths, ties), rows
            self._epochs = {key: value for key, value in self._epochs.items() if key == epoch - 1} | {epoch: found}
        return found

    def batch(self, first: int, count: int) -> Batch:
        """Global rows `first` to `first + count`. Shapes: see `Batch`."""
        shape = (count, self.row_length)
        tokens, targets, segments = (np.zeros(shape, np.int32) for _ in range(3))
        for index in range(count):
            self._fill(first + index, tokens[index], targets[index], segments[index])
        numbers = np.arange(first, first + count)
        keys = row_keys(numbers, 0, VALIDATION_KEY_STREAM) if self.seed is None else row_keys(numbers, self.seed)
        return Batch(tokens, targets, (segments > 0).astype(np.float32), segments, keys)

    def _fill(self, row: int, tokens: np.ndarray, targets: np.ndarray, segments: np.ndarray) -> None:
        epoch, within = divmod(row, self.num_rows)
        pieces, rows = self.order_of(epoch)
        start, stop = self.layout.row_starts[rows[within] : rows[within] + 2]
        position = 0
        for segment, piece in enumerate(pieces[self.layout.ranks[start:stop]], start=1):
            length, first = self.pieces.lengths[piece], self.first_tokens[piece]
            end = position + length
            tokens[position:end] = self.tokens[first : first + length]
            targets[position:end] = self.tokens[first + 1 : first + length + 1]
            segments[position:end] = segment
            position = end


class Dataset:
    """Training and validation rows of one corpus, ready to be read."""

    def __init__(self, shards: Shards, tokenizer: Tokenizer, sequence_length: int, seed: int) -> None:
        self.tokenizer = tokenizer
        self.sequence_length = sequence_length
        self._shards = shards
        self._train = PackedRows(shards.train, sequence_length, seed)
        self._validation = PackedRows(shards.validation, sequence_length, None)
        self.rows_per_epoch = self._train.num_rows
        """Rows of an epoch, the same for every epoch."""
        self.num_train_tokens = self._train.num_pairs
        """(input, target) pairs of an epoch."""
        self.num_validation_documents = len(shards.validation.copies)
        self.validation_bytes = len(shards.validation_text)
        """UTF-8 bytes of the held-out text."""

    @property
    def fingerprint(self) -> str:
        """Equal on two machines when the training rows of every epoch and the held-out text are."""
        files = self._shards.manifest["files"]
        return "-".join([*(files[name]["crc32"] for name in sorted(files)), str(self.sequence_length)])

    def validation_text(self) -> bytes:
        """The held-out text, its documents one behind the other, UTF-8."""
        return self._shards.validation_text

    def summary(self) -> dict[str, Any]:
        """Numbers for the plan."""
        manifest, rows = self._shards.manifest, self._train
        return {
            "train_documents": manifest["train_documents"],
            "train_bytes": manifest["train_bytes"],
            "train_tokens": self.num_train_tokens,
            "bytes_per_token": manifest["train_bytes"]
            / max(1, manifest["train_tokens"] - 2 * manifest["train_documents"]),
            "rows_per_epoch": self.rows_per_epoch,
            "packed_fraction": packed_fraction(rows.num_pairs, rows.num_rows, self.sequence_length),
            "validation_documents": self.num_validation_documents,
            "validation_bytes": self.validation_bytes,
            "validation_tokens": self._validation.num_pairs,
            "vocab_size": self.tokenizer.vocab_size,
        }

    def batches(
        self,
        batch_size: int,
        *,
        start_row: int = 0,
        rank: int = 0,
        world_size: int = 1,
        micro_batch_size: int | None = None,
    ) -> Generator[tuple[Batch, dict[str, int]], None, None]:
        """Endless batches of `batch_size` global rows, of which this rank gets its `batch_size / world_size`.

        Each comes with the state behind it, `{"row": next global row, "epoch": its epoch}`; `start_row=state["row"]`
        goes on there. Raises ConfigError when the batch cannot be divided. Closing the iterator ends its thread.
        """
        check_divides(batch_size, world_size, micro_batch_size)
        return prefetch(self._batches(batch_size, start_row, rank, batch_size // world_size))

    def _batches(self, batch_size: int, row: int, rank: int, share: int) -> Iterator[tuple[Batch, dict[str, int]]]:
        while True:
            batch = self._train.batch(row + rank * share, share)
            row += batch_size
            yield batch, {"row": row, "epoch": row // self.rows_per_epoch}

    def validation_batches(self, batch_size: int) -> Iterator[Batch]:
        """All validation rows, always the same ones in the same order; the last batch is filled up with weight 0."""
        for first in range(0, self._validation.num_rows, batch_size):
            count = min(batch_size, self._validation.num_rows - first)
            batch = self._validation.batch(first, count)
            yield Batch(*(pad_rows(array, batch_size) for array in batch))


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


def pad_rows(array: np.ndarray, num_rows: int) -> np.ndarray:
    """Zero rows behind `array` up to `num_rows`."""
    return np.concatenate([array, np.zeros((num_rows - len(array), *array.shape[1:]), array.dtype)])


def prefetch(values: Iterable[Value], depth: int = 2) -> Generator[Value, None, None]:
    """The same values, computed up to `depth` ahead in a thread, which starts with the first `next`.

    An error in the thread is raised here, in place of the value. Closing or dropping the iterator ends the thread.
    """
    ready: queue.Queue[tuple[str, Any]] = queue.Queue(depth)
    stop = threading.Event()
    thread = threading.Thread(target=_fill_queue, args=(values, ready, stop), name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "error":
                raise value
            if kind == "end":
                return
            yield value
    finally:
        stop.set()
        thread.join()


def _fill_queue(values: Iterable[Any], ready: queue.Queue, stop: threading.Event) -> None:
    try:
        for value in values:
            if not _put(ready, ("value", value), stop):
                return
        _put(ready, ("end", None), stop)
    except Exception as error:
        _put(ready, ("error", error), stop)


def _put(ready: queue.Queue, item: tuple[str, Any], stop: threading.Event) -> bool:
    """Wait for room; False when the consumer has gone meanwhile."""
    while not stop.is_set():
        try:
            ready.put(item, timeout=POLL_SECONDS)
            return True
        except queue.Full:
            continue
    return False
