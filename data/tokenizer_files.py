"""Backends of the tokenizer: training byte-level BPE, building plain bytes, reading files that hold one.

The patterns are GPT-2's and Llama 3's, character for character, because programs that load a GGUF file know exactly
these. They run as a `Split` before a `ByteLevel` that does not split again. To add a pattern, add it to `PATTERNS`.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from data.encoding import PART_CHARACTERS
from data.sentencepiece_backend import read_sentencepiece
from data.special_tokens import read_json
from utils.errors import DataError

PATTERNS = {
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "llama3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
}
LINE_BREAK = re.compile(r"(?<=\S)\n(?=\S)")
# Kana and Han as far as every Unicode version calls them letters; behind a letter, what is surely none.
WORD_END = re.compile(
    LINE_BREAK.pattern + r"|(?<=\S)(?= )|(?<=[A-Za-z\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fa5])"
    r"(?=[!-@\[-`{-~\u3001\u3002\uff01\uff0c\uff1f])"
)


def byte_characters() -> list[str]:
    """The printable character that stands for each byte 0 to 255 (GPT-2's table)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    shifted = {byte: 256 + rank for rank, byte in enumerate(byte for byte in range(256) if byte not in plain)}
    return [chr(shifted.get(byte, byte)) for byte in range(256)]


def train_bpe(texts: Iterable[str], vocab_size: int, pattern: str, special_tokens: list[str]) -> tokenizers.Tokenizer:
    """Byte-level BPE; special tokens get the first ids. The vocabulary is smaller when the texts run out of pairs."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pretokenizer_of(PATTERNS[pattern])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special_tokens,
        initial_alphabet=byte_characters(),
        show_progress=False,
    )
    backend.train_from_iterator(cut_texts(texts), trainer)
    return backend


def pretokenizer_of(pattern: str) -> pre_tokenizers.PreTokenizer:
    """Cuts text into the words of the pattern, then maps bytes to characters."""
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def can_be_cut(backend: tokenizers.Tokenizer) -> bool:
    """Whether the tokens of a text are those of the parts `cut_text` gives: so it is with our patterns.

    Unless tokens that are not special were added: they are looked for before any pattern, and may hold a space.
    """
    ours = {bytes(pretokenizer_of(pattern).__getstate__()) for pattern in PATTERNS.values()}
    given = backend.pre_tokenizer
    if backend.normalizer is not None or given is None or bytes(given.__getstate__()) not in ours:
        return False
    return all(token.special for token in backend.get_added_tokens_decoder().values())


def is_plain_bytes(backend: tokenizers.Tokenizer) -> bool:
    """Whether every byte is a token and nothing else is, so that words make no difference."""
    model = backend.model
    if not can_be_cut(backend) or not isinstance(model, models.BPE) or model.continuing_subword_prefix:
        return False
    if model.end_of_word_suffix or backend.get_vocab_size(with_added_tokens=False) != len(byte_characters()):
        return False
    return backend.get_vocab(with_added_tokens=False).keys() == set(byte_characters())


def cutter_of(backend: tokenizers.Tokenizer) -> Callable[[str, int], list[str]]:
    """How a text can be cut into parts of about so many characters, so that its tokens are those of the parts."""
    if is_plain_bytes(backend):
        return cut_anywhere
    return cut_text if can_be_cut(backend) else leave_whole


def leave_whole(text: str, part_size: int) -> list[str]:
    """One part."""
    return [text]


def cut_anywhere(text: str, part_size: int) -> list[str]:
    """Parts of `part_size` characters and a rest."""
    return [text[start : start + part_size] for start in range(0, len(text), part_size)] or [text]


def cut_text(text: str, part_size: int) -> list[str]:
    """Parts of at least `part_size` characters, cut behind a newline between two characters that are no space.

    Where an eighth more has no such newline, the end of a word does: before a space behind something else, or before
    punctuation or a digit behind a letter. No word of our patterns reaches over such a place, and none looks ahead
    over it: only white space looks ahead. What has no place at all (10 MB of one letter, or of spaces) stays whole,
    and takes 120 bytes of memory for each of its own.
    """
    parts, start = [], 0
    while cut := _find_cut(text, start + part_size, part_size // 8):
        parts.append(text[start : cut.end()])
        start = cut.end()
    return [*parts, text[start:]]


def _find_cut(text: str, start: int, slack: int) -> re.Match[str] | None:
    return LINE_BREAK.search(text, start, start + slack) or WORD_END.search(text, start + slack)


def cut_texts(texts: Iterable[str]) -> Iterator[str]:
    """The parts of all texts, for trainers: the words are the same, and no text is too long for their memory."""
    return (part for text in texts for part in cut_text(text, PART_CHARACTERS))


def new_byte_level(special_tokens: list[str]) -> tokenizers.Tokenizer:
    """Byte-level BPE without merges: byte b is id b, special tokens follow from 256 on.

    Words make no difference to its ids; cutting into them only keeps the work on a long text small.
    """
    vocabulary = {character: byte for byte, character in enumerate(byte_characters())}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pretokenizer_of(PATTERNS["gpt2"])
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(special_tokens)
    return backend


def could_be_text(token: str, pattern: str) -> bool:
    """Whether the pattern takes the token as one word, so that merges could make an equal token out of text."""
    return len(pre_tokenizers.Split(Regex(PATTERNS[pattern]), behavior="isolated").pre_tokenize_str(token)) < 2


def read_tokenizer(path: Path) -> tuple[tokenizers.Tokenizer, Path, dict[str, str]]:
    """The backend of a tokenizer file or of a folder with one, the folder, and the tokens of roles the file names.

    A file is a `tokenizer.json`, or a model of SentencePiece when its name ends in `.model`. Raises DataError.
    """
    file = _file_of(path)
    if file.suffix == ".model":
        backend, roles = read_sentencepiece(file)
        _add_tokens(backend, file.parent / "added_tokens.json")
        return backend, file.parent, roles
    return _read_json_tokenizer(file), file.parent, {}


def _file_of(path: Path) -> Path:
    """The tokenizer file at a path. Raises DataError when there is none."""
    if path.is_dir():
        there = [path / name for name in ("tokenizer.json", "tokenizer.model") if (path / name).is_file()]
        path = there[0] if there else path / "tokenizer.json"
    if not path.is_file():
        raise DataError(
            f"{path}: no such tokenizer file; train one with tools/train-tokenizer.py or set data.tokenizer.path"
        )
    return path


def _read_json_tokenizer(file: Path) -> tokenizers.Tokenizer:
    try:
        text = file.read_text(encoding="utf-8")
        kind = json.loads(text)["model"]["type"]
        # Exceptions of the tokenizers package are bare `Exception`s, so the two checks above come first.
        backend = tokenizers.Tokenizer.from_str(text)
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: not a tokenizer.json of Hugging Face tokenizers ({error})") from error
    except Exception as error:
        raise DataError(f"{file}: the tokenizers package cannot load this {kind} tokenizer: {error}") from error
    if getattr(backend.model, "dropout", None):
        raise DataError(
            f"{file}: its merges drop out at random, so text has no fixed tokens; set model.dropout to null"
        )
    return backend


def _add_tokens(backend: tokenizers.Tokenizer, file: Path) -> None:
    """Tokens that were added to a SentencePiece model later stand in a file beside it. Raises DataError."""
    added = read_json(file) if file.is_file() else {}
    backend.add_special_tokens(sorted(added, key=lambda token: added[token]))
    for token, number in added.items():
        if backend.token_to_id(token) != number:
            raise DataError(f"{file}: '{token}' cannot be token {number}: ids must go on where the model's end")
