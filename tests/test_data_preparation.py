"""Preparation as a whole: every document in one count, no text in two splits, nothing lost by a kill, nothing stale."""

import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import data.chunks
import data.preparation
import data.shard_writer
from data.chunks import cut_into_chunks
from data.cleaning import CleaningConfig
from data.deduplication import DeduplicationConfig
from data.minhash import NearConfig
from data.preparation import Preparation, labels
from data.preparation_report import describe, read_report
from data.shard_file import map_shard
from data.store import open_store
from data.text import TextDataConfig
from tests.prepared_data import TEXTS, section, silent, write_jsonl
from utils.errors import DataError
from utils.registry import import_object

CHUNK_BYTES = 2_000


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(*arguments: Any) -> Any:
        return cut_into_chunks(*arguments, max_bytes=CHUNK_BYTES)

    monkeypatch.setattr(data.preparation, "cut_into_chunks", cut)


def prepare(config: TextDataConfig, folder: Path | None = None) -> Path:
    preparation = config.preparation(silent, num_workers=1)
    return preparation.shards(preparation.tokenizer(), folder)


def stored_texts(folder: Path, split: str = "train") -> list[str]:
    """The documents of a folder, read without our reader of folders: the tokens are bytes."""
    rows = json.loads((folder / "manifest.json").read_text())["shards"][split]
    texts = []
    for row in rows:
        shard = map_shard(folder / row["file"], row)
        for first, stop in itertools.pairwise(shard.offsets.tolist()):
            ids = shard.tokens[first:stop]
            assert ids[0] == ids[-1] == 256
            texts.append(bytes(ids[1:-1].astype(np.uint8)).decode())
    return texts


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_every_document_is_kept_held_out_or_dropped_for_one_reason(tmp_path: Path) -> None:
    near = "the same long story about a river and the town beside it, told once more word for word " * 3
    texts = [*TEXTS, TEXTS[0], near, near.replace("river", "stream", 1), "\x07"]
    config = section(
        tmp_path,
        sources=(write_jsonl(tmp_path / "corpus.jsonl", texts),),
        clean=CleaningConfig(),
        deduplicate=DeduplicationConfig(near=NearConfig(jaccard=0.75)),
        validation_fraction=0.1,
    )
    folder = prepare(config)
    (account,) = read_report(folder)["sources"]
    assert account["read"]["documents"] == len(texts)
    assert account["kept"]["documents"] + sum(account["dropped"].values()) == len(texts)
    assert account["dropped"]["empty"] == 1
    kept, held_out = stored_texts(folder), stored_texts(folder, "validation")
    assert len(kept) == len(set(kept)) == account["kept"]["documents"]
    assert not set(kept) & set(held_out)
    assert len(held_out) == read_report(folder)["held_out"]["documents"] > 0
    assert "".join(held_out).encode() == (folder / "validation.txt").read_bytes()
    assert account["kept"]["text_bytes"] == sum(len(text.encode()) for text in kept)
    assert account["kept"]["tokens"] == sum(len(text.encode()) + 2 for text in kept)


@settings(max_examples=12, deadline=None)
@given(
    texts=st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=20), min_size=3, max_size=40),
    fraction=st.sampled_from([0.0, 0.3]),
    exact=st.booleans(),
)
def test_no_text_is_in_two_splits_and_none_is_lost(tmp_path_factory, texts, fraction, exact) -> None:
    folder = tmp_path_factory.mktemp("split")
    config = section(
        folder,
        sources=(write_jsonl(folder / "a.jsonl", texts), write_jsonl(folder / "b.jsonl", texts[::2])),
        validation_fraction=fraction,
        deduplicate=DeduplicationConfig() if exact else None,
    )
    try:
        prepared = prepare(config)
    except DataError as error:
        assert "validation fraction" in str(error)  # noqa: PT017 -- too few documents to hold one out is no failure
        return
    kept, held_out = stored_texts(prepared), stored_texts(prepared, "validation")
    assert not set(kept) & set(held_out)
    assert set(kept) | set(held_out) == set(texts)
    if exact:
        assert len(kept) == len(set(kept))
    else:
        given = [*texts, *texts[::2]]
        assert sorted(kept) == sorted(text for text in given if text not in held_out)


def test_ordinals_tell_which_document_of_the_source_it_was(tmp_path: Path) -> None:
    config = section(tmp_path, clean=CleaningConfig(), deduplicate=DeduplicationConfig())
    folder = prepare(config)
    store = open_store(folder)
    ordinals = store.train.ordinals(0, np.arange(store.train.num_documents[0]))
    assert [TEXTS[number].strip() for number in ordinals] == [text.strip() for text in stored_texts(folder)]


@pytest.mark.parametrize("is_exact", [False, True])
def test_max_tokens_ends_a_source_and_the_rest_is_counted(tmp_path: Path, is_exact: bool) -> None:
    sizes = np.cumsum([len(text) + 2 for text in TEXTS])
    limit = int(sizes[41]) if is_exact else 3000
    source = write_jsonl(tmp_path / "corpus.jsonl").model_copy(update={"max_tokens": limit})
    folder = prepare(section(tmp_path, sources=(source,), validation_fraction=0))
    kept = stored_texts(folder)
    assert kept == TEXTS[: len(kept)]
    assert sizes[len(kept) - 1] <= limit < sizes[len(kept)]
    (account,) = read_report(folder)["sources"]
    assert account["dropped"] == {"beyond_max_tokens": account["read"]["documents"] - len(kept)}


def stop_after(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, calls: int, error: BaseException) -> None:
    """Make the function of a module fail at its call number `calls`, as a kill or a full disk would."""
    real, count = getattr(module, name), itertools.count(1)

    def fails(*arguments: Any, **keywords: Any) -> Any:
        if next(count) == calls:
            raise error
        return real(*arguments, **keywords)

    monkeypatch.setattr(module, name, fails)


@pytest.mark.parametrize(("place", "calls"), [("chunks.write_arrays", 3), ("shard_writer.write_shard", 4)])
@pytest.mark.parametrize(
    ("error", "message"), [(KeyboardInterrupt(), None), (OSError(28, "No space left on device"), "the disk is full")]
)
def test_a_stopped_preparation_goes_on_and_gives_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, calls: int, error: BaseException, message: str | None
) -> None:
    module = {"chunks": data.chunks, "shard_writer": data.shard_writer}[place.split(".")[0]]
    name = place.split(".")[1]
    config = section(tmp_path, deduplicate=DeduplicationConfig())
    other = config.model_copy(update={"cache_dir": str(tmp_path / "other")})
    expected = files_of(prepare(other))
    with monkeypatch.context() as patch:
        stop_after(patch, module, name, calls, error)
        with pytest.raises(DataError if isinstance(error, OSError) else KeyboardInterrupt, match=message):
            prepare(config)
    written: list[Path] = []
    real = getattr(module, name)

    def counts(path: Path, *arguments: Any) -> Any:
        written.append(path)
        return real(path, *arguments)

    monkeypatch.setattr(module, name, counts)
    assert files_of(prepare(config)) == expected
    whole = len(expected) if name == "write_shard" else None
    assert len(written) >= 1
    if whole:
        num_shards = sum(file.endswith(".shard") for file in expected)
        assert len(written) == num_shards - (calls - 1)


def test_the_text_is_gone_when_the_shards_are_there(tmp_path: Path) -> None:
    prepare(section(tmp_path))
    names = sorted(path.name.split("-")[0] for path in (tmp_path / "cache").iterdir() if path.name[0] != ".")
    assert names == ["shards"]
    assert not list((tmp_path / "cache").glob(".unfinished-*"))


def test_a_source_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = section(tmp_path)
    real = Preparation.read

    def read(self: Preparation, *arguments: Any) -> None:
        real(self, *arguments)
        with open(tmp_path / "corpus.jsonl", "a") as file:
            file.write('{"text": "late"}\n')

    monkeypatch.setattr(Preparation, "read", read)
    with pytest.raises(DataError, match="changed while it was read"):
        prepare(config)
    monkeypatch.setattr(Preparation, "read", real)
    assert "late" in stored_texts(prepare(config)) + stored_texts(prepare(config), "validation")


def test_a_named_folder_is_written_once_and_not_for_something_else(tmp_path: Path) -> None:
    config, out = section(tmp_path), tmp_path / "out"
    assert prepare(config, out) == out
    assert prepare(config, out) == out
    other = config.model_copy(update={"validation_fraction": 0.2})
    with pytest.raises(DataError, match="prepared from other sources or settings"):
        prepare(other, out)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(DataError, match="there is something that is no prepared data"):
        prepare(config, tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter.txt"]


def test_an_empty_folder_may_be_written_into(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert len(stored_texts(prepare(section(tmp_path), tmp_path / "out"))) > 200


def test_what_a_stopped_preparation_of_something_else_left_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = section(tmp_path, validation_fraction=0)
    other = section(
        tmp_path / "other", sources=(write_jsonl(tmp_path / "b.jsonl", ["b"] * 400),), validation_fraction=0
    )
    with monkeypatch.context() as patch:
        stop_after(patch, data.shard_writer, "write_shard", 2, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            prepare(first, tmp_path / "out")
    assert stored_texts(prepare(other, tmp_path / "out")) == ["b"] * 400
    assert not list(tmp_path.glob(".unfinished-*"))


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_shard_damaged_meanwhile_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    config = section(tmp_path)
    other = config.model_copy(update={"cache_dir": str(tmp_path / "other")})
    with monkeypatch.context() as patch:
        stop_after(patch, data.shard_writer, "write_shard", 4, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            prepare(config)
    (shard,) = (tmp_path / "cache").glob(".unfinished-*/train/00-00001.shard")
    content = bytearray(shard.read_bytes())
    content[-3] ^= 1
    shard.write_bytes({"cut": content[:-100], "flip": content, "empty": b""}[damage])
    assert files_of(prepare(config)) == files_of(prepare(other))


def test_text_that_another_preparation_uses_stays(tmp_path: Path) -> None:
    config = section(tmp_path)
    slow = config.preparation(silent, num_workers=1)
    slow.text()
    prepare(config, tmp_path / "fast")
    assert slow.text_folder.is_dir()
    folder = slow.shards(slow.tokenizer(), tmp_path / "slow")
    assert files_of(folder) == files_of(tmp_path / "fast")
    assert not slow.text_folder.exists()


def test_a_missing_chunk_is_told(tmp_path: Path) -> None:
    config = section(tmp_path)
    held = config.preparation(silent, num_workers=1)
    held.text()
    next(held.text_folder.glob("train-00-00002.npz")).unlink()
    with pytest.raises(DataError, match=r"damaged \(2 of \d+ chunks are there\)"):
        prepare(config)


def test_a_damaged_verdict_is_told(tmp_path: Path) -> None:
    config = section(tmp_path)
    held = config.preparation(silent, num_workers=1)
    held.text()
    verdicts = held.text_folder / "verdicts.npz"
    verdicts.write_bytes(verdicts.read_bytes()[:200])
    with pytest.raises(DataError, match=r"verdicts\.npz: damaged"):
        prepare(config)


def test_what_cannot_be_read_at_the_end_is_in_the_report_too(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "corpus.jsonl")
    with open(tmp_path / "corpus.jsonl", "a") as file:
        file.write("{broken\n")
    folder = prepare(section(tmp_path, sources=(source,)))
    (account,) = read_report(folder)["sources"]
    assert any("1 of 301 lines read are broken" in note for note in account["notes"])
    assert any("1 of 301 lines" in line for line in describe(read_report(folder)))


def test_a_filter_of_ones_own_that_changed_or_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    file = tmp_path / "my_own_filter.py"
    body = "from data.filters import FilterConfig\n\n\nclass Own(FilterConfig):\n    def reason(self, text):\n        "
    file.write_text(body + "return 'odd' if int(text.split()[1][:-1]) % 2 else None\n")
    own = import_object("my_own_filter:Own")
    config = section(tmp_path, filters=(own(type="my_own_filter:Own"),), validation_fraction=0)
    first = prepare(config)
    assert len(stored_texts(first)) == 150
    file.write_text(body + "return 'all' if int(text.split()[1][:-1]) % 3 else None\n")
    assert config.preparation(silent, num_workers=1).find_origin() != read_origin(first)
    monkeypatch.setattr(own, "reason", lambda self, text: 1 / 0)
    failing = config.model_copy(update={"cache_dir": str(tmp_path / "failing")})
    with pytest.raises(DataError, match=r"my_own_filter:Own failed \(ZeroDivisionError: .* begins 'document 0"):
        prepare(failing)
    monkeypatch.setattr(own, "reason", lambda self, text: True)
    with pytest.raises(DataError, match="gave True, expected a name or None"):
        prepare(failing)


def read_origin(folder: Path) -> Any:
    return json.loads((folder / "manifest.json").read_text())["origin"]


def test_sources_of_one_name_are_told_apart(tmp_path: Path) -> None:
    one = write_jsonl(tmp_path / "a.jsonl")
    named = one.model_copy(update={"name": "stories"})
    assert labels((one, one, named)) == [one.label(), f"{one.label()}-2", "stories"]


def test_the_same_files_come_from_any_number_of_workers(tmp_path: Path) -> None:
    values: dict[str, Any] = {"clean": CleaningConfig(), "deduplicate": DeduplicationConfig(near=NearConfig())}
    config, found = section(tmp_path, **values), []
    for num_workers in (1, 2):
        elsewhere = config.model_copy(update={"cache_dir": str(tmp_path / str(num_workers))})
        preparation = elsewhere.preparation(silent, num_workers=num_workers)
        found.append(files_of(preparation.shards(preparation.tokenizer())))
    assert found[0] == found[1]


def test_two_preparations_in_one_folder_take_turns(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "corpus.jsonl")
    command = [sys.executable, "-c", PREPARE, str(tmp_path)]
    root = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": str(root)}
    running = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert outputs[0].splitlines()[-1] == outputs[1].splitlines()[-1]
    assert len(list((tmp_path / "cache").glob("shards-*"))) == 1


PREPARE = """
import functools, sys
from pathlib import Path
import data.preparation
from data.chunks import cut_into_chunks
from data.deduplication import DeduplicationConfig
from data.minhash import NearConfig
from data.file_sources import JSONLSourceConfig
from tests.prepared_data import section
folder = Path(sys.argv[1])
data.preparation.cut_into_chunks = functools.partial(cut_into_chunks, max_bytes=2000)
source = JSONLSourceConfig(path=str(folder / "corpus.jsonl"), name="fables")
config = section(folder, sources=(source,), deduplicate=DeduplicationConfig(near=NearConfig()))
preparation = config.preparation(print, num_workers=2)
print(preparation.shards(preparation.tokenizer()))
"""


def kill_after(seconds: float, folder: Path, environment: dict[str, str]) -> bool:
    """Whether the preparation was killed before it had ended."""
    process = subprocess.Popen([sys.executable, "-c", PREPARE, str(folder)], env=environment, stdout=subprocess.DEVNULL)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
    return process.wait() != 0


@pytest.mark.slow
def test_kill_dash_nine_at_any_time_loses_nothing(tmp_path: Path) -> None:
    texts = [f"{number} " + " ".join(f"word{number * k % 997}" for k in range(80)) for number in range(900)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    for name in ("whole", "killed"):
        write_jsonl(tmp_path / name / "corpus.jsonl", texts)
        os.utime(tmp_path / name / "corpus.jsonl", (0, 0))
    assert not kill_after(600, tmp_path / "whole", environment)
    num_kills = sum(kill_after(0.6 + 0.15 * number, tmp_path / "killed", environment) for number in range(12))
    assert not kill_after(600, tmp_path / "killed", environment)
    assert num_kills >= 3
    whole, killed = (next((tmp_path / name / "cache").glob("shards-*")) for name in ("whole", "killed"))
    assert files_of(whole).keys() == files_of(killed).keys()
    same = {name for name, content in files_of(whole).items() if files_of(killed)[name] == content}
    assert set(files_of(whole)) - same <= {"manifest.json"}
