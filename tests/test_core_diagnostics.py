"""Figures of layers against NumPy in float64, from the weights that a run saved before and after an update."""

import math
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map

from core.checkpoint import list_checkpoints, read_checkpoint
from core.diagnostics import arrange, by_group, layer_figures, layer_of, movement
from core.gradients import leaves
from core.run import run_folder
from tests.tiny_run import (
    assert_same_run,
    interrupt_after,
    metric_rows,
    needs_compiler,
    quiet_train,
    tiny_config,
)

LAYERS = {"model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm"}
EVERY_STEP = {"every": "1 steps", "keep_last": 30}


def together(arrays: dict[str, np.ndarray], layer: str) -> float:
    """The norm of the arrays of a layer, whose names begin with its own; "" is all of them."""
    parts = [array for name, array in arrays.items() if name.startswith(layer)]
    return math.sqrt(sum((part.astype(np.float64) ** 2).sum() for part in parts))


def figures_of(rows: list[dict[str, Any]], kind: str) -> dict[int, dict[str, float]]:
    """Step -> what the rows say under `kind`, by the rest of the name."""
    return {
        row["step"]: {name.removeprefix(f"{kind}/"): row[name] for name in row if name.startswith(f"{kind}/")}
        for row in rows
        if any(name.startswith(f"{kind}/") for name in row)
    }


def saved_weights(run: Path) -> dict[int, dict[str, np.ndarray]]:
    """Step -> weights, for each checkpoint."""
    saved = map(read_checkpoint, list_checkpoints(run / "checkpoints"))
    return {one.state["step"]: one.model for one in saved}


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.3.mlp.up_proj.weight", "model.layers.3"),
        ("model.layers.12.self_attn.sinks", "model.layers.12"),
        ("model.layers.3.experts.7.weight", "model.layers.3"),
        ("model.embed_tokens.weight", "model.embed_tokens"),
        ("model.norm.weight", "model.norm"),
        ("lm_head.weight", "lm_head"),
        ("tower.layers.0", "tower.layers"),
        ("scale", "scale"),
    ],
)
def test_a_layer_is_its_number_or_its_module(name: str, layer: str) -> None:
    assert layer_of(name) == layer


def test_figures_are_numpys_for_arrays_of_any_shape() -> None:
    random = np.random.default_rng(0)
    shapes = {"a": {"x": (3, 5), "y": ()}, "b": {"z": (2, 1, 4)}, "c": {"w": (200, 300)}}
    old, new, gradients = (
        {layer: {name: random.normal(size=shape).astype(np.float32) for name, shape in parts.items()}
         for layer, parts in shapes.items()}
        for _ in range(3)
    )  # fmt: skip
    new["c"]["w"] = (old["c"]["w"] * np.float32(1 + 1e-3)).astype(np.float32)
    before, after = (tree_map(mx.array, tree) for tree in (old, new))
    arrangement = arrange(before, lambda name: "even" if name[0] in "ac" else "odd")
    grad_norms = mx.stack([mx.linalg.norm(mx.array(array)) for array in leaves(gradients)])
    figures = layer_figures(arrangement, grad_norms, movement(before, after))

    def norm(tree: dict[str, dict[str, np.ndarray]], layers: str) -> float:
        return math.sqrt(sum((array.astype(np.float64) ** 2).sum() for key in layers for array in tree[key].values()))

    changes = {
        layer: {name: new[layer][name].astype(np.float64) - array for name, array in parts.items()}
        for layer, parts in old.items()
    }
    expected = {
        **{f"layers/grad_norm/{layer}": norm(gradients, layer) for layer in shapes},
        **{f"layers/weight_norm/{layer}": norm(old, layer) for layer in shapes},
        **{f"layers/update_ratio/{layer}": norm(changes, layer) / norm(old, layer) for layer in shapes},
        "optim/update_ratio": norm(changes, "abc") / norm(old, "abc"),
        "optim/update_ratio/even": norm(changes, "ac") / norm(old, "ac"),
        "optim/update_ratio/odd": norm(changes, "b") / norm(old, "b"),
    }
    assert figures == pytest.approx(expected, rel=1e-5)


def test_weights_of_zero_have_no_ratio_unless_they_stay() -> None:
    zeros, ones = {"a": mx.zeros((2,)), "b": mx.zeros((3,))}, {"a": mx.zeros((2,)), "b": mx.ones((3,))}
    figures = layer_figures(arrange(zeros, lambda name: "all"), mx.zeros((2,)), movement(zeros, ones))
    assert figures["layers/update_ratio/a"] == 0
    assert figures["layers/update_ratio/b"] == figures["optim/update_ratio"] == math.inf
    assert "optim/update_ratio/all" not in figures


def test_a_group_is_named_where_there_are_several() -> None:
    assert by_group("x", 5.0, {"only": 3.0}) == {"x": 5.0}
    assert by_group("x", 5.0, {"a": 3.0, "b": 4.0}) == {"x": 5.0, "x/a": 3.0, "x/b": 4.0}


VARIANTS: dict[str, dict[str, Any]] = {
    "adamw": {},
    "muon, averaged weights, accumulation": {
        "optimizer": {"type": "muon", "learning_rate": 1e-2},
        "training": {"weight_ema": 0.9, "micro_batch_size": 2},
    },
    "half precision": {"training": {"precision": "bfloat16"}},
    "compiled": {"training": {"compile": True, "micro_batch_size": 4}},
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=needs_compiler if n == "compiled" else ()) for n in VARIANTS])
def test_rows_hold_what_the_saved_weights_say(tmp_path: Path, name: str) -> None:
    changes = {"training": {"duration": "9 steps"}, **VARIANTS[name]}
    changes["training"] = {"duration": "9 steps"} | changes["training"]
    config = tiny_config(tmp_path, logging={"layers_every": "3 steps"}, checkpoint=EVERY_STEP, **changes)
    quiet_train(config)
    rows, weights = metric_rows(run_folder(config)), saved_weights(run_folder(config))
    norms, ratios = figures_of(rows, "layers/weight_norm"), figures_of(rows, "layers/update_ratio")
    assert norms.keys() == ratios.keys() == {3, 6, 9}
    for step in norms:
        old, new = weights[step - 1], weights[step]
        moved = {key: new[key].astype(np.float64) - old[key] for key in old}
        assert norms[step] == pytest.approx({layer: together(old, layer) for layer in LAYERS}, rel=1e-5)
        expected = {layer: together(moved, layer) / together(old, layer) for layer in LAYERS}
        assert ratios[step] == pytest.approx(expected, rel=1e-5)
        assert min(expected.values()) > 0
        row = next(row for row in rows if row["step"] == step and "train/loss" in row)
        assert row["optim/update_ratio"] == pytest.approx(together(moved, "") / together(old, ""), rel=1e-5)
        for kind in ("update_ratio", "grad_norm"):
            several = {key for key in row if key.startswith(f"optim/{kind}/")}
            assert several == ({f"optim/{kind}/muon", f"optim/{kind}/adamw"} if "muon" in name else set())


def test_norms_of_gradients_are_those_plain_sgd_subtracts(tmp_path: Path) -> None:
    """Without momentum, decay and clipping, the update is the gradient times the learning rate."""
    optimizer = {"type": "sgd", "learning_rate": 0.5, "momentum": 0.0, "weight_decay": 0.0}
    config = tiny_config(
        tmp_path,
        optimizer=optimizer,
        schedule={"type": "constant", "warmup": "0 steps"},
        training={"duration": "4 steps", "gradient_clip": None, "micro_batch_size": 4},
        checkpoint=EVERY_STEP,
        logging={"layers_every": "1 steps"},
    )
    quiet_train(config)
    rows, weights = metric_rows(run_folder(config)), saved_weights(run_folder(config))
    found = figures_of(rows, "layers/grad_norm")
    for step in (2, 3, 4):
        gradients = {
            key: (weights[step - 1][key].astype(np.float64) - weights[step][key]) / 0.5 for key in weights[step]
        }
        expected = {layer: together(gradients, layer) for layer in LAYERS}
        assert found[step] == pytest.approx(expected, rel=1e-4)
        row = next(row for row in rows if row["step"] == step and "train/loss" in row)
        assert row["optim/grad_norm"] == pytest.approx(math.hypot(*found[step].values()), rel=1e-6)


def test_the_norm_of_each_group_is_logged_with_every_row(tmp_path: Path) -> None:
    muon = {"type": "muon", "learning_rate": 1e-2}
    config = tiny_config(tmp_path, optimizer=muon, training={"duration": "4 steps"}, logging={"every": "2 steps"})
    quiet_train(config)
    rows = [row for row in metric_rows(run_folder(config)) if "train/loss" in row]
    assert [row["step"] for row in rows] == [2, 4]
    for row in rows:
        assert 0 < row["optim/grad_norm/muon"] != row["optim/grad_norm/adamw"] > 0
        each = (row["optim/grad_norm/muon"], row["optim/grad_norm/adamw"])
        assert row["optim/grad_norm"] == pytest.approx(math.hypot(*each), rel=1e-6)
        assert not [name for name in row if "layers/" in name or "ratio" in name]


def test_rows_of_layers_keep_their_own_time(tmp_path: Path) -> None:
    settings = {"every": "6 steps", "layers_every": "4 steps"}
    config = tiny_config(tmp_path, training={"duration": "13 steps"}, evaluation={"every": None}, logging=settings)
    quiet_train(config)
    kinds = [
        (row["step"], "train/loss" in row, "layers/grad_norm/model.norm" in row)
        for row in metric_rows(run_folder(config))
        if "eval/loss" not in row
    ]
    assert kinds == [(4, False, True), (6, True, False), (8, False, True), (12, True, True), (13, True, False)]


def test_an_update_that_was_held_back_moved_nothing(tmp_path: Path) -> None:
    config = tiny_config(
        tmp_path,
        objective={"type": "tests.toy_objectives:BrokenConfig", "row": 40},
        training={"max_skipped_updates": 1, "duration": "8 steps"},
        logging={"layers_every": "1 steps"},
    )
    quiet_train(config)
    rows = metric_rows(run_folder(config))
    ratios = figures_of(rows, "layers/update_ratio")
    assert ratios[6] == dict.fromkeys(LAYERS, 0.0)
    assert min(*ratios[5].values(), *ratios[7].values()) > 0
    assert figures_of(rows, "layers/weight_norm")[6] == pytest.approx(figures_of(rows, "layers/weight_norm")[7])
    assert set(figures_of(rows, "layers/grad_norm")[6].values()) == {None}


def test_a_resumed_run_writes_the_same_rows(tmp_path: Path) -> None:
    settings = {"logging": {"every": "3 steps", "layers_every": "2 steps"}, "optimizer": {"type": "muon"}}
    settings["optimizer"]["learning_rate"] = "1e-2"
    whole, resumed = (tiny_config(tmp_path, name=name, **settings) for name in ("whole", "resumed"))
    quiet_train(whole)
    interrupt_after(resumed, step=9)
    quiet_train(resumed, resume=True)
    assert len(figures_of(metric_rows(run_folder(whole)), "layers/grad_norm")) == 10
    assert_same_run(run_folder(whole), run_folder(resumed))
