"""What every row of the table must do in a run: resume to the bit, accumulate, train on two ranks, take any shape.

Rows that make something anew every so many updates do so every three here, so that all of it happens in a few steps.
"""

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from core.config import Config, build_section
from core.run import run_folder
from optimizers import OPTIMIZERS
from optimizers.base import Optimizer, OptimizerConfig
from tests.processes import TWO, ends, two_ranks, write_yaml
from tests.tiny_run import assert_same_run, interrupt_after, losses, needs_compiler, quiet_train, tiny_config
from utils.registry import look_up

OFTEN: dict[str, dict[str, Any]] = {
    "soap": {"precondition_frequency": 3},
    "shampoo": {"update_period": 3, "start_preconditioning_step": 2},
    "muon": {"momentum_start": 0.85, "momentum_warmup_steps": 5},
}
"""Settings that make everything of a row happen within a few updates."""
RATES = {"sgd": 0.1, "lion": 1e-3}
every_row = pytest.mark.parametrize("row", OPTIMIZERS)


def section(row: str) -> dict[str, Any]:
    """The optimizer of a row, busy."""
    return {"type": row, "learning_rate": RATES.get(row, 5e-3), **OFTEN.get(row, {})}


def run_config(folder: Path, row: str, **changes: Any) -> Config:
    """A tiny run of twelve updates in micro-batches."""
    training = {"duration": "12 steps", "micro_batch_size": 4} | changes.pop("training", {})
    return tiny_config(folder, optimizer=section(row), training=training, evaluation={"every": "6 steps"}, **changes)


@needs_compiler
@every_row
def test_a_resumed_run_is_the_run_that_never_stopped(tmp_path: Path, row: str) -> None:
    whole = run_config(tmp_path, row, name="whole", training={"compile": True})
    quiet_train(whole)
    for step in (3, 7):
        name = f"stopped-{step}"
        stopped = run_config(tmp_path, row, name=name, training={"compile": True})
        assert interrupt_after(stopped, step=step).step == step
        quiet_train(stopped, resume=True)
        assert_same_run(run_folder(whole), run_folder(stopped))


@every_row
def test_micro_batches_do_not_change_the_losses(tmp_path: Path, row: str) -> None:
    found = []
    for size in (8, 2):
        config = run_config(tmp_path, row, name=f"micro-{size}", training={"micro_batch_size": size})
        quiet_train(config)
        found.append(losses(run_folder(config)))
    assert_close(found[1], found[0], row)


def assert_close(found: list[float], expected: list[float], row: str) -> None:
    """Sums in another order, amplified by the updates: in SOAP's basis as soon as a direction has hardly a gradient."""
    assert len(found) == len(expected) == 12
    early = 3 if row == "soap" else 5
    np.testing.assert_allclose(found[:early], expected[:early], rtol=1e-5)
    np.testing.assert_allclose(found, expected, rtol=2e-3)


@pytest.mark.parametrize(
    "row", [row if row in ("soap", "shampoo") else pytest.param(row, marks=pytest.mark.slow) for row in OPTIMIZERS]
)
def test_two_processes_give_the_losses_of_one(tmp_path: Path, row: str) -> None:
    one = run_config(tmp_path, row, name="one")
    quiet_train(one)
    two = write_yaml(tmp_path, name="two", optimizer=section(row), training={"duration": "12 steps"}, **TWO)
    with two_ranks(tmp_path, two) as ranks:
        codes, errors = ends(ranks)
    assert codes == [0, 0], errors
    found, expected = losses(tmp_path / "runs" / "two"), losses(run_folder(one))
    assert_close(found, expected, row)


SHAPES = {
    "scale": (),
    "layers.0.norm.weight": (5,),
    "layers.0.q_proj.weight": (6, 4),
    "layers.0.row.weight": (1, 7),
    "layers.0.column.weight": (7, 1),
    "layers.0.one.weight": (1, 1),
    "layers.0.experts.weight": (3, 4, 6),
    "layers.0.conv.weight": (4, 3, 2, 2),
    "layers.0.tall.weight": (9, 2),
    "lm_head.weight": (8, 4),
}


def build(row: str) -> tuple[Optimizer, dict[str, mx.array]]:
    """A busy optimizer of parameters of every kind of shape, drawn."""
    config: OptimizerConfig = build_section(look_up(OPTIMIZERS, row, "optimizer"), section(row))
    parameters = {name: mx.random.normal(shape, key=mx.random.key(i)) for i, (name, shape) in enumerate(SHAPES.items())}
    return config.build(parameters), parameters


def update(
    optimizer: Optimizer, parameters: dict[str, mx.array], gradients: dict[str, mx.array], step: int
) -> dict[str, mx.array]:
    """As the loop does it."""
    refreshed = optimizer.refresh(step)
    parameters = optimizer.apply_gradients(gradients, parameters)
    optimizer.install(refreshed)
    mx.eval(parameters, optimizer.state)
    return parameters


def host(tree: Any) -> dict[str, np.ndarray]:
    pairs: Any = tree_flatten(tree)
    return {name: np.array(array) for name, array in pairs}


@every_row
@pytest.mark.parametrize("scale", [0.0, 1e-20, 1.0, 1e15])
def test_every_shape_and_size_of_gradient_stays_finite(row: str, scale: float) -> None:
    optimizer, parameters = build(row)
    before = host(parameters)
    for step in range(8):
        key = mx.random.key(100 + step)
        gradients = {name: scale * mx.random.normal(p.shape, key=key) for name, p in parameters.items()}
        parameters = update(optimizer, parameters, gradients, step)
    after = host(parameters)
    assert [name for name, array in after.items() if not np.isfinite(array).all()] == []
    if scale == 1.0:
        assert [name for name, array in after.items() if np.array_equal(array, before[name])] == []
    if scale < 1.0:
        assert [name for name, array in host(optimizer.state).items() if not np.isfinite(array).all()] == []


@every_row
def test_gradients_that_are_sometimes_zero_do_no_harm(row: str) -> None:
    optimizer, parameters = build(row)
    for step in range(9):
        gradients = {
            name: mx.zeros(p.shape) if step % 3 != 1 else mx.random.normal(p.shape, key=mx.random.key(step))
            for name, p in parameters.items()
        }
        parameters = update(optimizer, parameters, gradients, step)
    assert all(np.isfinite(array).all() for array in (host(parameters) | host(optimizer.state)).values())


@every_row
def test_stopping_anywhere_changes_no_bit(row: str) -> None:
    def gradients_of(step: int) -> dict[str, mx.array]:
        return {name: mx.random.normal(shape, key=mx.random.key(7 * step)) for name, shape in SHAPES.items()}

    optimizer, parameters = build(row)
    seen = [(host(parameters), {name: np.array(array) for name, array in optimizer.state_dict().items()})]
    for step in range(8):
        parameters = update(optimizer, parameters, gradients_of(step), step)
        seen.append((host(parameters), {name: np.array(array) for name, array in optimizer.state_dict().items()}))
    for stop in range(1, 8):
        resumed, _ = build(row)
        resumed.load_state({name: mx.array(array) for name, array in seen[stop][1].items()})
        again = {name: mx.array(array) for name, array in seen[stop][0].items()}
        again = update(resumed, again, gradients_of(stop), stop)
        for name, array in host(again).items():
            np.testing.assert_array_equal(array, seen[stop + 1][0][name], err_msg=name)
        for name, array in resumed.state_dict().items():
            np.testing.assert_array_equal(np.array(array), seen[stop + 1][1][name], err_msg=name)
