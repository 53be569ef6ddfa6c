"""Newton-Schulz against the SVD, stacking against one at a time, and which parameters Muon leaves alone."""

import mlx.core as mx
import numpy as np
import pytest

from optimizers import muon as muon_module
from optimizers.base import Optimizer
from optimizers.muon import MuonConfig, newton_schulz, orthogonalise, stacks
from utils.errors import ConfigError

SHAPES = {
    "model.embed_tokens.weight": (32, 16),
    "model.layers.0.q_proj.weight": (16, 16),
    "model.layers.0.up_proj.weight": (40, 16),
    "model.layers.0.down_proj.weight": (16, 40),
    "model.layers.0.input_layernorm.weight": (16,),
    "model.layers.1.q_proj.weight": (16, 16),
    "model.layers.1.down_proj.weight": (16, 40),
    "lm_head.weight": (32, 16),
}
MATRICES = {name for name, shape in SHAPES.items() if ".layers." in name and len(shape) == 2}


def matrix_with(values: np.ndarray, rows: int, columns: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    left = np.linalg.qr(generator.normal(size=(rows, len(values))))[0]
    right = np.linalg.qr(generator.normal(size=(columns, len(values))))[0]
    return left @ np.diag(values) @ right.T


CASES = {
    "random square": np.random.default_rng(1).normal(size=(48, 48)),
    "random wide": np.random.default_rng(2).normal(size=(24, 96)),
    "random tall": np.random.default_rng(3).normal(size=(96, 24)),
    "low rank": matrix_with(np.array([3.0, 2.0, 1.0, 0.5]), 40, 60, 4),
    "ill-conditioned": matrix_with(np.logspace(0, -8, 32), 32, 64, 5),
    "tiny": 1e-7 * np.random.default_rng(6).normal(size=(32, 48)),
    "huge": 1e7 * np.random.default_rng(7).normal(size=(48, 32)),
}


@pytest.mark.parametrize("case", CASES)
def test_singular_values_come_close_to_one_and_the_directions_stay(case: str) -> None:
    matrix = CASES[case]
    result = np.array(orthogonalise({"x": mx.array(matrix.astype(np.float32))}, 5)["x"], dtype=np.float64)
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    large = values > 0.01 * np.linalg.norm(matrix)
    assert large.any()
    mapped = np.diag(left.T @ result @ right.T)[large]
    assert mapped.min() > 0.65
    assert mapped.max() < 1.25
    assert np.linalg.svd(result, compute_uv=False).max() < 1.25
    projected = left[:, large].T @ result @ right[large].T
    assert np.abs(projected - np.diag(mapped)).max() < 1e-3


def test_a_random_update_is_nearly_the_polar_factor() -> None:
    matrix = CASES["random wide"]
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    polar = left @ right
    result = np.array(newton_schulz(mx.array(matrix.astype(np.float32))[None], 5)[0])
    cosine = (polar * result).sum() / np.linalg.norm(polar) / np.linalg.norm(result)
    assert cosine > 0.97
    assert np.linalg.norm(result - polar) < 0.25 * np.linalg.norm(polar)


def test_zero_gradients_give_zero_updates() -> None:
    assert mx.all(newton_schulz(mx.zeros((2, 4, 6)), 5) == 0).item()


def test_stacked_equals_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    key = mx.random.key(0)
    matrices = {name: mx.random.normal(SHAPES[name], key=key) for name in sorted(MATRICES)}
    together = orthogonalise(matrices, 5)
    monkeypatch.setattr(muon_module, "LARGEST_STACK", 1)
    alone = orthogonalise(matrices, 5)
    assert together.keys() == alone.keys() == matrices.keys()
    for name in matrices:
        assert together[name].shape == matrices[name].shape
        np.testing.assert_allclose(np.array(together[name]), np.array(alone[name]), atol=1e-5)


def test_stacks_join_shapes_up_to_transposition_and_stay_small(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = {name: SHAPES[name] for name in sorted(MATRICES)}
    assert sorted(len(names) for names in stacks(shapes)) == [2, 3]
    monkeypatch.setattr(muon_module, "LARGEST_STACK", 2 * 16 * 40)
    assert sorted(len(names) for names in stacks(shapes)) == [1, 2, 2]
    assert sorted(name for names in stacks(shapes) for name in names) == sorted(shapes)


def build(**settings: object) -> Optimizer:
    return MuonConfig(**settings).build({name: mx.ones(shape) for name, shape in SHAPES.items()})  # type: ignore[arg-type]


def test_embeddings_head_and_norms_never_see_newton_schulz(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []

    def spy(matrices: mx.array, num_steps: int) -> mx.array:
        seen.append(matrices.shape)
        return matrices

    monkeypatch.setattr(muon_module, "newton_schulz", spy)
    optimizer = build()
    ones = {name: mx.ones(shape) for name, shape in SHAPES.items()}
    optimizer.apply_gradients(ones, ones)
    assert sorted(seen) == [(2, 16, 16), (3, 16, 40)]
    owners = {name: group.name for group in optimizer.groups for name in group.decay}
    assert {name for name, owner in owners.items() if owner == "muon"} == MATRICES
    assert owners["lm_head.weight"] == owners["model.embed_tokens.weight"] == "adamw"


def test_own_globs_choose_the_matrices() -> None:
    optimizer = build(matrices=["*q_proj*", "*embed*", "*layernorm*"])
    decay = {group.name: set(group.decay) for group in optimizer.groups}
    assert decay["muon"] == {name for name in SHAPES if "q_proj" in name or "embed" in name}
    with pytest.raises(ConfigError, match=r"matrices: '\*k_proj\*' matches no parameter.*q_proj"):
        build(matrices=["*k_proj*"])
    with pytest.raises(ConfigError, match="no matrix matches"):
        build(matrices=["*layernorm*"])


def test_the_rms_scale_moves_elements_as_far_as_adamw_does() -> None:
    optimizer = build(learning_rate=0.01, weight_decay=0.0)
    old = {name: mx.zeros(shape) for name, shape in SHAPES.items()}
    gradients = {name: mx.random.normal(shape, key=mx.random.key(3)) for name, shape in SHAPES.items()}
    new = optimizer.apply_gradients(gradients, old)
    for name in MATRICES:
        rms = np.sqrt(np.mean(np.square(np.array(new[name])))) / 0.01
        assert 0.15 < rms < 0.25, name


def test_the_adamw_part_has_a_rate_of_its_own_or_one_that_moves_elements_as_far() -> None:
    def rates(**changes) -> dict[str, float]:
        return {group.name: group.learning_rate for group in build(**changes).groups}

    assert rates(learning_rate=0.01) == {"muon": 0.01, "adamw": 0.01}
    original = rates(learning_rate=0.02, update_scale="original")
    assert original == {"muon": 0.02, "adamw": pytest.approx(0.02 * 5 / 40**0.5)}
    assert rates(adamw_learning_rate=3e-4)["adamw"] == 3e-4
