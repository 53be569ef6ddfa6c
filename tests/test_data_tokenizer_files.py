"""Cutting long texts: the words and tokens of the parts are those of the whole, and one long line has small parts."""

import json

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models

from data.encoding import PART_CHARACTERS
from data.tokenizer import BPETokenizerConfig, BytesTokenizerConfig, Tokenizer, UnigramTokenizerConfig
from data.tokenizer_files import (
    PATTERNS,
    can_be_cut,
    cut_anywhere,
    cut_text,
    cut_texts,
    cutter_of,
    is_plain_bytes,
    leave_whole,
    pretokenizer_of,
    train_bpe,
)

PIECES = [*"asSlLdz09' .,!-_(\"\n\r\t", "'s", "'LL ", "  ", "a b", "\u00e9", "\u017f", "\u0301", "\u0660", "\u4e00"]
PIECES += ["\u3002", "\u3042", "\u30fc", "\u200d", "\x1c", "\x85", "\u00a0", "\u2028", "\u3000", "\u00df", "\U0001f600"]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=40).map("".join)
CORPUS = ["The cat sat on the mat, and it didn't move. " * 8, "x = [1234, 567]; y\u4e00\u3002 " * 9]
KINDS = {
    "gpt2": BPETokenizerConfig(vocab_size=330, pretokenizer="gpt2").build(CORPUS),
    "llama3": BPETokenizerConfig(vocab_size=330).build(CORPUS),
    "bytes": BytesTokenizerConfig().build(),
    "unigram gpt2": UnigramTokenizerConfig(vocab_size=290, pretokenizer="gpt2").build(CORPUS),
    "unigram llama3": UnigramTokenizerConfig(vocab_size=290).build(CORPUS),
}
ALL = pytest.mark.parametrize("tokenizer", KINDS.values(), ids=KINDS.keys())


def words(pattern, text):
    return [word for word, _ in pretokenizer_of(PATTERNS[pattern]).pre_tokenize_str(text)]


@pytest.mark.parametrize("pattern", PATTERNS)
@settings(max_examples=400, deadline=None)
@given(text=TEXTS, part_size=st.sampled_from([1, 2, 3, 8]))
def test_the_words_of_the_parts_are_those_of_the_whole(pattern, text, part_size):
    parts = cut_text(text, part_size)
    assert "".join(parts) == text
    assert [word for part in parts for word in words(pattern, part)] == words(pattern, text)


@ALL
@settings(max_examples=100, deadline=None)
@given(text=TEXTS, part_size=st.sampled_from([1, 2, 8]))
def test_the_tokens_of_the_parts_are_those_of_the_whole(tokenizer, text, part_size):
    whole = tokenizer.backend.encode(text, add_special_tokens=False).ids
    assert tokenizer.encode_batch([text], part_size) == [whole]
    assert tokenizer.encode_to_array([text], np.uint16, part_size)[0].tolist()[1:-1] == whole


def test_every_place_is_used_and_no_other():
    assert cut_text("ab cd", 1) == ["ab", " cd"]
    assert cut_text("1 2  3", 1) == ["1", " 2", "  3"]
    assert cut_text('{"ab":12}', 1) == ['{"ab', '":12}']
    assert cut_text("\u4e00\u4e01\u3002\u4e00", 1) == ["\u4e00\u4e01", "\u3002\u4e00"]
    assert cut_text("don't", 1) == ["don", "'t"]
    for text in ("abcdef", "12,34", "   a", "a\t b", "a\n b", "a\u0301\u0301b", "\u017f.", "!!!!", "\u3042\u30fc"):
        assert cut_text(text, 1) == [text]


def test_a_newline_near_is_taken_before_the_end_of_a_word():
    near, far = "a b " * 8 + "c\nd", "a b " * 10 + "c\nd"
    assert cut_text(near, 32) == ["a b " * 8 + "c\n", "d"]
    assert cut_text(far, 32)[0] == "a b " * 9 + "a"


@pytest.mark.parametrize("line", ["word ", "12 34 ", '{"key":1,"k":[2]},', "\u65e5\u672c\u3001", "\u0438 \u0438"])
def test_one_long_line_has_small_parts(line):
    text = line * (2_000_000 // len(line))
    for parts in (cut_text(text, PART_CHARACTERS), list(cut_texts([text]))):
        assert "".join(parts) == text
        assert max(map(len, parts)) < 1.2 * PART_CHARACTERS
        assert min(map(len, parts[:-1])) >= PART_CHARACTERS


def test_bytes_are_cut_anywhere_and_only_they():
    assert cut_anywhere("\u00e9" * 5, 2) == ["\u00e9\u00e9", "\u00e9\u00e9", "\u00e9"]
    assert cut_anywhere("", 2) == [""]
    cutters = {name: cutter_of(tokenizer.backend) for name, tokenizer in KINDS.items()}
    assert cutters.pop("bytes") is cut_anywhere
    assert set(cutters.values()) == {cut_text}
    assert is_plain_bytes(tokenizers.Tokenizer.from_str(KINDS["bytes"].backend.to_str()))
    for change in ({"continuing_subword_prefix": "#"}, {"end_of_word_suffix": "#"}):
        described = json.loads(KINDS["bytes"].backend.to_str())
        described["model"].update(change)
        assert not is_plain_bytes(tokenizers.Tokenizer.from_str(json.dumps(described)))
    other = tokenizers.Tokenizer.from_str(KINDS["bytes"].backend.to_str())
    other.model = models.BPE({"a": 0}, [])
    assert not is_plain_bytes(other)


def test_added_tokens_that_are_found_in_text_forbid_cutting():
    backend = tokenizers.Tokenizer.from_str(KINDS["llama3"].backend.to_str())
    assert can_be_cut(backend)
    backend.add_tokens(["sat on", "a\nb"])
    assert cutter_of(backend) is leave_whole
    text = "he sat on a\nb it"
    whole = backend.encode(text).ids
    assert Tokenizer(backend, {"eos": "<|endoftext|>"}).encode_batch([text], 1) == [whole]


@ALL
def test_no_more_than_a_small_part_of_a_long_line_is_encoded_at_once(tokenizer, monkeypatch):
    sizes = []

    def spy(backend, texts):
        sizes.extend(map(len, texts))
        return backend.encode_batch_fast(texts, add_special_tokens=False)

    monkeypatch.setattr("data.encoding.encode", spy)
    tokenizer.encode_to_array(["word " * 60_000], np.uint16)
    assert sum(sizes) == 300_000
    assert max(sizes) < 1.2 * PART_CHARACTERS


@pytest.mark.parametrize("pattern", PATTERNS)
def test_training_on_one_long_line_is_training_on_its_words(pattern, monkeypatch):
    lines = [" ".join(f"word{number * 7 % 91} it's {number}," for number in range(12_000)), *CORPUS]
    assert len(list(cut_texts(lines))) > len(lines) + 2
    cut = train_bpe(lines, 400, pattern, ["<|eos|>"]).to_str()
    seen = []
    monkeypatch.setattr("data.tokenizer_files.cut_texts", lambda texts: seen.extend(texts) or iter(texts))
    assert train_bpe(lines, 400, pattern, ["<|eos|>"]).to_str() == cut
    assert seen == lines
