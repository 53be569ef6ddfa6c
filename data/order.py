"""Random order without a generator to carry along: every number is a hash of (seed, stream, index).

A counter-based hash (SplitMix64's finaliser, applied twice) instead of `numpy.random`: the value at any position
costs nothing to reach, so resuming needs only the position, and the order is ours for ever, whereas NumPy may change
its streams between releases. To draw something new from the seed, give it a stream number here.
"""

import numpy as np

ROW_STREAM = 1
PIECE_STREAM = 2
KEY_STREAM = 3
VALIDATION_KEY_STREAM = 4
SOURCE_STREAM = 5
CHUNK_STREAM = 6
TAIL_STREAM = 7
GROUP_STREAM = 8
WINDOW_STREAM = 9
FIM_STREAM = 10
FIM_BEGIN_STREAM = 11
FIM_END_STREAM = 12

GOLDEN = 0x9E3779B97F4A7C15
WORD = (1 << 64) - 1


def _mix(words: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): a bijection of uint64 that spreads every bit."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def hash_words(seed: int, stream: int, index: np.ndarray) -> np.ndarray:
    """One uint64 for each entry of the integer array `index`; equal arguments give equal words, always."""
    start = np.array([seed & WORD], dtype=np.uint64)
    key = _mix(_mix(start + np.uint64(GOLDEN)) + np.uint64(stream * GOLDEN & WORD))
    return _mix(_mix(index.astype(np.uint64) * np.uint64(GOLDEN) + key) + key)


def permutation(count: int, seed: int, stream: int, epoch: int) -> np.ndarray:
    """A permutation of range(count) as int64, a function of its arguments only."""
    epoch_seed = int(hash_words(seed, stream, np.array([epoch]))[0])
    return np.argsort(hash_words(epoch_seed, stream, np.arange(count)), kind="stable")


def row_keys(rows: np.ndarray, seed: int, stream: int = KEY_STREAM) -> np.ndarray:
    """[R, 2] uint32: the random key of each global row number in `rows`."""
    words = hash_words(seed, stream, rows)
    return np.stack([words >> np.uint64(32), words & np.uint64(0xFFFFFFFF)], axis=1).astype(np.uint32)
