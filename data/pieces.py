"""Cuts a long text into pieces of bounded size, so that work on a 100 MB line takes the memory of a piece.

A piece ends behind a line break where there is one, else behind a space, else in the middle of a word: a line or a word
longer than a piece counts as several. A text shorter than a piece, which is nearly every document, is given as it is.
To change the size of a piece, edit `PIECE`.
"""

from collections.abc import Iterator

PIECE = 1 << 20


def pieces(text: str, size: int = PIECE) -> Iterator[str]:
    """Parts of at most `size` characters that make up `text`; none when it is empty."""
    start = 0
    while len(text) - start > size:
        end = start + size
        end = text.rfind("\n", start, end) + 1 or text.rfind(" ", start, end) + 1 or end
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:] if start else text
