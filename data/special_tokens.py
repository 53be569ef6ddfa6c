"""Special tokens: which names they usually have, and which role each plays in a tokenizer that was found.

A role (`bos`, `eos`, `pad`, `im_start`, `fim_prefix`, ...) is what code asks for, a token is what stands in the
vocabulary. Chat tokens are ChatML's, which Qwen, SmolLM and most chat templates use; those for filling in the middle
are Qwen's and StarCoder 2's. To know another name for a role, add it to `USUAL_NAMES`.
"""

import json
from pathlib import Path
from typing import Any

import tokenizers

from utils.errors import DataError

CHAT_TOKENS = {"im_start": "<|im_start|>", "im_end": "<|im_end|>"}
FIM_TOKENS = {"fim_prefix": "<|fim_prefix|>", "fim_middle": "<|fim_middle|>", "fim_suffix": "<|fim_suffix|>"}
USUAL_NAMES = {
    "eos": ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "[EOS]"),
    "bos": ("<|begin_of_text|>", "<s>", "<bos>", "<|bos|>", "[BOS]"),
    **{role: (token,) for role, token in CHAT_TOKENS.items()},
    **{role: (token, f"<{role}>", f"<{role.replace('_', '-')}>") for role, token in FIM_TOKENS.items()},
}


def special_roles(given: dict[str, str], chat: bool, fim: bool) -> dict[str, str]:
    """Role to token: the given ones, then those for chat and for filling in the middle where these are wanted."""
    wanted = (CHAT_TOKENS if chat else {}) | (FIM_TOKENS if fim else {})
    return given | {role: token for role, token in wanted.items() if role not in given}


def special_list(given: dict[str, str], chat: bool, fim: bool, num_reserved: int) -> list[str]:
    """All special tokens in the order of their ids, each once; spare ones come last."""
    spare = [f"<|reserved_{rank}|>" for rank in range(num_reserved)]
    return list(dict.fromkeys([*special_roles(given, chat, fim).values(), *spare]))


def special_names(
    backend: tokenizers.Tokenizer, folder: Path, own: dict[str, str], bos: str | None, eos: str | None
) -> dict[str, str]:
    """Role to token: what was asked for, else the config files beside the tokenizer, else its `own`, else usual names.

    Raises DataError, naming the special tokens there are, when no eos is found or a token does not exist.
    """
    names = own | configured_names(folder)
    names.update({role: token for role, token in (("bos", bos), ("eos", eos)) if token})
    for role, usual in USUAL_NAMES.items():
        present = [token for token in usual if backend.token_to_id(token) is not None]
        if role not in names and present:
            names[role] = present[0]
    there = ", ".join(token.content for token in backend.get_added_tokens_decoder().values()) or "none"
    if "eos" not in names:
        raise DataError(f"{folder}: which token ends a document? set data.tokenizer.eos to one of: {there}")
    for role in ("bos", "eos"):
        if role in names and backend.token_to_id(names[role]) is None:
            raise DataError(f"{folder}: the tokenizer has no {role} token '{names[role]}'; its special ones: {there}")
    return {role: token for role, token in names.items() if backend.token_to_id(token) is not None}


def configured_names(folder: Path) -> dict[str, str]:
    """Roles and tokens of `special_tokens_map.json` and `tokenizer_config.json`; the latter wins. Raises DataError."""
    names: dict[str, str] = {}
    for file in (folder / "special_tokens_map.json", folder / "tokenizer_config.json"):
        if file.is_file():
            for key, value in read_json(file).items():
                token = value.get("content") if isinstance(value, dict) else value
                if key.endswith("_token") and isinstance(token, str):
                    names[key.removesuffix("_token")] = token
    return names


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file, empty when it holds something else. Raises DataError."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read: {error}") from error
    return value if isinstance(value, dict) else {}
