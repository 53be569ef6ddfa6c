"""The tokenizer: byte-level BPE, one class for a trained one, an existing `tokenizer.json` and plain bytes.

Byte-level, because any text then has tokens and decoding gives it back exactly; no normaliser, for the same reason.
Plain bytes are the same thing without merges. Text is always text: a document that spells out `<|endoftext|>` gets
ordinary tokens, never the special one. Nothing is added by `encode`; the shards put bos and eos around documents.
How one is trained or found stands in `data/tokenizer_files.py`; to add a kind, write a `TokenizerConfig` subclass.
"""

import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import tokenizers
from pydantic import Field, field_validator

from data.tokenizer_files import (
    PATTERNS,
    can_be_cut,
    could_be_text,
    cut_text,
    new_byte_level,
    read_tokenizer,
    special_names,
    train_bpe,
)
from utils.errors import DataError
from utils.schema import TypedSection

END_OF_TEXT = "<|endoftext|>"
PART_CHARACTERS = 500_000
GROUP_CHARACTERS = 4_000_000


class Tokenizer:
    """Text to token ids and back. Equal `hash` means equal ids for every text, and equal bos and eos."""

    def __init__(self, backend: tokenizers.Tokenizer, special_tokens: dict[str, str]) -> None:
        """`special_tokens` names the token of each role: `bos`, `eos` and any others (`pad`, `mask`, ...)."""
        backend.encode_special_tokens = True
        backend.no_padding()
        backend.no_truncation()
        self.backend = backend
        self.special_tokens = {"bos": special_tokens["eos"], **special_tokens}
        self.bos_id = self.special_id("bos")
        self.eos_id = self.special_id("eos")
        self._can_be_cut = can_be_cut(backend)
        self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values()) + 1

    @functools.cached_property
    def hash(self) -> str:
        """SHA-256 of the canonical tokenizer.json, bos and eos."""
        parts = [json.loads(self.backend.to_str()), self.bos_id, self.eos_id]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def special_id(self, role: str) -> int:
        """The id of the token with this role. Raises DataError when there is none."""
        token = self.special_tokens.get(role)
        found = None if token is None else self.backend.token_to_id(token)
        if found is None:
            have = ", ".join(f"{name}: {value}" for name, value in self.special_tokens.items())
            raise DataError(f"the tokenizer has no '{role}' token {token or ''}(it has {have})")
        return found

    def encode(self, text: str) -> list[int]:
        """Token ids of the text, no special ones among them."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str], part_size: int = PART_CHARACTERS) -> list[list[int]]:
        """`encode` of each text, on all cores.

        A long text is encoded in parts of about `part_size` characters where that cannot change the result: whole,
        it takes 120 bytes of memory for each of its own, one core, and more than linear time.
        """
        parts = [cut_text(text, part_size) if self._can_be_cut else [text] for text in texts]
        ids = self._encode_in_groups([part for pieces in parts for part in pieces])
        return [list(chain.from_iterable(islice(ids, len(pieces)))) for pieces in parts]

    def _encode_in_groups(self, texts: list[str]) -> Iterator[list[int]]:
        """The ids of each text; only a few MB of text are in the backend's hands at once."""
        group, size = [], 0
        for text in texts:
            group.append(text)
            size += len(text)
            if size >= GROUP_CHARACTERS:
                yield from self._encode_at_once(group)
                group, size = [], 0
        yield from self._encode_at_once(group)

    def _encode_at_once(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self.backend.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of the ids; bytes that are no whole character become U+FFFD."""
        return self.backend.decode(ids, skip_special_tokens=skip_special_tokens)

    def save(self, folder: Path | str) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`, which transformers and mlx-lm load."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.json").write_text(self.backend.to_str(pretty=True), encoding="utf-8")
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            **{f"{role}_token": self.special_tokens[role] for role in self.special_tokens},
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path | str, bos: str | None = None, eos: str | None = None) -> "Tokenizer":
        """From a folder or a `tokenizer.json`. Raises DataError when it is missing, broken or has no eos."""
        backend, folder = read_tokenizer(Path(path))
        return cls(backend, special_names(backend, folder, bos, eos))


class TokenizerConfig(TypedSection):
    """What all tokenizer sections have in common."""

    def needs_training(self) -> bool:
        """Whether `build` wants text."""
        return False

    def build(self, texts: Iterable[str] = ()) -> Tokenizer:
        """The tokenizer, trained on `texts` where it is a trained one."""
        raise NotImplementedError

    def expected_vocab_size(self) -> int | None:
        """The vocabulary size without building; None when it cannot be known yet."""
        raise NotImplementedError

    def find_problems(self) -> list[str]:
        """What is missing."""
        return []


class NewTokenizerConfig(TokenizerConfig):
    """A tokenizer that does not exist yet, with special tokens of its own."""

    special_tokens: dict[str, str] = {"eos": END_OF_TEXT}
    """The token of each role. `eos` ends documents, `bos` (the same token unless given) begins them; others, such as
    `pad` or `mask`, are reserved."""

    @field_validator("special_tokens")
    @classmethod
    def _check_special_tokens(cls, value: dict[str, str]) -> dict[str, str]:
        if "eos" not in value:
            raise ValueError(f"an 'eos' token is needed to end documents, for example eos: '{END_OF_TEXT}'")
        for token in value.values():
            if len(token) < 2:
                raise ValueError(f"special token '{token}' is too short to be told from text; write it like '<eos>'")
        return value

    def tokens(self) -> list[str]:
        """The special tokens in order, each once."""
        return list(dict.fromkeys(self.special_tokens.values()))


class BPETokenizerConfig(NewTokenizerConfig):
    """Byte-level byte-pair encoding trained on the training documents, never on held-out ones."""

    type: str = "bpe"
    """Row of data.TOKENIZERS."""
    vocab_size: int = Field(default=8192, gt=256)
    """All tokens: special ones, the 256 bytes and the merges."""
    pretokenizer: Literal["llama3", "gpt2"] = "llama3"
    """The pattern that cuts text into words before merging; llama3 takes digits in groups of up to three."""
    max_training_bytes: int = Field(default=50_000_000, gt=0)
    """Text it is trained on at most: a sample of the documents, chosen by hash."""

    @field_validator("special_tokens")
    @classmethod
    def _check_not_text(cls, value: dict[str, str]) -> dict[str, str]:
        for token in value.values():
            if any(could_be_text(token, pattern) for pattern in PATTERNS):
                raise ValueError(f"special token '{token}' could be learned as a word of text; write it like '<eos>'")
        return value

    @field_validator("vocab_size")
    @classmethod
    def _check_vocab_size(cls, value: int, info: Any) -> int:
        num_special = len(set(info.data.get("special_tokens", {}).values()))
        if value < 256 + num_special:
            raise ValueError(f"{value} is less than the 256 bytes and {num_special} special tokens")
        return value

    def needs_training(self) -> bool:
        """See `TokenizerConfig.needs_training`."""
        return True

    def build(self, texts: Iterable[str] = ()) -> Tokenizer:
        """See `TokenizerConfig.build`. The same texts give the same tokenizer."""
        return Tokenizer(train_bpe(texts, self.vocab_size, self.pretokenizer, self.tokens()), self.special_tokens)

    def expected_vocab_size(self) -> int | None:
        """See `TokenizerConfig.expected_vocab_size`; a very small corpus gives fewer."""
        return self.vocab_size


class BytesTokenizerConfig(NewTokenizerConfig):
    """The 256 bytes (id = byte) and the special tokens behind them: nothing to train."""

    type: str = "bytes"
    """Row of data.TOKENIZERS."""

    def build(self, texts: Iterable[str] = ()) -> Tokenizer:
        """See `TokenizerConfig.build`."""
        return Tokenizer(new_byte_level(self.tokens()), self.special_tokens)

    def expected_vocab_size(self) -> int | None:
        """See `TokenizerConfig.expected_vocab_size`."""
        return 256 + len(self.tokens())


class FileTokenizerConfig(TokenizerConfig):
    """An existing tokenizer, taken as it is."""

    type: str = "file"
    """Row of data.TOKENIZERS."""
    path: str
    """A `tokenizer.json`, or a folder that holds one."""
    bos: str | None = None
    """The token that begins documents; null: as its config files say, else the usual names, else eos."""
    eos: str | None = None
    """The token that ends documents; null: as its config files say, else the usual names."""

    def build(self, texts: Iterable[str] = ()) -> Tokenizer:
        """See `TokenizerConfig.build`."""
        return Tokenizer.load(Path(self.path).expanduser(), self.bos, self.eos)

    def expected_vocab_size(self) -> int | None:
        """See `TokenizerConfig.expected_vocab_size`; None when the file is not there."""
        return None if self.find_problems() else self.build().vocab_size

    def find_problems(self) -> list[str]:
        """See `TokenizerConfig.find_problems`."""
        try:
            self.build()
        except DataError as error:
            return error.problems
        return []
