"""Lines for a person: nothing invisible, special tokens apart from text that spells them, every number in its place."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.inspection import NO_LENGTHS, Copies, Course, Found, Survey, inspect_batch, survey
from data.inspection_report import (
    batch_lines,
    copy_lines,
    course_lines,
    ranges,
    row_lines,
    shorten,
    spell,
    survey_lines,
    table,
    token_lines,
    visible,
)
from data.tokenizer import BPETokenizerConfig
from tests.stored_documents import dataset_over, fim_tokenizer, tokenizer, with_fim, write_store

SOURCES = [[5, 3, 9], [20]]
NAMES = ["a", "b"]


def test_control_characters_are_made_visible() -> None:
    assert visible("a\tb\nc\x00\x1b[0m\u200b\u00e9 d") == "a\u2192b\u21b5c\\x00\\x1b[0m\\u200b\u00e9 d"


def test_special_tokens_are_not_taken_for_text_that_spells_them() -> None:
    written = BPETokenizerConfig(vocab_size=300).build(["some words and more words"])
    ids = [written.bos_id, *written.encode("say <|endoftext|>"), written.eos_id, 5000]
    end = "\u00ab<|endoftext|>\u00bb"
    assert spell(written, ids) == f"{end}say <|endoftext|>{end}\u00ab5000?\u00bb"


def test_a_token_that_was_added_but_is_not_special_is_text() -> None:
    written = BPETokenizerConfig(vocab_size=300).build(["some words and more words"])
    written.backend.add_tokens(["emoticon"])
    number = written.backend.token_to_id("emoticon")
    assert number is not None
    assert spell(written, [number]) == "emoticon"


@given(st.text(max_size=40), st.integers(9, 30))
def test_long_text_keeps_both_ends(text: str, most: int) -> None:
    short = shorten(text, most)
    assert len(short) <= most
    assert short == text or (short[:2] == text[:2] and short[-2:] == text[-2:] and " ... " in short)


@given(st.lists(st.booleans(), max_size=20))
@settings(max_examples=60)
def test_ranges_name_every_place(mask: list[bool]) -> None:
    named = []
    for part in ranges(np.array(mask, bool)).replace("none", "").split(", "):
        first, _, last = part.partition("-")
        named += range(int(first), int(last or first) + 1) if part else []
    assert named == np.flatnonzero(mask).tolist()


def test_columns_are_aligned() -> None:
    assert table([("name", "x"), ("longer", "10")], "") == ["name     x", "longer  10"]


def test_a_row_tells_where_its_pieces_come_from_and_what_counts(tmp_path: Path) -> None:
    dataset = dataset_over(write_store(tmp_path, SOURCES), row_length=16)
    inspected = inspect_batch(dataset, 2, 1)
    for row, pieces in enumerate(inspected.pieces):
        head, *rest = row_lines(inspected, row, tokenizer, NAMES)
        counts = inspected.batch.weights[row] > 0
        assert head.startswith(f"row {row + 1} of 2 (row {row + 3} of the run): ")
        assert head.endswith(f"counts {counts.sum()} of 16 positions ({counts.mean():.1%}): {ranges(counts)}")
        assert len(rest) == 3 * len(pieces)
        for number, piece in enumerate(pieces):
            begin, end = inspected.places(row)[number]
            first = rest[3 * number]
            assert f"] {NAMES[piece.source]}: document {piece.ordinal} (kept as {piece.document}), epoch " in first
            assert first.endswith(f"epoch {piece.epoch}, tokens {piece.start} to {piece.start + piece.length}")
            assert rest[3 * number + 1].strip() == f"at positions {begin} to {end - 1}, the loss counts all"
            told = [*inspected.batch.tokens[row, begin:end], inspected.batch.targets[row, end - 1]]
            expected = shorten("".join(f"\u00ab{token}?\u00bb" for token in told), 150)
            assert rest[3 * number + 2].strip() == expected


def test_a_masked_part_of_a_piece_is_told(tmp_path: Path) -> None:
    inspected = inspect_batch(dataset_over(write_store(tmp_path, [[15]]), row_length=16), 1, 0)
    inspected.batch.weights[0, :6] = 0
    head, _, second, _ = row_lines(inspected, 0, tokenizer, ["a"])
    assert "counts 9 of 16 positions (56.2%): 6-14" in head
    assert "at positions 0 to 14, the loss counts 60.0%" in second


def test_a_rearranged_piece_is_called_so(tmp_path: Path) -> None:
    dataset = dataset_over(write_store(tmp_path, [[9]], by=fim_tokenizer), row_length=16, **with_fim(rate=1.0))
    inspected = inspect_batch(dataset, 1, 0)
    lines = list(row_lines(inspected, 0, fim_tokenizer, ["a"]))
    assert "rearranged to fill in the middle" in lines[2]
    assert "\u00ab<prefix>\u00bb" in lines[3]


def test_the_table_of_tokens_has_every_position(tmp_path: Path) -> None:
    inspected = inspect_batch(dataset_over(write_store(tmp_path, SOURCES), row_length=16), 2, 0)
    batch = inspected.batch
    head, *lines = (line.split() for line in token_lines(inspected, 1, tokenizer))
    assert head[:4] == ["position", "segment", "in", "piece"]
    assert len(lines) == 16
    for position, line in enumerate(lines):
        assert line[0] == str(position)
        assert line[1] == str(batch.segments[1, position])
        assert line[3:6] == [f"{batch.weights[1, position]:g}", *(str(each[1, position]) for each in batch[:2])]
        begins = position == 0 or batch.segments[1, position] != batch.segments[1, position - 1]
        expected = 0 if begins or not batch.segments[1, position] else int(lines[position - 1][2]) + 1
        assert line[2] == str(expected)


def test_the_batch_in_numbers(tmp_path: Path) -> None:
    inspected = inspect_batch(dataset_over(write_store(tmp_path, SOURCES), row_length=16), 3, 0)
    lines = batch_lines(inspected, NAMES, [0.25, float("nan")])
    assert lines[0] == f"3 rows of 16 positions, of which the loss counts {inspected.batch.weights.mean():.2%}"
    rows = {line.split()[0]: line.split()[1:] for line in lines[2:]}
    total = int(inspected.batch.weights.sum())
    for source, name in enumerate(NAMES):
        pieces = [piece for each in inspected.pieces for piece in each if piece.source == source]
        tokens = sum(piece.length for piece in pieces)
        assert rows[name][:3] == [str(len(pieces)), str(tokens), f"{tokens / total:.1%}"]
    assert [rows["a"][3], rows["b"][3]] == ["25.0%", "-"]


def test_the_corpus_in_numbers(tmp_path: Path) -> None:
    stored = dataset_over(write_store(tmp_path, SOURCES)).store.train
    lines = survey_lines(survey(stored), stored, tokenizer, NAMES)
    assert lines[0].startswith("4 documents of 41 tokens")
    assert lines[2].split() == ["a", "3", "20", "48.8%", "6", "10", "10"]
    assert lines[3].split() == ["b", "1", "21", "51.2%", "21", "21", "21"]
    assert lines[5].startswith("  21 tokens: b, document 1: \u00ab1021?\u00bb")
    assert lines[6].startswith("  10 tokens: a, document 5: ")


def test_copies_are_listed_with_their_places(tmp_path: Path) -> None:
    stored = dataset_over(write_store(tmp_path, SOURCES)).store.train
    places = [Found(0, 1, 3, 4), Found(1, 0, 1, 21)]
    copies = Copies(50, 0.25, [2, 5], 1, [(7, places)])
    lines = copy_lines(copies, stored, tokenizer, NAMES)
    assert lines[0] == "exact copies of an earlier document: 7 of 50 (14.00%), of a sample of 0.25 of all texts"
    assert lines[1:3] == ["  1 text in more than one source", "  2 in a, 5 in b"]
    assert lines[3].startswith("  7 times: ")
    assert lines[4].strip() == "a, document 3; b, document 1, ..."
    assert copy_lines(Copies(0, 1.0, [0, 0], 0, []), stored, tokenizer, NAMES) == [
        "exact copies of an earlier document: 0 of 0 (0.00%)"
    ]


def test_parts_of_the_run_are_listed_with_what_was_asked() -> None:
    asked = Course(np.array([0, 6, 12]), np.array([[1.0, 0.0], [0.5, 0.5]]))
    observed = Course(np.array([0, 6]), np.array([[0.9, 0.1]]))
    head, first, second, note = course_lines(asked, observed, NAMES)
    assert head.split()[-3:] == ["to", "update", "6"]
    assert first.split() == ["a", *["90.0%", "(100.0%)"] * 6]
    assert second.split() == ["b", *["10.0%", "(0.0%)"] * 6]
    assert "to update 6" in note
    assert len(course_lines(asked, asked, NAMES)) == 3
    assert "75.0%" not in course_lines(asked, asked, NAMES)[1]


@pytest.mark.parametrize("num_sources", [1, 3])
def test_an_empty_split_is_told(tmp_path: Path, num_sources: int) -> None:
    stored = dataset_over(write_store(tmp_path, [[]] * num_sources)).store.train
    found = survey(stored)
    assert found == Survey([NO_LENGTHS] * num_sources, [], Copies(0, 1.0, [0] * num_sources, 0, []))
    lines = survey_lines(found, stored, tokenizer, ["a", "b", "c"][:num_sources])
    assert lines[2].split() == ["a", "0", "0", "0.0%", "0", "0", "0"]
