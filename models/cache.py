"""The keys and values of the positions a model has already seen, so that one new token costs one position's work.

Storage grows in blocks of 256 positions: appending token by token to an exact array would copy the whole of it each
time. A cache belongs to one attention layer; `model.make_cache()` makes one for each.
"""

import mlx.core as mx

BLOCK = 256


class KVCache:
    """Keys and values of one layer. `offset` counts the positions held, padding included."""

    def __init__(self) -> None:
        self.keys: mx.array | None = None
        self.values: mx.array | None = None
        self.offset = 0

    def update_and_fetch(self, k_BGLK: mx.array, v_BGLK: mx.array) -> tuple[mx.array, mx.array]:
        """Append L positions; return all of them, [B, G, offset, K] each."""
        end = self.offset + k_BGLK.shape[2]
        self.keys = grown(self.keys, k_BGLK, self.offset, end)
        self.values = grown(self.values, v_BGLK, self.offset, end)
        self.keys[:, :, self.offset : end] = k_BGLK
        self.values[:, :, self.offset : end] = v_BGLK
        self.offset = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    @property
    def state(self) -> list[mx.array]:
        """The arrays to evaluate; empty before the first update."""
        return [] if self.keys is None or self.values is None else [self.keys, self.values]


def grown(stored: mx.array | None, new_BGLK: mx.array, used: int, needed: int) -> mx.array:
    """`stored`, or a copy with room for `needed` positions, rounded up to whole blocks."""
    if stored is not None and stored.shape[2] >= needed:
        return stored
    B, G, _, K = new_BGLK.shape
    size = (needed + BLOCK - 1) // BLOCK * BLOCK
    room = mx.zeros((B, G, size - used, K), dtype=new_BGLK.dtype)
    return room if stored is None else mx.concatenate([stored[:, :, :used], room], axis=2)
