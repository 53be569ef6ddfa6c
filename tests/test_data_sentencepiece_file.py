"""The reader of `tokenizer.model`: equal to what sentencepiece itself says of a file, deaf to damage."""

import struct

import pytest
import sentencepiece

from data.sentencepiece_file import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, parse, parse_model, read_model
from tests.sentencepiece_models import train
from utils.errors import DataError

DATA = train(model_type="bpe", vocab_size=420, byte_fallback=True, user_defined_symbols=["abc"], pad_id=3)


def test_pieces_scores_and_kinds_are_what_sentencepiece_says():
    model = parse_model(DATA)
    processor = sentencepiece.SentencePieceProcessor(model_proto=DATA)
    assert len(model.pieces) == processor.vocab_size()
    for place, piece in enumerate(model.pieces):
        assert piece.text == processor.id_to_piece(place)
        assert piece.score == processor.get_score(place)
        assert (piece.kind == CONTROL) == processor.is_control(place)
        assert (piece.kind == UNKNOWN) == processor.is_unknown(place)
        assert (piece.kind == BYTE) == processor.is_byte(place)
    assert {piece.kind for piece in model.pieces} == {NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE}
    assert model.roles == {"bos": "<s>", "eos": "</s>", "pad": "<pad>"}


def test_settings_are_those_it_was_trained_with():
    model = parse_model(DATA)
    assert (model.model_type, model.byte_fallback, model.normalizer) == ("bpe", True, "nmt_nfkc")
    assert len(model.charsmap) > 1000
    assert (model.adds_space_before, model.removes_spaces, model.escapes_spaces) == (True, True, True)
    assert (model.space_is_behind, model.has_denormalizer) == (False, False)
    other = parse_model(
        train(
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            treat_whitespace_as_suffix=True,
            bos_id=-1,
            eos_piece="<end>",
        )
    )
    assert (other.model_type, other.byte_fallback, other.normalizer, other.charsmap) == (
        "unigram",
        False,
        "identity",
        b"",
    )
    assert (other.adds_space_before, other.removes_spaces, other.space_is_behind) == (False, False, True)
    assert other.roles == {"eos": "<end>"}


def test_every_wire_type_is_read_or_refused():
    message = b"\x08\x96\x01" + b"\x11" + bytes(8) + b"\x1a\x02hi" + b"\x25" + struct.pack("<f", 2.5) + b"\x1a\x00"
    assert parse(message) == {1: [150], 2: [bytes(8)], 3: [b"hi", b""], 4: [struct.pack("<f", 2.5)]}
    with pytest.raises(ValueError, match="wire type 3"):
        parse(b"\x0b")
    with pytest.raises(ValueError, match="3 bytes are missing"):
        parse(b"\x1a\x05hi")
    with pytest.raises(IndexError):
        parse(b"\x08\x96")


def test_damaged_files_are_told(tmp_path):
    path = tmp_path / "tokenizer.model"
    with pytest.raises(DataError, match=r"tokenizer\.model: cannot be read: No such file"):
        read_model(path)
    base64 = b"IQ== 0\nIg== 1\nIw== 2\n"
    for damaged in (
        b"",
        base64,
        b"\xff" * 9,
        DATA[: len(DATA) // 2],
        b"\x0a\x02\x10",
        b"\x08\x05",
        b"\x0a\x03\x0a\x01\xff",
    ):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="not a SentencePiece model, or one cut short"):
            read_model(path)
