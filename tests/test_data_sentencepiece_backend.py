"""SentencePiece models read as tokenizers: ids equal to sentencepiece's own, whole files refused where they are not."""

import json
import random
import re
from typing import Any

import pytest
import sentencepiece

from data.sentencepiece_backend import SPACE, new_backend, places_to_cut, refusals
from data.sentencepiece_file import NORMAL, UNUSED, Piece, parse_model
from data.tokenizer import FileTokenizerConfig, Tokenizer
from tests.sentencepiece_models import LINES, train
from utils.errors import DataError

IDENTITY: dict[str, Any] = {"normalization_rule_name": "identity"}
LLAMA: dict[str, Any] = {**IDENTITY, "byte_fallback": True, "remove_extra_whitespaces": False, "vocab_size": 420}
GEMMA: dict[str, Any] = {**LLAMA, "add_dummy_prefix": False, "allow_whitespace_only_pieces": True}
MODELS: dict[str, dict[str, Any]] = {
    "bpe": {"model_type": "bpe"},
    "bpe_like_llama": {"model_type": "bpe", "split_digits": True, **LLAMA},
    "bpe_like_gemma": {"model_type": "bpe", "user_defined_symbols": ["<ud>", "aaa", "self."], **GEMMA},
    "bpe_over_words": {"model_type": "bpe", "split_by_whitespace": False, **IDENTITY},
    "unigram": {},
    "unigram_lower": {"normalization_rule_name": "nmt_nfkc_cf", "remove_extra_whitespaces": False},
    "unigram_bytes": LLAMA,
    "unigram_own_symbols": {"user_defined_symbols": ["_", "aaa"], "control_symbols": ["self", "<ctl>"], **IDENTITY},
    "unigram_over_words": {"split_by_whitespace": False, "add_dummy_prefix": False, **IDENTITY},
}
ALL = pytest.mark.parametrize("name", MODELS)
BITS = [
    *"abe=_ \n\t., <s>/0x41A\u3042\xe9\ufb01\u00a0\u3000\x01Z~{}\U0001f600",
    SPACE,
    "  ",
    "def",
    "aaaa",
    "self",
    "self.",
]
BITS += ["<s>", "</s>", "<unk>", "<0x41>", "<ud>", "<ctl>"]


def texts():
    """Real lines, runs of equal characters, spaces in all places, and whatever chance puts together."""
    chance = random.Random(0)
    drawn = ["".join(chance.choices(BITS, k=chance.randint(1, 20))) for _ in range(600)]
    runs = [before + char * number + "ab" for char in "a= " for number in range(1, 24) for before in ("", "x", " ")]
    return ["", " ", "  ", "\n", "\u0301x", *drawn, *runs, *LINES[::10]]


@ALL
def test_ids_and_decoded_text_are_those_of_sentencepiece(name):
    data = train(**MODELS[name])
    model, theirs = parse_model(data), sentencepiece.SentencePieceProcessor(model_proto=data)
    assert list(refusals(model)) == []
    backend = new_backend(model)
    backend.encode_special_tokens = True
    for text in texts():
        ids, expected = backend.encode(text, add_special_tokens=False).ids, theirs.encode(text)
        if ids != expected and model.model_type == "unigram" and re.search(r"(.)\1\1", text):
            # Equal pieces in another order have equal scores, but for the order in which float32 adds them.
            assert sorted(ids) == sorted(expected), text
        else:
            assert ids == expected, text
        if 0 not in expected and not (model.removes_spaces and SPACE in text):
            assert backend.decode(expected) == theirs.decode(expected)


@ALL
def test_no_text_becomes_a_control_token(name):
    model = parse_model(train(**MODELS[name]))
    backend = new_backend(model)
    backend.encode_special_tokens = True
    for text in ("<s>", "a</s>b", "<unk>", " <ctl> self<0x41>"):
        tokens = backend.encode(text, add_special_tokens=False).tokens
        assert not {"<s>", "</s>", "<ctl>", "<0x41>"} & set(tokens) or model.byte_fallback
        assert not any(token in text and token.startswith("<0x") for token in tokens)
        if "control_symbols" in MODELS[name]:
            assert "self" not in tokens


def test_a_model_file_and_a_folder_with_one_are_read_saved_and_read_again(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(train(**MODELS["unigram_bytes"]))
    tokenizer = FileTokenizerConfig(path=str(tmp_path / "tokenizer.model")).build()
    assert tokenizer.special_tokens == {"bos": "<s>", "eos": "</s>"}
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)
    assert Tokenizer.load(tmp_path).hash == tokenizer.hash
    tokenizer.save(tmp_path / "saved")
    again = Tokenizer.load(tmp_path / "saved")
    assert (again.hash, again.special_tokens) == (tokenizer.hash, tokenizer.special_tokens)
    assert [again.encode(text) for text in texts()] == [tokenizer.encode(text) for text in texts()]


@ALL
def test_the_hash_outlives_saving(name, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(train(**MODELS[name]))
    tokenizer = Tokenizer.load(tmp_path)
    tokenizer.save(tmp_path)
    assert Tokenizer.load(tmp_path / "tokenizer.json").hash == tokenizer.hash
    (tmp_path / "tokenizer.model").write_bytes(b"not looked at beside a tokenizer.json")
    assert Tokenizer.load(tmp_path).hash == tokenizer.hash


def test_transformers_and_mlx_lm_load_what_is_saved(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from mlx_lm.tokenizer_utils import SPMStreamingDetokenizer, load

    (tmp_path / "tokenizer.model").write_bytes(train(**MODELS["bpe_like_llama"]))
    tokenizer = Tokenizer.load(tmp_path)
    tokenizer.save(tmp_path / "saved")
    theirs = load(tmp_path / "saved")
    assert isinstance(theirs.detokenizer, SPMStreamingDetokenizer)
    for text in (*LINES[:5], "caf\u00e9  \U0001f600\n x"):
        assert theirs.encode(text, add_special_tokens=False) == tokenizer.encode(text)
        assert theirs.decode(tokenizer.encode(text)) == text == tokenizer.decode(tokenizer.encode(text))


def test_tokens_added_beside_a_model_are_taken_or_refused(tmp_path):
    data = train(**MODELS["unigram_bytes"])
    size = len(parse_model(data).pieces)
    (tmp_path / "tokenizer.model").write_bytes(data)
    added = tmp_path / "added_tokens.json"
    added.write_text(json.dumps({"<|im_end|>": size + 1, "<|im_start|>": size}))
    tokenizer = Tokenizer.load(tmp_path)
    assert (tokenizer.special_id("im_start"), tokenizer.special_id("im_end")) == (size, size + 1)
    assert tokenizer.vocab_size == size + 2
    added.write_text(json.dumps({"<|im_start|>": size + 7}))
    with pytest.raises(DataError, match=rf"'<\|im_start\|>' cannot be token {size + 7}"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"model_type": "char", "vocab_size": 60}, "its type is char"),
        ({"treat_whitespace_as_suffix": True}, r"spaces do not stand before words"),
        ({"model_type": "bpe", "user_defined_symbols": ["<ud>"]}, "it takes '<ud>' whole"),
        ({"user_defined_symbols": ["a b"], **IDENTITY}, "it takes 'a.b' whole"),
        ({"control_symbols": ["%%"], **IDENTITY}, "text could become the token '%%'"),
    ],
)
def test_models_that_would_read_otherwise_are_refused_by_name(settings, reason, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(train(**settings))
    with pytest.raises(DataError, match=f"cannot be read exactly: .*{reason}"):
        Tokenizer.load(tmp_path)


def test_made_up_models_are_refused_by_name():
    model = parse_model(train(model_type="bpe", **IDENTITY))
    (first, *_) = [place for place, piece in enumerate(model.pieces) if len(piece.text) == 2]
    pieces = model.pieces
    longer = [piece for piece in pieces if piece.kind == NORMAL and len(piece.text) > 1]
    for changed, reason in (
        ({"pieces": [*pieces, Piece("%a", -9999.0, NORMAL)]}, "the character '%' occurs in pieces"),
        ({"pieces": [*pieces, Piece("aata", longer[0].score, NORMAL)]}, "two merges have equal scores"),
        ({"pieces": [*pieces, pieces[first]]}, "a piece occurs twice"),
        ({"pieces": [*pieces, Piece("zz", -1.0, UNUSED)]}, "it has unused pieces"),
        ({"pieces": pieces[1:]}, "it has not exactly one unknown piece"),
        ({"byte_fallback": True}, "not all 256 are there"),
        ({"charsmap": b"xx", "normalizer": "mine"}, r"rules of its own for characters \(mine\)"),
        ({"has_denormalizer": True}, "rules of its own for decoding"),
    ):
        altered = model._replace(**changed)
        assert any(reason.replace("\\", "") in line for line in refusals(altered)), reason


def test_a_place_to_cut_lies_where_a_known_character_meets_an_unknown_one():
    model = parse_model(train(**IDENTITY))
    known = {piece.text for piece in model.pieces if piece.kind == NORMAL}
    assert "<" not in known
    assert places_to_cut(model) == "(?<=<)(?=unk>|s>|/s>)"
    pieces = model.pieces + [Piece(char, -9.0, NORMAL) for char in "<>" if char not in known]
    assert places_to_cut(model._replace(pieces=pieces)) == ""
