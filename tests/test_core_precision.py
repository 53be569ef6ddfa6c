"""Half precision: which device gets it, and that masters, gradients and moments stay float32 while it computes."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from core.assembly import build_parts
from core.evaluation import number
from core.gradients import leaves
from core.guard import FIRST_LOSS_SCALE, initial_guard
from core.objectives.base import Loss
from core.precision import DTYPES, cast, precision_warning, resolve_precision
from core.training import make_step, to_micro_batches
from distributed.group import SingleConfig
from tests.tiny_run import quiet_train, tiny_config

CPU = mx.Device(mx.cpu, 0)


def test_auto_is_what_the_table_of_chips_says(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu: Any = SimpleNamespace(type=mx.DeviceType.gpu)
    monkeypatch.setattr(mx, "device_info", lambda device: {"device_name": "NVIDIA H200", "architecture": "sm_90"})
    assert resolve_precision("auto", gpu) == "bfloat16"
    monkeypatch.setattr(mx, "device_info", lambda device: {"device_name": "Apple M2", "architecture": "applegpu_g14g"})
    assert resolve_precision("auto", gpu) == "float32"


def test_a_cpu_computes_in_float32_and_says_so() -> None:
    assert resolve_precision("auto", CPU) == "float32"
    assert precision_warning("auto", "float32") is None
    assert resolve_precision("bfloat16", CPU) == "float32"
    assert "bfloat16 is about 40 times slower" in str(precision_warning("bfloat16", "float32"))


def test_a_named_precision_is_taken_elsewhere() -> None:
    gpu: Any = SimpleNamespace(type=mx.DeviceType.gpu)
    for name in DTYPES:
        assert resolve_precision(name, gpu) == name


def test_cast_leaves_integers_and_the_original_alone() -> None:
    tree = {"a": mx.array([1.5]), "b": [mx.array([3])]}
    half = cast(tree, "float16")
    assert half["a"].dtype == mx.float16
    assert half["b"][0].dtype == mx.int32
    assert tree["a"].dtype == mx.float32
    assert cast(tree, "float32") is tree


class Watched:
    """An objective that notes the dtypes it computes in."""

    def __init__(self, objective: Any) -> None:
        self.objective, self.dtypes = objective, set()

    def __call__(self, model: Any, batch: Any) -> Loss:
        self.dtypes |= {array.dtype for array in leaves(model.trainable_parameters())}
        return self.objective(model, batch)


def train_in(precision: str, folder: Path, num_steps: int) -> tuple[Any, list[Any], set[Any]]:
    """Train as on a device that takes `precision`: parts, outputs of the steps, dtypes of all gradients."""
    config = tiny_config(folder, training={"micro_batch_size": 4})
    parts = build_parts(config, SingleConfig().build(), None, lambda line: None)
    parts = parts._replace(
        plan=parts.plan._replace(precision=precision),
        guard=initial_guard(precision),
        objective=Watched(parts.objective),  # pyright: ignore[reportArgumentType]
    )
    gradient_dtypes: set[Any] = set()
    apply = parts.optimizer.apply_gradients

    def watch(gradients: Any, *rest: Any) -> Any:
        gradient_dtypes.update(array.dtype for array in leaves(gradients))
        return apply(gradients, *rest)

    parts.optimizer.apply_gradients = watch
    step = make_step(parts, SingleConfig().build(), config)
    loader = parts.dataset.batches(8, micro_batch_size=4)
    outputs = [step(to_micro_batches(next(loader)[0], 4)) for _ in range(num_steps)]
    mx.eval(outputs, parts.model.state)
    loader.close()
    return parts, outputs, gradient_dtypes


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_masters_gradients_and_moments_stay_float32(tmp_path: Path, precision: str) -> None:
    parts, outputs, gradient_dtypes = train_in(precision, tmp_path, num_steps=24)
    assert parts.objective.dtypes == {DTYPES[precision]}
    assert gradient_dtypes == {mx.float32}
    assert {array.dtype for array in leaves(parts.model.trainable_parameters())} == {mx.float32}
    moments = {name: array.dtype for name, array in parts.optimizer.state_dict().items() if name != "step"}
    assert set(moments.values()) == {mx.float32}
    applied = [bool(number(output.applied)) for output in outputs]
    found = [number(output.loss) for output in outputs]
    assert all(applied[-8:])
    assert found[-1] < found[0] - 0.5
    reference = [number(output.loss) for output in train_in("float32", tmp_path, num_steps=1)[1]]
    np.testing.assert_allclose(found[0], reference[0], rtol=2e-3)


def test_float16_finds_a_loss_scale_that_fits(tmp_path: Path) -> None:
    parts, outputs, _ = train_in("float16", tmp_path, num_steps=16)
    applied = [bool(number(output.applied)) for output in outputs]
    num_overflows = applied.count(False)
    assert 1 <= num_overflows < 8
    assert number(parts.guard["loss_scale"]) == FIRST_LOSS_SCALE / 2**num_overflows
    assert int(number(parts.guard["skipped"])) == 0
    # The norm that is clipped and logged is the unscaled one.
    reference = number(train_in("float32", tmp_path, num_steps=1)[1][0].grad_norm)
    first = next(output for output in outputs if number(output.applied))
    np.testing.assert_allclose(number(first.grad_norm), reference, rtol=0.2)


def test_a_run_with_a_slow_precision_warns_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    training = {"precision": "bfloat16", "duration": "2 steps"}
    quiet_train(tiny_config(tmp_path, training=training, schedule={"warmup": 0}))
    assert capsys.readouterr().err.count("bfloat16 is about 40 times slower") == 1
