"""Layouts of blocks against every pair asked by itself, and what a mask says for its mods."""

import mlx.core as mx
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from models.attention.blocks import FULL, PARTIAL, SKIP
from models.attention.flex_mask import Shape, allowed_by, find_layout, fold, positions
from models.attention.mask import Mask
from models.attention.mods import And, FunctionMod, Mod, Or, Setting
from models.attention.named_mods import ALiBi, Causal, Document, GlobalLocal, PrefixLM, SlidingWindow, SoftCap

HERE = __name__


def by_head_and_row(b, h, q, k):
    return (q - k) % (h + 2) <= b


@st.composite
def mods(draw, depth=1):
    """A mask mod, perhaps of others."""
    number = st.integers(1, 20)
    leaves = [
        st.just(Causal()),
        st.just(Document()),
        st.just(FunctionMod(mask=f"{HERE}:by_head_and_row")),
        st.builds(SlidingWindow, window=number),
        st.builds(PrefixLM, length=number),
        st.builds(GlobalLocal, window=number, num_global=number),
    ]
    if depth:
        several = st.lists(mods(depth - 1), min_size=1, max_size=3).map(tuple)
        leaves += [st.builds(And, mods=several), st.builds(Or, mods=several)]
    return draw(st.one_of(leaves))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(mods(), max_size=3).map(tuple),
    st.sampled_from(["causal", "bidirectional"]),
    st.none() | st.integers(1, 30),
    st.integers(1, 40),
    st.integers(0, 9),
    st.sampled_from([1, 4, 7, 16]),
    st.booleans(),
)
def test_a_layout_says_what_the_pairs_say(some, kind, window, num_queries, offset, block, has_segments):
    segments = mx.ones((2, num_queries), mx.int32) if has_segments else None
    mask, rest = fold(Mask(kind, window, segments), some)
    shape = Shape(2, 3, num_queries, num_queries + offset)
    layout = find_layout(mask, rest, shape, block)
    indices = positions(shape, range(offset, shape.num_keys), range(shape.num_keys))
    pairs = np.array(allowed_by(mask._replace(segments=None), rest, Setting(3), None)(*indices))
    pairs = np.broadcast_to(pairs, (2, 3, num_queries, shape.num_keys))
    assert layout.kinds.dtype == np.int8
    for (i, j), kind_of_block in np.ndenumerate(layout.kinds):
        part = pairs[:, :, i * block : (i + 1) * block, j * block : (j + 1) * block]
        expected = FULL if part.all() and not has_segments else PARTIAL if part.any() else SKIP
        assert kind_of_block == expected, (i, j)
    assert layout.kinds.shape == (-(-num_queries // block), -(-shape.num_keys // block))


def test_a_layout_is_found_once_for_each_shape(monkeypatch):
    calls = []

    class Counting(Mod):
        """Counts."""

        type: str = "counting"
        """counting"""

        def allowed(self, b, h, q, k):
            calls.append(q.shape)
            return mx.abs(q - k) < 5

    shape, mods = Shape(2, 3, 64, 64), (Counting(),)
    first = find_layout(Mask(), mods, shape, 16)
    asked = len(calls)
    assert asked == 4
    assert all(size[-2] <= 16 for size in calls)
    assert find_layout(Mask(), (Counting(),), shape, 16) is first
    assert len(calls) == asked
    assert find_layout(Mask("bidirectional"), mods, shape, 16) is not first


def test_a_sliding_window_skips_most_blocks():
    layout = find_layout(Mask(), (SlidingWindow(window=256), GlobalLocal(window=256, num_global=1)), SHAPE, 128)
    assert layout.num_kept < 0.1 * layout.kinds.size


SHAPE = Shape(1, 8, 4096, 4096)


def test_what_a_mask_can_say_is_left_to_it():
    segments = mx.ones((1, 4), mx.int32)
    mask, rest = fold(
        Mask("bidirectional", 9, segments), (Causal(), SlidingWindow(window=5), Document(), SoftCap(cap=1))
    )
    assert (mask.kind, mask.window, rest) == ("causal", 5, (SoftCap(cap=1),))
    assert mask.segments is segments
    assert fold(Mask("causal", 3), (SlidingWindow(window=5),))[0].window == 3
    inside = Or(mods=(Document(), Causal()))
    assert fold(Mask(), (inside, ALiBi())) == (Mask(), (inside, ALiBi()))
    assert fold(Mask(), (PrefixLM(length=3),)) == (Mask("bidirectional"), (PrefixLM(length=3),))
    ahead = Or(mods=(PrefixLM(length=3), SlidingWindow(window=2)))
    assert fold(Mask(), (ahead,)) == (Mask("bidirectional"), (PrefixLM(length=3), ahead))
    assert fold(Mask("bidirectional"), (ahead,)) == (Mask("bidirectional"), (ahead,))


def test_every_query_of_a_causal_model_sees_no_target_that_is_scored():
    """Positions below num_lookahead - 1 are not scored; all others must not see what follows them."""

    @settings(max_examples=80, deadline=None)
    @given(st.lists(mods(), min_size=1, max_size=3).map(tuple))
    def check(some):
        lookahead = max(mod.lookahead for mod in some)
        if any(type(mod) is Causal for mod in some):
            lookahead = 0
        mask, rest = fold(Mask(), some)
        shape = Shape(2, 3, 30, 30)
        pairs = allowed_by(mask, rest, Setting(3), None)(*positions(shape, range(30), range(30)))
        pairs = np.any(np.broadcast_to(np.array(pairs), (2, 3, 30, 30)), axis=(0, 1), keepdims=True)[0, 0]
        for query in range(max(lookahead - 1, 0), 29):
            assert not pairs[query, query + 1 :].any()

    check()
