"""The `data` sections: text that is prepared once and cached, or a folder prepared before; and how rows are made.

What a section says about documents (sources, cleaning, filters, copies, split, tokenizer) decides what is prepared
(`data/preparation.py`); what it says about rows (mixture, packing, length) is applied while reading, so it can change
without preparing again. To add a kind of data, write a `DataConfig` subclass whose `build` returns a `Dataset`, and its
row in `data/__init__.py`.
"""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from data.cache import Report
from data.cleaning import CleaningConfig
from data.deduplication import DeduplicationConfig
from data.fill_in_the_middle import FillInTheMiddleConfig
from data.filters import FilterConfig
from data.loader import Dataset
from data.mixture import MixtureConfig
from data.packing import PackingConfig
from data.preparation import Preparation, labels
from data.progress import Lines, Progress
from data.shard_writer import TOKENIZER_FOLDER, TokenType
from data.sources import SourceConfig
from data.stdlib_source import StdlibSourceConfig
from data.store import Store, open_store
from data.tokenizer import BPETokenizerConfig, Tokenizer, TokenizerConfig
from data.workers import usable_cores
from utils.errors import ConfigError, DataError
from utils.schema import OneOf, TypedSection


class DataConfig(TypedSection):
    """What all data sections have in common."""

    sequence_length: int = Field(default=256, gt=0)
    """Tokens of a row; longer documents are cut, shorter ones share a row."""

    def build(
        self, seed: int, tokenizer: Tokenizer | None = None, report: Report = print, prepared: Path | None = None
    ) -> Dataset:
        """Prepare or reuse the data; `tokenizer` is the run's own when it goes on.

        `prepared`: a folder of shards that was made from this section elsewhere, read instead of what it names here.
        """
        raise NotImplementedError

    def find_problems(self) -> list[str]:
        """What is missing, found without reading a corpus."""
        raise NotImplementedError

    def expected_vocab_size(self) -> int | None:
        """The tokenizer's vocabulary without building it; None when it cannot be known yet."""
        raise NotImplementedError


class PackedDataConfig(DataConfig):
    """How documents become rows, the same for text and for prepared shards."""

    mixture: MixtureConfig = MixtureConfig()
    """How much comes from which source, and when."""
    packing: PackingConfig = PackingConfig()
    """How documents share rows."""
    fill_in_the_middle: FillInTheMiddleConfig | None = None
    """Rearrange a share of the training documents for infilling; null: none."""
    workers: int = Field(default=1, ge=0, le=64)
    """Threads that fill batches ahead; the order does not depend on them. 0: none."""
    cache_dir: str = ".cache/pippin"
    """Where prepared data is kept."""

    def rows(self, store: Store, tokenizer: Tokenizer, seed: int, weights: list[float]) -> Dataset:
        """The training and validation rows of a store."""
        return Dataset(
            store,
            tokenizer,
            sequence_length=self.sequence_length,
            seed=seed,
            mixture=self.mixture,
            packing=self.packing,
            fill_in_the_middle=self.fill_in_the_middle,
            workers=self.workers,
            weights=weights,
            names=store.source_names,
            plan_cache=Path(self.cache_dir).expanduser() / "row-counts.json",
        )


class TextDataConfig(PackedDataConfig):
    """Documents of text, tokenised and packed into rows."""

    type: str = "text"
    """Row of data.DATASETS."""
    sources: tuple[Annotated[SourceConfig, OneOf("data:SOURCES", "source")], ...] = Field(
        default=(StdlibSourceConfig(),), min_length=1
    )
    """Where the documents come from."""
    clean: CleaningConfig | None = None
    """What is repaired in every document; null: text is taken as it is."""
    filters: tuple[Annotated[FilterConfig, OneOf("data:FILTERS", "filter")], ...] = ()
    """Which documents are dropped; the first filter that finds a reason decides."""
    deduplicate: DeduplicationConfig | None = None
    """Drop copies of documents, also of held-out ones; null: none."""
    tokenizer: Annotated[TokenizerConfig, OneOf("data:TOKENIZERS", "tokenizer")] = BPETokenizerConfig()
    """How text becomes tokens."""
    validation_fraction: float = Field(default=0.05, ge=0, le=1)
    """Share of the documents held out, chosen by a hash of their text; 0: no validation; 1: only for evaluation."""
    validation_max_bytes: int = Field(default=1_000_000, gt=0)
    """Held-out text at most; documents beyond it go to training."""
    validation_sources: tuple[Annotated[SourceConfig, OneOf("data:SOURCES", "source")], ...] = ()
    """A separate validation corpus instead of a fraction; training documents that are in it are dropped."""
    token_type: TokenType = "auto"
    """How a token is stored: uint16 | uint32 | auto (uint16 when the vocabulary fits)."""

    def expected_vocab_size(self) -> int | None:
        """See `DataConfig.expected_vocab_size`."""
        return self.tokenizer.expected_vocab_size()

    def find_problems(self) -> list[str]:
        """See `DataConfig.find_problems`."""
        clean = () if self.clean is None else (self.clean,)
        sections = (*self.sources, *self.validation_sources, *clean, *self.filters, self.tokenizer)
        return [*self._unknown_sources(), *(problem for section in sections for problem in section.find_problems())]

    def _unknown_sources(self) -> list[str]:
        """A line for each name in the stages of the mixture that no source has: better said before preparing."""
        names = labels(self.sources)
        given = sorted({name for stage in self.mixture.stages for name in stage.weights} - set(names))
        return [f"data.mixture.stages: no source '{name}'; there are: {', '.join(names)}" for name in given]

    def preparation(
        self, report: Report = print, progress: Progress | None = None, num_workers: int | None = None
    ) -> Preparation:
        """What prepares this data. `num_workers`: processes for cleaning and the like; None: one for each core."""
        return Preparation(self, report, progress or Lines(report), num_workers or usable_cores())

    def build(
        self, seed: int, tokenizer: Tokenizer | None = None, report: Report = print, prepared: Path | None = None
    ) -> Dataset:
        """See `DataConfig.build`. Raises DataError for a corpus or tokenizer that cannot be used."""
        if prepared is None:
            preparation = self.preparation(report)
            tokenizer = tokenizer or preparation.tokenizer()
            prepared = preparation.shards(tokenizer)
        else:
            tokenizer = tokenizer or Tokenizer.load(prepared / TOKENIZER_FOLDER)
        store = open_store(prepared, tokenizer.hash)
        if len(store.source_names) != len(self.sources):
            raise DataError(
                f"{prepared} was prepared from {len(store.source_names)} sources, data.sources has {len(self.sources)}"
            )
        if not any(store.train.num_documents) and self.validation_fraction < 1:
            raise DataError("no training document remains; check data.sources, filters and max_tokens")
        return self.rows(store, tokenizer, seed, [source.weight for source in self.sources])

    def build_tokenizer(self, report: Report = print) -> tuple[Tokenizer, list[str]]:
        """Only the tokenizer, trained if need be, and the held-out texts to measure it on."""
        preparation = self.preparation(report)
        return preparation.tokenizer(), preparation.text().validation


class ShardsDataConfig(PackedDataConfig):
    """A folder that `tools/prepare-data.py --out` wrote, on this machine or another."""

    type: str = "shards"
    """Row of data.DATASETS."""
    path: str
    """The folder."""
    weights: dict[str, float] = Field(default={})
    """Weight of each source by its name; 1 where none is given."""

    def expected_vocab_size(self) -> int | None:
        """See `DataConfig.expected_vocab_size`."""
        return None if self.find_problems() else open_store(self.folder).manifest["vocab_size"]

    def find_problems(self) -> list[str]:
        """See `DataConfig.find_problems`."""
        try:
            open_store(self.folder)
        except DataError as error:
            return error.problems
        return []

    @property
    def folder(self) -> Path:
        """`path`, with `~` for the home folder."""
        return Path(self.path).expanduser()

    def build(
        self, seed: int, tokenizer: Tokenizer | None = None, report: Report = print, prepared: Path | None = None
    ) -> Dataset:
        """See `DataConfig.build`. Raises DataError when the folder is damaged or the tokenizer is another."""
        folder = prepared or self.folder
        tokenizer = tokenizer or Tokenizer.load(folder / TOKENIZER_FOLDER)
        store = open_store(folder, tokenizer.hash)
        if unknown := sorted(set(self.weights) - set(store.source_names)):
            raise ConfigError(f"data.weights: no source '{unknown[0]}'; there are: {', '.join(store.source_names)}")
        if wrong := sorted(name for name, weight in self.weights.items() if not weight > 0):
            raise ConfigError(f"data.weights.{wrong[0]}: {self.weights[wrong[0]]}, expected more than 0")
        return self.rows(store, tokenizer, seed, [self.weights.get(name, 1.0) for name in store.source_names])
