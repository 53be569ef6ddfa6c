"""Many texts to token ids, on all cores and in little memory.

The tokenizers package runs one text on one core, keeps about 30 bytes for each character of a result and 120 more for
the texts it is working on, and its ids become Python numbers one by one. So long texts are cut into parts (where
nothing changes by it), parts go to the package in groups of about a million characters, and two groups are in its
hands at a time: while the ids of one are converted here, no core of the other waits. To trade memory for fewer
calls, edit the two sizes.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain

import numpy as np
import tokenizers

PART_CHARACTERS = 50_000
GROUP_CHARACTERS = 1_000_000
GROUPS_AT_ONCE = 2


def encode_in_groups(
    backend: tokenizers.Tokenizer, texts: Iterable[str], group_size: int = GROUP_CHARACTERS
) -> Iterator[list[list[int]]]:
    """The ids of each text, no special ones among them, group by group and in order."""
    groups = list(group_texts(texts, group_size))
    if len(groups) < 2:
        yield from ([encoding.ids for encoding in encode(backend, group)] for group in groups)
        return
    waiting: deque[Future[list[tokenizers.Encoding]]] = deque()
    with ThreadPoolExecutor(GROUPS_AT_ONCE, thread_name_prefix="encode") as pool:
        for group in groups:
            waiting.append(pool.submit(encode, backend, group))
            if len(waiting) > GROUPS_AT_ONCE:
                yield [encoding.ids for encoding in waiting.popleft().result()]
        while waiting:
            yield [encoding.ids for encoding in waiting.popleft().result()]


def encode(backend: tokenizers.Tokenizer, texts: list[str]) -> list[tokenizers.Encoding]:
    """All texts at once, on all cores."""
    return backend.encode_batch_fast(texts, add_special_tokens=False)


def group_texts(texts: Iterable[str], group_size: int) -> Iterator[list[str]]:
    """Lists of texts of about `group_size` characters together, none empty."""
    group: list[str] = []
    size = 0
    for text in texts:
        group.append(text)
        size += len(text)
        if size >= group_size:
            yield group
            group, size = [], 0
    if group:
        yield group


def join_groups(groups: Iterable[list[list[int]]], dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """All ids, one behind the other, [T] `dtype`, and how many each text has, int64 [P]."""
    arrays, counts = [np.zeros(0, dtype)], [np.zeros(0, np.int64)]
    for group in groups:
        counts.append(np.array([len(ids) for ids in group], np.int64))
        arrays.append(np.fromiter(chain.from_iterable(group), dtype, int(counts[-1].sum())))
    return np.concatenate(arrays), np.concatenate(counts)


def surround(ids: np.ndarray, counts: np.ndarray, bos_id: int, eos_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Put bos before and eos behind each document.

    `ids` [T] of all documents and `counts` int64 [D] become tokens [T + 2 D] of the same dtype and offsets int64
    [D + 1]: the first token of each document, and the end of the last.
    """
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts + 2)])
    tokens = np.empty(offsets[-1], ids.dtype)
    is_text = np.ones(len(tokens), bool)
    for places, token in ((offsets[:-1], bos_id), (offsets[1:] - 1, eos_id)):
        tokens[places] = token
        is_text[places] = False
    tokens[is_text] = ids
    return tokens, offsets
