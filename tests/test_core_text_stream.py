"""Streaming text against decoding everything at once, for every byte sequence and every cut into tokens."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.text_stream import Detokenizer, TextStream, find_stop

MANY = settings(max_examples=200, deadline=None)
TEXT = st.text(alphabet="ab\u00e9\u20ac\U0001f600 ", max_size=12)


def decode_chunks(chunks: list[bytes]):
    """A decoder whose token `i` is `chunks[i]`."""
    return lambda tokens: b"".join(chunks[token] for token in tokens).decode("utf-8", errors="replace")


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    chunks = []
    for size in sizes:
        chunks.append(data[:size])
        data = data[size:]
    return [chunk for chunk in [*chunks, data] if chunk]


def first_completed(text: str, stop: list[str]) -> str:
    """What precedes the stop string that is complete first, tried character by character."""
    for end in range(len(text) + 1):
        starts = [end - len(word) for word in stop if text[:end].endswith(word)]
        if starts:
            return text[: min(starts)]
    return text


@MANY
@given(st.lists(st.one_of(TEXT.map(str.encode), st.binary(max_size=5)), max_size=6), st.lists(st.integers(1, 5)))
def test_pieces_join_to_the_whole_text(parts: list[bytes], sizes: list[int]) -> None:
    data = b"".join(parts)
    chunks = cut(data, sizes)
    detokenizer = Detokenizer(decode_chunks(chunks))
    pieces = [detokenizer.push(token) for token in range(len(chunks))]
    assert "".join(pieces) + detokenizer.finish() == data.decode("utf-8", errors="replace")


@MANY
@given(TEXT, st.lists(st.integers(1, 3)))
def test_valid_text_never_shows_a_broken_character(text: str, sizes: list[int]) -> None:
    chunks = cut(text.encode(), sizes)
    detokenizer = Detokenizer(decode_chunks(chunks))
    assert "\ufffd" not in "".join(detokenizer.push(token) for token in range(len(chunks)))
    assert detokenizer.finish() == ""


def test_a_character_comes_with_its_last_byte() -> None:
    chunks = [bytes([byte]) for byte in "a\U0001f600b".encode()]
    detokenizer = Detokenizer(decode_chunks(chunks))
    assert [detokenizer.push(token) for token in range(6)] == ["a", "", "", "", "\U0001f600", "b"]


def test_a_decoder_that_strips_the_first_space_keeps_the_others() -> None:
    words = [" one", " two", " three", " four"]
    detokenizer = Detokenizer(lambda tokens: "".join(words[token] for token in tokens).removeprefix(" "))
    assert [detokenizer.push(token) for token in range(4)] == ["one", " two", " three", " four"]


def test_decoding_a_step_costs_the_same_at_any_length() -> None:
    lengths: list[int] = []

    def decode(tokens: list[int]) -> str:
        lengths.append(len(tokens))
        return "x" * len(tokens)

    detokenizer = Detokenizer(decode)
    for _ in range(200):
        detokenizer.push(0)
    assert max(lengths) <= 4


@MANY
@given(
    st.text(alphabet="ab\u20ac", max_size=14),
    st.lists(st.integers(1, 4)),
    st.lists(st.text(alphabet="ab\u20ac", min_size=1, max_size=4), max_size=3),
)
def test_nothing_from_the_first_stop_string_on_is_shown(text: str, sizes: list[int], stop: list[str]) -> None:
    chunks = cut(text.encode(), sizes)
    stream = TextStream(decode_chunks(chunks), stop)
    shown = ""
    for token in range(len(chunks)):
        shown += stream.push(token)
        assert first_completed(text, stop).startswith(shown)
    shown += stream.finish()
    assert shown == first_completed(text, stop)
    assert stream.stopped == any(word in text for word in stop)


def test_text_is_held_only_while_it_may_become_a_stop_string() -> None:
    pieces = [b"one", b"\n", b"\n", b"two", b"\n", b"#", b"end"]
    stream = TextStream(decode_chunks(pieces), ["\n#"])
    assert [stream.push(token) for token in range(4)] == ["one", "", "\n", "\ntwo"]
    assert [stream.push(token) for token in range(4, 7)] == ["", "", ""]
    assert stream.stopped
    assert stream.finish() == ""


@pytest.mark.parametrize(
    ("text", "stop", "start"),
    [("abc", ["c", "bc"], 1), ("abc", ["d"], None), ("abcb", ["cb", "b"], 1), ("abc", [], None)],
)
def test_the_first_complete_stop_string_counts(text: str, stop: list[str], start: int | None) -> None:
    assert find_stop(text, stop) == start
