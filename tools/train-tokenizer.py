"""Train the tokenizer of a config and say how good it is, beside another one if you like.

`python tools/train-tokenizer.py --config X.yaml [--out DIR] [--compare PATH]`: X is a training config, or a file that
holds only a `data` section, or a forerunner's tokenizer YAML. Training happens where a run would do it
(`data/text.py`), so a run with the same section finds it in the cache; this command adds the measurements on held-out
text, which the tokenizer has not seen. Bytes per token is the figure to compare: text is the same, bytes are bytes.
To measure something else, add to `Measured` and a row to `ROWS`.
"""

import core  # noqa: F401  # isort: skip
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import decoders

from core.config import build_section, load
from core.forerunner import is_tokenizer_config, translate_tokenizer_config
from data.text import TextDataConfig
from data.tokenizer import Tokenizer
from data.tokenizer_files import read_tokenizer
from utils.cli import Parser, run_command
from utils.errors import ConfigError, DataError
from utils.yaml_file import read_yaml, value_of

DEFAULT_OUT = "tokenizer"
LENGTHS = (1, 2, 4, 8)
NUM_LONGEST = 5
SHOWN_CHARACTERS = 20


class Measured(NamedTuple):
    """What a tokenizer does to texts."""

    num_bytes: int
    num_words: int
    """What stands between white space."""
    num_tokens: int
    num_used: int
    """Different tokens that occur."""
    vocab_size: int
    lengths: tuple[int, ...]
    """Tokens that stand for 1, 2 to 3, 4 to 7, and 8 bytes or more, counted as they occur."""
    longest: tuple[str, ...]
    """The longest tokens that occur."""
    lost: tuple[str, str] | None
    """A place that decoding gave back otherwise: what it was, and what came; None when all texts came back."""


ROWS: tuple[tuple[str, Callable[[Measured], str]], ...] = (
    ("tokens", lambda it: f"{it.num_tokens:,}"),
    ("bytes per token", lambda it: f"{it.num_bytes / it.num_tokens:.3f}"),
    ("tokens per word", lambda it: f"{it.num_tokens / max(it.num_words, 1):.3f}"),
    ("vocabulary", lambda it: f"{it.vocab_size:,}"),
    ("used there", lambda it: f"{it.num_used:,} ({it.num_used / it.vocab_size:.1%})"),
    ("unused there", lambda it: f"{it.vocab_size - it.num_used:,}"),
    ("tokens of 1 byte", lambda it: f"{it.lengths[0] / it.num_tokens:.1%}"),
    ("of 2 to 3 bytes", lambda it: f"{it.lengths[1] / it.num_tokens:.1%}"),
    ("of 4 to 7 bytes", lambda it: f"{it.lengths[2] / it.num_tokens:.1%}"),
    ("of 8 bytes or more", lambda it: f"{it.lengths[3] / it.num_tokens:.1%}"),
    ("gives the text back", lambda it: "NO" if it.lost else "yes"),
)


def main(arguments: Sequence[str] | None = None, say: Callable[[str], None] = print) -> None:
    """Train, measure, write. Raises ConfigError or DataError."""
    parser = Parser("Train the tokenizer of a config and measure it on held-out text.")
    parser.add_argument("--config", required=True, help="a training config, or a forerunner's tokenizer YAML")
    parser.add_argument("--out", help=f"folder to write to (default: output_dir of the YAML, else ./{DEFAULT_OUT})")
    parser.add_argument(
        "--compare", metavar="PATH", help="another tokenizer: a folder, a tokenizer.json or a SentencePiece .model"
    )
    options = parser.parse_args(arguments)
    data, folder = read_recipe(Path(options.config))
    folder = Path(options.out) if options.out else folder
    if problems := data.find_problems():
        raise DataError(*problems)
    other = {options.compare: load_other(Path(options.compare))} if options.compare else {}
    tokenizer, held_out = data.build_tokenizer(report=say)
    say(describe_vocabulary(tokenizer))
    for line in describe({"this one": tokenizer, **other}, held_out):
        say(line)
    save(tokenizer, folder)
    say(f"wrote {folder}; to use it in a config, data.tokenizer: {{type: file, path: {folder}}}")


def read_recipe(path: Path) -> tuple[TextDataConfig, Path]:
    """The data section to train for, and the folder the file wants the tokenizer in. Raises ConfigError."""
    root = read_yaml(path)
    if is_tokenizer_config(root):
        recipe: dict[str, Any] = translate_tokenizer_config(value_of(root))
        return build_section(TextDataConfig, recipe["data"]), Path(recipe["output_dir"] or DEFAULT_OUT)
    data = load(path).data
    if not isinstance(data, TextDataConfig):
        raise ConfigError(f"{path}: data.type is {data.type}; a tokenizer is trained on text only")
    return data, Path(DEFAULT_OUT)


def load_other(path: Path) -> Tokenizer:
    """A tokenizer to measure: any token may end documents, as measuring knows none. Raises DataError."""
    backend, _, _ = read_tokenizer(path.expanduser())
    return Tokenizer(backend, {"eos": min(backend.get_vocab(), default="")})


def measure(tokenizer: Tokenizer, texts: list[str]) -> Measured:
    """Encode and decode every text."""
    encoded = tokenizer.encode_batch(texts)
    counts = Counter(token for ids in encoded for token in ids)
    sizes = {token: length_of(tokenizer, token) for token in counts}
    longest = sorted(sizes, key=lambda token: (-sizes[token], token))[:NUM_LONGEST]
    return Measured(
        num_bytes=sum(len(text.encode("utf-8")) for text in texts),
        num_words=sum(len(text.split()) for text in texts),
        num_tokens=counts.total(),
        num_used=len(counts),
        vocab_size=tokenizer.vocab_size,
        lengths=split_lengths(sizes, counts),
        longest=tuple(tokenizer.decode([token], skip_special_tokens=False) for token in longest),
        lost=next(filter(None, map(find_loss, texts, map(tokenizer.decode, encoded))), None),
    )


def length_of(tokenizer: Tokenizer, token: int) -> int:
    """Bytes of text the token stands for."""
    own = tokenizer.backend.id_to_token(token) or ""
    if isinstance(tokenizer.backend.decoder, decoders.ByteLevel):
        return len(own)
    return 1 if re.fullmatch(r"<0x[0-9A-F]{2}>", own) else len(own.replace("\u2581", " ").encode("utf-8"))


def split_lengths(sizes: dict[int, int], counts: Counter[int]) -> tuple[int, ...]:
    """How many tokens have at least each of LENGTHS bytes, and fewer than the next; the first takes shorter ones."""
    ends = (*LENGTHS[1:], max([*sizes.values(), LENGTHS[-1]]) + 1)
    starts = (0, *LENGTHS[1:])
    return tuple(
        sum(counts[token] for token, size in sizes.items() if start <= size < end)
        for start, end in zip(starts, ends, strict=True)
    )


def find_loss(text: str, decoded: str) -> tuple[str, str] | None:
    """The first place where the two differ, a few characters of each; None when they are equal."""
    if text == decoded:
        return None
    same = (place for place, pair in enumerate(zip(text, decoded, strict=False)) if pair[0] != pair[1])
    start = max(next(same, min(len(text), len(decoded))) - SHOWN_CHARACTERS // 2, 0)
    return text[start : start + SHOWN_CHARACTERS], decoded[start : start + SHOWN_CHARACTERS]


def describe_vocabulary(tokenizer: Tokenizer) -> str:
    """Its size and its special tokens, for a person."""
    named = tokenizer.special_tokens
    roles = [f"{role} {token} ({tokenizer.special_id(role)})" for role, token in named.items()]
    spare = len(set(tokenizer.extra_special_tokens()) - set(named.values()))
    reserved = f", and {spare} reserved" if spare else ""
    return f"vocabulary: {tokenizer.vocab_size:,} tokens; special ones: {', '.join(roles)}{reserved}"


def describe(tokenizers: dict[str, Tokenizer], texts: list[str]) -> list[str]:
    """The measurements of each tokenizer side by side, for a person."""
    if not any(texts):
        return ["held-out text: none (data.validation_fraction is 0), so nothing was measured"]
    measured = {name: measure(tokenizer, texts) for name, tokenizer in tokenizers.items()}
    num_bytes = next(iter(measured.values())).num_bytes
    cells = [["", *measured]] + [[label, *(row(it) for it in measured.values())] for label, row in ROWS]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [f"held-out text: {num_bytes:,} bytes in {len(texts):,} documents"]
    for first, *rest in cells if len(measured) > 1 else cells[1:]:
        values = (cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))
        lines.append("  ".join([first.ljust(widths[0]), *values]))
    for name, it in measured.items():
        lines.append(f"longest tokens of {name}: {', '.join(map(ascii, it.longest))}")
        if it.lost:
            lines.append(f"{name} is lossy: {it.lost[0]!a} came back as {it.lost[1]!a}")
    return lines


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the tokenizer. Raises DataError when the folder cannot be written."""
    try:
        tokenizer.save(folder)
    except OSError as error:
        raise DataError(f"cannot write the tokenizer to {folder}: {error.strerror}; name another with --out") from error


if __name__ == "__main__":
    run_command(main)
