"""Pieces: together the whole text, none too long, cut where a reader would."""

from hypothesis import given, settings
from hypothesis import strategies as st

from data.pieces import PIECE, pieces


@settings(max_examples=200, deadline=None)
@given(text=st.text("ab \n", max_size=40), size=st.integers(1, 12))
def test_pieces_make_up_the_text_and_end_at_the_last_break_that_fits(text, size):
    parts = list(pieces(text, size))
    assert "".join(parts) == text
    assert all(0 < len(part) <= size for part in parts)
    assert not 0 < len(text) <= size or parts == [text]
    for part, rest in zip(parts, parts[1:], strict=False):
        window = (part + rest)[:size]
        mark = next((mark for mark in "\n " if mark in window), None)
        assert part == (window[: window.rindex(mark) + 1] if mark else window) or len(part + rest) < size


def test_a_text_of_one_piece_is_given_as_it_is():
    text = "x" * PIECE
    assert next(pieces(text)) is text
    assert [len(part) for part in pieces(text + "y")] == [PIECE, 1]
    assert list(pieces("")) == []
