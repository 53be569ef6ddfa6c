"""What every row of the table must do in a run: resume to the bit, accumulate, train on two ranks, take any shape.

Rows that make something anew every so many updates do so every three here, so that all of it happens in a few steps.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from core.assembly import build_parts
from core.config import Config, build_section
from core.evaluation import Evaluator
from core.run import run_folder
from distributed.group import SingleConfig
from optimizers import OPTIMIZERS
from optimizers.base import Optimizer, OptimizerConfig
from tests.processes import TWO, ends, two_ranks, write_yaml
from tests.tiny_run import (
    assert_same_run,
    interrupt_after,
    last_checkpoint,
    losses,
    metric_rows,
    needs_compiler,
    quiet_train,
    tiny_config,
)
from utils.errors import ConfigError
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
    for step in (3, 7) if row in OFTEN else (7,):
        name = f"stopped-{step}"
        stopped = run_config(tmp_path, row, name=name, training={"compile": True})
        assert interrupt_after(stopped, step=step).step == step
        quiet_train(stopped, resume=True)
        assert_same_run(run_folder(whole), run_folder(stopped))


@every_row
def test_micro_batches_do_not_change_the_losses(tmp_path: Path, row: str) -> None:
    found = []
    for size in (8, 4):
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


def test_the_loop_starts_what_is_due_before_each_update_and_installs_it_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, Any]] = []
    told: dict[str, Callable[[Any], Any]] = {"refresh": int, "apply_gradients": lambda _: None, "install": bool}

    def noting(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Optimizer, first: Any, *others: Any) -> Any:
            seen.append((name, told[name](first)))
            return method(self, first, *others)

        return call

    for name in told:
        monkeypatch.setattr(Optimizer, name, noting(name, getattr(Optimizer, name)))
    quiet_train(run_config(tmp_path, "soap"))
    assert seen == [
        call
        for step in range(12)
        for call in (("refresh", step), ("apply_gradients", None), ("install", step in (1, 3, 6, 9)))
    ]


@pytest.mark.parametrize("row", ["soap", "shampoo"])
def test_what_had_to_be_damped_is_in_the_metrics(tmp_path: Path, row: str, monkeypatch: pytest.MonkeyPatch) -> None:
    refresh = Optimizer.refresh

    def breaking(self: Optimizer, num_updates: int) -> Any:
        if num_updates == 6:
            moments = next(m for m in self.state["parameters"].values() if "num_damped" in m)
            key = next(key for key in moments if moments[key].ndim > 1 and ("left" in key or "right" in key))
            moments[key] = -moments[key] - 1.0
        return refresh(self, num_updates)

    monkeypatch.setattr(Optimizer, "refresh", breaking)
    broken = run_config(tmp_path, row, name="broken")
    assert quiet_train(broken).step == 12
    counts = [row["optim/num_damped"] for row in metric_rows(run_folder(broken)) if "train/loss" in row]
    assert set(counts[:6]) == {0.0}
    assert counts[-1] > 0


def test_a_run_with_an_average_of_its_own_evaluates_and_keeps_it(tmp_path: Path) -> None:
    config = run_config(tmp_path, "schedule_free_adamw", schedule={"type": "constant"})
    result = quiet_train(config)
    kept = last_checkpoint(run_folder(config))
    assert kept.ema is not None
    raw = {name: mx.array(array) for name, array in kept.model.items()}
    optimizer = config.optimizer.build(raw)
    prefix = "optimizer."
    optimizer.load_state({name[len(prefix) :]: mx.array(a) for name, a in kept.optimizer.items() if prefix in name})
    for name, expected in host(optimizer.averaged(raw)).items():
        np.testing.assert_array_equal(kept.ema[name], expected)
        assert not np.array_equal(kept.ema[name], kept.model[name])
    parts = build_parts(config, SingleConfig().build(), None, lambda line: None)
    evaluator = Evaluator(parts.model, parts.objective, "float32", compiled=False)
    losses_of = {}
    for kind, weights in (("averaged", kept.ema), ("raw", kept.model)):
        parts.model.load_weights([(name, mx.array(array)) for name, array in weights.items()])
        found = evaluator.run(parts.dataset.validation_batches(4), parts.dataset.validation_bytes, lambda: False)
        assert found is not None
        losses_of[kind] = found.loss
    assert result.evaluation is not None
    assert result.evaluation.loss == losses_of["averaged"] != losses_of["raw"]
    assert parts.plan.checkpoint_bytes == 8 * parts.plan.num_params + parts.plan.optimizer_bytes


def test_two_averages_are_refused_and_a_falling_schedule_is_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match=r"training\.weight_ema is 0\.9, .* keeps an average of its own"):
        quiet_train(run_config(tmp_path, "schedule_free_adamw", training={"weight_ema": 0.9}))
    quiet_train(run_config(tmp_path, "schedule_free_adamw", name="falls", training={"duration": "1 steps"}))
    assert "schedule cosine under an optimizer that averages" in capsys.readouterr().err
    constant = {"type": "constant", "warmup": 0}
    quiet_train(run_config(tmp_path, "schedule_free_adamw", name="constant", schedule=constant))
    assert "averages" not in capsys.readouterr().err


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
