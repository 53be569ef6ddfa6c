"""Filters on length and symbols: documents on both sides of each limit, a word-by-word oracle, filters of one's own."""

import pickle
import tracemalloc
from typing import Annotated

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.config import build_section
from data import FILTERS
from data.filters import (
    FilterConfig,
    LengthFilterConfig,
    SymbolFilterConfig,
    count_lines,
    count_present,
    count_words,
)
from data.pieces import PIECE
from tests.toy_filters import ShoutingFilterConfig
from utils.errors import ConfigError
from utils.registry import import_object
from utils.schema import OneOf, Section

ANY = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)
WORDY = st.lists(
    st.sampled_from(
        ["the", "The", "and", "a1", "42", "#", "...", "\u2026", "-", "- x", "* y", "\n", "caf\u00e9", "\u4e2d\u6587"]
    )
).map(" ".join)
LENGTH_OFF = dict.fromkeys(("min_characters", "max_characters", "min_words", "max_words"))
SYMBOLS_OFF = dict.fromkeys(name for name in SymbolFilterConfig.model_fields if name not in ("type", "stop_words"))


class Chain(Section):
    """Filters as a config holds them."""

    filters: tuple[Annotated[FilterConfig, OneOf("data:FILTERS", "filter")], ...] = ()
    """In order."""


@pytest.mark.parametrize(
    ("limits", "kept", "dropped", "reason"),
    [
        ({"min_characters": 3}, "a c", "a ", "too_few_characters"),
        ({"max_characters": 3}, "a c", "a cd", "too_many_characters"),
        ({"min_words": 3}, "a b\nc", "abcdef g", "too_few_words"),
        ({"max_words": 3}, "a b\nc", "a b c d", "too_many_words"),
        ({"min_words": 1}, "a", " \n ", "too_few_words"),
    ],
)
def test_length_on_both_sides_of_each_limit(limits, kept, dropped, reason):
    config = LengthFilterConfig.model_validate({**LENGTH_OFF, **limits})
    assert config.reason(kept) is None
    assert config.reason(dropped) == reason
    assert LengthFilterConfig.model_validate(LENGTH_OFF).reason(dropped) is None


def test_length_has_the_limits_of_the_paper():
    config = LengthFilterConfig()
    assert config.reason("word " * 49) == "too_few_words"
    assert config.reason("word " * 50) is None
    assert config.reason("word " * 100_000) is None
    assert config.reason("word " * 100_001) == "too_many_words"


@pytest.mark.parametrize(
    ("field", "kept", "dropped", "reason"),
    [
        ("max_hashes_per_word", "word " * 9 + "#", "word " * 9 + "##", "many_hashes"),
        ("max_ellipses_per_word", "word " * 9 + "w...", "word " * 8 + "w... w\u2026", "many_ellipses"),
        ("max_digit_fraction", "abc 1", "ab 1", "many_digits"),
        ("max_digit_fraction", "abcdef 09", "abcde 09", "many_digits"),
        ("min_alphabetic_word_fraction", "a b1 c 4x 5", "a b1 c 4 5", "few_alphabetic_words"),
        ("min_mean_word_length", "ab cdef", "ab cde", "short_words"),
        ("max_mean_word_length", "a" * 9 + " " + "b" * 11, "a" * 9 + " " + "b" * 12, "long_words"),
        ("max_ellipsis_line_fraction", "a\n" * 7 + "\nb...\n" * 3, "a\n" * 6 + "b\u2026 \n" * 3, "many_ellipsis_lines"),
        ("max_bullet_line_fraction", "-a\n" + " - b\n\n" * 9, "\u2022b\n* c\n+ d\n" + "- a\n" * 9, "many_bullet_lines"),
        ("min_stop_words", "The cat and", "the the cat The", "few_stop_words"),
    ],
)
def test_symbols_on_both_sides_of_each_limit_of_the_paper(field, kept, dropped, reason):
    config = SymbolFilterConfig.model_validate({name: None for name in SYMBOLS_OFF if name != field})
    assert config.reason(kept) is None
    assert config.reason(dropped) == reason
    assert SymbolFilterConfig.model_validate(SYMBOLS_OFF).reason(dropped) is None


def test_prose_is_kept_and_a_page_of_numbers_is_not():
    prose = "The wind had dropped, and with it the noise of the sea; she could hear that someone was there.\n" * 3
    assert SymbolFilterConfig().reason(prose) is None
    assert SymbolFilterConfig().reason("12.5 33.1 7.25\n" * 9) == "many_digits"
    assert SymbolFilterConfig().reason("") == "few_alphabetic_words"


@settings(max_examples=100, deadline=None)
@given(text=WORDY | ANY)
def test_counts_as_a_word_by_word_count_has_them(text):
    words = text.split()
    # A letter, or a sign such as a fraction that is a number but no decimal digit.
    letters = [word for word in words if any(mark.isalnum() and not mark.isdecimal() for mark in word)]
    assert count_words(text) == (len(words), len("".join(words)), len(letters))
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    ends = [line for line in lines if line[-3:] == "..." or line[-1] == "\u2026"]
    bullets = [line for line in lines if line[0] in "\u2022\u25cf" or line[:2] in ("- ", "* ", "+ ")]
    assert count_lines(text)[:2] == (len(lines), len(ends))
    assert count_lines(text)[2] >= len(bullets)
    wanted = frozenset({"the", "and", "42"})
    assert count_present(text, wanted) == sum(any(word.lower() == stop for word in words) for stop in wanted)


def test_a_long_document_is_counted_whole_in_the_memory_of_a_piece():
    text = "the number 12 and more ...\n" * (PIECE // 16)
    num_lines = text.count("\n")
    tracemalloc.start()
    try:
        assert LengthFilterConfig(max_words=6 * num_lines).reason(text) is None
        assert LengthFilterConfig(max_words=6 * num_lines - 1).reason(text) == "too_many_words"
        assert count_words(text) == (6 * num_lines, 21 * num_lines, 4 * num_lines)
        assert count_lines(text) == (num_lines, num_lines, 0)
        assert count_present(f"first {text} last", frozenset({"first", "the", "last", "lost"})) == 3
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 32 * PIECE


@settings(max_examples=50, deadline=None)
@given(text=ANY)
@pytest.mark.parametrize("name", FILTERS)
def test_no_text_breaks_a_filter_and_the_answer_survives_pickling(name, text):
    config = import_object(FILTERS[name])()
    reason = config.reason(text)
    assert reason is None or reason.replace("_", "").isalnum()
    assert pickle.loads(pickle.dumps(config)).reason(text) == reason


@pytest.mark.parametrize("text", ["", "x", "\0", "\0" * 1000, "\n" * 1000, " " * 1000, "x" * (PIECE + 1), "\U0001f600"])
@pytest.mark.parametrize("name", FILTERS)
def test_odd_documents_are_judged_without_an_error(name, text):
    reason = import_object(FILTERS[name])().reason(text)
    assert reason is None or isinstance(reason, str)


def test_a_filter_of_ones_own_comes_by_import_path():
    values = [{"type": "length"}, {"type": "tests.toy_filters:ShoutingFilterConfig", "max_exclamations": 1}]
    chain = build_section(Chain, {"filters": values})
    own = chain.filters[1]
    assert type(own) is ShoutingFilterConfig
    assert (own.reason("No!"), own.reason("No! No!")) == (None, "shouting")
    assert own.find_problems() == []
    assert pickle.loads(pickle.dumps(own)) == own


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"type": "lenght"}, "unknown filter 'lenght' .did you mean 'length'"),
        ({"type": "length", "min_words": 10, "max_words": 9}, "min_words.*is 10, above max_words 9"),
        ({"type": "length", "min_words": -1}, "min_words"),
        ({"type": "symbols", "max_digit_fraction": 1.5}, "max_digit_fraction"),
        ({"type": "symbols", "stop_words": ["der", "die"], "min_stop_words": 3}, "only 2 stop_words"),
        ({"type": "symbols", "stop_words": ["The"]}, "'The' is not one word in lower case"),
        ({"type": "repetition", "duplicate_lines": "some"}, "duplicate_lines"),
    ],
)
def test_limits_that_make_no_sense_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        build_section(Chain, {"filters": [values]})
