"""Train the tokenizer of a config and say how good it is.

`python tools/train-tokenizer.py --config X.yaml [--out DIR]`: X is a training config, or a file that holds only a
`data` section, or a forerunner's tokenizer YAML. Training happens where a run would do it (`data/text.py`), so a run
with the same section finds it in the cache; this command adds the measurements on held-out text, which the tokenizer
has not seen. To measure something else, edit `measure`.
"""

import core  # noqa: F401  # isort: skip
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from core.config import build_section, load
from core.forerunner import is_tokenizer_config, translate_tokenizer_config
from data.text import TextDataConfig
from data.tokenizer import Tokenizer
from utils.cli import Parser, run_command
from utils.errors import DataError
from utils.yaml_file import read_yaml, value_of

DEFAULT_OUT = "tokenizer"


class Measured(NamedTuple):
    """What a tokenizer does to a text."""

    num_bytes: int
    num_tokens: int
    num_used: int
    """Different tokens that occur."""
    is_lossless: bool
    """Whether decoding gave the text back."""


def main(arguments: Sequence[str] | None = None, say: Callable[[str], None] = print) -> None:
    """Train, measure, write. Raises ConfigError or DataError."""
    parser = Parser("Train the tokenizer of a config and measure it on held-out text.")
    parser.add_argument("--config", required=True, help="a training config, or a forerunner's tokenizer YAML")
    parser.add_argument("--out", help=f"folder to write to (default: output_dir of the YAML, else ./{DEFAULT_OUT})")
    options = parser.parse_args(arguments)
    data, folder = read_recipe(Path(options.config))
    folder = Path(options.out) if options.out else folder
    if problems := data.find_problems():
        raise DataError(*problems)
    tokenizer, held_out = data.build_tokenizer(report=say)
    for line in describe(tokenizer, measure(tokenizer, held_out)):
        say(line)
    save(tokenizer, folder)
    say(f"wrote {folder}; to use it in a config, data.tokenizer: {{type: file, path: {folder}}}")


def read_recipe(path: Path) -> tuple[TextDataConfig, Path]:
    """The data section to train for, and the folder the file wants the tokenizer in. Raises ConfigError."""
    root = read_yaml(path)
    if is_tokenizer_config(root):
        recipe: dict[str, Any] = translate_tokenizer_config(value_of(root))
        return build_section(TextDataConfig, recipe["data"]), Path(recipe["output_dir"] or DEFAULT_OUT)
    data: Any = load(path).data
    return data, Path(DEFAULT_OUT)


def measure(tokenizer: Tokenizer, texts: list[str]) -> Measured:
    """Encode and decode every text."""
    encoded = tokenizer.encode_batch(texts)
    return Measured(
        num_bytes=sum(len(text.encode("utf-8")) for text in texts),
        num_tokens=sum(map(len, encoded)),
        num_used=len(set().union(*encoded)),
        is_lossless=all(tokenizer.decode(ids) == text for ids, text in zip(encoded, texts, strict=True)),
    )


def describe(tokenizer: Tokenizer, measured: Measured) -> list[str]:
    """The measurements for a person."""
    roles = [f"{role} {token} ({tokenizer.special_id(role)})" for role, token in tokenizer.special_tokens.items()]
    lines = [f"vocabulary: {tokenizer.vocab_size:,} tokens; special ones: {', '.join(roles)}"]
    if not measured.num_tokens:
        return [*lines, "held-out text: none (data.validation_fraction is 0), so nothing was measured"]
    share = measured.num_used / tokenizer.vocab_size
    return [
        *lines,
        f"held-out text: {measured.num_bytes:,} bytes, {measured.num_tokens:,} tokens",
        f"bytes per token: {measured.num_bytes / measured.num_tokens:.3f}",
        f"vocabulary used there: {measured.num_used:,} tokens ({share:.1%})",
        f"decoding gives the text back: {'yes' if measured.is_lossless else 'NO'}",
    ]


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the tokenizer. Raises DataError when the folder cannot be written."""
    try:
        tokenizer.save(folder)
    except OSError as error:
        raise DataError(f"cannot write the tokenizer to {folder}: {error.strerror}; name another with --out") from error


if __name__ == "__main__":
    run_command(main)
