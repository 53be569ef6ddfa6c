"""The order of a source's documents, pass after pass, at any position, without a table that grows with the corpus.

Two levels, so that what is read together lies together on disk. Chunks of 64 documents that follow each other change
places by a Feistel network on two digits, keyed with seed and pass and walked along its cycles until it hits a chunk
that exists (Black and Rogaway, 2002: a bijection of any number of chunks). Then each group of 4,096 places is sorted
by a hash of the position. A source of at most 4,096 documents is one group, shuffled totally. To change how far the
shuffle reaches, edit the two sizes; either changes every order.
"""

import math

import numpy as np

from data.order import CHUNK_STREAM, GROUP_STREAM, SOURCE_STREAM, TAIL_STREAM, hash_words

CHUNK_DOCUMENTS = 64
GROUP_DOCUMENTS = 64 * CHUNK_DOCUMENTS
NUM_ROUNDS = 6


def source_seed(seed: int, source: int) -> int:
    """The seed of source number `source`, below 2**64."""
    return int(hash_words(seed, SOURCE_STREAM, np.array([source]))[0])


def documents_at(seed: int, num_documents: int, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The documents at `positions` (int64 [P], 0 or more, running on over passes) and the pass of each, int64 [P].

    Every pass holds each of `num_documents` (1 or more) exactly once. Work: the positions, and the groups they lie in.
    """
    epochs, places = np.divmod(positions.astype(np.int64), num_documents)
    places = _shuffle_groups(seed, num_documents, epochs, places)
    if num_documents <= GROUP_DOCUMENTS:
        return places, epochs
    return _documents_of(seed, num_documents, epochs, places), epochs


def _shuffle_groups(seed: int, num_documents: int, epochs: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Each place, moved inside its group."""
    groups_per_epoch = -(-num_documents // GROUP_DOCUMENTS)
    groups, rows = np.unique(epochs * groups_per_epoch + places // GROUP_DOCUMENTS, return_inverse=True)
    group_epochs, first = np.divmod(groups, groups_per_epoch)
    first *= GROUP_DOCUMENTS
    entries = np.arange(min(GROUP_DOCUMENTS, num_documents))
    inside = first[:, None] + entries
    keys = hash_words(seed, GROUP_STREAM, group_epochs[:, None] * num_documents + inside)
    keys[inside >= num_documents] = ~np.uint64(0)  # behind the last document: sorted to the end, never looked at
    order = np.argsort(keys, axis=1)  # no two are equal: the hash is a bijection of the position
    return first[rows] + order[rows, places - first[rows]]


def _documents_of(seed: int, num_documents: int, epochs: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The documents at `places`, chunk by chunk; the short chunk at the end of the source stands between any two."""
    num_chunks, num_rest = divmod(num_documents, CHUNK_DOCUMENTS)
    words = hash_words(seed, TAIL_STREAM, epochs)
    rest_first = (words % np.uint64(num_chunks + 1)).astype(np.int64) * CHUNK_DOCUMENTS
    in_rest = (places >= rest_first) & (places < rest_first + num_rest)
    without = np.maximum(np.where(places < rest_first, places, places - num_rest), 0)
    slots, offsets = np.divmod(without, CHUNK_DOCUMENTS)
    chunks = _chunks_at(slots, num_chunks, seed, epochs)
    return np.where(in_rest, num_chunks * CHUNK_DOCUMENTS + places - rest_first, chunks * CHUNK_DOCUMENTS + offsets)


def _chunks_at(slots: np.ndarray, num_chunks: int, seed: int, epochs: np.ndarray) -> np.ndarray:
    """The chunk in each slot of its pass; each is worked out once, for its documents come together."""
    distinct, inverse = np.unique(epochs * num_chunks + slots, return_inverse=True)
    return permute(distinct % num_chunks, num_chunks, seed, distinct // num_chunks)[inverse]


def permute(values: np.ndarray, count: int, seed: int, epochs: np.ndarray) -> np.ndarray:
    """`values` (int64 [P], below `count`) under the bijection of range(count) that belongs to seed and epoch."""
    num_high = math.isqrt(count)
    num_low = -(-count // num_high)
    result, todo = values.copy(), np.arange(len(values))
    while len(todo):
        result[todo] = _feistel(result[todo], num_high, num_low, seed, epochs[todo])
        todo = todo[result[todo] >= count]
    return result


def _feistel(values: np.ndarray, num_high: int, num_low: int, seed: int, epochs: np.ndarray) -> np.ndarray:
    """A bijection of range(num_high * num_low): in turn each of two digits is moved on by a hash of the other."""
    sizes = num_high, num_low
    digits = list(np.divmod(values, num_low))
    for number in range(NUM_ROUNDS):
        side = number % 2
        words = hash_words(seed, CHUNK_STREAM, ((epochs * NUM_ROUNDS + number) << 32) + digits[1 - side])
        digits[side] = (digits[side] + (words % np.uint64(sizes[side])).astype(np.int64)) % sizes[side]
    return digits[0] * num_low + digits[1]
