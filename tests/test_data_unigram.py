"""Unigram: every byte a piece, special tokens out of reach, the likeliest cut, the same from every training."""

import json
import math
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.tokenizer import UnigramTokenizerConfig
from data.tokenizer_files import byte_characters
from data.unigram import count_words, settle, train_unigram

CORPUS = [
    "def walk(self):\n    return [item for item in self.items if item > 12345]\n" * 5,
    "The cat sat on the mat, and it didn't move. The mat is where the cat sat. " * 8,
    "<|endoftext|> spelled out <|endoftext|> " * 6,
]
SPECIAL = ["<|endoftext|>", "endoftext", "\u0120the"]
backend = train_unigram(CORPUS, 268, "llama3", SPECIAL)
VOCABULARY = json.loads(backend.to_str())["model"]["vocab"]


def likeliest(word, scores):
    """The best score of any way to cut the word into pieces, by trying the last piece of each beginning."""
    best = [0.0] + [-math.inf] * len(word)
    for end in range(1, len(word) + 1):
        for start in range(end):
            best[end] = max(best[end], best[start] + scores.get(word[start:end], -math.inf))
    return best[-1]


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.sampled_from(list("acehmst .'\n1\u00e9")), max_size=30) | st.sampled_from(CORPUS))
def test_tokens_are_the_likeliest_pieces_of_each_word(text):
    scores = dict(VOCABULARY[len(SPECIAL) :])
    for word, _ in backend.pre_tokenizer.pre_tokenize_str(text):  # pyright: ignore[reportOptionalMemberAccess]
        pieces = [token.value for token in backend.model.tokenize(word)]
        assert "".join(pieces) == word
        assert sum(scores[piece] for piece in pieces) == pytest.approx(likeliest(word, scores))


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_text_comes_back_and_no_special_token_in_it(text):
    backend.encode_special_tokens = True
    for each in (text, *(text + token for token in SPECIAL), text + "x the"):
        ids = backend.encode(each, add_special_tokens=False).ids
        assert backend.decode(ids, skip_special_tokens=False) == each
        assert min(ids, default=9) >= len(SPECIAL)


def test_the_vocabulary_holds_all_bytes_and_no_more_than_was_asked_for():
    assert [piece for piece, _ in VOCABULARY[: len(SPECIAL)]] == SPECIAL
    assert len(VOCABULARY) == 268 == backend.get_vocab_size()
    assert set(byte_characters()) <= {piece for piece, _ in VOCABULARY}
    scores = [score for _, score in VOCABULARY[len(SPECIAL) :]]
    assert scores == sorted(scores, reverse=True)
    assert any(len(piece) > 2 for piece, _ in VOCABULARY[len(SPECIAL) :])


def test_a_frequent_word_that_begins_no_other_becomes_a_piece():
    texts = ["alpha xylophone beta gamma delta\nxylophone " * 50, "alpine betray gamble deltoid xyzzy " * 3]
    pieces = json.loads(train_unigram(texts, 300, "llama3", []).to_str())["model"]["vocab"]
    assert "\u0120xylophone" in dict(pieces)
    assert not any("\x01" in piece for piece, _ in pieces)


def test_words_are_counted_as_the_pattern_cuts_them():
    counts = {"a": 2, "b": 1, "\u0120": 1, "\u0120a": 2, "\u0120b": 1, "\u010a": 2}
    assert count_words(["a  b a\n\nb a", "a"], "gpt2") == counts


@pytest.mark.parametrize("texts", [[], [""], ["a"], ["tiny"]])
def test_very_little_text_gives_the_bytes(texts):
    assert UnigramTokenizerConfig(vocab_size=300).build(texts).vocab_size == 257


def test_what_the_trainer_leaves_to_chance_is_settled():
    first = {"ab": -1.0000000001, "cd": -1.0, "ef": -5.0, "!": -3.0, **dict.fromkeys("xyz", -8.0)}
    absent = [char for char in byte_characters() if char not in first]
    ways = []
    for order in (absent, absent[::-1]):
        ways.append(settle(first | {char: -8.0 + rank * 1e-4 for rank, char in enumerate(order)}, 258))
    assert ways[0] == ways[1]
    assert ways[0][:3] == [("ab", -1.0), ("cd", -1.0), ("!", -3.0)]
    assert len(ways[0]) == 258
    assert {score for _, score in ways[0][3:]} == {-8.0}
    assert settle({}, 256) == [(char, -1.0) for char in sorted(byte_characters())]


def test_training_is_the_same_in_another_process():
    program = (
        "from data.tokenizer import UnigramTokenizerConfig as C; import json, sys; "
        "print(C(vocab_size=290).build(json.loads(sys.argv[1])).hash)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(CORPUS)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == UnigramTokenizerConfig(vocab_size=290).build(CORPUS).hash
