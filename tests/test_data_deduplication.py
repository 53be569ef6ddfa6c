"""Verdicts: those of a brute-force judge, whatever the batches; the index equals a dictionary and stays on disk."""

import pickle
import random
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import deduplication, duplicate_index
from data.deduplication import EXACT, KEEP, LEAKED, NEAR, DeduplicationConfig, Fingerprints
from data.duplicate_index import Index
from data.minhash import NearConfig, unpack
from tests.near_texts import jaccard, text_of

CONFIGS = [
    DeduplicationConfig(exact=exact, near=near)
    for exact in (True, False)
    for near in (None, NearConfig(num_perm=64, ngram=3))
]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Batches, pairs and runs of a size that few documents reach."""
    monkeypatch.setattr(deduplication, "BATCH", 7)
    monkeypatch.setattr(deduplication, "PAIRS", 5)
    monkeypatch.setattr(duplicate_index, "ROWS_IN_MEMORY", 4)
    monkeypatch.setattr(duplicate_index, "ROWS_IN_RUN", 24)


def refuse(line):
    raise AssertionError(line)


def judge(config, folder, prints, cuts, num_held_out=0, report=refuse):
    """Verdicts with the documents cut at `cuts`; the held-out ones are the first."""
    places = sorted({0, num_held_out, len(prints.hashes), *cuts})
    with config.open(folder, report) as duplicates:
        parts = [
            duplicates.judge(Fingerprints(prints.hashes[start:end], prints.signatures[start:end]), end <= num_held_out)
            for start, end in zip(places, places[1:], strict=False)
        ]
    assert list(folder.iterdir()) == []
    return [int(verdict) for part in parts for verdict in part]


def judge_by_brute_force(config, prints, num_held_out, max_bucket=32):
    """One document after the other against all kept ones: the definition."""
    kept, verdicts = [], []
    buckets = {}
    num_bands = config.near.plan().num_bands if config.near else 0
    for number, (text_hash, signature) in enumerate(zip(prints.hashes.tolist(), prints.signatures, strict=True)):
        keys = list(enumerate(signature[:num_bands].tolist()))
        equals = [other for other in kept if config.exact and prints.hashes[other].tolist() == text_hash]
        seen = {other for key in keys for other in buckets.get(key, [])}
        minima = unpack(signature[num_bands:])
        nears = [
            other
            for other in seen
            if (unpack(prints.signatures[other, num_bands:]) == minima).sum() >= config.near.least_equal()
        ]
        is_leak = number >= num_held_out and any(other < num_held_out for other in equals + nears)
        verdict = LEAKED if is_leak else EXACT if equals else NEAR if nears else KEEP
        verdicts.append(verdict)
        if verdict == KEEP:
            kept.append(number)
            for key in keys:
                if len(buckets.setdefault(key, [])) < max_bucket:
                    buckets[key].append(number)
    return verdicts


def family(draw, num_originals=12, num_copies=40):
    """Texts, of which many are edited, equal or re-cased copies of others."""
    texts = [text_of(draw.randrange(1, 60), seed) for seed in range(num_originals)]
    for _ in range(num_copies):
        words = draw.choice(texts).split()
        for _ in range(draw.choice((0, 0, 1, 1, 2, 5))):
            words[draw.randrange(len(words))] = f"n{draw.randrange(999)}"
        texts.append(" ".join(words) if draw.random() < 0.8 else "\n".join(words).upper())
    draw.shuffle(texts)
    return texts


@pytest.mark.parametrize("config", CONFIGS)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6), data=st.data())
def test_verdicts_are_those_of_brute_force_however_the_documents_are_cut(tmp_path_factory, config, seed, data):
    texts = family(random.Random(seed))
    prints = config.fingerprint(texts)
    cuts = data.draw(st.lists(st.integers(0, len(texts)), max_size=8))
    num_held_out = data.draw(st.integers(0, 20))
    folder = tmp_path_factory.mktemp("index")
    expected = judge_by_brute_force(config, prints, num_held_out)
    assert judge(config, folder, prints, cuts, num_held_out) == expected
    assert judge(config, folder, prints, range(len(texts)), num_held_out) == expected


@pytest.mark.parametrize("config", [CONFIGS[1], CONFIGS[3]])
def test_full_buckets_give_the_same_verdicts_however_cut_and_are_told(tmp_path, monkeypatch, config):
    monkeypatch.setattr(deduplication, "BUCKET", 1)
    head = text_of(40, 1)
    texts = [f"{head} {text_of(8, seed)}" for seed in range(2, 40)]
    prints = config.fingerprint(texts + texts[::3])
    expected = judge_by_brute_force(config, prints, 5, max_bucket=1)
    assert expected != judge_by_brute_force(config, prints, 5)
    lines = []
    for cuts in ((), (8, 20, 33, 34), range(60)):
        assert judge(config, tmp_path, prints, cuts, 5, lines.append) == expected
    assert len(set(lines)) == 1
    assert "bands were shared by more than" in lines[0]


def test_all_pairs_of_planted_copies_are_found_and_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr(deduplication, "BATCH", 150)
    config, draw = DeduplicationConfig(near=NearConfig(ngram=3)), random.Random(1)
    originals = [text_of(draw.randrange(100, 300), seed) for seed in range(100)]
    copies = []
    for text in originals:
        words = text.split()
        for _ in range(draw.randrange(0, 30)):
            words[draw.randrange(len(words))] = f"n{draw.randrange(9999)}"
        copies.append(" ".join(words))
    truths = [jaccard(one, other, 3) for one, other in zip(originals, copies, strict=True)]
    verdicts = judge(config, tmp_path, config.fingerprint(originals + copies), ())
    assert verdicts[:100] == [KEEP] * 100
    for truth, verdict in zip(truths, verdicts[100:], strict=True):
        assert truth < 1 or verdict == EXACT
        assert not 0.85 <= truth < 1 or verdict == NEAR
        assert truth > 0.7 or verdict == KEEP
    assert sum(truth <= 0.7 for truth in truths) > 20
    assert sum(0.85 <= truth < 1 for truth in truths) > 10


def test_the_first_one_is_kept_and_what_is_dropped_drops_nothing(tmp_path):
    config = DeduplicationConfig(near=NearConfig())
    words = text_of(200).split()
    # Each shares 0.85 with the next one and 0.73 with the one after that.
    chain = [" ".join(words[shift:] + [f"n{number}" for number in range(shift)]) for shift in (0, 15, 30)]
    assert jaccard(chain[0], chain[1], 5) > 0.85 > 0.75 > jaccard(chain[0], chain[2], 5)
    for order, expected in (((0, 1, 2), [KEEP, NEAR, KEEP]), ((1, 0, 2), [KEEP, NEAR, NEAR])):
        prints = config.fingerprint([chain[place] for place in order])
        assert judge(config, tmp_path, prints, ()) == judge(config, tmp_path, prints, (1, 2)) == expected


def test_each_verdict_for_its_reason(tmp_path):
    text, other = text_of(80), text_of(80, 1)
    texts = [text, text, text.upper(), other, text, text.replace(" ", "\n"), other, other.upper(), ""]
    prints = DeduplicationConfig(near=NearConfig()).fingerprint(texts)
    near = DeduplicationConfig(near=NearConfig())
    expected = [KEEP, EXACT, NEAR, KEEP, LEAKED, LEAKED, EXACT, NEAR, KEEP]
    assert judge(near, tmp_path, prints, (), 3) == expected
    inexact = near.model_copy(update={"exact": False})
    assert judge(inexact, tmp_path, prints, (), 3) == [KEEP, NEAR, NEAR, KEEP, LEAKED, LEAKED, NEAR, NEAR, KEEP]
    assert judge(DeduplicationConfig(), tmp_path, DeduplicationConfig().fingerprint(texts), (), 3) == [
        *(KEEP, EXACT, KEEP, KEEP, LEAKED, KEEP, EXACT, KEEP, KEEP)
    ]
    assert (
        judge(DeduplicationConfig(exact=False), tmp_path, DeduplicationConfig().fingerprint(texts), (), 3) == [KEEP] * 9
    )


def test_equal_halves_of_a_hash_are_not_equal_texts(tmp_path):
    hashes = np.array([[1, 2], [1, 3], [2, 2], [1 << 32, 2], [1, 2]], np.uint64)
    prints = Fingerprints(hashes, np.empty((5, 0), np.uint32))
    assert judge(DeduplicationConfig(), tmp_path, prints, ()) == [KEEP, KEEP, KEEP, KEEP, EXACT]
    assert judge(DeduplicationConfig(), tmp_path, prints, (1, 2, 3, 4)) == [KEEP, KEEP, KEEP, KEEP, EXACT]


def test_fingerprints_of_odd_texts_and_in_workers(tmp_path):
    config = DeduplicationConfig(near=NearConfig(num_perm=64))
    texts = ["", "a", "\ud800", "x" * 1_000_000, "one two " * 130_000, "one two " * 130_000 + "."]
    prints = config.fingerprint(texts)
    again = pickle.loads(pickle.dumps(config)).fingerprint(texts)
    assert np.array_equal(prints.hashes, again.hashes)
    assert np.array_equal(prints.signatures, again.signatures)
    assert [hex(number) for number in prints.hashes[1].tolist()] == ["0x7f8773936e5ec327", "0x7e49464e4662e529"]
    assert judge(config, tmp_path, prints, ()) == [KEEP] * 6
    empty = config.fingerprint([])
    assert empty.hashes.shape == (0, 2)
    assert empty.signatures.shape == (0, prints.signatures.shape[1])
    assert judge(config, tmp_path, empty, ()) == []


def test_held_out_documents_must_come_first(tmp_path):
    config = DeduplicationConfig()
    with config.open(tmp_path, refuse) as duplicates:
        duplicates.judge(config.fingerprint(["a"]), held_out=False)
        with pytest.raises(AssertionError, match="held-out documents come first"):
            duplicates.judge(config.fingerprint(["b"]), held_out=True)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_the_index_finds_what_a_dictionary_finds(tmp_path_factory, data):
    draw = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    sizes = data.draw(st.lists(st.integers(0, 30), max_size=12))
    index = Index(tmp_path_factory.mktemp("index"), 3, 2)
    table, rows = {}, np.empty((0, 2), np.uint32)
    for size in sizes:
        keys = draw.choice(np.array([0, 1, 7, 2**31, 2**32 - 2, 2**32 - 1], np.uint32), (size, 3))
        found = index.find(keys)
        expected = [[table.get((column, int(keys[new, column])), []) for column in range(3)] for new in range(size)]
        pairs = [(new, old) for new, lists in enumerate(expected) for old in sorted(set(sum(lists, [])))]
        assert list(zip(found.news.tolist(), found.rows.tolist(), strict=True)) == pairs
        assert found.counts.tolist() == [[len(olds) for olds in lists] for lists in expected]
        assert np.array_equal(index.read(found.rows), rows[found.rows])
        new_rows, is_entered = draw.integers(0, 2**32, (size, 2), np.uint32), draw.random((size, 3)) < 0.8
        index.add(new_rows, keys, is_entered)
        for new, column in zip(*np.nonzero(is_entered), strict=True):
            table.setdefault((int(column), int(keys[new, column])), []).append(len(rows) + int(new))
        rows = np.concatenate([rows, new_rows])
    index.close()


def test_runs_are_few_and_their_files_are_removed(tmp_path):
    index = Index(tmp_path, 1, 1)
    for _ in range(200):
        index.add(np.zeros((1, 1), np.uint32), np.zeros((1, 1), np.uint32), np.ones((1, 1), bool))
        assert len(list(tmp_path.glob("run-*"))) <= index.num_rows // 12 + 3
    sizes = [run.num_rows for run in index._runs]
    assert sum(sizes) == 200
    assert len(sizes) <= 200 // 12 + 4
    assert max(sizes) <= 24
    index.close()
    assert list(tmp_path.iterdir()) == []


def test_what_the_disk_refuses_is_passed_on(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        DeduplicationConfig().open(tmp_path / "file", refuse)
    config, folder = DeduplicationConfig(), tmp_path / "index"

    def full(descriptor, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(duplicate_index.os, "write", full)
    with pytest.raises(OSError, match="No space left"), config.open(folder, refuse) as duplicates:
        duplicates.judge(config.fingerprint(["a"]), held_out=False)
    assert list(folder.iterdir()) == []


def test_memory_does_not_grow_with_the_documents(tmp_path, monkeypatch):
    monkeypatch.setattr(deduplication, "BATCH", 1024)
    monkeypatch.setattr(duplicate_index, "ROWS_IN_MEMORY", 1024)
    monkeypatch.setattr(duplicate_index, "ROWS_IN_RUN", 1 << 21)
    near, draw = NearConfig(num_perm=64), np.random.default_rng(0)
    config, width = DeduplicationConfig(near=near), near.plan().num_bands + 32

    def judge_many(count):
        hashes = draw.integers(0, 1 << 64, (count, 2), dtype=np.uint64)
        signatures = draw.integers(0, 1 << 32, (count, width), dtype=np.uint32)
        duplicates.judge(Fingerprints(hashes, signatures), held_out=False)

    with config.open(Path(tmp_path), refuse) as duplicates:
        judge_many(2048)
        tracemalloc.start()
        try:
            held, _ = tracemalloc.get_traced_memory()
            for _ in range(15):
                judge_many(2048)
            now, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        size = sum(path.stat().st_size for path in tmp_path.iterdir())
    # The peak is one batch and one column of all; on disk lie 7 MB.
    assert size > 6e6
    assert now - held < 0.5e6
    assert peak - held < 4e6
