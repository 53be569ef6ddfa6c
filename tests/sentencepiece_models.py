"""Small SentencePiece models, trained by sentencepiece itself in a fraction of a second."""

import functools
import io
from typing import Any

import sentencepiece

TEXT = "the cat sat on a mat , def walk self return items ======== aaaaaaa caf\u00e9 \u3042\u3044 12345 x1 y2"
WORDS = TEXT.split()
LINES = (
    tuple(
        " ".join(WORDS[(number * step + number) % len(WORDS)] for number in range(12)) + f" {step * 37}."
        for step in range(1, 200)
    )
    + ("two  spaces   three", "self.items (walk) <s> [x] / _ :") * 5
)


def train(**settings: Any) -> bytes:
    """The model file for these settings of SentencePieceTrainer."""
    return _train(tuple(sorted((key, _frozen(value)) for key, value in settings.items())))


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@functools.cache
def _train(settings: tuple[tuple[str, Any], ...]) -> bytes:
    file = io.BytesIO()
    given = {key: list(value) if isinstance(value, tuple) else value for key, value in settings}
    sentencepiece.SentencePieceTrainer.train(
        **{
            "sentence_iterator": iter(LINES),
            "model_writer": file,
            "vocab_size": 120,
            "hard_vocab_limit": False,
            "minloglevel": 2,
            "num_threads": 1,
            **given,
        }
    )
    return file.getvalue()
