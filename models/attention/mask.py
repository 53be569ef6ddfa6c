"""`Mask`: which key a query may see, as a description instead of an array.

A description lets a backend recognise the cases that have a fused kernel ("causal", no mask) and build an array only
for the rest. Packed documents and left-padded prompts are both `segments`: a query sees the keys of its own segment.
Padding is segment 0, which sees itself: no row of the softmax is ever empty, so padding gives no NaN.
To add a kind of mask: extend `kind` and `Mask.array`; the backends need no change.
"""

from typing import Literal, NamedTuple

import mlx.core as mx


class Mask(NamedTuple):
    """Query i may see key j when every part given here allows it. Positions count from the first key."""

    kind: Literal["causal", "bidirectional"] = "causal"
    """causal: j <= i. bidirectional: any j."""
    window: int | None = None
    """Only keys nearer than `window` positions: |i - j| < window."""
    segments: mx.array | None = None
    """[B, L] int: only keys of the query's own segment; 0 is padding."""
    key_segments: mx.array | None = None
    """[B, S] int: the keys' segments when there are more keys than queries (a cache); None: `segments`."""

    def named(self, num_queries: int, num_keys: int) -> Literal["causal", "none", "array"]:
        """What a fused kernel needs: no mask at all, the name "causal", or an array."""
        if self.segments is not None:
            return "array"
        if self.window is not None and self.window < num_keys:
            return "array"
        return "causal" if self.kind == "causal" and num_queries > 1 else "none"

    def array(self, num_queries: int, num_keys: int, offset: int | None = None) -> mx.array | None:
        """True where attention is allowed: [L, S], or [B, 1, L, S] with segments; None when all of it is.

        `offset` is the position of the first query; by default the queries are the last of the keys.
        """
        i_L1 = mx.arange(num_queries)[:, None] + (num_keys - num_queries if offset is None else offset)
        j_1S = mx.arange(num_keys)[None, :]
        allowed = None
        if self.kind == "causal" and num_queries > 1:
            allowed = j_1S <= i_L1
        if self.window is not None and self.window < num_keys:
            near = mx.abs(i_L1 - j_1S) < self.window
            allowed = near if allowed is None else allowed & near
        if self.segments is not None:
            same = self._same_segment(num_queries, num_keys)
            allowed = same if allowed is None else allowed & same
        return allowed

    def _same_segment(self, num_queries: int, num_keys: int) -> mx.array:
        assert self.segments is not None
        keys = self.segments if self.key_segments is None else self.key_segments
        assert self.segments.shape[1] == num_queries, (self.segments.shape, num_queries)
        assert keys.shape[1] == num_keys, (keys.shape, num_keys)
        return self.segments[:, None, :, None] == keys[:, None, None, :]
