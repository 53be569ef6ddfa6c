"""The data section as a whole: from files to rows, cached, rebuilt when something changed, clear when it cannot be."""

import json
import multiprocessing
from pathlib import Path

import numpy as np
import pytest

from data.batch import Batch
from data.file_sources import JSONLSourceConfig, TextSourceConfig
from data.loader import Dataset
from data.mixture import MixtureConfig
from data.split import hash_text
from data.stages import StageConfig
from data.stdlib_source import StdlibSourceConfig
from data.text import TextDataConfig
from data.tokenizer import BPETokenizerConfig, BytesTokenizerConfig, FileTokenizerConfig, Tokenizer
from utils.errors import DataError

TEXTS = [f"document {number}: " + "the quick brown fox jumps " * (number % 7) for number in range(300)]


def silent(line: str) -> None:
    pass


def corpus(folder: Path, texts=TEXTS, name="corpus.jsonl") -> JSONLSourceConfig:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return JSONLSourceConfig(path=str(folder / name))


def section(folder: Path, **values) -> TextDataConfig:
    defaults = {
        "sources": (corpus(folder),) if "sources" not in values else (),
        "tokenizer": BPETokenizerConfig(vocab_size=300),
        "sequence_length": 16,
        "cache_dir": str(folder / "cache"),
    }
    return TextDataConfig(**(defaults | values))


def prepared(folder: Path) -> list[str]:
    """What lies in the cache; there must be nothing half-written."""
    names = sorted(path.name for path in (folder / "cache").iterdir() if path.is_dir())
    assert not [name for name in names if name.startswith(".building")]
    return [name for name in names if not name.startswith(".")]


def first_epoch(dataset: Dataset) -> Batch:
    loader = dataset.batches(dataset.rows_per_epoch)
    batch, _ = next(loader)
    loader.close()
    return batch


def training_texts(dataset) -> list[str]:
    """The training documents, put together again from one epoch of rows."""
    rows = first_epoch(dataset)
    found = []
    for tokens, targets, segments in zip(rows.tokens, rows.targets, rows.segments, strict=True):
        for segment in range(1, segments.max() + 1):
            here = segments == segment
            found.append((tokens[here].tolist(), targets[here].tolist()))
    bos, eos = dataset.tokenizer.bos_id, dataset.tokenizer.eos_id
    whole = [targets for tokens, targets in found if tokens[0] == bos and targets[-1] == eos]
    return [dataset.tokenizer.decode(targets[:-1]) for targets in whole]


def test_every_text_is_in_exactly_one_split(tmp_path):
    dataset = section(tmp_path, sequence_length=400, validation_fraction=0.2).build(0, report=silent)
    training, held_out = training_texts(dataset), dataset.validation_text().decode()
    assert len(training) + dataset.num_validation_documents == len(TEXTS)
    assert set(training) <= set(TEXTS)
    assert not [text for text in training if text in held_out]
    assert held_out == "".join(sorted(set(TEXTS) - set(training), key=hash_text))
    assert dataset.validation_bytes == len(dataset.validation_text())


def test_numbers_of_the_plan_are_those_of_the_rows(tmp_path):
    dataset = section(tmp_path).build(0, report=silent)
    summary = dataset.summary()
    real = first_epoch(dataset).weights.sum()
    assert summary["train_tokens"] == dataset.num_train_tokens == real
    assert summary["packed_fraction"] == real / (dataset.rows_per_epoch * 16)
    assert summary["train_documents"] + summary["validation_documents"] == len(TEXTS)
    assert summary["train_bytes"] + dataset.validation_bytes == sum(map(len, TEXTS))
    json.dumps(summary)


def test_the_quickstart_corpus_wastes_less_than_one_percent(tmp_path):
    config = TextDataConfig(tokenizer=BytesTokenizerConfig(), cache_dir=str(tmp_path / "cache"), sequence_length=256)
    assert config.sources == (StdlibSourceConfig(),)
    dataset = config.build(0, report=silent)
    assert dataset.summary()["packed_fraction"] >= 0.99
    assert 300_000 < dataset.validation_bytes <= 1_000_000


def test_the_second_build_reads_no_document(tmp_path, monkeypatch):
    config = section(tmp_path)
    first = config.build(0, report=silent)

    def must_not_be_read(self, state, report):
        raise AssertionError

    monkeypatch.setattr(JSONLSourceConfig, "walk", must_not_be_read)
    second = config.build(0, report=silent)
    assert second.fingerprint == first.fingerprint
    assert second.tokenizer.hash == first.tokenizer.hash
    assert len(prepared(tmp_path)) == 2
    longer = config.model_copy(update={"sequence_length": 64}).build(1, report=silent)
    assert longer.rows_per_epoch < first.rows_per_epoch
    assert len(prepared(tmp_path)) == 2


def test_a_changed_source_or_setting_is_prepared_anew(tmp_path):
    config = section(tmp_path)
    first = config.build(0, report=silent)
    corpus(tmp_path, TEXTS + ["one more document"])
    second = config.build(0, report=silent)
    assert second.summary()["train_documents"] + second.num_validation_documents == len(TEXTS) + 1
    assert second.fingerprint != first.fingerprint
    weighted = config.model_copy(update={"sources": (config.sources[0].model_copy(update={"weight": 2.0}),)})
    twice = weighted.build(0, report=silent)
    assert twice.num_train_tokens == 2 * second.num_train_tokens
    assert twice.validation_text() == second.validation_text()
    assert twice.tokenizer.hash == second.tokenizer.hash


def test_a_given_tokenizer_is_used_and_not_trained_again(tmp_path):
    config = section(tmp_path)
    given = BPETokenizerConfig(vocab_size=280).build(TEXTS)
    dataset = config.build(0, tokenizer=given, report=silent)
    assert dataset.tokenizer is given
    assert [name.split("-")[0] for name in prepared(tmp_path)] == ["shards"]
    given.save(tmp_path / "saved")
    from_file = section(tmp_path, sources=config.sources, tokenizer=FileTokenizerConfig(path=str(tmp_path / "saved")))
    assert from_file.build(0, report=silent).fingerprint == dataset.fingerprint
    assert len(prepared(tmp_path)) == 1


def test_shards_of_another_tokenizer_are_refused(tmp_path):
    config = section(tmp_path)
    config.build(0, report=silent)
    (shards,) = (tmp_path / "cache").glob("shards-*")
    manifest = json.loads((shards / "manifest.json").read_text())
    (shards / "manifest.json").write_text(json.dumps(manifest | {"tokenizer_hash": "0" * 64}))
    with pytest.raises(DataError, match="made with tokenizer 000000000000, not with the given one"):
        config.build(0, report=silent)


def test_the_tokenizer_never_sees_held_out_text(tmp_path):
    secret = next(text for number in range(999) if hash_text(text := f"{'zyxwv' * 40} {number}") < 0.05 * 2**64)
    dataset = section(tmp_path, sources=(corpus(tmp_path, [*TEXTS, secret]),)).build(0, report=silent)
    assert secret in dataset.validation_text().decode()
    assert not [token for token in dataset.tokenizer.backend.get_vocab() if "zy" in token]


def test_a_small_corpus_gives_a_smaller_vocabulary_and_says_so(tmp_path):
    lines: list[str] = []
    dataset = section(tmp_path, tokenizer=BPETokenizerConfig(vocab_size=5000)).build(0, report=lines.append)
    assert dataset.tokenizer.vocab_size < 1000
    assert any(f"only {dataset.tokenizer.vocab_size} of the 5000 tokens" in line for line in lines)


def test_two_sources_their_caps_and_a_validation_corpus(tmp_path):
    first = corpus(tmp_path, TEXTS, "a.jsonl").model_copy(update={"max_documents": 50})
    second = corpus(tmp_path, [text.upper() for text in TEXTS], "b.jsonl").model_copy(update={"max_tokens": 500})
    held_out = corpus(tmp_path, [*TEXTS[:10], "only here"], "c.jsonl")
    config = section(tmp_path, sources=(first, second), validation_sources=(held_out,), sequence_length=400)
    dataset = config.build(0, report=silent)
    training = training_texts(dataset)
    assert set(TEXTS[10:50]) <= set(training)
    assert not set(TEXTS[:10]) & set(training)
    upper = [text for text in training if text.isupper() or text.startswith("DOC")]
    used = sum(len(dataset.tokenizer.encode(text)) + 2 for text in upper)
    assert upper
    assert 500 - 200 < used <= 500
    assert dataset.num_validation_documents == 11


def test_validation_is_cut_on_a_character_boundary(tmp_path):
    texts = ["\u20ac" * 50 + str(number) for number in range(100)]
    config = section(tmp_path, sources=(corpus(tmp_path, texts),), validation_max_bytes=1000, validation_fraction=0.5)
    dataset = config.build(0, report=silent)
    assert 997 < dataset.validation_bytes <= 1000
    dataset.validation_text().decode()
    rows = list(dataset.validation_batches(4))
    predicted = sum(int(batch.weights.sum()) for batch in rows)
    decoded = dataset.tokenizer.encode_batch([dataset.validation_text().decode()])[0]
    assert predicted >= len(decoded)


def test_everything_held_out_is_a_dataset_to_evaluate_on(tmp_path):
    (tmp_path / "input.txt").write_text("to evaluate on " * 20)
    sources = (TextSourceConfig(path=str(tmp_path / "input.txt")),)
    tokenizer = BytesTokenizerConfig().build()
    config = section(tmp_path, sources=sources, validation_fraction=1.0)
    dataset = config.build(0, tokenizer=tokenizer, report=silent)
    assert dataset.validation_bytes == 300
    assert dataset.rows_per_epoch == 0
    assert dataset.summary()["train_tokens"] == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"validation_fraction": 1e-9}, "none of the 300 documents falls into the validation fraction"),
        ({"tokenizer": FileTokenizerConfig(path="/nowhere")}, "no such tokenizer file"),
        ({"sources": (JSONLSourceConfig(path="/nowhere/x.jsonl"),)}, "no such file or folder"),
    ],
)
def test_what_cannot_be_prepared_is_told_and_leaves_nothing(tmp_path, values, message):
    with pytest.raises(DataError, match=message):
        section(tmp_path, **values).build(0, report=silent)
    assert not (tmp_path / "cache").exists() or prepared(tmp_path) == []


def test_a_cache_that_cannot_be_written_is_told(tmp_path):
    config = section(tmp_path, cache_dir=str(tmp_path / "corpus.jsonl" / "cache"))
    with pytest.raises(DataError, match=r"cannot prepare data in .*set data\.cache_dir"):
        config.build(0, report=silent)


def test_no_training_document_left_is_told(tmp_path):
    source = corpus(tmp_path)
    for values in ({"sources": (source.model_copy(update={"max_tokens": 3}),)}, {"validation_sources": (source,)}):
        with pytest.raises(DataError, match="no training document remains"):
            section(tmp_path, tokenizer=BytesTokenizerConfig(), **values).build(0, report=silent)


def test_a_source_that_changes_while_it_is_read_is_told(tmp_path, monkeypatch):
    config = section(tmp_path, tokenizer=BytesTokenizerConfig())
    monkeypatch.setattr("data.chunks.hash_text", lambda text: corpus(tmp_path, [*TEXTS, text]) and 1)
    with pytest.raises(DataError, match="changed while it was read"):
        config.build(0, report=silent)
    assert prepared(tmp_path) == []


def test_find_problems_names_everything_missing_without_reading(tmp_path):
    missing = JSONLSourceConfig(path=str(tmp_path / "nothing.jsonl"))
    config = section(tmp_path, sources=(missing,), tokenizer=FileTokenizerConfig(path=str(tmp_path)))
    assert len(config.find_problems()) == 2
    assert section(tmp_path).find_problems() == []
    assert not (tmp_path / "cache").exists()


def build_in_process(config: TextDataConfig, answers) -> None:
    dataset = config.build(0, report=silent)
    answers.put((dataset.fingerprint, dataset.tokenizer.hash, dataset.validation_bytes))


def test_ranks_that_build_at_once_agree(tmp_path):
    config = section(tmp_path)
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    ranks = [context.Process(target=build_in_process, args=(config, answers)) for _ in range(2)]
    for rank in ranks:
        rank.start()
    found = {answers.get(timeout=60) for _ in ranks}
    for rank in ranks:
        rank.join()
    assert len(found) == 1
    assert len(prepared(tmp_path)) == 2


def test_the_same_text_elsewhere_gives_the_same_rows(tmp_path):
    here, there = (section(tmp_path / name).build(7, report=silent) for name in ("here", "there"))
    assert here.fingerprint == there.fingerprint
    first, second = (next(dataset.batches(4))[0] for dataset in (here, there))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert Tokenizer.load(next((tmp_path / "here" / "cache").glob("tokenizer-*"))).hash == here.tokenizer.hash


def test_a_stage_of_an_unknown_source_is_told_before_anything_is_read(tmp_path):
    stage = StageConfig(weights={"fables": 1.0})
    config = section(tmp_path, mixture=MixtureConfig(by="tokens", stages=(stage,)))
    (problem,) = config.find_problems()
    assert problem.startswith("data.mixture.stages: no source 'fables'; there are: ")
    assert not (tmp_path / "cache").exists()
