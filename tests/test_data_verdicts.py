"""Verdicts: against a comparison of everything with everything; held-out text never leaks, samples, round trip."""

from pathlib import Path

import numpy as np
import pytest

from data.chunks import Treatment, cut_into_chunks, open_chunk, treat
from data.deduplication import EXACT, KEEP, LEAKED, NEAR, DeduplicationConfig
from data.minhash import NearConfig
from data.split import Split, hash_text, hold_out_by_hash, hold_out_sources
from data.verdicts import HELD_OUT, Judged, judge, load, save
from tests.prepared_data import silent, write_jsonl

NEAR_TOO = DeduplicationConfig(near=NearConfig(jaccard=0.8))


def story(number: int, changed: int | None = None) -> str:
    words = [f"word{number}x{place}" for place in range(200)]
    if changed is not None:
        words[changed] = "another"
    return " ".join(words)


def shingles(text: str) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[start : start + 5]) for start in range(len(words) - 4)}


def is_near(one: str, other: str) -> bool:
    a, b = shingles(one), shingles(other)
    return len(a & b) / len(a | b) > 0.8


def chunks_of(folder: Path, name: str, texts: list[str], config: DeduplicationConfig | None) -> list[Path]:
    source = write_jsonl(folder / f"{name}.jsonl", texts)
    raws = cut_into_chunks(source, name, folder, None, silent, 1500)
    return [treat(raw, Treatment(None, (), config)) for raw in raws]


def judged_of(folder: Path, texts: list[str], split: Split, config: DeduplicationConfig | None) -> Judged:
    return judge(chunks_of(folder, "train-00", texts, config), [], split, config, folder, silent, lambda *a: None)


def expected_verdicts(texts: list[str], held_out: set[str]) -> list[int]:
    kept: list[str] = []
    verdicts = []
    for text in texts:
        if text in held_out:
            verdicts.append(HELD_OUT)
        elif any(is_near(text, other) for other in held_out):
            verdicts.append(LEAKED)
        elif text in kept:
            verdicts.append(EXACT)
        elif any(is_near(text, other) for other in kept):
            verdicts.append(NEAR)
        else:
            kept.append(text)
            verdicts.append(KEEP)
    return verdicts


def test_verdicts_are_those_of_comparing_everything(tmp_path: Path) -> None:
    texts = [story(n % 30, None if n < 30 else [None, 5, 9, 30][n // 30]) for n in range(120)] + [story(3), story(7)]
    chunks = [open_chunk(path) for path in chunks_of(tmp_path, "split", texts, None)]
    split = hold_out_by_hash(chunks, 0.2, 10**6)
    held_out = {text for _, text in split.validation}
    judged = judged_of(tmp_path, texts, split, NEAR_TOO)
    found = np.concatenate(judged.verdicts).tolist()
    assert found == expected_verdicts(texts, held_out)
    assert {KEEP, EXACT, NEAR, LEAKED, HELD_OUT} == set(found)
    for index, one in enumerate(judged.validation):
        assert not any(is_near(one, other) for other in judged.validation[:index])
    assert all(any(text == one or is_near(text, one) for one in judged.validation) for text in held_out)


@pytest.mark.parametrize("config", [None, DeduplicationConfig(exact=False)])
def test_without_deduplication_only_the_split_decides(tmp_path: Path, config: DeduplicationConfig | None) -> None:
    texts = [story(0), story(1), story(0), story(0, 3)]
    split = Split([(hash_text(story(1)), story(1))], -1, np.array([hash_text(story(1))], np.uint64))
    judged = judged_of(tmp_path, texts, split, config)
    assert np.concatenate(judged.verdicts).tolist() == [KEEP, HELD_OUT, KEEP, KEEP]
    assert judged.samples == {}
    assert judged.validation == [story(1)]


def test_a_validation_corpus_drops_what_nearly_equals_it(tmp_path: Path) -> None:
    validation = chunks_of(tmp_path, "validation-00", [story(1), story(1, 4), story(2)], NEAR_TOO)
    split = hold_out_sources(map(open_chunk, validation), 10**6)
    training = chunks_of(tmp_path, "train-00", [story(1, 30), story(2), story(5)], NEAR_TOO)
    judged = judge(training, validation, split, NEAR_TOO, tmp_path, silent, lambda *a: None)
    assert np.concatenate(judged.verdicts).tolist() == [LEAKED, HELD_OUT, KEEP]
    assert sorted(judged.validation) in (sorted([story(1), story(2)]), sorted([story(1, 4), story(2)]))
    assert judged.samples == {"in_held_out_text": [story(1, 30)[:500]]}


def test_half_an_index_of_an_earlier_try_is_forgotten(tmp_path: Path) -> None:
    (tmp_path / "duplicates").mkdir()
    (tmp_path / "duplicates" / "run-0").write_bytes(b"half")
    none = Split([], -1, np.zeros(0, np.uint64))
    judged = judged_of(tmp_path, [story(0), story(0)], none, NEAR_TOO)
    assert np.concatenate(judged.verdicts).tolist() == [KEEP, EXACT]
    assert not (tmp_path / "duplicates").exists()


def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    judged = Judged([np.array([0, 4], np.uint8), np.zeros(0, np.uint8)], ["held \u00fc"], {"near_duplicate": ["x"]})
    save(judged, tmp_path / "verdicts.npz")
    again = load(tmp_path / "verdicts.npz")
    assert [each.tolist() for each in again.verdicts] == [[0, 4], []]
    assert again[1:] == judged[1:]
    assert again.kept(0).tolist() == [0]
