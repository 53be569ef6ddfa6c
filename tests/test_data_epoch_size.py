"""The size of an epoch: counted right, remembered, and never in the way."""

import json

from data.epoch_size import EpochSize, remembered
from tests.stored_documents import dataset_over, pairs_in, write_store


def take_epoch(dataset):
    rows = []
    for batch, state in dataset.batches(1):
        rows.append(batch)
        if state["epoch"]:
            return rows
    raise AssertionError


def test_it_is_what_is_read_until_the_mixture_begins_again(tmp_path):
    sources = [[5, 9, 2, 30, 7, 4], [3, 3, 12, 1]]
    for name, weights in (("once", [1.0, 1.0]), ("unequal", [2.0, 0.5])):
        dataset = dataset_over(write_store(tmp_path / name, sources), weights=weights)
        rows = take_epoch(dataset)
        assert dataset.rows_per_epoch == len(rows)
        assert dataset.num_train_tokens == sum(len(pairs_in(row)) for row in rows)
        assert dataset.summary()["train_tokens"] == dataset.num_train_tokens


def test_it_is_remembered_for_these_rows_only(tmp_path):
    folder, cache = write_store(tmp_path / "s", [[5, 9, 2, 30]]), tmp_path / "deep" / "plans.json"
    sizes = {}
    for seed, row_length in ((1, 8), (2, 8), (1, 16)):
        sizes[seed, row_length] = dataset_over(folder, row_length, seed, plan_cache=cache).rows_per_epoch
    content = json.loads(cache.read_text())
    assert len(content) == 3
    cache.write_text(json.dumps({key: [77, 99] for key in content}))
    assert dataset_over(folder, 8, 1, plan_cache=cache).rows_per_epoch == 77
    assert dataset_over(folder, 8, 3, plan_cache=cache).rows_per_epoch == sizes[1, 8]
    assert [path.name for path in cache.parent.iterdir()] == ["plans.json"]


def test_a_file_that_cannot_be_read_or_written_costs_time_only(tmp_path):
    for content in ("{", "[1]", '{"a": 1}', '{"a": ["x", 1]}'):
        (tmp_path / "plans.json").write_text(content)
        assert remembered(tmp_path / "plans.json", "a", lambda: EpochSize(1, 2)) == (1, 2)
    (tmp_path / "file").touch()
    assert remembered(tmp_path / "file" / "plans.json", "a", lambda: EpochSize(1, 2)) == (1, 2)


def test_the_file_stays_small(tmp_path):
    for number in range(120):
        remembered(tmp_path / "plans.json", str(number), lambda: EpochSize(1, 2))
    content = json.loads((tmp_path / "plans.json").read_text())
    assert list(content) == [str(number) for number in range(20, 120)]
