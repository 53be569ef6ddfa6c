"""Cleaning: ftfy itself, Unicode's tables and naive loops as oracles; what is right stays, and once is enough."""

import itertools
import pickle
import sysconfig
import tracemalloc
import unicodedata
from collections import Counter
from functools import partial
from pathlib import Path

import ftfy
import pytest
from ftfy.badness import is_bad
from hypothesis import example, given, settings
from hypothesis import strategies as st

import data.cleaning
from core.config import build_section
from data.cleaning import (
    SUSPECT,
    CleaningConfig,
    drop_control_characters,
    fix_mojibake,
    is_sentence_like,
    limit_blank_lines,
    limit_repeats,
    strip_lines,
)
from data.pieces import pieces
from utils.errors import BackendError, ConfigError

OFF = CleaningConfig(
    mojibake=False,
    normalize=False,
    control_characters=False,
    trailing_whitespace=False,
    max_blank_lines=None,
    boilerplate=(),
    max_repeats=None,
    max_repeats_in_a_row=None,
)
ONE_BYTE = sorted(
    {
        bytes([byte]).decode(encoding, "ignore")
        for byte in range(256)
        for encoding in ("latin-1", "cp1252", "cp1251", "cp1250", "cp1253", "cp1254", "cp1257", "mac_roman", "cp437")
    }
)
BROKEN = ["\u00e2\u20ac\u2122", "\u00c3\u00a9", "\u00c3 ", "\u00c2\u00a0", "\u00e2\x80\x9c", "\u00d0\u00bf", "\u0153"]
NASTY = st.lists(
    st.sampled_from(
        ["a", "b ", "\t", "\n", "\n\n\n", "\r\n", "\r", "\x00", "\x0c", "\x85", "\x1b[31m", "\x1b", "[0m", "\u200b"]
        + ["\u0301", "\u00e9", "\u2028", "\ufeff", "\ud55c", "We use cookies\n", "Home | About\n"]
        + ["The same old line is said again.\n", *BROKEN]
    ),
    max_size=30,
).map("".join)
ANY = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
RIGHT = """\
\u201cCurly\u201d quotes, a dash \u2014 and an ellipsis\u2026 stay; so does don\u2019t.
\ufb01 ligatures, \uff26\uff35\uff2c\uff2c width, \u00bd, \u00b5, 10\u00b3, &amp;
&lt;b&gt; and caf\u00e9, \u0152uvre, na\u00efve.
\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645, \u05e9\u05dc\u05d5\u05dd\u200f,
\U0001f468\u200d\U0001f469\u200d\U0001f467, \u4e2d\u6587\u3002, \u041f\u0440\u0438\u0432\u0435\u0442!

And miles to go before I sleep, so late,
And miles to go before I sleep, so late,


def f(x):
\tif x:
\t\treturn {
\t\t\t'': ('\\x1b[0m', "\\u200b"),
\t\t}
}
}
}
----------------------------------------
----------------------------------------
----------------------------------------
"""


def test_what_is_right_comes_back_as_it_was():
    assert CleaningConfig().clean(RIGHT) == (RIGHT, {})
    assert CleaningConfig().clean("") == ("", {})


def test_source_code_is_left_alone():
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    texts = [path.read_text(encoding="utf-8") for path in files]
    config = CleaningConfig(boilerplate=(), max_blank_lines=None)
    changed = [path.name for path, text in zip(files, texts, strict=True) if config.clean(text)[0] != text]
    assert len(texts) > 100
    assert len(changed) <= len(texts) // 50, changed


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
def test_text_decoded_with_the_wrong_encoding_is_decoded_again(encoding):
    text = "It\u2019s a caf\u00e9 \u2013 na\u00efve, or \u2018not\u2019?\nPlain line.\n\u00dcber alles"
    broken = text.encode().decode(encoding)
    assert broken.startswith({"latin-1": "It\u00e2\x80\x99s", "cp1252": "It\u00e2\u20ac\u2122s"}[encoding])
    assert CleaningConfig().clean(broken) == (text, {"mojibake_lines": 2})
    assert CleaningConfig(mojibake=False, control_characters=False).clean(broken)[0] == broken


@settings(max_examples=150, deadline=None)
@given(text=st.text("".join(ONE_BYTE), max_size=12) | NASTY | ANY)
def test_mojibake_is_what_ftfy_says_line_by_line(text):
    expected = "\n".join(ftfy.fix_encoding(line) for line in text.split("\n"))
    counts = Counter()
    assert fix_mojibake(text, counts) == expected
    changed = [1 for old, new in zip(text.split("\n"), expected.split("\n"), strict=False) if old != new]
    assert counts["mojibake_lines"] == len(changed) or expected.count("\n") != text.count("\n")


def test_the_check_before_ftfy_lets_nothing_pass_that_ftfy_would_look_at():
    strange = [mark for mark in ONE_BYTE if mark > "\x7f"] + ["\u0410", "\u4e2d", "\ufffd", "\uf8ff"]
    pairs = ["".join(pair) for pair in itertools.product(strange, repeat=2)]
    alone = [a + b + c + d for a in " a.4" for b in ("", " ") for c in strange for d in ("", " ", "a", ".", "4", '"')]
    assert [text for text in pairs + alone if is_bad(text) and not SUSPECT.search(text)] == []
    assert not any(SUSPECT.search(text) for text in ("caf\u00e9!", "it\u2019s", "\u4e2d\u6587", "plain"))


def test_of_all_characters_those_go_that_control_or_hide():
    everything = "".join(map(chr, (*range(0xD800), *range(0xE000, 0x110000)))).replace("\r", "")
    gone = set(everything) - set(drop_control_characters(everything, counts := Counter()))
    assert counts["control_characters"] == len(gone)
    assert {mark for mark in map(chr, range(256)) if unicodedata.category(mark) == "Cc"} - gone - {"\r"} == {"\t", "\n"}
    invisible = {mark for mark in gone if unicodedata.category(mark) != "Cc"}
    assert {unicodedata.category(mark) for mark in invisible} <= {"Cf", "Cn"}
    assert {"\u200b", "\ufeff", "\u202e", "\u2066", "\u00ad"} <= invisible
    assert not invisible & set("\u200c\u200d\u200e\u200f\U000e0067")


@pytest.mark.parametrize("mark", [*map(chr, range(32)), "\x7f", "\u2028", "\u2029"])
def test_each_control_character_is_found_alone(mark):
    expected = f"a{mark}b" if mark in "\t\n" else "a\nb" if mark in "\r\x0b\x0c\u2028\u2029" else "ab"
    assert CleaningConfig().clean(f"a{mark}b")[0] == expected


@pytest.mark.parametrize(
    ("text", "cleaned", "counts"),
    [
        ("a\r\nb\rc\x0cd\u2028e", "a\nb\nc\nd\ne", {"line_breaks": 4}),
        ("\ufeffa\x00b\x7f", "ab", {"control_characters": 3}),
        ("\x1b[1;31mred\x1b[0m \x1b[", "red [", {"control_characters": 12}),
        ("a \t\n\tb  c\n ", "a\n\tb  c\n", {"trailing_whitespace": 3}),
        ("a\u3000 \nb", "a\u3000\nb", {"trailing_whitespace": 1}),
        ("e\u0301\n\u00e9", "\u00e9\n\u00e9", {"normalized_lines": 1}),
        ("\u00c3\u200b\u00a9", "\u00e9", {"control_characters": 1, "mojibake_lines": 1}),
        ("\n\n\na\n\n\n\n\nb\n\n\n", "\n\na\n\n\nb\n\n\n", {"blank_lines": 3}),
        ("a\n\nHome | About\n\n\nb", "a\n\n\nb", {"boilerplate_lines": 1, "blank_lines": 1}),
        ("We use cookies", "", {"boilerplate_lines": 1}),
    ],
)
def test_each_part_does_its_work_and_counts_it(text, cleaned, counts):
    assert CleaningConfig().clean(text) == (cleaned, counts)
    assert OFF.clean(text) == (text, {})


@settings(max_examples=150, deadline=None)
@given(text=NASTY | ANY, blank=st.none() | st.integers(0, 3), switches=st.lists(st.booleans(), min_size=4, max_size=4))
@example(text="\u00c3\u200b\u00a0\nx", blank=2, switches=[True] * 4)
@example(text="e\u200b\u0301", blank=2, switches=[True] * 4)
def test_clean_text_is_clean(text, blank, switches):
    names = ("mojibake", "normalize", "control_characters", "trailing_whitespace")
    config = CleaningConfig(max_blank_lines=blank, max_repeats=2, **dict(zip(names, switches, strict=True)))
    once, counts = config.clean(text)
    assert config.clean(once) == (once, {})
    assert (once == text) == (not counts)
    assert all(count > 0 for count in counts.values())


@settings(max_examples=100, deadline=None)
@given(text=NASTY)
def test_everything_off_is_the_identity(text):
    assert OFF.clean(text) == (text, {})


@settings(max_examples=100, deadline=None)
@given(text=st.text("a \t\n", max_size=30), most=st.integers(0, 3))
def test_blank_lines_and_line_ends_as_a_loop_would_have_them(text, most):
    stripped = strip_lines(text, Counter())
    assert stripped.split("\n") == [line.rstrip() for line in text.split("\n")]
    limited = limit_blank_lines(stripped, most, Counter())
    body, last = stripped.split("\n")[:-1], stripped.split("\n")[-1]
    groups = [(line, len(list(group))) for line, group in itertools.groupby(body)]
    expected = [line for line, count in groups for _ in range(count if line else min(count, most))]
    assert limited == "\n".join([*expected, last])


LINES = ["This line is said more than once.", "And this one, which is another one.", "}", "", "---"]


def repeats_kept(lines, often, most, in_a_row):
    """Quadratic: looks back over what was kept so far for every line."""
    kept = []
    for line in lines:
        row = itertools.takewhile(lambda other, line=line: other in ("", line), reversed(kept))
        too_often = most is not None and kept.count(line) >= most
        too_close = in_a_row is not None and sum(other == line for other in row) >= in_a_row
        if line not in often or not (too_often or too_close):
            kept.append(line)
    return kept


@settings(max_examples=150, deadline=None)
@given(
    lines=st.lists(st.sampled_from(LINES), max_size=16),
    most=st.none() | st.integers(1, 4),
    in_a_row=st.none() | st.integers(1, 3),
)
@example(lines=[LINES[0], "", LINES[0], "", LINES[0]], most=None, in_a_row=2)
def test_repeated_lines_as_a_look_back_finds_them(lines, most, in_a_row):
    expected = repeats_kept(lines, set(LINES[:2]), most, in_a_row)
    assert limit_repeats(lines, set(LINES[:2]), most, in_a_row) == expected
    config = CleaningConfig(max_repeats=most, max_repeats_in_a_row=in_a_row, max_blank_lines=None)
    cleaned, counts = config.clean("\n".join(lines))
    assert cleaned == "\n".join(expected)
    assert counts.get("repeated_lines", 0) == len(lines) - len(expected)


@pytest.mark.parametrize(
    ("line", "counts_as_repeated"),
    [
        ("This sentence has thirty letters", True),
        ("Too short to be judged here", False),
        ("    return NotImplemented  # indented", False),
        ("----------------------------------------", False),
        ("0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,", False),
        ("| ---- | ---- | ---- | ---- | ---- | ---- |", False),
    ],
)
def test_only_what_reads_like_a_sentence_is_repeated(line, counts_as_repeated):
    cleaned, counts = CleaningConfig().clean("\n".join([line] * 20))
    assert counts == ({"repeated_lines": 18} if counts_as_repeated else {})
    assert cleaned.count("\n") == (1 if counts_as_repeated else 19)
    scattered = "\n".join(f"{line}\n{number}" for number in range(20))
    assert CleaningConfig().clean(scattered)[1] == ({"repeated_lines": 12} if counts_as_repeated else {})


def test_half_letters_is_not_enough_for_a_sentence():
    assert is_sentence_like("abc de!!!!!")
    assert not is_sentence_like("abc d!!!!!")
    assert not is_sentence_like("\tabcdef")


def test_a_line_beyond_any_size_is_repaired_in_pieces_and_in_bounded_memory(monkeypatch):
    monkeypatch.setattr(data.cleaning, "pieces", partial(pieces, size=6))
    assert CleaningConfig().clean("x \u00c3\u00a9 \u00c3\u00a9")[0] == "x \u00e9 \u00e9"
    monkeypatch.undo()
    text = "It\u2019s one line. " * 100_000
    tracemalloc.start()
    try:
        assert CleaningConfig().clean(text)[0] == text.rstrip()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 5 * 2 * len(text)  # Two bytes a character: the quote is no Latin-1.


def test_a_config_survives_pickling_and_refuses_what_is_wrong():
    config = CleaningConfig(boilerplate=("x+",), max_repeats=3)
    assert pickle.loads(pickle.dumps(config)).clean("x\ny") == ("y", {"boilerplate_lines": 1})
    for wrong in ({"boilerplate": ["(("]}, {"max_repeats": 0}, {"max_blank_lines": -1}, {"mojibak": True}):
        with pytest.raises(ConfigError) as caught:
            build_section(CleaningConfig, wrong)
        assert next(iter(wrong)) in str(caught.value)
    with pytest.raises(ConfigError, match="'\\(\\(' is no regular expression"):
        build_section(CleaningConfig, {"boilerplate": ["(("]})


def test_ftfy_is_only_missed_where_it_is_needed(monkeypatch):
    assert CleaningConfig().find_problems() == []

    def missing(module, extra):
        raise BackendError(f"{module} is not installed; to install it: pip install -e '.[{extra}]'")

    monkeypatch.setattr(data.cleaning, "optional", missing)
    assert "ftfy is not installed" in CleaningConfig().find_problems()[0]
    assert CleaningConfig(mojibake=False).find_problems() == []
    assert CleaningConfig().clean("caf\u00e9 is plain \n")[0] == "caf\u00e9 is plain\n"
    with pytest.raises(BackendError, match="data"):
        CleaningConfig().clean("caf\u00c3\u00a9")
