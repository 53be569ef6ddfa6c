"""Training of the Unigram language model: each text takes the pieces that are likeliest together (Kudo 2018,
https://arxiv.org/abs/1804.10959; training and search are those of the tokenizers package).

Here it works on bytes, as our BPE does, so any text has tokens and decoding gives it back. What the package's trainer
leaves to chance is put in order: it breaks ties by hash order and its sums differ in the last digits from run to run,
so scores are rounded and bytes the text lacked share one score; and a rounded score survives being written to JSON.
"""

import json
from collections.abc import Iterable

import tokenizers
from tokenizers import decoders, models, trainers

from data.tokenizer_files import PATTERNS, byte_characters, pretokenizer_of

SCORE_DIGITS = 6
PENALTY_STEP = 1e-4
"""The trainer scores the bytes it did not keep min, min + 1e-4, min + 2e-4, ... in the order of a hash table."""


def train_unigram(
    texts: Iterable[str], vocab_size: int, pattern: str, special_tokens: list[str]
) -> tokenizers.Tokenizer:
    """Byte-level Unigram; special tokens get the first ids, then pieces by falling score. All 256 bytes are pieces.

    The vocabulary is smaller when the texts run out of pieces.
    """
    backend = _byte_level(models.Unigram(), pattern)
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size - len(special_tokens),
        special_tokens=[],
        initial_alphabet=byte_characters(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    pieces = settle(_pieces_of(backend), vocab_size - len(special_tokens))
    unreachable = _less_likely_than_its_bytes(special_tokens, pieces)
    backend = _byte_level(models.Unigram([(token, unreachable) for token in special_tokens] + pieces), pattern)
    backend.add_special_tokens(special_tokens)
    return backend


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


def _byte_level(model: models.Model, pattern: str) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pretokenizer_of(PATTERNS[pattern])
    backend.decoder = decoders.ByteLevel()
    return backend


def _pieces_of(backend: tokenizers.Tokenizer) -> dict[str, float]:
    """The scores; none where there was no text, as the trainer then gives no numbers."""
    vocabulary = json.loads(backend.to_str())["model"]["vocab"]
    return {piece: score for piece, score in vocabulary if score is not None}
