"""Buckets and ranks without any network: a fake sum over several ranks' trees."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from distributed.group import ProcessGroup, SingleConfig
from distributed.reduction import buckets, sum_in_buckets


def tree_of(shapes: list[tuple[int, ...]], seed: int) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    arrays = [mx.array(generator.normal(size=shape).astype(np.float32)) for shape in shapes]
    return {"layers": [{"weight": array} for array in arrays], "count": mx.array(seed + 2**24, mx.int32)}


def recorder(log: list[mx.array]) -> Callable[[mx.array], mx.array]:
    def all_sum(message: mx.array) -> mx.array:
        log.append(message)
        return message * 2

    return all_sum


shapes = st.lists(st.lists(st.integers(0, 5), max_size=3).map(tuple), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(shapes, st.integers(1, 20))
def test_every_element_is_sent_once_in_buckets_that_are_full_but_the_last(
    shapes: list[tuple[int, ...]], capacity: int
) -> None:
    tree, log = tree_of(shapes, 3), []
    summed = sum_in_buckets(tree, recorder(log), bucket_bytes=4 * capacity)
    for before, after in zip(tree["layers"], summed["layers"], strict=True):
        assert after["weight"].shape == before["weight"].shape
        np.testing.assert_array_equal(np.array(after["weight"]), 2 * np.array(before["weight"]))
    assert summed["count"].item() == 2 * (3 + 2**24)
    floats = [message.size for message in log if message.dtype == mx.float32]
    assert sum(floats) == sum(int(np.prod(shape)) for shape in shapes)
    assert all(size == capacity for size in floats[:-1])
    assert all(0 < size <= capacity for size in floats)


def test_halves_are_summed_in_float32_and_come_back_as_they_were() -> None:
    log: list[mx.array] = []
    tree = {"a": mx.ones((3,), mx.bfloat16), "b": mx.ones((2,), mx.float16), "c": mx.array([True, False])}
    summed = sum_in_buckets(tree, recorder(log), 1024)
    assert [message.dtype for message in log] == [mx.float32, mx.int32]
    assert [log[0].size, log[1].size] == [5, 2]
    assert [summed[key].dtype for key in "abc"] == [mx.bfloat16, mx.float16, mx.bool_]
    assert summed["b"].tolist() == [2.0, 2.0]


def test_one_large_array_is_cut_and_small_ones_share_a_message() -> None:
    arrays = {"large": mx.arange(10, dtype=mx.float32), "small": mx.zeros((2,)), "tiny": mx.zeros(())}
    names = [[name for name, _ in bucket] for bucket in buckets(arrays, 4)]
    assert names == [["large"], ["large"], ["large", "small"], ["tiny"]]


def test_messages_wait_for_each_other_so_that_all_ranks_send_in_one_order(tmp_path: Path) -> None:
    log: list[mx.array] = []
    summed = sum_in_buckets({"a": mx.ones((10,)), "b": mx.array(3)}, recorder(log), 16)
    mx.export_to_dot(str(tmp_path / "graph.dot"), summed)
    assert len(log) == 4
    assert (tmp_path / "graph.dot").read_text().count('label ="Depends"') == 3


def test_a_tree_may_be_one_array() -> None:
    assert sum_in_buckets(mx.array([1.0, 2.0, 3.0]), recorder([]), 8).tolist() == [2.0, 4.0, 6.0]
    assert sum_in_buckets(mx.array(2.0), recorder([]), 8).item() == 4.0


class Sums(NamedTuple):
    total: mx.array
    metrics: dict[str, mx.array]


def test_named_tuples_and_lists_keep_their_shape() -> None:
    tree = ([mx.ones((2,)), mx.zeros((0, 3))], Sums(mx.array(1.5), {"accuracy": mx.array(2.0)}))
    arrays, sums = sum_in_buckets(tree, recorder([]), 4)
    assert [array.tolist() for array in arrays] == [[2.0, 2.0], []]
    assert arrays[1].shape == (0, 3)
    assert isinstance(sums, Sums)
    assert (sums.total.item(), sums.metrics["accuracy"].item()) == (3.0, 4.0)


def test_a_group_of_one_is_the_identity() -> None:
    group = SingleConfig().build()
    tree = tree_of([(2, 3)], 0)
    assert group.reduce(tree) is tree
    assert (group.rank, group.size, group.is_main) == (0, 1, True)
    assert group.any(True)
    assert not group.any(False)


def test_slices_of_all_ranks_sum_to_the_whole_batch() -> None:
    rows = mx.array(np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32))
    weights = mx.array([1.0] * 9 + [0.0] * 3)

    def sums(part: slice) -> dict[str, mx.array]:
        return {"total": (rows[part] * weights[part, None]).sum(axis=0), "weight": weights[part].sum()}

    size = 4
    parts = [sums(slice(start, start + 3)) for start in range(0, 12, 3)]
    sent: list[list[mx.array]] = []
    for part in parts:
        log: list[mx.array] = []
        ProcessGroup(0, size, recorder(log), bucket_bytes=16).reduce(part)
        sent.append(log)
    messages = iter([mx.stack(list(same)).sum(axis=0) for same in zip(*sent, strict=True)])
    reduced = ProcessGroup(0, size, lambda message: next(messages), bucket_bytes=16).reduce(parts[0])
    whole = sums(slice(0, 12))
    np.testing.assert_allclose(np.array(reduced["total"]), np.array(whole["total"]), rtol=1e-6)
    assert reduced["weight"].item() == 9
