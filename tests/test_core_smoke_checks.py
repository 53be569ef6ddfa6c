"""Each check of the smoke test passes what is right in every precision and names what is wrong."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from core.objectives.linear_cross_entropy import LossSums, linear_cross_entropy
from core.self_test import OPERATIONS
from core.smoke_checks import (
    ROUTES,
    Arrays,
    check_attention,
    check_files,
    check_loss,
    check_products,
    check_streams,
    check_training_step,
    judge,
    loss_reference,
    through_mlx,
    through_numpy,
    worst,
)
from core.training import StepOutput, make_step
from data.batch import Batch
from tests.broken_checks import one_key_too_many

PRECISIONS = ("float32", "bfloat16", "float16")


@pytest.mark.parametrize("check", [check_products, check_attention, check_loss])
def test_right_kernels_pass_in_every_precision(check: Callable[..., Any]) -> None:
    report = check(precisions=PRECISIONS)
    assert report.problems == ()
    assert report.text.startswith("errors in float32 / bfloat16 / float16: ")
    assert all(list(row) == list(PRECISIONS) for row in report.figures.values())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_right_updates_pass_in_every_precision(precision: str) -> None:
    """Half precision stays within the tolerances beside float32."""
    report = check_training_step(precision=precision)
    assert report.problems == ()
    assert len(report.figures["losses"]) == 6


def test_float32_products_of_eleven_bits_pass() -> None:
    """TF32, which is MLX's default on CUDA and M5, rounds each factor as float16 does."""

    def short(x: mx.array) -> mx.array:
        return x.astype(mx.float16).astype(mx.float32)

    def loss(hidden: mx.array, head: mx.array, **options: Any) -> LossSums:
        return linear_cross_entropy(short(hidden), short(head), **options)

    assert check_loss(loss, ("float32",)).problems == ()


def test_the_reference_of_the_loss_is_its_own_derivative() -> None:
    """Central differences, which know nothing of softmax."""
    random = np.random.default_rng(1)
    hidden, head = random.normal(size=(5, 3)), random.normal(size=(7, 3))
    targets, weights = random.integers(0, 7, 5), np.array([1.0, 0.0, 1.0, 2.0, 1.0])
    _, *gradients = loss_reference(hidden, head, targets, weights)
    for array, gradient in zip((hidden, head), gradients, strict=True):
        for place in np.ndindex(array.shape):
            value, totals = array[place], []
            for shift in (1e-5, -1e-5):
                array[place] = value + shift
                totals.append(loss_reference(hidden, head, targets, weights)[0])
            array[place] = value
            assert (totals[0] - totals[1]) / 2e-5 == pytest.approx(gradient[place], abs=1e-7)


def total_only(total: mx.array) -> LossSums:
    return LossSums(total, total, total)


def padding_counts(hidden: mx.array, head: mx.array, *, weights_T: mx.array, **options: Any) -> LossSums:
    return linear_cross_entropy(hidden, head, weights_T=mx.ones_like(weights_T), **options)


def no_z_loss(hidden: mx.array, head: mx.array, **options: Any) -> LossSums:
    return linear_cross_entropy(hidden, head, **{**options, "z_loss": 0.0})


def lost_rest(hidden: mx.array, head: mx.array, *, chunk_size: int | None, **options: Any) -> LossSums:
    """The last, smaller chunk is forgotten."""
    if chunk_size is not None:
        whole = hidden.shape[0] // chunk_size * chunk_size
        kept = mx.arange(hidden.shape[0]) < whole
        options["weights_T"] = options["weights_T"] * kept
    return linear_cross_entropy(hidden, head, chunk_size=chunk_size, **options)


def lost_rows_of_the_gradient(hidden: mx.array, head: mx.array, **options: Any) -> LossSums:
    """The last rows of the head get no gradient."""
    head = mx.concatenate([head[:-8], mx.stop_gradient(head[-8:])])
    return linear_cross_entropy(hidden, head, **options)


def not_a_number(hidden: mx.array, head: mx.array, **options: Any) -> LossSums:
    return total_only(linear_cross_entropy(hidden, head, **options).total * mx.nan)


LOSS_FAULTS: dict[str, tuple[Any, set[str]]] = {
    "padding counts": (padding_counts, {"loss", "gradient", "loss in chunks", "gradient in chunks"}),
    "no z-loss": (no_z_loss, {"loss"}),
    "lost chunk": (lost_rest, {"loss in chunks", "gradient in chunks"}),
    "lost rows": (lost_rows_of_the_gradient, {"gradient", "gradient in chunks"}),
    "not a number": (not_a_number, {"loss", "gradient", "loss in chunks", "gradient in chunks"}),
}


@pytest.mark.parametrize("fault", LOSS_FAULTS)
def test_a_wrong_loss_is_named(fault: str) -> None:
    wrong, named = LOSS_FAULTS[fault]
    report = check_loss(wrong, ("float32",))
    assert named <= {problem.split(" in float32")[0] for problem in report.problems}
    in_chunks = [problem for problem in report.problems if "in chunks" in problem]
    assert all("objective.chunk_size: null" in problem for problem in in_chunks)
    if fault == "lost chunk":
        assert len(report.problems) == len(in_chunks)


def test_a_wrong_product_and_a_wrong_attention_are_named() -> None:
    def without_a_row(a: mx.array, b: mx.array) -> mx.array:
        return mx.where(mx.arange(a.shape[0])[:, None] == 7, 0, a @ b).astype(a.dtype)

    report = check_products(OPERATIONS._replace(matmul=without_a_row), PRECISIONS)
    assert [problem.split(" is wrong")[0] for problem in report.problems] == [
        f"matmul in {each}" for each in PRECISIONS
    ]
    report = check_attention(OPERATIONS._replace(attention=one_key_too_many), ("bfloat16",))
    assert [problem.split(" is wrong")[0] for problem in report.problems] == [
        "attention in bfloat16",
        "attention gradient in bfloat16",
    ]


def test_an_error_that_is_no_number_is_wrong() -> None:
    tolerances = {"matmul": {"float32": 1e-3}}
    assert len(judge({"matmul": {"float32": float("nan")}}, tolerances, {}).problems) == 1
    assert judge({"matmul": {"float32": 1e-3}}, tolerances, {}).problems == ()


def test_the_largest_error_counts() -> None:
    errors = {"float32": [("a", 1.0), ("b", 2.0), ("a", 3.0), ("a", 2.0)], "bfloat16": [("a", 9.0)]}
    assert worst(errors) == {"a": {"float32": 3.0, "bfloat16": 9.0}, "b": {"float32": 2.0}}


def without_updates(parts: Any, group: Any, config: Any) -> Any:
    """Loss and gradient are right, and the weights are put back."""
    step = make_step(parts, group, config)

    def still(batch: Batch) -> StepOutput:
        before = parts.model.trainable_parameters()
        output = step(batch)
        parts.model.update(before)
        return output

    return still


def with_one_frozen(parts: Any, group: Any, config: Any) -> Any:
    """One array of many is not updated."""
    step = make_step(parts, group, config)

    def mostly(batch: Batch) -> StepOutput:
        before = parts.model.trainable_parameters()["model"]["norm"]
        output = step(batch)
        parts.model.update({"model": {"norm": before}})
        return output

    return mostly


def uphill(parts: Any, group: Any, config: Any) -> Any:
    """Every update goes the other way."""
    step = make_step(parts, group, config)

    def mirrored(batch: Batch) -> StepOutput:
        before = parts.model.trainable_parameters()["model"]
        output = step(batch)
        after = parts.model.trainable_parameters()["model"]
        parts.model.update({"model": {"embed_tokens": turned(before["embed_tokens"], after["embed_tokens"])}})
        parts.model.update({"model": {"norm": turned(before["norm"], after["norm"])}})
        return output

    return mirrored


def turned(before: Any, after: Any) -> Any:
    return {name: 2 * before[name] - after[name] for name in before}


def reporting(change: Callable[[StepOutput], StepOutput]) -> Any:
    """Right updates with wrong figures."""

    def make(parts: Any, group: Any, config: Any) -> Any:
        step = make_step(parts, group, config)
        return lambda batch: change(step(batch))

    return make


STEP_FAULTS: dict[str, tuple[Any, list[str]]] = {
    "no updates": (without_updates, ["the updates leave", "loss of update 2", "gradient norm of", "the loss does not"]),
    "one frozen": (with_one_frozen, ["the updates leave model.norm.weight as they were"]),
    "uphill": (uphill, ["loss of update 2"]),
    "wrong loss": (reporting(lambda output: output._replace(loss=output.loss * 1.005)), ["loss of update 1"]),
    "wrong norm": (reporting(lambda output: output._replace(grad_norm=output.grad_norm * 2)), ["gradient norm of"]),
    "nan": (
        reporting(lambda output: output._replace(loss=output.loss * mx.nan)),
        ["loss of update 1 is nan", "the loss does not fall"],
    ),
}


@pytest.mark.parametrize("fault", STEP_FAULTS)
def test_wrong_updates_are_named(fault: str) -> None:
    make, named = STEP_FAULTS[fault]
    problems = check_training_step(make).problems
    assert [start for start in named if not any(problem.startswith(start) for problem in problems)] == []


def test_the_device_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference runs on the CPU; a failure there must not leave the next checks on it."""
    seen: list[mx.Device] = []
    monkeypatch.setattr(mx, "set_default_device", seen.append)
    monkeypatch.setattr("core.smoke_checks.make_step", None)
    with pytest.raises(TypeError):
        check_training_step(make_step)
    assert seen == [mx.cpu, mx.default_device()]


def test_streams_that_do_not_wait_are_seen() -> None:
    assert check_streams().problems == ()

    def stale(total: mx.array, term: mx.array, stream: mx.Stream) -> mx.array:
        """The first numbers are read before the other stream has added to them."""
        return mx.where(mx.arange(total.size) < 3, term, mx.add(total, term, stream=stream))

    (problem,) = check_streams(stale).problems
    assert problem.startswith("3 of 50000 sums")


def with_flipped_bit(folder: Path, arrays: Arrays) -> Arrays:
    back = through_mlx(folder, arrays)
    return {**back, "float32": (back["float32"].view(mx.int32) ^ (mx.arange(50_000) == 49_999)).view(mx.float32)}


def with_one_lost(folder: Path, arrays: Arrays) -> Arrays:
    return {name: array for name, array in through_numpy(folder, arrays).items() if name != "int32"}


def refused(folder: Path, arrays: Arrays) -> Arrays:
    raise OSError(28, "No space left on device")


def test_files_that_come_back_wrong_are_named() -> None:
    assert check_files().problems == ()
    routes = {"flipped": with_flipped_bit, "lost": with_one_lost, "refused": refused, **ROUTES}
    assert check_files(routes).problems == (
        "by way of flipped, float32 came back with other bits",
        "by way of lost, int32 came back with other bits",
        "by way of refused: OSError: [Errno 28] No space left on device",
    )
