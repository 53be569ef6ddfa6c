"""The self-test passes the right operations in every precision and catches each wrong one; a CPU is not tested."""

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import mlx.core as mx
import pytest

from core import self_test
from core.self_test import OPERATIONS, check_device, check_operations, errors_of, fused_head_dim
from tests.small_runs import small_config
from utils.chips import Chip
from utils.errors import BackendError

CHIP = Chip("Apple M9 Max", "metal", "bfloat16", {})
PRECISIONS = ("float32", "bfloat16", "float16")


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("head_dim", [32, 64, 128])
def test_the_right_operations_pass(precision: str, head_dim: int) -> None:
    check_operations(CHIP, precision, head_dim, OPERATIONS)


def test_float32_products_of_eleven_bits_pass() -> None:
    """TF32, which is MLX's default on CUDA and M5, rounds each factor as float16 does."""

    def short(x: mx.array) -> mx.array:
        return x.astype(mx.float16).astype(mx.float32)

    def matmul(a: mx.array, b: mx.array) -> mx.array:
        return short(a) @ short(b)

    def attention(q: mx.array, k: mx.array, v: mx.array, scale: float) -> mx.array:
        return OPERATIONS.attention(short(q), short(k), short(v), scale)

    check_operations(CHIP, "float32", 64, OPERATIONS._replace(matmul=matmul, attention=attention))


def test_it_repeats_to_the_bit() -> None:
    assert list(errors_of(OPERATIONS, "bfloat16", 64)) == list(errors_of(OPERATIONS, "bfloat16", 64))


def one_key_too_many(q: mx.array, k: mx.array, v: mx.array, scale: float) -> mx.array:
    """Causal, off by one."""
    length = q.shape[2]
    allowed = mx.arange(length)[None, :] <= mx.arange(length)[:, None] + 1
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=allowed)


def one_key_lost(q: mx.array, k: mx.array, v: mx.array, scale: float) -> mx.array:
    """No query but the first sees key 0."""
    length = q.shape[2]
    i, j = mx.arange(length)[:, None], mx.arange(length)[None, :]
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=(j <= i) & ((j > 0) | (i == 0)))


def with_wrong_gradient(spoil: Callable[[mx.array], mx.array], index: int) -> Any:
    """Attention whose output is right and whose gradient of input `index` is spoilt."""

    def attention(q: mx.array, k: mx.array, v: mx.array, scale: float) -> Any:
        right = mx.custom_function(lambda q, k, v: OPERATIONS.attention(q, k, v, scale))

        @right.vjp
        def _(primals: Any, cotangent: mx.array, output: mx.array) -> Any:
            gradients = list(
                mx.vjp(lambda q, k, v: OPERATIONS.attention(q, k, v, scale), list(primals), [cotangent])[1]
            )
            gradients[index] = spoil(gradients[index])
            return gradients

        return right(q, k, v)

    return attention


def without_last_rows(x: mx.array) -> mx.array:
    return mx.concatenate([x[..., :-8, :], mx.zeros_like(x[..., -8:, :])], axis=-2)


def without_a_tile(a: mx.array, b: mx.array) -> mx.array:
    """32 x 32 of the result stay zero."""
    product = a @ b
    rows, columns = mx.arange(product.shape[0])[:, None], mx.arange(product.shape[1])[None, :]
    return mx.where((rows // 32 == 1) & (columns // 32 == 0), 0, product).astype(product.dtype)


def without_the_rest(a: mx.array, b: mx.array) -> mx.array:
    """Only whole blocks of 32 of the inner axis are summed: right for multiples of 32."""
    whole = a.shape[1] // 32 * 32
    return a[:, :whole] @ b[:whole]


def with_nan(a: mx.array, b: mx.array) -> mx.array:
    return mx.where(mx.arange(b.shape[1]) == 5, mx.nan, a @ b).astype(a.dtype)


FAULTS: dict[str, tuple[str, dict[str, Any]]] = {
    "mask off by one": ("attention", {"attention": one_key_too_many}),
    "one key lost": ("attention", {"attention": one_key_lost}),
    "gradient of q": ("attention gradient", {"attention": with_wrong_gradient(without_last_rows, 0)}),
    "gradient of k": ("attention gradient", {"attention": with_wrong_gradient(lambda x: x * 1.2, 1)}),
    "gradient of v": ("attention gradient", {"attention": with_wrong_gradient(lambda x: -x, 2)}),
    "a tile": ("matmul", {"matmul": without_a_tile}),
    "the rest of the inner axis": ("matmul", {"matmul": without_the_rest}),
    "not a number": ("matmul", {"matmul": with_nan}),
    "dropped elements": ("sum", {"sum": lambda x: mx.sum(x[..., :-32], axis=-1)}),
    "a lost block": ("logsumexp", {"logsumexp": lambda x: mx.logsumexp(x[..., : -(2**12)], axis=-1)}),
}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_operation_is_named(fault: str, precision: str) -> None:
    operation, replaced = FAULTS[fault]
    with pytest.raises(BackendError) as error:
        check_operations(CHIP, precision, 64, OPERATIONS._replace(**replaced))
    problems = error.value.problems
    assert [problem for problem in problems if not problem.startswith(operation)] == []  # Its gradient, too.
    tested = {problem.split(" in ")[1].split(" ")[0] for problem in problems if problem.startswith(f"{operation} in ")}
    assert "float32" in tested
    if fault != "dropped elements":  # 32 of 65,536 integers are within the rounding of a half-precision result.
        assert precision in tested
    assert all("Apple M9 Max" in line and version("mlx") in line and "update MLX" in line for line in problems)


def test_the_remedy_for_attention_ends_its_test() -> None:
    broken = OPERATIONS._replace(attention=one_key_too_many)
    with pytest.raises(BackendError, match=r"model\.attention\.type: simple"):
        check_operations(CHIP, "float32", 64, broken)
    config = small_config({"attention": {"type": "simple"}}).model
    assert fused_head_dim(config) is None
    check_operations(CHIP, "float32", fused_head_dim(config), broken)
    assert fused_head_dim(small_config().model) == 8
    window, cap = {"type": "sliding_window", "window": 4}, {"type": "soft_cap", "cap": 5.0}
    assert fused_head_dim(small_config({"attention": {"type": "flex", "mods": [window]}}).model) == 8
    assert fused_head_dim(small_config({"attention": {"type": "flex", "mods": [window, cap]}}).model) is None
    assert fused_head_dim(object()) is None


@pytest.mark.parametrize(("kind", "num_tests"), [("cpu", 0), ("metal", 1), ("cuda", 1)])
def test_only_gpus_are_tested(kind: Any, num_tests: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tested = []
    monkeypatch.setattr(self_test, "this_chip", lambda: CHIP._replace(kind=kind))
    monkeypatch.setattr(self_test, "check_operations", lambda *arguments: tested.append(arguments))
    check_device("bfloat16", 64)
    assert len(tested) == num_tests
