"""From sources to token shards: read, clean, filter -> split, deduplicate -> tokenizer -> tokens.

Three things are built under `cache_dir`, each under a fingerprint of all it depends on, so a changed file or setting
makes a new one and nothing is ever stale: `text-...`, chunks of cleaned text with a verdict on every document,
`tokenizer-...`, and `shards-...`, the tokens. A preparation that was killed goes on behind its last finished chunk or
shard; the text is deleted when the shards made from it are there. To add a stage, add a method here.
"""

import functools
import hashlib
import inspect
import json
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from data.cache import InUse, Report, build_once, fingerprint
from data.chunks import RawChunk, Treatment, cut_into_chunks, list_chunks, open_chunk, read_facts, treat
from data.preparation_report import account, write_report
from data.progress import Progress
from data.shard_writer import ShardWriter, choose_dtype
from data.sources import SourceConfig
from data.split import LowestHashes, Split, hold_out_by_hash, hold_out_sources
from data.store import FORMAT, open_store
from data.tokenizer import Tokenizer
from data.verdicts import Judged, judge
from data.verdicts import load as load_verdicts
from data.verdicts import save as save_verdicts
from data.workers import ordered_map
from utils.errors import DataError
from utils.files import sync

TEXT_FORMAT = 1
CAPPED_BYTES_PER_TOKEN = 16
VERDICTS = "verdicts.npz"


class Recipe(Protocol):
    """What a preparation reads of the data section."""

    sources: tuple[SourceConfig, ...]
    validation_sources: tuple[SourceConfig, ...]
    validation_fraction: float
    validation_max_bytes: int
    cache_dir: str
    token_type: Any
    tokenizer: Any
    clean: Any
    filters: Any
    deduplicate: Any


class Reading(NamedTuple):
    """One source to be read, and the name of its chunks."""

    source: SourceConfig
    name: str


def origins(sources: tuple[SourceConfig, ...]) -> list[dict[str, Any]]:
    """What the documents of these sources depend on."""
    return [{"type": s.type, "max_documents": s.max_documents, **s.origin()} for s in sources]


class Preparation:
    """One build of one data section."""

    def __init__(self, config: Recipe, report: Report, progress: Progress, num_workers: int) -> None:
        self.config, self.report, self.progress, self.num_workers = config, report, progress, num_workers
        self.origin = self.find_origin()
        self.treatment = Treatment(config.clean, tuple(config.filters), config.deduplicate)
        self.readings = [Reading(source, f"train-{number:02}") for number, source in enumerate(config.sources)]
        self.held_out = [
            Reading(each, f"validation-{number:02}") for number, each in enumerate(config.validation_sources)
        ]
        self.text_key = {"format": TEXT_FORMAT, "limits": [s.max_tokens for s in config.sources], **self.origin}
        self._judged: Judged | None = None
        self._in_use: InUse | None = None

    def find_origin(self) -> dict[str, Any]:
        """JSON that changes when the documents, their treatment or their split may have."""
        config = self.config
        return {
            "sources": origins(config.sources),
            "validation": origins(config.validation_sources),
            "fraction": config.validation_fraction,
            "max_bytes": config.validation_max_bytes,
            "clean": config.clean and config.clean.model_dump(),
            "filters": [each.model_dump() for each in config.filters],
            "filter_code": code_of(config.filters),
            "deduplicate": config.deduplicate and config.deduplicate.model_dump(),
        }

    def folder(self, kind: str, key: dict[str, Any]) -> Path:
        """Where the thing made from `key` lies."""
        return Path(self.config.cache_dir).expanduser() / f"{kind}-{fingerprint(key)}"

    @property
    def text_folder(self) -> Path:
        """Where the chunks are, once they all are."""
        return self.folder("text", self.text_key)

    def text(self) -> Judged:
        """Every document read, treated and judged. Raises DataError when a source is broken or changed meanwhile."""
        if self._judged is None:
            folder, key = self.text_folder, fingerprint(self.text_key)
            self._in_use = InUse(folder, lambda: build_once(folder, self.write_text, self.report, resume_key=key))
            self._judged = load_verdicts(folder / VERDICTS)
            num_chunks = len(self.chunks(folder, self.readings))
            if num_chunks != len(self._judged.verdicts):
                raise DataError(
                    f"{folder}: damaged ({num_chunks} of {len(self._judged.verdicts)} chunks are there); delete it and "
                    "prepare again"
                )
        return self._judged

    def write_text(self, folder: Path) -> None:
        """Stages one to three, into `folder`, which may hold what an earlier call left."""
        self.report("reading the corpus")
        for reading in (*self.readings, *self.held_out):
            self.read(reading, folder)
        if self.find_origin() != self.origin:
            shutil.rmtree(folder, ignore_errors=True)
            raise DataError("a file of data.sources changed while it was read; start again when it is complete")
        judged = judge(
            self.chunks(folder, self.readings),
            self.chunks(folder, self.held_out),
            self.split(folder),
            self.config.deduplicate,
            folder,
            self.report,
            self.progress,
        )
        save_verdicts(judged, folder / VERDICTS)

    def read(self, reading: Reading, folder: Path) -> None:
        """Stage one for one source, behind the chunks that are there already; what it said is kept."""
        if notes_file(folder, reading.name).is_file():
            return
        notes: list[str] = []
        done = [read_facts(path) for path in list_chunks(folder, reading.name)]
        num_bytes = sum(facts["read"]["bytes"] for facts in done)
        limit = byte_limit(reading.source)
        state = done[-1]["state"] if done else None
        tasks = cut_into_chunks(reading.source, reading.name, folder, state, notes.append)
        missing = (raw for raw in _up_to(tasks, limit - num_bytes) if not raw.path.is_file())
        num_workers = self.num_workers if self.treatment.is_work() else 1
        for path in ordered_map(functools.partial(treat, treatment=self.treatment), missing, num_workers):
            num_bytes += read_facts(path)["read"]["bytes"]
            self.progress(f"reading {reading.source.label()}", num_bytes, None)
        for line in notes:
            self.report(line)
        write_notes(folder, reading.name, notes)

    @staticmethod
    def chunks(folder: Path, readings: list[Reading]) -> list[Path]:
        """The finished chunks, source after source."""
        return [path for reading in readings for path in list_chunks(folder, reading.name)]

    def split(self, folder: Path) -> Split:
        """Stage two: what is held out."""
        config = self.config
        if config.validation_sources:
            held_out = map(open_chunk, self.chunks(folder, self.held_out))
            return hold_out_sources(held_out, config.validation_max_bytes)
        chunks = map(open_chunk, self.chunks(folder, self.readings))
        return hold_out_by_hash(chunks, config.validation_fraction, config.validation_max_bytes)

    def tokenizer(self) -> Tokenizer:
        """Stage four: the tokenizer of the section: found, or trained once and cached."""
        config = self.config.tokenizer
        if not config.needs_training():
            return config.build()
        folder = self.folder("tokenizer", {"tokenizer": config.model_dump(), **self.text_key})
        build_once(folder, self.train_tokenizer, self.report)
        return Tokenizer.load(folder)

    def train_tokenizer(self, folder: Path) -> None:
        """Train on a sample and write the tokenizer into `folder`."""
        texts = self.sample(self.config.tokenizer.max_training_bytes)
        if not texts:
            raise DataError("no training document remains to train a tokenizer on; check data.sources")
        num_bytes = sum(len(text.encode("utf-8")) for text in texts)
        self.report(f"training the tokenizer on {num_bytes / 1e6:.1f} MB of {len(texts):,} documents")
        self.progress("training the tokenizer", num_bytes, None)
        tokenizer = self.config.tokenizer.build(texts)
        asked = self.config.tokenizer.expected_vocab_size()
        if asked and tokenizer.vocab_size < asked:
            self.report(
                f"warning: the corpus gives only {tokenizer.vocab_size} of the {asked} tokens asked for "
                "(data.tokenizer.vocab_size)"
            )
        tokenizer.save(folder)

    def sample(self, max_bytes: int) -> list[str]:
        """Training documents of lowest hash: a fair sample."""
        judged, lowest = self.text(), LowestHashes(max_bytes)
        for number, path in enumerate(self.chunks(self.text_folder, self.readings)):
            lowest.offer(open_chunk(path), judged.kept(number))
        return [text for _, text in lowest.cut()]

    def shards(self, tokenizer: Tokenizer, folder: Path | None = None) -> Path:
        """Stage five: the folder of token shards, written once, in the cache unless a folder is named.

        Raises DataError when that folder holds something else.
        """
        key = {"format": FORMAT, "tokenizer": tokenizer.hash, "type": self.config.token_type, **self.text_key}
        self.made_from = fingerprint(key)
        folder = folder or self.folder("shards", key)
        refuse_foreign(folder)
        key = self.made_from
        build_once(folder, lambda unfinished: self.write_shards(unfinished, tokenizer), self.report, resume_key=key)
        if open_store(folder).manifest.get("made_from") != self.made_from:
            raise DataError(f"{folder}: prepared from other sources or settings; name another folder or delete it")
        if self._in_use is not None:
            self._in_use.forget()
            self._in_use, self._judged = None, None
        return folder

    def write_shards(self, folder: Path, tokenizer: Tokenizer) -> None:
        """Tokenise what is trained on and what is held out; finished shards in `folder` are kept."""
        judged, names = self.text(), labels(self.config.sources)
        dtype = choose_dtype(tokenizer.vocab_size, self.config.token_type)
        writer = ShardWriter(folder, tokenizer, dtype, self.report, self.progress)
        shards: list[dict[str, Any]] = []
        accounts: list[dict[str, Any]] = []
        first = 0
        for number, reading in enumerate(self.readings):
            paths = self.chunks(self.text_folder, [reading])
            verdicts = judged.verdicts[first : first + len(paths)]
            written = writer.train(number, names[number], paths, verdicts, reading.source.max_tokens)
            notes = read_notes(self.text_folder, reading.name)
            accounts.append(account(names[number], paths, verdicts, written, notes))
            for line in shortfall(reading.source, accounts[-1]):
                accounts[-1]["notes"].append(line)
                self.report(line)
            shards += written
            first += len(paths)
        write_report(folder, accounts, judged)
        writer.finish(names, shards, judged.validation, {"origin": self.origin, "made_from": self.made_from})


def byte_limit(source: SourceConfig) -> int:
    """Bytes of text after which a source with `max_tokens` is read no further."""
    return (source.max_tokens or 0) * CAPPED_BYTES_PER_TOKEN or sys.maxsize


def shortfall(source: SourceConfig, counted: dict[str, Any]) -> list[str]:
    """A line when a source was read no further by `byte_limit` and yet gave far fewer tokens than `max_tokens`."""
    num_bytes, tokens, wanted = counted["read"]["bytes"], counted["kept"]["tokens"], source.max_tokens or 0
    if num_bytes < byte_limit(source) or tokens >= 0.9 * wanted or "beyond_max_tokens" in counted["dropped"]:
        return []
    return [
        f"warning: {source.label()} was read up to {num_bytes / 1e6:,.1f} MB, {CAPPED_BYTES_PER_TOKEN} bytes for each "
        f"of max_tokens, and gave {tokens:,} of {wanted:,} tokens; raise max_tokens to read on"
    ]


def refuse_foreign(folder: Path) -> None:
    """Remove an empty folder in the way. Raises DataError when something else than prepared data is there."""
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
    elif folder.exists() and not (folder / "manifest.json").is_file():
        raise DataError(f"{folder}: there is something that is no prepared data; name another folder")


def notes_file(folder: Path, name: str) -> Path:
    """Written when a source has been read to its end."""
    return folder / f"{name}.notes.json"


def write_notes(folder: Path, name: str, notes: list[str]) -> None:
    """Keep what a source said about what it left out, whole or not at all."""
    temporary = folder / f".{name}.notes"
    temporary.write_text(json.dumps(notes) + "\n", encoding="utf-8")
    sync(temporary)
    temporary.rename(notes_file(folder, name))


def read_notes(folder: Path, name: str) -> list[str]:
    """What `write_notes` kept."""
    return json.loads(notes_file(folder, name).read_text(encoding="utf-8"))


def code_of(filters: Iterable[Any]) -> list[str]:
    """Checksums of the files in which filters of one's own are written, since their settings do not tell everything."""
    own = [each for each in filters if ":" in each.type]
    files = [inspect.getsourcefile(type(each)) for each in own]
    return [hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16] for file in files if file]


def _up_to(chunks: Iterable[RawChunk], num_bytes: int) -> Iterator[RawChunk]:
    """The first chunks, up to the one that reaches so many bytes of text."""
    if num_bytes <= 0:
        return
    for raw in chunks:
        yield raw
        num_bytes -= raw.num_bytes
        if num_bytes <= 0:
            return


def labels(sources: tuple[SourceConfig, ...]) -> list[str]:
    """A different name for each source: its label, with a number behind it where labels repeat."""
    names: list[str] = []
    for source in sources:
        name, number = source.label(), 1
        while name in names:
            number += 1
            name = f"{source.label()}-{number}"
        names.append(name)
    return names
