"""The `data` section for text: sources, split, tokenizer and rows, and `build`, which prepares all of it once.

Two passes over the corpus: the first chooses what is held out and samples text for the tokenizer, the second writes
tokens. Results are cached under `cache_dir`, tokenizers and shards apart, each under a fingerprint of everything it
depends on, so a changed file or setting makes a new one and nothing is ever stale. To add a kind of data, write a
`DataConfig` subclass whose `build` returns a `Dataset`, and its row in `data/__init__.py`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from data.cache import Report, build_once, fingerprint
from data.loader import Dataset
from data.shards import FORMAT, Item, Shards, TokenType, open_shards, write_shards
from data.sources import SourceConfig, StdlibSourceConfig
from data.split import LowestHashes, Split, copies, hash_text, split_by_hash, split_by_source
from data.tokenizer import BPETokenizerConfig, Tokenizer, TokenizerConfig
from utils.errors import DataError
from utils.schema import OneOf, TypedSection


class DataConfig(TypedSection):
    """What all data sections have in common."""

    sequence_length: int = Field(default=256, gt=0)
    """Tokens of a row; longer documents are cut, shorter ones share a row."""

    def build(self, seed: int, tokenizer: Tokenizer | None = None, report: Report = print) -> Dataset:
        """Prepare or reuse the data; `tokenizer` is the run's own when it goes on."""
        raise NotImplementedError

    def find_problems(self) -> list[str]:
        """What is missing, found without reading a corpus."""
        raise NotImplementedError

    def expected_vocab_size(self) -> int | None:
        """The tokenizer's vocabulary without building it; None when it cannot be known yet."""
        raise NotImplementedError


class TextDataConfig(DataConfig):
    """Documents of text, tokenised and packed into rows."""

    type: str = "text"
    """Row of data.DATASETS."""
    sources: tuple[Annotated[SourceConfig, OneOf("data:SOURCES", "source")], ...] = Field(
        default=(StdlibSourceConfig(),), min_length=1
    )
    """Where the documents come from."""
    tokenizer: Annotated[TokenizerConfig, OneOf("data:TOKENIZERS", "tokenizer")] = BPETokenizerConfig()
    """How text becomes tokens."""
    validation_fraction: float = Field(default=0.05, ge=0, le=1)
    """Share of the documents held out, chosen by a hash of their text; 0: no validation; 1: only for evaluation."""
    validation_max_bytes: int = Field(default=1_000_000, gt=0)
    """Held-out text at most; documents beyond it go to training."""
    validation_sources: tuple[Annotated[SourceConfig, OneOf("data:SOURCES", "source")], ...] = ()
    """A separate validation corpus instead of a fraction; training documents that are in it are dropped."""
    cache_dir: str = ".cache/pippin"
    """Where prepared data is kept."""
    token_type: TokenType = "auto"
    """How a token is stored: uint16 | uint32 | auto (uint16 when the vocabulary fits)."""

    def expected_vocab_size(self) -> int | None:
        """See `DataConfig.expected_vocab_size`."""
        return self.tokenizer.expected_vocab_size()

    def find_problems(self) -> list[str]:
        """See `DataConfig.find_problems`."""
        sections = (*self.sources, *self.validation_sources, self.tokenizer)
        return [problem for section in sections for problem in section.find_problems()]

    def build(self, seed: int, tokenizer: Tokenizer | None = None, report: Report = print) -> Dataset:
        """See `DataConfig.build`. Raises DataError for a corpus or tokenizer that cannot be used."""
        preparation = Preparation(self, report)
        tokenizer = tokenizer or preparation.tokenizer()
        dataset = Dataset(preparation.shards(tokenizer), tokenizer, self.sequence_length, seed)
        if not dataset.rows_per_epoch and self.validation_fraction < 1:
            raise DataError("no training document remains; check data.sources, their weight and max_tokens")
        return dataset

    def build_tokenizer(self, report: Report = print) -> tuple[Tokenizer, list[str]]:
        """Only the tokenizer, trained if need be, and the held-out texts to measure it on."""
        preparation = Preparation(self, report)
        return preparation.tokenizer(), preparation.survey()[0].validation


def origins(sources: tuple[SourceConfig, ...]) -> list[dict[str, Any]]:
    """What the documents of these sources depend on."""
    return [{"type": s.type, "max_documents": s.max_documents, **s.origin()} for s in sources]


class Preparation:
    """One build: reads the corpus at most twice and keeps what the first pass found."""

    def __init__(self, config: TextDataConfig, report: Report) -> None:
        self.config, self.report = config, report
        self.origin = self.find_origin()
        self._survey: tuple[Split, list[str]] | None = None

    def find_origin(self) -> dict[str, Any]:
        """JSON that changes when the documents or their split may have."""
        config = self.config
        return {
            "sources": origins(config.sources),
            "validation": origins(config.validation_sources),
            "fraction": config.validation_fraction,
            "max_bytes": config.validation_max_bytes,
        }

    def survey(self) -> tuple[Split, list[str]]:
        """First pass: the split, and texts to train a tokenizer on (none when it needs no training)."""
        if self._survey is None:
            config = self.config
            self.report("reading the corpus")
            sample = LowestHashes(getattr(config.tokenizer, "max_training_bytes", 1))
            documents = (text for _, text in self.documents(config.sources, self.report))
            if config.validation_sources:
                held_out = (text for _, text in self.documents(config.validation_sources, self.report))
                split = split_by_source(documents, held_out, config.validation_max_bytes, sample)
            else:
                split = split_by_hash(documents, config.validation_fraction, config.validation_max_bytes, sample)
            self._survey = split, sample.texts()
        return self._survey

    @staticmethod
    def documents(sources: tuple[SourceConfig, ...], report: Report) -> Iterator[tuple[int, str]]:
        """Every document of every source, with the number of the source."""
        for number, source in enumerate(sources):
            for text, _ in source.documents(report=report):
                yield number, text

    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the section: found, or trained once and cached."""
        config = self.config.tokenizer
        if not config.needs_training():
            return config.build()
        folder = self.folder("tokenizer", {"tokenizer": config.model_dump(), **self.origin})
        build_once(folder, self.train_tokenizer, self.report)
        return Tokenizer.load(folder)

    def train_tokenizer(self, folder: Path) -> None:
        """Train on the sample and write the tokenizer into `folder`."""
        _, texts = self.survey()
        if not texts:
            raise DataError("no training document remains to train a tokenizer on; check data.sources")
        num_bytes = sum(len(text.encode("utf-8")) for text in texts)
        self.report(f"training the tokenizer on {num_bytes / 1e6:.1f} MB of {len(texts):,} documents")
        tokenizer = self.config.tokenizer.build(texts)
        asked = self.config.tokenizer.expected_vocab_size()
        if asked and tokenizer.vocab_size < asked:
            self.report(
                f"warning: the corpus gives only {tokenizer.vocab_size} of the {asked} tokens asked for "
                "(data.tokenizer.vocab_size)"
            )
        tokenizer.save(folder)

    def shards(self, tokenizer: Tokenizer) -> Shards:
        """The token shards, written once and cached."""
        config = self.config
        limits = [[source.weight, source.max_tokens] for source in config.sources]
        key = {"format": FORMAT, "tokenizer": tokenizer.hash, "limits": limits, "type": config.token_type}
        folder = self.folder("shards", {**key, **self.origin})
        build_once(folder, lambda temporary: self.write_shards(temporary, tokenizer), self.report)
        return open_shards(folder, tokenizer)

    def write_shards(self, folder: Path, tokenizer: Tokenizer) -> None:
        """Second pass. Raises DataError when a source changed meanwhile."""
        split, _ = self.survey()
        validation, config = split.validation, self.config
        write_shards(folder, self.items(split), validation, tokenizer, config.token_type, self.origin, self.report)
        if self.find_origin() != self.origin:
            raise DataError("a file of data.sources changed while it was read; start again when it is complete")

    def items(self, split: Split) -> Iterator[Item]:
        """The training documents, each with what its source says about it."""
        for number, text in self.documents(self.config.sources, lambda line: None):
            source = self.config.sources[number]
            if split.is_training(hash_text(text)):
                yield Item(text, number, copies(text, source.weight), source.max_tokens)

    def folder(self, kind: str, key: dict[str, Any]) -> Path:
        """Where the thing made from `key` lies."""
        return Path(self.config.cache_dir).expanduser() / f"{kind}-{fingerprint(key)}"
