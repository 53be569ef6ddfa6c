"""Muon and its options against NumPy in float64; fused and stacked matrices; which parameters it leaves alone."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map
from pydantic import ValidationError

from core.config import Config, build_section
from optimizers import muon as muon_module
from optimizers import newton_schulz as newton_schulz_module
from optimizers.base import Optimizer
from optimizers.muon import MuonConfig
from tests.memory_peaks import highest_peak, peak_of
from tests.muon_oracle import AdamWOracle, MuonOracle
from tests.tiny_run import needs_compiler
from utils.errors import ConfigError

SHAPES = {
    "model.embed_tokens.weight": (32, 16),
    "model.layers.0.q_proj.weight": (16, 16),
    "model.layers.0.qkv_proj.weight": (24, 16),
    "model.layers.0.up_proj.weight": (40, 16),
    "model.layers.0.down_proj.weight": (16, 40),
    "model.layers.0.experts.weight": (3, 20, 12),
    "model.layers.0.input_layernorm.weight": (16,),
    "model.layers.1.q_proj.weight": (16, 16),
    "model.layers.1.down_proj.weight": (16, 40),
    "lm_head.weight": (32, 16),
}
MATRICES = {name for name, shape in SHAPES.items() if ".layers." in name and len(shape) > 1}
NOT_DECAYED = {"model.embed_tokens.weight", "model.layers.0.input_layernorm.weight"}
RATES = [0.5, 1.0, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.3, 0.1]
SPLITS = {"*.qkv_proj.weight": (16, 4, 4)}


def draw(seed: int, shapes: dict[str, tuple[int, ...]] = SHAPES) -> dict[str, np.ndarray]:
    """Seed 0 gives parameters, as small as weights are: beside large ones an error would not show."""
    generator = np.random.default_rng(seed)
    return {name: (1.0 if seed else 0.05) * generator.normal(size=shape) for name, shape in shapes.items()}


def to_mlx(arrays: dict[str, np.ndarray]) -> dict[str, mx.array]:
    return {name: mx.array(array.astype(np.float32)) for name, array in arrays.items()}


def build(shapes: dict[str, Any] = SHAPES, **settings: Any) -> Optimizer:
    return MuonConfig(**settings).build({name: mx.ones(shape) for name, shape in shapes.items()})


def run_ours(num_steps: int = 10, shapes: dict[str, Any] = SHAPES, **settings: Any) -> dict[str, np.ndarray]:
    parameters = to_mlx(draw(0, shapes))
    optimizer = MuonConfig(**settings).build(parameters)
    for step in range(num_steps):
        optimizer.set_schedule(RATES[step])
        parameters = optimizer.apply_gradients(to_mlx(draw(step + 1, shapes)), parameters)
    return {name: np.array(array) for name, array in parameters.items()}


def slices(name: str, shape: tuple[int, ...], splits: dict[str, tuple[int, ...]]) -> list[Any]:
    """Where the matrices of a parameter are."""
    if len(shape) == 3:
        return list(range(shape[0]))
    ends = np.cumsum(splits["*.qkv_proj.weight"] if splits and "qkv" in name else shape[:1])
    return [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def run_oracle(rate: float, decay: float, **options: Any) -> dict[str, np.ndarray]:
    weights = draw(0)
    splits = options.get("splits", {})
    # The slowest matrix is the one with the most columns, of those the part's own shape counts.
    adamw_rate = rate * 5 / 40**0.5 if options.get("update_scale") == "original" else rate
    oracles: dict[str, list[tuple[Any, MuonOracle]]] = {}
    for name, weight in weights.items():
        own = 0.0 if name in NOT_DECAYED else decay
        if name in MATRICES:
            places = slices(name, weight.shape, splits)
            oracles[name] = [(place, MuonOracle(weight[place], rate, own, **options)) for place in places]
        else:
            oracles[name] = [(slice(None), AdamWOracle(weight, adamw_rate, own))]
    for step, schedule in enumerate(RATES):
        gradients = draw(step + 1)
        for name, parts in oracles.items():
            for place, part in parts:
                part.update(gradients[name][place], schedule)
                weights[name][place] = part.weight
    return weights


OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "plain momentum": {"nesterov": False, "momentum": 0.9},
    "no momentum": {"momentum": 0.0},
    "original scale": {"update_scale": "original"},
    "three steps": {"ns_steps": 3},
    "six steps": {"ns_steps": 6},
    "polar express": {"coefficients": "polar_express"},
    "polar express, six steps": {"coefficients": "polar_express", "ns_steps": 6},
    "momentum warm-up": {"momentum_start": 0.5, "momentum_warmup_steps": 6},
    "cautious": {"cautious_decay": True},
    "normuon": {"normuon": True},
    "normuon, original scale": {"normuon": True, "normuon_beta": 0.8, "update_scale": "original"},
    "split": {"splits": SPLITS},
    "all": {
        **{"normuon": True, "cautious_decay": True, "splits": SPLITS, "coefficients": "polar_express"},
        **{"momentum_start": 0.8, "momentum_warmup_steps": 3},
    },
}


@pytest.mark.parametrize("option", OPTIONS)
def test_ten_updates_equal_the_oracle(option: str) -> None:
    ours = run_ours(learning_rate=0.02, weight_decay=0.5, **OPTIONS[option])
    expected = run_oracle(0.02, 0.5, **OPTIONS[option])
    for name, weight in expected.items():
        error = np.abs(ours[name] - weight).max() / np.abs(weight).max()
        assert error < (1e-3 if name in MATRICES else 1e-5), (name, error)


def test_every_option_changes_what_is_computed() -> None:
    """Or the oracle of an option would prove nothing."""
    plain = run_ours(num_steps=3, learning_rate=0.02, weight_decay=0.5)
    for option, settings in OPTIONS.items():
        changed = run_ours(num_steps=3, learning_rate=0.02, weight_decay=0.5, **settings)
        moved = max(np.abs(changed[name] - plain[name]).max() / np.abs(plain[name]).max() for name in MATRICES)
        assert moved > 2e-3 or option == "defaults", option


@pytest.mark.parametrize("settings", [{}, {"normuon": True}], ids=["muon", "normuon"])
def test_one_matrix_at_a_time_computes_the_same(monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]) -> None:
    together = run_ours(num_steps=3, **settings)
    monkeypatch.setattr(newton_schulz_module, "LARGEST_STACK", 1)
    alone = run_ours(num_steps=3, **settings)
    for name in together:
        np.testing.assert_allclose(together[name], alone[name], atol=1e-5)


def separate(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same numbers with every part of qkv and every expert as a parameter of its own."""
    found = {name: array for name, array in arrays.items() if "qkv" not in name and "experts" not in name}
    qkv, experts = arrays["model.layers.0.qkv_proj.weight"], arrays["model.layers.0.experts.weight"]
    found |= {f"model.layers.0.{part}": array for part, array in zip("abc", np.split(qkv, [16, 20]), strict=True)}
    return found | {f"model.layers.0.expert{index}": expert for index, expert in enumerate(experts)}


@pytest.mark.parametrize("settings", [{}, {"normuon": True, "update_scale": "original"}])
def test_parts_and_experts_equal_parameters_of_their_own(settings: dict[str, Any]) -> None:
    fused_weights, apart_weights = to_mlx(draw(0)), to_mlx(separate(draw(0)))
    fused = MuonConfig(splits=SPLITS, **settings).build(fused_weights)
    apart = MuonConfig(**settings).build(apart_weights)
    for step in range(1, 4):
        fused_weights = fused.apply_gradients(to_mlx(draw(step)), fused_weights)
        apart_weights = apart.apply_gradients(to_mlx(separate(draw(step))), apart_weights)
    for name, array in separate({name: np.array(array) for name, array in fused_weights.items()}).items():
        np.testing.assert_allclose(array, np.array(apart_weights[name]), atol=1e-6, err_msg=name)


def test_splits_hold_for_each_of_a_stack_of_experts() -> None:
    shapes = {"layers.0.experts": (2, 6, 5)}
    apart = {f"layers.0.{expert}{part}": (rows, 5) for expert in "ab" for part, rows in enumerate((4, 2))}
    gradient = draw(1, shapes)["layers.0.experts"]
    pieces = [gradient[0, :4], gradient[0, 4:], gradient[1, :4], gradient[1, 4:]]
    zeros = {name: mx.zeros(shape) for name, shape in (shapes | apart).items()}
    fused = build(shapes, splits={"*experts": (4, 2)}).apply_gradients(
        to_mlx({"layers.0.experts": gradient}), {"layers.0.experts": zeros["layers.0.experts"]}
    )
    other = build(apart).apply_gradients(
        to_mlx(dict(zip(apart, pieces, strict=True))), {name: zeros[name] for name in apart}
    )
    joined = np.concatenate([np.array(other[name]) for name in apart]).reshape(2, 6, 5)
    np.testing.assert_allclose(np.array(fused["layers.0.experts"]), joined, atol=1e-6)


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"*.kqv_proj.weight": (16, 8)}, r"splits: '\*\.kqv_proj\.weight' matches no parameter; nearest: .*qkv_proj"),
        ({"*.qkv_proj.weight": (16, 4)}, r"splits: '\*\.qkv_proj\.weight' has 20 rows in all, .*qkv_proj.* has 24"),
        ({"*layernorm*": (16,)}, r"splits: '\*layernorm\*' matches no parameter"),
    ],
)
def test_splits_that_do_not_fit_are_refused(splits: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(splits=splits)


@pytest.mark.parametrize(
    "settings",
    [
        {"momentum": 1.0},
        {"momentum": float("nan")},
        {"momentum_start": 1.0, "momentum_warmup_steps": 3},
        {"momentum_start": 0.85},
        {"momentum_warmup_steps": 300},
        {"momentum_warmup_steps": -1},
        {"normuon_beta": 1.0},
        {"normuon_beta": -0.1},
        {"coefficients": "cubic"},
        {"ns_steps": 2},
        {"ns_steps": 7},
        {"splits": {"*": ()}},
        {"splits": {"*": (4, 0)}},
    ],
)
def test_bad_values_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="momentum" if "momentum_start" in settings else next(iter(settings))):
        MuonConfig(**settings)


def test_splits_are_read_from_a_config() -> None:
    values = {"type": "muon", "splits": {"*.qkv_proj.weight": [16, 4, 4]}}
    optimizer: Any = build_section(Config, {"optimizer": values}).optimizer
    assert optimizer.splits == SPLITS


@pytest.mark.parametrize("settings", [{}, OPTIONS["all"]], ids=["muon", "all options"])
def test_zero_gradients_only_decay(settings: dict[str, Any]) -> None:
    weights = to_mlx(draw(0))
    optimizer = build(learning_rate=0.1, weight_decay=0.5, **settings)
    new = weights
    for _ in range(2):
        new = optimizer.apply_gradients(tree_map(mx.zeros_like, weights), new)
    for name in MATRICES:
        np.testing.assert_allclose(np.array(new[name]), np.array(weights[name]) * 0.95**2, rtol=1e-6)


@needs_compiler
def test_all_options_compile_into_one_step_that_can_be_held_back() -> None:
    shapes = {name: SHAPES[name] for name in ("model.layers.0.qkv_proj.weight", "model.layers.0.up_proj.weight")}
    straight, fused = build(shapes, **OPTIONS["all"]), build(shapes, **OPTIONS["all"])
    step = mx.compile(fused.apply_gradients, inputs=fused.state, outputs=fused.state)
    expected = found = to_mlx(draw(0, shapes))
    broken = tree_map(lambda weight: mx.full(weight.shape, float("nan")), found)
    for number, applies in enumerate((True, False, True)):
        gradients = to_mlx(draw(number + 1, shapes))
        found = step(gradients if applies else broken, found, mx.array(applies))
        if applies:
            expected = straight.apply_gradients(gradients, expected)
    one: Any = {**expected, **straight.state_dict()}
    two: Any = {**found, **fused.state_dict()}
    assert {key.rsplit(".")[-1] for key in one} >= {"weight", "momentum", "second", "step"}
    for name, array in one.items():
        assert np.isfinite(np.array(array)).all()
        np.testing.assert_allclose(np.array(two[name]), np.array(array), atol=1e-5, err_msg=name)


def test_normuon_gives_rows_one_size_in_time_and_the_update_the_scale_of_adamw() -> None:
    name, rows = "layers.0.weight", np.array([[100.0]] + [[1.0]] * 11)
    gradient = rows * draw(1, {name: (12, 30)})[name]
    sizes = {}
    for normuon in (False, True):
        optimizer = build({name: (12, 30)}, learning_rate=1.0, weight_decay=0.0, normuon=normuon)
        new = optimizer.apply_gradients(to_mlx({name: gradient}), {name: mx.zeros((12, 30))})
        change = np.array(new[name])
        sizes[normuon] = np.sqrt((change**2).mean(axis=1))
        assert (change * gradient).sum() < 0
    assert sizes[True].max() / sizes[True].min() == pytest.approx(1, rel=1e-4)
    assert np.sqrt((sizes[True] ** 2).mean()) == pytest.approx(0.2, rel=1e-4)
    assert sizes[False].max() / sizes[False].min() > 1.2


def test_parameters_of_any_dimensions_find_their_rule() -> None:
    shapes = {"layers.scalar": (), "layers.vector": (5,), "layers.row": (1, 5), "layers.column": (5, 1)}
    shapes |= {"layers.experts": (2, 3, 4), "layers.depthwise": (6, 3, 1), "layers.kernel": (2, 3, 3, 2)}
    shapes |= {"layers.one_expert": (1, 3, 4)}
    for settings in ({}, {"normuon": True}):
        optimizer = build(shapes, **settings)
        owners = {name: group.name for group in optimizer.groups for name in group.decay}
        assert {name.removeprefix("layers.") for name, owner in owners.items() if owner == "muon"} == {
            *("row", "column", "experts", "one_expert"),
        }
        weights = to_mlx(draw(0, shapes))
        new = optimizer.apply_gradients(to_mlx(draw(1, shapes)), weights)
        for name, shape in shapes.items():
            assert new[name].shape == shape
            assert mx.all(mx.isfinite(new[name])).item()
            assert mx.all(new[name] != weights[name]).item()


def test_embeddings_head_and_norms_never_see_newton_schulz(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []

    def spy(matrices: mx.array, steps: object) -> mx.array:
        seen.append(matrices.shape)
        return matrices

    monkeypatch.setattr(muon_module, "newton_schulz", spy)
    optimizer = build()
    ones = {name: mx.ones(shape) for name, shape in SHAPES.items()}
    optimizer.apply_gradients(ones, ones)
    assert sorted(seen) == [(1, 24, 16), (1, 40, 16), (2, 16, 16), (2, 16, 40), (3, 20, 12)]
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
    def rates(**changes: Any) -> dict[str, float]:
        return {group.name: group.learning_rate for group in build(**changes).groups}

    assert rates(learning_rate=0.01) == {"muon": 0.01, "adamw": 0.01}
    original = rates(learning_rate=0.02, update_scale="original")
    assert original == {"muon": 0.02, "adamw": pytest.approx(0.02 * 5 / 40**0.5)}
    assert rates(adamw_learning_rate=3e-4)["adamw"] == 3e-4


@needs_compiler
@pytest.mark.parametrize(
    ("shape", "num_stacks", "settings"),
    [
        ((192, 192), 1, {}),
        ((192, 192), 2, {}),
        ((192, 192), 6, {}),
        ((192, 192), 6, {"normuon": True, "cautious_decay": True}),
        ((384, 96), 1, {}),
        ((96, 384), 2, {}),
        ((96, 256), 6, {}),
        ((96, 256), 1, {"ns_steps": 3}),
    ],
)
def test_the_bytes_of_an_update_are_counted(
    shape: tuple[int, int], num_stacks: int, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = MuonConfig(**settings)
    held = newton_schulz_module.numbers_held(shape, config.ns_steps)
    monkeypatch.setattr(newton_schulz_module, "LARGEST_STACK", 12 // num_stacks * held)
    shapes = {f"layers.{index}.weight": shape for index in range(12)}
    weights, gradients = ({name: mx.random.normal(shape) for name, shape in shapes.items()} for _ in range(2))
    optimizer = config.build(weights)
    step = mx.compile(optimizer.apply_gradients, inputs=[optimizer.state], outputs=[optimizer.state])

    def update() -> None:
        nonlocal weights
        weights = step(gradients, weights)
        mx.eval(weights, optimizer.state)

    mx.eval(weights, gradients, optimizer.state)
    update()
    counted = mx.get_active_memory() + config.update_bytes(shapes)
    peak = highest_peak(lambda: peak_of(update), enough=counted / 1.15)
    assert 0.85 < counted / peak < 1.15, (counted, peak)
