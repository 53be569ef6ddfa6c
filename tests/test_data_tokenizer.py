"""Tokenizers: lossless, deterministic, deaf to special tokens in text, and the same in transformers."""

import json
import subprocess
import sys
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenizers import pre_tokenizers

from data.tokenizer import (
    BPETokenizerConfig,
    BytesTokenizerConfig,
    FileTokenizerConfig,
    Tokenizer,
    UnigramTokenizerConfig,
)
from data.tokenizer_files import PATTERNS, byte_characters, can_be_cut, cut_text
from utils.errors import DataError

CORPUS = [
    "def walk(self):\n    return [x for x in self.items if x > 12345]\n" * 5,
    "The cat sat on the mat, and it didn't move. " * 8,
    "caf\u00e9 \u3042\u3044 \U0001f600 \r\n\t tabs  and   spaces\n\n\n" * 4,
    "<|endoftext|> <pad> special words as text <|endoftext|>" * 6,
]
TRICKY = [
    "",
    " ",
    "\n\n\n",
    " hello  world . , 's DON'T",
    "a\0b\x7f\x80\xff",
    "1234567 89",
    "<|endoftext|>",
    "x<pad>y",
    "\ufeffbom\u2028",
    "\U0001f468\u200d\U0001f469",
]
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
SPECIAL = {"eos": "<|endoftext|>", "pad": "<pad>", "mask": "<|mask|>", "user": "<|user|>"}

gpt2 = BPETokenizerConfig(vocab_size=340, pretokenizer="gpt2", special_tokens=SPECIAL).build(CORPUS)
llama3 = BPETokenizerConfig(vocab_size=340, special_tokens=SPECIAL).build(CORPUS)
plain = BytesTokenizerConfig(special_tokens=SPECIAL).build()
unigram = UnigramTokenizerConfig(vocab_size=270, special_tokens=SPECIAL).build(CORPUS)
KINDS = {"gpt2": gpt2, "llama3": llama3, "bytes": plain, "unigram": unigram}
ALL = pytest.mark.parametrize("tokenizer", KINDS.values(), ids=KINDS.keys())


@ALL
@settings(max_examples=150, deadline=None)
@given(text=TEXTS)
def test_decoding_gives_back_every_text(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == tokenizer.decode(ids, skip_special_tokens=False) == text
    assert tokenizer.encode_batch([text, "x"]) == [ids, tokenizer.encode("x")]


@ALL
@settings(max_examples=300, deadline=None)
@given(text=st.text(st.sampled_from(list("a7' .!\n\r\t\u00a0\u3042\u200d\x1c\x85\u2028\U0001f600")), max_size=40))
def test_a_text_encoded_in_parts_has_the_tokens_of_the_whole(tokenizer, text):
    whole = tokenizer.backend.encode(text, add_special_tokens=False).ids
    assert tokenizer.encode_batch([text, "x\ny"], part_size=1) == [whole, tokenizer.backend.encode("x\ny").ids]


@ALL
@settings(max_examples=50, deadline=None)
@given(texts=st.lists(TEXTS | st.just("some words\nand more\n\n"), max_size=6), part_size=st.sampled_from([1, 50_000]))
def test_arrays_hold_what_encode_gives_between_bos_and_eos(tokenizer, texts, part_size):
    tokens, offsets = tokenizer.encode_to_array(texts, np.uint16, part_size=part_size)
    expected = [[tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id] for text in texts]
    assert (tokens.dtype, offsets.dtype, len(offsets)) == (np.uint16, np.int64, len(texts) + 1)
    assert [tokens[a:b].tolist() for a, b in pairwise(offsets)] == expected
    assert (offsets[0], offsets[-1]) == (0, len(tokens))


def test_an_array_of_numbers_too_small_for_the_vocabulary_is_refused():
    with pytest.raises(DataError, match="uint8 cannot hold a vocabulary of 260"):
        plain.encode_to_array(["x"], np.uint8)


def test_long_texts_are_really_cut_and_nothing_is_lost():
    text = "".join(f"line {number}\n\n  indented\n" for number in range(100))
    parts = cut_text(text, 50)
    assert "".join(parts) == text
    assert 10 < len(parts) <= len(text) / 50 + 1
    assert cut_text("", 5) == [""]


def test_only_our_own_patterns_are_cut():
    other = BytesTokenizerConfig(special_tokens=SPECIAL).build().backend
    assert can_be_cut(other)
    other.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    assert can_be_cut(llama3.backend)
    assert can_be_cut(gpt2.backend)
    assert not can_be_cut(other)
    other.pre_tokenizer = gpt2.backend.pre_tokenizer
    assert can_be_cut(other)
    other.normalizer = tokenizers.normalizers.NFC()
    assert not can_be_cut(other)


@ALL
def test_special_tokens_written_out_are_ordinary_text(tokenizer):
    special = {tokenizer.special_id(role) for role in SPECIAL}
    for text in [*TRICKY, *SPECIAL.values()]:
        assert not special & set(tokenizer.encode(text))
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode([tokenizer.eos_id]) == ""
    assert tokenizer.decode([tokenizer.eos_id], skip_special_tokens=False) == "<|endoftext|>"


def test_bytes_are_their_own_ids_with_specials_behind():
    assert plain.encode("a\u00e9\0") == [97, 0xC3, 0xA9, 0]
    assert [plain.special_id(role) for role in SPECIAL] == [256, 257, 258, 259]
    assert plain.vocab_size == 260 == BytesTokenizerConfig(special_tokens=SPECIAL).expected_vocab_size()
    assert plain.bos_id == plain.eos_id == 256


def test_byte_characters_are_the_alphabet_of_the_tokenizers_package():
    assert sorted(byte_characters()) == sorted(pre_tokenizers.ByteLevel.alphabet())
    assert byte_characters()[ord("A")] == "A"
    assert byte_characters()[ord(" ")] == "\u0120"


def test_vocab_size_counts_specials_and_all_256_bytes_are_there():
    assert llama3.vocab_size == 340
    assert all(llama3.backend.token_to_id(character) is not None for character in byte_characters())
    assert BPETokenizerConfig(vocab_size=5000).build(["tiny"]).vocab_size < 300


def test_pretokenizers_differ_as_their_models_do():
    numbers = BPETokenizerConfig(vocab_size=600).build(["1234567 " * 50])
    assert [numbers.decode([token]) for token in numbers.encode("1234567")] == ["123", "456", "7"]
    numbers = BPETokenizerConfig(vocab_size=600, pretokenizer="gpt2").build(["1234567 " * 50])
    assert [numbers.decode([token]) for token in numbers.encode("1234567")] == ["1234567"]


def test_gpt2_pattern_cuts_as_the_package_own_gpt2_pretokenizer():
    own = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    ours = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(PATTERNS["gpt2"]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    for text in [*CORPUS, *TRICKY]:
        assert [word for word, _ in ours.pre_tokenize_str(text)] == [word for word, _ in own.pre_tokenize_str(text)]


def test_training_is_the_same_in_another_process_and_in_another_order():
    program = (
        "from data.tokenizer import BPETokenizerConfig as C; import json, sys; "
        "print(C(vocab_size=340, special_tokens=json.loads(sys.argv[2])).build(json.loads(sys.argv[1])).hash)"
    )
    arguments = [sys.executable, "-c", program, json.dumps(CORPUS[::-1]), json.dumps(SPECIAL)]
    assert subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.strip() == llama3.hash


@ALL
def test_saving_and_loading_keeps_hash_roles_and_ids(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.hash == tokenizer.hash
    assert (again.bos_id, again.eos_id, again.vocab_size) == (tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size)
    assert again.special_tokens == tokenizer.special_tokens
    assert all(again.encode(text) == tokenizer.encode(text) for text in TRICKY)


def test_scores_of_any_precision_keep_the_hash_through_saving(tmp_path):
    described = json.loads(unigram.backend.to_str())["model"]["vocab"]
    exact = [(piece, score * (1 + rank * 1.7e-3)) for rank, (piece, score) in enumerate(described)]
    backend = tokenizers.Tokenizer(tokenizers.models.Unigram(exact))
    backend.add_special_tokens(list(SPECIAL.values()))
    tokenizer, first = Tokenizer(backend, SPECIAL), backend.to_str()
    hashes = {tokenizer.hash}
    for _ in range(3):
        tokenizer.save(tmp_path)
        tokenizer = Tokenizer.load(tmp_path)
        hashes.add(tokenizer.hash)
    assert tokenizer.backend.to_str() != first
    assert len(hashes) == 1


def test_hash_tells_vocabularies_and_ends_apart():
    hashes = {
        tokenizer.hash
        for tokenizer in (
            gpt2,
            llama3,
            plain,
            BytesTokenizerConfig().build(),
            BytesTokenizerConfig(special_tokens={**SPECIAL, "bos": "<pad>"}).build(),
        )
    }
    assert len(hashes) == 5
    changed = json.loads(unigram.backend.to_str())
    changed["model"]["vocab"][-1][1] -= 1.0
    other = Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(changed)), SPECIAL)
    assert other.hash != unigram.hash
    other.backend.add_tokens(["more"])
    assert Tokenizer(other.backend, SPECIAL).hash != other.hash


WANTED: dict[str, Any] = {"chat_tokens": True, "fim_tokens": True, "reserved_tokens": 3}
NEW = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|reserved_0|>",
    "<|reserved_1|>",
    "<|reserved_2|>",
]


@pytest.mark.parametrize("kind", ["bpe", "unigram", "bytes"])
def test_chat_fim_and_reserved_tokens_are_special_have_roles_and_are_saved(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from transformers import AutoTokenizer

    config = {
        "bpe": BPETokenizerConfig(vocab_size=280, **WANTED),
        "unigram": UnigramTokenizerConfig(vocab_size=266, **WANTED),
        "bytes": BytesTokenizerConfig(**WANTED),
    }[kind]
    tokenizer = config.build(CORPUS)
    first = 256 if kind == "bytes" else 0
    assert [tokenizer.backend.token_to_id(token) for token in NEW] == list(range(first, first + len(NEW)))
    for text in NEW:
        assert not set(tokenizer.encode(f"a {text}b")) & set(range(first, first + len(NEW)))
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    for role in ("im_start", "im_end", "fim_prefix", "fim_middle", "fim_suffix"):
        assert again.special_tokens[role] == f"<|{role}|>"
        assert again.special_id(role) == tokenizer.special_id(role)
    assert again.hash == tokenizer.hash
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert set(theirs.all_special_tokens) == set(NEW)
    assert theirs.encode("".join(NEW)) == list(range(first, first + len(NEW)))


def test_without_them_nothing_changes_and_a_missing_role_is_told(tmp_path):
    usual = BytesTokenizerConfig().build()
    assert usual.vocab_size == 257
    usual.save(tmp_path)
    assert "additional_special_tokens" not in json.loads((tmp_path / "tokenizer_config.json").read_text())
    with pytest.raises(DataError, match=r"no 'fim_prefix' token .*eos: <\|endoftext\|>"):
        usual.special_id("fim_prefix")
    own = BytesTokenizerConfig(special_tokens={"eos": "<x>", "im_end": "<end>"}, chat_tokens=True)
    assert own.tokens() == ["<x>", "<end>", "<|im_start|>"]


@ALL
@pytest.mark.parametrize("model_type", [None, "llama", "qwen3"])
def test_transformers_loads_the_folder_and_encodes_the_same(tokenizer, model_type, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from transformers import AutoTokenizer

    tokenizer.save(tmp_path)
    if model_type:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, "vocab_size": 400}))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in [*CORPUS[:3], *(text for text in TRICKY if "<" not in text)]:
        assert theirs.encode(text) == tokenizer.encode(text)
        assert theirs.decode(theirs.encode(text)) == text
    assert theirs.bos_token_id == theirs.eos_token_id == tokenizer.eos_id
    assert theirs.pad_token_id == tokenizer.special_id("pad")
    assert len(theirs) == tokenizer.vocab_size


def existing(folder, config=None, special=("<s>", "</s>")):
    """A tokenizer.json made by other hands, with padding and truncation left switched on."""
    backend = BytesTokenizerConfig(special_tokens={"eos": "<|x|>"}).build().backend
    backend.add_special_tokens(list(special))
    backend.enable_padding(length=50)
    backend.enable_truncation(3)
    folder.mkdir(exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_an_existing_tokenizer_gives_its_ends_by_config_by_name_or_by_wish(tmp_path):
    by_name = FileTokenizerConfig(path=str(existing(tmp_path / "a"))).build()
    assert (by_name.bos_id, by_name.eos_id) == (257, 258)
    assert by_name.encode("abcdef") == [97, 98, 99, 100, 101, 102]
    config = {"eos_token": {"content": "<|x|>"}, "bos_token": None}
    by_config = Tokenizer.load(existing(tmp_path / "b", config))
    assert (by_config.bos_id, by_config.eos_id) == (257, 256)
    wished = FileTokenizerConfig(path=str(existing(tmp_path / "c", config) / "tokenizer.json"), bos="</s>", eos="<s>")
    assert (wished.build().bos_id, wished.build().eos_id) == (258, 257)
    assert wished.expected_vocab_size() == 259
    assert wished.build().extra_special_tokens() == ["<|x|>"]
    wished_too = wished.build()
    wished_too.backend.add_tokens(["an ordinary one"])
    assert wished_too.extra_special_tokens() == ["<|x|>"]


def test_an_existing_tokenizer_without_ends_lists_its_special_tokens(tmp_path):
    folder = existing(tmp_path / "a", special=("<begin>",))
    with pytest.raises(DataError, match=r"set data\.tokenizer\.eos to one of: <\|x\|>, <begin>"):
        Tokenizer.load(folder)
    assert Tokenizer.load(folder, eos="<begin>").bos_id == 257
    with pytest.raises(DataError, match="no eos token '<nope>'"):
        Tokenizer.load(folder, eos="<nope>")


def test_missing_and_broken_tokenizer_files_are_told(tmp_path):
    config = FileTokenizerConfig(path=str(tmp_path / "nothing"))
    with pytest.raises(DataError, match="no such tokenizer file; train one with"):
        config.build()
    assert config.expected_vocab_size() is None
    assert "no such tokenizer file" in config.find_problems()[0]
    for content in (
        b"not json",
        b"{}",
        b"[1]",
        b"\xff\xfe",
        b'{"model": {"type": "BPE"}}',
        b'{"model": {"type": "Z"}}',
        plain.backend.to_str().replace('"dropout":null', '"dropout":0.1').encode(),
    ):
        (tmp_path / "tokenizer.json").write_bytes(content)
        with pytest.raises(DataError, match=r"tokenizer\.json: "):
            Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"vocab_size": 256}, "greater than 256"),
        ({"vocab_size": 257, "special_tokens": SPECIAL}, "less than the 256 bytes and 4 special tokens"),
        ({"vocab_size": 300, "reserved_tokens": 45}, "less than the 256 bytes and 46 special tokens"),
        ({"reserved_tokens": 9000}, "8192 is less than the 256 bytes and 9001 special tokens"),
        ({"reserved_tokens": -1}, "greater than or equal to 0"),
        ({"special_tokens": {"pad": "<pad>"}}, "an 'eos' token is needed"),
        ({"special_tokens": {"eos": "END"}}, "could be learned as a word"),
        ({"special_tokens": {"eos": "x"}}, "too short"),
    ],
)
def test_impossible_sections_are_refused(values, message):
    with pytest.raises(ValidationError, match=message):
        BPETokenizerConfig(**values)


def test_an_absent_role_is_told():
    with pytest.raises(DataError, match=r"no 'cls' token .*eos: <\|endoftext\|>"):
        plain.special_id("cls")
