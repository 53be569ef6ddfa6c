"""Roles of special tokens: what wins when several places name one, and what is told when none does."""

import json

import pytest

from data.special_tokens import configured_names, special_list, special_names, special_roles
from data.tokenizer import BytesTokenizerConfig
from utils.errors import DataError


def backend_with(*tokens):
    backend = BytesTokenizerConfig(special_tokens={"eos": "<|z|>"}).build().backend
    backend.add_special_tokens(list(tokens))
    return backend


def test_a_wish_wins_over_config_files_over_the_file_itself_over_usual_names(tmp_path):
    backend = backend_with("</s>", "<own>", "<config>", "<wish>")
    assert special_names(backend, tmp_path, {}, None, None) == {"eos": "</s>"}
    assert special_names(backend, tmp_path, {"eos": "<own>"}, None, None) == {"eos": "<own>"}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<own>", "sep_token": "<own>"}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<config>"}}))
    found = special_names(backend, tmp_path, {"eos": "<own>"}, None, None)
    assert found == {"eos": "<config>", "sep": "<own>"}
    assert special_names(backend, tmp_path, {}, "<own>", "<wish>")["eos"] == "<wish>"


@pytest.mark.parametrize("style", ["<|fim_{}|>", "<fim_{}>", "<fim-{}>"])
def test_tokens_for_filling_in_the_middle_are_known_by_their_usual_names(style, tmp_path):
    names = {f"fim_{part}": style.format(part) for part in ("prefix", "middle", "suffix")}
    found = special_names(backend_with("</s>", *names.values()), tmp_path, {}, None, None)
    assert found == {"eos": "</s>", **names}


def test_a_role_whose_token_is_not_there_is_no_role(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pad_token": "<gone>", "eos_token": "<|z|>"}))
    assert special_names(backend_with(), tmp_path, {}, None, None) == {"eos": "<|z|>"}
    with pytest.raises(DataError, match="no bos token '<gone>'; its special ones: <|z|>"):
        special_names(backend_with(), tmp_path, {}, "<gone>", None)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(DataError, match=r"tokenizer_config\.json: cannot be read"):
        configured_names(tmp_path)


def test_given_names_come_first_and_are_not_doubled():
    given = {"eos": "<|im_end|>"}
    assert special_roles(given, chat=False, fim=False) == given
    assert special_list(given, True, False, 2) == ["<|im_end|>", "<|im_start|>", "<|reserved_0|>", "<|reserved_1|>"]
    assert list(special_roles({"eos": "<e>"}, True, True))[1:] == [
        "im_start",
        "im_end",
        "fim_prefix",
        "fim_middle",
        "fim_suffix",
    ]
