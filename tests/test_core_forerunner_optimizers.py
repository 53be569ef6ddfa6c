"""The forerunners' nine optimizers: each reads its own keys, trains, and moves every parameter."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from mlx.utils import tree_flatten

from core.config import dump, load, load_with_notes
from core.evaluation import number
from core.forerunner_optimizers import OPTIMIZERS
from tests.first_steps import take_steps
from tests.forerunner_files import changed, problems, texts
from tests.tiny_run import write_corpus

RATES = {"sgd": 0.3, "sgd_enhanced": 0.3, "muon": 0.02, "hybrid": 0.02, "lion": 1e-3}
KEYS = {
    "momentum": 0.9,
    "nesterov": True,
    "ns_steps": 5,
    "betas": [0.9, 0.95],
    "eps": 1e-8,
    "update_period": 2,
    "start_preconditioning_step": 2,
    "preconditioner_epsilon": 1e-6,
    "exponent_override": 0.75,
    "grafting_optimizer": "adam",
    "amsgrad": True,
}
"""Of all optimizers at once, as their files have them."""


def forerunner_file(folder: Path, optimizer: str) -> Path:
    """A file of theirs that trains a tiny llama with the optimizer of that name."""
    values = yaml.safe_load((Path(__file__).parent / "forerunner" / "smallest.yaml").read_text())
    values["data"]["input_file"] = str(write_corpus(folder / "corpus.jsonl"))
    values["training"]["hyperparameters"] |= {"learning_rate": RATES.get(optimizer, 1e-2), "iters": 16, "batch_size": 8}
    values["training"]["optimization"] = {"optimizer": optimizer, **KEYS}
    values["model"]["dimensions"]["num_layers"] = 2  # Eight would show the same four times.
    path = folder / "theirs.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


READ = {
    "adam": {"type": "adam", "weight_decay": 0.0, "betas": [0.8, 0.9], "eps": 1e-7},
    "adamw": {"type": "adamw", "weight_decay": 0.02, "betas": [0.8, 0.9], "amsgrad": False},
    "adamw_enhanced": {"type": "adamw", "betas": [0.8, 0.9], "amsgrad": True},
    "sgd": {"type": "sgd", "momentum": 0.9, "nesterov": False, "weight_decay": 0.02},
    "sgd_enhanced": {"type": "sgd", "momentum": 0.9},
    "lion": {"type": "lion", "betas": [0.8, 0.9], "weight_decay": 0.02},
    "muon": {"type": "muon", "update_scale": "original", "momentum": 0.9, "ns_steps": 6, "betas": [0.8, 0.9]},
    "hybrid": {"type": "muon", "update_scale": "original", "nesterov": False},
    "shampoo": {
        "type": "shampoo",
        "update_period": 100,
        "start_preconditioning_step": 1000,
        "preconditioner_epsilon": 1e-6,
        "exponent_override": 0.75,
        "grafting": "adam",
        "betas": [0.8, 0.9],
        "eps": 1e-7,
        "weight_decay": 0.02,
    },
}


@pytest.mark.parametrize("name", sorted(READ))
def test_every_optimizer_reads_its_own_keys_only(tmp_path: Path, name: str) -> None:
    config = load(changed(tmp_path, {"training.optimization.optimizer": name}))
    read = dump(config.optimizer)
    assert read | READ[name] == read
    assert read["learning_rate"] == 1e-4
    averaged = name in ("adamw_enhanced", "sgd_enhanced", "lion")
    assert config.training.weight_ema == (0.99 if averaged else None)


@pytest.mark.parametrize("grafting", ["sgd", "momentum", "none"])
def test_the_grafting_optimizer_is_shampoos_grafting(tmp_path: Path, grafting: str) -> None:
    optimization = {"optimizer": "shampoo", "grafting_optimizer": grafting}
    config = load(changed(tmp_path, {"training.optimization": optimization}))
    assert dump(config.optimizer)["grafting"] == grafting


@pytest.mark.parametrize(
    ("keys", "betas"),
    [({"beta1": 0.7}, [0.7, 0.95]), ({"beta2": 0.7}, [0.9, 0.7]), ({"beta1": 0.6, "beta2": 0.7}, [0.6, 0.7])],
)
def test_one_beta_alone_is_joined_by_the_usual_other(
    tmp_path: Path, keys: dict[str, float], betas: list[float]
) -> None:
    config = load(changed(tmp_path, {"training.optimization": {"optimizer": "adamw", **keys}}))
    assert dump(config.optimizer)["betas"] == betas


@pytest.mark.parametrize("name", ["adafactor", "amdaw"])
def test_an_optimizer_this_version_lacks_is_an_error_that_names_what_there_is(tmp_path: Path, name: str) -> None:
    (problem,) = problems(changed(tmp_path, {"training.optimization.optimizer": name}))
    assert f"training.optimization.optimizer: this version has no optimizer '{name}'" in problem
    assert problem.endswith("there are: " + ", ".join(sorted(READ)))


def hybrid(matrix: str, other: str) -> dict[str, Any]:
    return {
        "training.optimization.optimizer": "hybrid",
        "training.optimization.matrix_optimizer": matrix,
        "training.optimization.non_matrix_optimizer": other,
    }


def test_a_hybrid_of_other_parts_has_two_groups(tmp_path: Path) -> None:
    loaded = load_with_notes(changed(tmp_path, hybrid("shampoo", "lion")))
    assert "hybrid is read as shampoo for the matrices of the layers and lion for the rest" in texts(loaded)
    read = dump(loaded.config.optimizer)
    assert (read["type"], read["learning_rate"], read["weight_decay"]) == ("hybrid", 1e-4, 0.02)
    shampoo, lion = read["groups"]
    assert (shampoo["match"], lion["match"]) == (["*_proj.weight"], ["*"])
    for section, name in ((shampoo["optimizer"], "shampoo"), (lion["optimizer"], "lion")):
        expected = READ[name] | {"learning_rate": 1e-4, "weight_decay": 0.02}
        assert section | expected == section
    model = loaded.config.model.model_copy(update={"vocab_size": 64}).build(seed=0)
    groups = loaded.config.optimizer.build(model.trainable_parameters()).groups
    assert [group.name for group in groups] == ["0-shampoo", "1-lion"]
    assert sum(len(group.decay) for group in groups) == len(dict(tree_flatten(model.trainable_parameters())))


def test_a_hybrid_of_a_usual_pair_is_one_optimizer(tmp_path: Path) -> None:
    for name in ("muon", "shampoo"):
        pair, alone = (
            dump(load(changed(tmp_path, changes)).optimizer)
            for changes in (hybrid(name, "adamw"), {"training.optimization.optimizer": name})
        )
        assert pair == alone


def test_a_hybrid_of_what_is_no_optimizer_is_refused(tmp_path: Path) -> None:
    (problem,) = problems(changed(tmp_path, hybrid("mouon", "adamw")))
    assert "training.optimization.matrix_optimizer: expected one of adam, adamw" in problem
    (problem,) = problems(changed(tmp_path, hybrid("muon", "hybrid")))
    assert "training.optimization.non_matrix_optimizer: expected one of" in problem


def test_there_are_nine() -> None:
    theirs = {"adam", "adamw", "adamw_enhanced", "sgd", "sgd_enhanced", "lion", "muon", "shampoo", "hybrid"}
    assert set(OPTIMIZERS) == theirs


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_trains_and_moves_every_parameter(tmp_path: Path, name: str) -> None:
    overrides = [
        f"data.cache_dir={tmp_path / 'cache'}",
        "training.compile=false",
        "schedule={type: constant, warmup: 0}",
    ]
    config = load(forerunner_file(tmp_path, name), overrides)
    parts, outputs, before = take_steps(config, num_steps=16)
    losses = [number(output.loss) for output in outputs]
    assert losses[-1] < losses[0] - 0.3
    after = {key: np.array(array) for key, array in tree_flatten(parts.model.trainable_parameters())}
    assert [key for key, array in after.items() if np.abs(array - before[key]).max() < 1e-6] == []
