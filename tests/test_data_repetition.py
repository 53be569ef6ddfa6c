"""Repetition: every fraction against marking words one by one, the table of the paper, and both sides of each limit."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.pieces import PIECE
from data.repetition import NAMES, RepetitionFilterConfig, measure, repetition

TABLE_A1 = {
    "duplicate_lines": 0.30,
    "duplicate_paragraphs": 0.30,
    "duplicate_line_characters": 0.20,
    "duplicate_paragraph_characters": 0.20,
    "top_2_gram": 0.20,
    "top_3_gram": 0.18,
    "top_4_gram": 0.16,
    "duplicate_5_grams": 0.15,
    "duplicate_6_grams": 0.14,
    "duplicate_7_grams": 0.13,
    "duplicate_8_grams": 0.12,
    "duplicate_9_grams": 0.11,
    "duplicate_10_grams": 0.10,
}
OFF = dict.fromkeys(TABLE_A1)
TEXTS = st.lists(st.sampled_from(["a", "bb", "ccc", "a bb", "\n", "\n\n", " \n"]), max_size=60).map(" ".join)


def final(text):
    """The fractions of the whole document."""
    return list(repetition(text))[-1]


def words_marked(words, starts, length):
    """Characters of the words that lie in a run from one of `starts`, each word once."""
    return sum(len(word) for at, word in enumerate(words) if any(start <= at < start + length for start in starts))


def expected_fractions(text):
    """By the definitions, word by word: quadratic and without NumPy."""
    found = {}
    lines = [line.strip() for line in text.split("\n")]
    paragraphs, open_one = [], []
    for line in [*lines, ""]:
        if line:
            open_one.append(line)
        elif open_one:
            paragraphs.append("\n".join(open_one))
            open_one = []
    for kind, parts in (("line", [line for line in lines if line]), ("paragraph", paragraphs)):
        repeats = [part for at, part in enumerate(parts) if part in parts[:at]]
        found[f"duplicate_{kind}s"] = len(repeats) / max(len(parts), 1)
        found[f"duplicate_{kind}_characters"] = len("".join(repeats)) / max(len("".join(parts)), 1)
    words = text.split()
    total = max(len("".join(words)), 1)
    for n in range(2, 11):
        grams = [tuple(words[at : at + n]) for at in range(len(words) - n + 1)]
        counts = Counter(grams)
        if n <= 4:
            most = max(counts.values(), default=0)
            tops = [[at for at, gram in enumerate(grams) if gram == top] for top, c in counts.items() if c == most > 1]
            found[f"top_{n}_gram"] = max((words_marked(words, starts, n) for starts in tops), default=0) / total
        else:
            repeats = [at for at, gram in enumerate(grams) if gram in grams[:at]]
            found[f"duplicate_{n}_grams"] = words_marked(words, repeats, n) / total
    return found


@settings(max_examples=150, deadline=None)
@given(text=TEXTS | st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_every_fraction_is_what_marking_word_by_word_gives(text):
    assert measure(text) == pytest.approx(expected_fractions(text), abs=1e-12)
    assert not text or final(text) == pytest.approx(expected_fractions(text), abs=1e-12)


def test_fractions_that_can_be_worked_out_by_hand():
    found = final("one two\n\none two\n\nthree\nfour")
    assert found["duplicate_lines"] == pytest.approx(1 / 4)
    assert found["duplicate_line_characters"] == pytest.approx(7 / 23)
    assert found["duplicate_paragraphs"] == pytest.approx(1 / 3)
    assert found["duplicate_paragraph_characters"] == pytest.approx(7 / 24)
    assert found["top_2_gram"] == pytest.approx(12 / 21)
    assert found["top_3_gram"] == 0
    overlapping = final("a " * 12)
    assert overlapping["top_2_gram"] == 1
    assert overlapping["duplicate_5_grams"] == pytest.approx(11 / 12)


def test_limits_and_their_order_are_those_of_the_paper():
    fields = RepetitionFilterConfig().model_dump()
    assert fields.pop("type") == "repetition"
    assert fields == TABLE_A1
    assert list(measure("")) == list(NAMES) == list(TABLE_A1)
    assert set(measure("").values()) == {0}
    assert list(repetition("")) == []


@pytest.mark.parametrize("field", TABLE_A1)
def test_each_limit_has_two_sides(field):
    words = " ".join(f"w{number}" for number in range(60))
    text = "\n\n".join([words, words[:60], words[:60], words[:60], words])
    fraction = final(text)[field]
    assert 0 < fraction < 1
    assert RepetitionFilterConfig.model_validate({**OFF, field: fraction}).reason(text) is None
    assert RepetitionFilterConfig.model_validate({**OFF, field: fraction - 1e-9}).reason(text) == field
    assert RepetitionFilterConfig.model_validate(OFF).reason(text) is None


def test_documents_on_both_sides_of_the_defaults():
    formula = [f"{number} bottles of beer stand, as everyone can see, on the wall" for number in range(40)]
    assert RepetitionFilterConfig().reason("\n".join(formula)) == "top_2_gram"
    different = [" ".join(f"{word}{number}" for word in ("each", "line", "differs", "here")) for number in range(40)]
    assert RepetitionFilterConfig().reason("\n".join(different)) is None
    assert RepetitionFilterConfig().reason("\n".join(different[:7] + different[:3])) == "duplicate_line_characters"
    assert RepetitionFilterConfig().reason("\n".join(different[:6] + different[:3])) == "duplicate_lines"
    assert RepetitionFilterConfig().reason("\n".join(different[:20] + different[:1])) is None


def test_a_long_document_is_measured_in_pieces_by_their_length():
    half = PIECE // 2
    different = "".join(f"{number:>7}\n" for number in range(half // 8))
    again = "0000000\n" * (PIECE // 8)
    assert final(different)["duplicate_lines"] == 0
    mixed = final(again + different)
    assert next(repetition(again + different))["duplicate_lines"] == pytest.approx(2 / 3, abs=1e-4)
    assert all(fraction <= mixed[name] for name, fraction in next(repetition(different + again)).items())
    assert RepetitionFilterConfig(duplicate_lines=0.7).reason(again + different) != "duplicate_lines"
    assert mixed["duplicate_lines"] == pytest.approx(2 / 3, abs=1e-4)
    assert mixed["duplicate_10_grams"] == pytest.approx(2 / 3, abs=1e-4)
    assert RepetitionFilterConfig().reason(again + different) == "duplicate_lines"
