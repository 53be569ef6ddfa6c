"""The tokenizer: byte-level BPE or Unigram, one class for a trained one, an existing file and plain bytes.

Byte-level, because any text then has tokens and decoding gives it back exactly; no normaliser, for the same reason.
Plain bytes are the same thing without merges. Text is always text: a document that spells out `<|endoftext|>` gets
ordinary tokens, never the special one. Nothing is added by `encode`; the shards put bos and eos around documents.
How one is trained or found stands in `data/tokenizer_files.py`; to add a kind, write a `TokenizerConfig` subclass.
"""

import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tokenizers
from pydantic import Field, field_validator

from data.encoding import PART_CHARACTERS, encode_in_groups, join_groups, surround
from data.special_tokens import special_list, special_names, special_roles
from data.tokenizer_files import (
    PATTERNS,
    could_be_text,
    cutter_of,
    new_byte_level,
    read_tokenizer,
    train_bpe,
)
from data.unigram import train_unigram
from utils.errors import DataError
from utils.schema import TypedSection

END_OF_TEXT = "<|endoftext|>"
TRANSFORMERS_ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


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
        self._cut = cutter_of(backend)
        self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values()) + 1

    @functools.cached_property
    def hash(self) -> str:
        """SHA-256 of the canonical tokenizer.json, bos and eos.

        Scores of Unigram count to nine digits: the package reads more of them inexactly, so saving changes the last.
        """
        description = json.loads(self.backend.to_str())
        if description["model"]["type"] == "Unigram":
            description["model"]["vocab"] = [[piece, f"{score:.9g}"] for piece, score in description["model"]["vocab"]]
        parts = [description, self.bos_id, self.eos_id]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def special_id(self, role: str) -> int:
        """The id of the token with this role. Raises DataError when there is none."""
        token = self.special_tokens.get(role)
        found = None if token is None else self.backend.token_to_id(token)
        if found is None:
            have = ", ".join(f"{name}: {value}" for name, value in self.special_tokens.items())
            raise DataError(f"the tokenizer has no '{role}' token {token or ''}(it has {have})")
        return found

    def extra_special_tokens(self) -> list[str]:
        """Special tokens in the order of their ids, but those that transformers has a name for."""
        named = {token for role, token in self.special_tokens.items() if role in TRANSFORMERS_ROLES}
        added = sorted(self.backend.get_added_tokens_decoder().items())
        return [token.content for _, token in added if token.special and token.content not in named]

    def encode(self, text: str) -> list[int]:
        """Token ids of the text, no special ones among them."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str], part_size: int = PART_CHARACTERS) -> list[list[int]]:
        """`encode` of each text, on all cores.

        A long text is encoded in parts of about `part_size` characters where that cannot change the result: whole,
        it takes 120 bytes of memory for each of its own, one core, and more than linear time.
        """
        parts = self._parts(texts, part_size)
        ids = chain.from_iterable(encode_in_groups(self.backend, chain.from_iterable(parts)))
        return [list(chain.from_iterable(islice(ids, len(pieces)))) for pieces in parts]

    def encode_to_array(
        self, texts: Sequence[str], dtype: np.dtype | type = np.uint32, part_size: int = PART_CHARACTERS
    ) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of all texts, each with bos before and eos behind it, [T] `dtype`, and where each begins.

        The second array is int64 [D + 1]: the first token of each text, and T. The fastest way to many tokens, and
        nothing but text, tokens and a few million characters at work are in memory. Raises DataError when `dtype`
        cannot hold the vocabulary.
        """
        dtype = np.dtype(dtype)
        if self.vocab_size - 1 > np.iinfo(dtype).max:
            raise DataError(f"{dtype} cannot hold a vocabulary of {self.vocab_size}; use uint32")
        parts = self._parts(texts, part_size)
        ids, counts = join_groups(encode_in_groups(self.backend, chain.from_iterable(parts)), dtype)
        first = np.concatenate([np.zeros(1, np.int64), np.cumsum([len(pieces) for pieces in parts], dtype=np.int64)])
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])[first]
        return surround(ids, np.diff(ends), self.bos_id, self.eos_id)

    def _parts(self, texts: Sequence[str], part_size: int) -> list[list[str]]:
        return [self._cut(text, part_size) for text in texts]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of the ids; bytes that are no whole character become U+FFFD."""
        return self.backend.decode(ids, skip_special_tokens=skip_special_tokens)

    def save(self, folder: Path | str) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`, which transformers and mlx-lm load."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.json").write_text(self.backend.to_str(pretty=True), encoding="utf-8")
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            **{f"{role}_token": token for role, token in self.special_tokens.items()},
        }
        if extra := self.extra_special_tokens():
            config["additional_special_tokens"] = extra
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path | str, bos: str | None = None, eos: str | None = None) -> "Tokenizer":
        """From a folder, a `tokenizer.json` or a SentencePiece `.model`.

        Raises DataError when it is missing, broken or has no eos.
        """
        backend, folder, roles = read_tokenizer(Path(path))
        return cls(backend, special_names(backend, folder, roles, bos, eos))


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

    chat_tokens: bool = False
    """Whether `<|im_start|>` and `<|im_end|>`, which begin and end a turn of a chat (ChatML), are special tokens; for a
    model that is to be tuned for chat later."""
    fim_tokens: bool = False
    """Whether `<|fim_prefix|>`, `<|fim_middle|>` and `<|fim_suffix|>` are; for filling in the middle."""
    reserved_tokens: int = Field(default=0, ge=0, le=10_000)
    """Spare special tokens `<|reserved_0|>`, `<|reserved_1|>`, ... whose use is decided later."""

    @field_validator("special_tokens")
    @classmethod
    def _check_special_tokens(cls, value: dict[str, str]) -> dict[str, str]:
        if "eos" not in value:
            raise ValueError(f"an 'eos' token is needed to end documents, for example eos: '{END_OF_TEXT}'")
        for token in value.values():
            if len(token) < 2:
                raise ValueError(f"special token '{token}' is too short to be told from text; write it like '<eos>'")
        return value

    def roles(self) -> dict[str, str]:
        """The token of each role: `special_tokens`, then those for chat and for filling in the middle."""
        return special_roles(self.special_tokens, self.chat_tokens, self.fim_tokens)

    def tokens(self) -> list[str]:
        """The special tokens in order, each once."""
        return special_list(self.special_tokens, self.chat_tokens, self.fim_tokens, self.reserved_tokens)


class TrainedTokenizerConfig(NewTokenizerConfig):
    """A tokenizer trained on the training documents, never on held-out ones."""

    vocab_size: int = Field(default=8192, gt=256, validate_default=True)
    """All tokens: special ones, the 256 bytes and what is learned."""
    pretokenizer: Literal["llama3", "gpt2"] = "llama3"
    """The pattern that cuts text into words before anything else; llama3 takes digits in groups of up to three."""
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
        others = ("special_tokens", "chat_tokens", "fim_tokens", "reserved_tokens")
        if not all(name in info.data for name in others):
            return value
        num_special = len(special_list(*(info.data[name] for name in others)))
        if value < 256 + num_special:
            raise ValueError(f"{value} is less than the 256 bytes and {num_special} special tokens")
        return value

    def needs_training(self) -> bool:
        """See `TokenizerConfig.needs_training`."""
        return True

    def expected_vocab_size(self) -> int | None:
        """See `TokenizerConfig.expected_vocab_size`; a very small corpus gives fewer."""
        return self.vocab_size


class BPETokenizerConfig(TrainedTokenizerConfig):
    """Byte-level byte-pair encoding."""

    type: str = "bpe"
    """Row of data.TOKENIZERS."""

    def build(self, texts: Iterable[str] = ()) -> Tokenizer:
        """See `TokenizerConfig.build`. The same texts give the same tokenizer."""
        return Tokenizer(train_bpe(texts, self.vocab_size, self.pretokenizer, self.tokens()), self.roles())


class UnigramTokenizerConfig(TrainedTokenizerConfig):
    """Byte-level Unigram language model: slower to train than BPE, and words fall into likelier parts."""

    type: str = "unigram"
    """Row of data.TOKENIZERS."""

    def build(self, texts: Iterable[str] = ()) -> Tokenizer:
        """See `TokenizerConfig.build`. The same texts give the same tokenizer."""
        return Tokenizer(train_unigram(texts, self.vocab_size, self.pretokenizer, self.tokens()), self.roles())


class BytesTokenizerConfig(NewTokenizerConfig):
    """The 256 bytes (id = byte) and the special tokens behind them: nothing to train."""

    type: str = "bytes"
    """Row of data.TOKENIZERS."""

    def build(self, texts: Iterable[str] = ()) -> Tokenizer:
        """See `TokenizerConfig.build`."""
        return Tokenizer(new_byte_level(self.tokens()), self.roles())

    def expected_vocab_size(self) -> int | None:
        """See `TokenizerConfig.expected_vocab_size`."""
        return 256 + len(self.tokens())


class FileTokenizerConfig(TokenizerConfig):
    """An existing tokenizer, taken as it is."""

    type: str = "file"
    """Row of data.TOKENIZERS."""
    path: str
    """A `tokenizer.json`, a SentencePiece model (`.model`), or a folder that holds one of the two."""
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
