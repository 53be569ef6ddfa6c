"""Training of the Unigram language model: each text takes the pieces that are likeliest together (Kudo 2018,
https://arxiv.org/abs/1804.10959; training and search are those of the tokenizers package).

Here it works on bytes, as our BPE does, so any text has tokens and decoding gives it back. Two things about the
package's trainer are mended. It considers only pieces that occur in two different words, so a frequent word that
begins no other (`None`) never becomes one: each word that occurs twice is shown to it once more with an end mark
(7 % more bytes per token at 8,000 tokens; `docs/log.md`). And it breaks ties by hash order and its sums differ in
the last digits from run to run: scores are rounded, and bytes the text lacked share one score.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from data.tokenizer_files import PATTERNS, byte_characters, cut_texts, pretokenizer_of

SCORE_DIGITS = 6
NUM_SUB_ITERATIONS = 8
"""Steps of expectation maximisation before each pruning; the package's 2 give 7 % fewer bytes per token."""
END_MARK = "\x01"
WORDS_AT_ONCE = 10_000
PENALTY_STEP = 1e-4
"""The trainer scores the bytes it did not keep min, min + 1e-4, min + 2e-4, ... in the order of a hash table."""


def train_unigram(
    texts: Iterable[str], vocab_size: int, pattern: str, special_tokens: list[str]
) -> tokenizers.Tokenizer:
    """Byte-level Unigram; special tokens get the first ids, then pieces by falling score. All 256 bytes are pieces.

    The vocabulary is smaller when the texts run out of pieces.
    """
    num_pieces = vocab_size - len(special_tokens)
    trainer = trainers.UnigramTrainer(
        vocab_size=num_pieces + 1,  # The end mark is one of them.
        special_tokens=[],
        initial_alphabet=byte_characters(),
        n_sub_iterations=NUM_SUB_ITERATIONS,
        show_progress=False,
    )
    raw = tokenizers.Tokenizer(models.Unigram())
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.train_from_iterator(_shown(count_words(texts, pattern)), trainer)
    pieces = settle(_pieces_of(raw), num_pieces)
    unreachable = _less_likely_than_its_bytes(special_tokens, pieces)
    backend = tokenizers.Tokenizer(models.Unigram([(token, unreachable) for token in special_tokens] + pieces))
    backend.pre_tokenizer = pretokenizer_of(PATTERNS[pattern])
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(special_tokens)
    return backend


def count_words(texts: Iterable[str], pattern: str) -> dict[str, int]:
    """How often each word of the pattern occurs; its bytes are written as `byte_characters`, so it holds no space."""
    pretokenizer = pretokenizer_of(PATTERNS[pattern])
    counts: Counter[str] = Counter()
    for part in cut_texts(texts):
        counts.update(word for word, _ in pretokenizer.pre_tokenize_str(part))
    return counts


def _shown(counts: dict[str, int]) -> Iterator[str]:
    """Every word as often as it occurs, in an order of their own, and once with an end mark."""
    for word, count in sorted(counts.items()):
        for start in range(0, count, WORDS_AT_ONCE):
            yield " ".join([word] * min(count - start, WORDS_AT_ONCE))
        if count > 1:
            yield word + END_MARK


def settle(scores: dict[str, float], num_pieces: int) -> list[tuple[str, float]]:
    """Pieces and scores, likeliest first: the same for every run of the trainer, and every byte among them."""
    floor = min(scores.values(), default=-1.0)
    just_above = floor + (len(byte_characters()) + 1) * PENALTY_STEP
    bytes_ = {piece: scores.get(piece, floor) for piece in byte_characters()}
    settled = {piece: floor if score < just_above else score for piece, score in bytes_.items()}
    longer = sorted((-round(score, SCORE_DIGITS), piece) for piece, score in scores.items() if piece not in settled)
    settled.update({piece: -score for score, piece in longer[: num_pieces - len(settled)]})
    ranked = sorted((-round(score, SCORE_DIGITS), piece) for piece, score in settled.items())
    return [(piece, -score) for score, piece in ranked]


def _less_likely_than_its_bytes(tokens: list[str], pieces: list[tuple[str, float]]) -> float:
    """A score at which no text becomes a special token: its single bytes are always likelier."""
    longest = max((len(token.encode("utf-8")) for token in tokens), default=0)
    return round((longest + 1) * (min(score for _, score in pieces) - 1), SCORE_DIGITS)


def _pieces_of(backend: tokenizers.Tokenizer) -> dict[str, float]:
    """The scores of pieces without end mark; none where there was no text, as the trainer then gives no numbers."""
    vocabulary = json.loads(backend.to_str())["model"]["vocab"]
    return {piece: score for piece, score in vocabulary if score is not None and END_MARK not in piece}
