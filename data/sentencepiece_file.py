"""Reads `tokenizer.model`, the file of SentencePiece (Kudo and Richardson 2018, https://arxiv.org/abs/1808.06226).

It is one protobuf message (`sentencepiece_model.proto` of https://github.com/google/sentencepiece). The few fields
that matter are read here from the wire format, https://protobuf.dev/programming-guides/encoding, so neither the
sentencepiece nor the protobuf package is needed. To read another field, add its number below.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from utils.errors import DataError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
MODEL_TYPES = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}
PIECES, TRAINER, NORMALIZER, DENORMALIZER = 1, 2, 3, 5
MODEL_TYPE, SPACE_BEHIND, BYTE_FALLBACK = 3, 24, 35
ROLE_PIECES = {"unk": (45, "<unk>"), "bos": (46, "<s>"), "eos": (47, "</s>"), "pad": (48, "<pad>")}
Fields = dict[int, list[int | bytes]]


class Piece(NamedTuple):
    """One token of the vocabulary; its id is its place."""

    text: str
    score: float
    """The logarithm of its probability (unigram) or its rank among the merges, negated (bpe); float32."""
    kind: int
    """NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED or BYTE."""


class SentencePieceModel(NamedTuple):
    """What a model file says."""

    pieces: list[Piece]
    model_type: str
    """unigram | bpe | word | char."""
    byte_fallback: bool
    """Whether a character without a piece becomes its bytes rather than the unknown token."""
    normalizer: str
    """Name of the rules: identity | nmt_nfkc | nfkc | nmt_nfkc_cf | nfkc_cf | user_defined."""
    charsmap: bytes
    """The rules themselves; empty: characters stay as they are."""
    adds_space_before: bool
    """Whether a text gets a space in front."""
    removes_spaces: bool
    """Whether spaces at the ends go, and others become one."""
    escapes_spaces: bool
    """Whether a space is written as U+2581 in pieces."""
    space_is_behind: bool
    """Whether the space belongs to the word before it."""
    has_denormalizer: bool
    """Whether decoding has rules of its own."""
    roles: dict[str, str]
    """Token of each of bos, eos and pad that there is."""


def read_model(path: Path) -> SentencePieceModel:
    """The model in a file. Raises DataError when it cannot be read or is none."""
    try:
        return parse_model(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, IndexError, struct.error) as error:
        raise DataError(f"{path}: not a SentencePiece model, or one cut short ({error})") from error


def parse_model(data: bytes) -> SentencePieceModel:
    """The model in the bytes of a file. Raises ValueError, IndexError, TypeError or struct.error for other bytes."""
    fields = parse(data)
    trainer, rules, back = (parse(_bytes(fields, number)) for number in (TRAINER, NORMALIZER, DENORMALIZER))
    pieces = [parse_piece(value) for value in fields.get(PIECES, [])]
    if not pieces:
        raise ValueError("no pieces")
    control = {piece.text for piece in pieces if piece.kind == CONTROL}
    names = {role: _text(trainer, number, usual) for role, (number, usual) in ROLE_PIECES.items()}
    return SentencePieceModel(
        pieces=pieces,
        model_type=MODEL_TYPES.get(_number(trainer, MODEL_TYPE, 1), "unknown"),
        byte_fallback=bool(_number(trainer, BYTE_FALLBACK, 0)),
        normalizer=_text(rules, 1, ""),
        charsmap=_bytes(rules, 2),
        adds_space_before=bool(_number(rules, 3, 1)),
        removes_spaces=bool(_number(rules, 4, 1)),
        escapes_spaces=bool(_number(rules, 5, 1)),
        space_is_behind=bool(_number(trainer, SPACE_BEHIND, 0)),
        has_denormalizer=bool(_bytes(back, 2)),
        roles={role: token for role, token in names.items() if token in control},
    )


def parse_piece(value: int | bytes) -> Piece:
    """One piece. Raises what `parse_model` raises."""
    fields = parse(value)
    (score,) = struct.unpack("<f", _bytes(fields, 2) or bytes(4))
    return Piece(_text(fields, 1, ""), score, _number(fields, 3, NORMAL))


def parse(message: int | bytes) -> Fields:
    """Field number to its values in order: numbers as int, everything else as bytes."""
    if isinstance(message, int):
        raise TypeError("a number where a message belongs")
    fields: Fields = {}
    for number, value in _walk(message):
        fields.setdefault(number, []).append(value)
    return fields


def _walk(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        number, wire_type = key >> 3, key & 7
        if wire_type == 0:
            value, place = _varint(message, place)
            yield number, value
            continue
        if wire_type == 2:
            size, place = _varint(message, place)
        elif wire_type in (1, 5):
            size = 8 if wire_type == 1 else 4
        else:
            raise ValueError(f"wire type {wire_type} at byte {place}")
        if place + size > len(message):
            raise ValueError(f"{place + size - len(message)} bytes are missing")
        yield number, message[place : place + size]
        place += size


def _varint(message: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place


def _bytes(fields: Fields, number: int) -> bytes:
    value = fields.get(number, [b""])[-1]
    if isinstance(value, int):
        raise TypeError(f"field {number} is a number")
    return value


def _text(fields: Fields, number: int, default: str) -> str:
    return _bytes(fields, number).decode("utf-8") if number in fields else default


def _number(fields: Fields, number: int, default: int) -> int:
    value = fields.get(number, [default])[-1]
    if not isinstance(value, int):
        raise TypeError(f"field {number} is no number")
    return value
