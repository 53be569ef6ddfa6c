"""Small corpora and data sections for tests of what is prepared."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.file_sources import JSONLSourceConfig
from data.text import TextDataConfig
from data.tokenizer import BytesTokenizerConfig

TEXTS = [f"document {number}: " + "the quick brown fox jumps " * (number % 7) for number in range(300)]


def silent(line: str) -> None:
    """A report nobody reads."""


def write_jsonl(path: Path, texts: Sequence[str] = TEXTS) -> JSONLSourceConfig:
    """A source of these documents."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return JSONLSourceConfig(path=str(path))


def section(folder: Path, **values: Any) -> TextDataConfig:
    """A data section of bytes over the texts above, cached in `folder`."""
    if "sources" not in values:
        values["sources"] = (write_jsonl(folder / "corpus.jsonl"),)
    defaults = {"tokenizer": BytesTokenizerConfig(), "sequence_length": 64, "cache_dir": str(folder / "cache")}
    return TextDataConfig(**(defaults | values))
