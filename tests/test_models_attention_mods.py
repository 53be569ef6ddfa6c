"""Every named mod against its formula, pair by pair, in float64; combinations, functions of one's own, and errors."""

import math
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from pydantic import ValidationError

from core.config import build_section, dump, to_yaml
from models.attention import MODS
from models.attention.flex_attention import FlexAttentionConfig, attend_dense
from models.attention.mask import Mask
from models.attention.mods import And, FunctionMod, Mod, Or, Setting, mask_of, score_of
from models.attention.named_mods import (
    ALiBi,
    Causal,
    Document,
    GlobalLocal,
    PrefixLM,
    SlidingWindow,
    SoftCap,
    alibi_slopes,
)
from utils.errors import ConfigError
from utils.registry import look_up

B, H, G, L, K = 2, 6, 3, 9, 4
SEGMENTS = np.array([[1, 1, 1, 1, 2, 2, 2, 0, 0], [1, 1, 2, 2, 2, 2, 3, 3, 3]])
SLOPES_OF_6 = [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3]


def every_third(b, h, q, k):
    return (q - k) % 3 == 0


def head_bias(score, b, h, q, k):
    return score * (1.0 + 0.1 * h.astype(mx.float32))


HERE = __name__
MASKS: dict[str, tuple[Mod, Any]] = {
    "causal": (Causal(), lambda b, h, q, k: k <= q),
    "sliding_window": (SlidingWindow(window=3), lambda b, h, q, k: abs(q - k) < 3),
    "prefix_lm": (PrefixLM(length=4), lambda b, h, q, k: k <= q or k < 4),
    "document": (Document(), lambda b, h, q, k: SEGMENTS[b, q] == SEGMENTS[b, k]),
    "global_local": (GlobalLocal(window=2, num_global=2), lambda b, h, q, k: abs(q - k) < 2 or k < 2 or q < 2),
}
SCORES: dict[str, tuple[Mod, Any]] = {
    "alibi": (ALiBi(), lambda s, b, h, q, k: s - SLOPES_OF_6[h] * abs(q - k)),
    "soft_cap": (SoftCap(cap=2.0), lambda s, b, h, q, k: 2.0 * math.tanh(s / 2.0)),
}


def draw(seed=0):
    random = np.random.default_rng(seed)
    return [random.normal(size=shape).astype(np.float32) for shape in ((B, H, L, K), (B, G, L, K), (B, G, L, K))]


def in_float64(may_see, rescore=lambda s, b, h, q, k: s, scale=0.7):
    """Attention as loops over every row, head, query and key."""
    q_BHLK, k_BGSK, v_BGSK = (x.astype(np.float64) for x in draw())
    out = np.zeros((B, H, L, K))
    for b, h, q in np.ndindex(B, H, L):
        group = h // (H // G)
        keys = [k for k in range(L) if may_see(b, h, q, k)]
        scores = [rescore(scale * q_BHLK[b, h, q] @ k_BGSK[b, group, k], b, h, q, k) for k in keys]
        weights = np.exp(np.array(scores) - max(scores, default=0.0))
        out[b, h, q] = sum(w * v_BGSK[b, group, k] for w, k in zip(weights / weights.sum(), keys, strict=True))
    return out


def ours(mods, mask: Any = None):
    mask = mask or Mask("bidirectional", segments=mx.array(SEGMENTS))
    q, k, v = map(mx.array, draw())
    return np.array(attend_dense(q, k, v, mask, 0.7, mods))


def same_segment(b, h, q, k):
    return SEGMENTS[b, q] == SEGMENTS[b, k]


def test_every_named_mod_has_an_oracle():
    assert set(MASKS) | set(SCORES) | {"and", "or", "function"} == set(MODS)
    for name, (mod, _) in {**MASKS, **SCORES}.items():
        assert isinstance(mod, look_up(MODS, name, "mod"))
        assert mod.type == name


@pytest.mark.parametrize("name", MASKS)
def test_masks(name):
    mod, may_see = MASKS[name]
    expected = in_float64(lambda b, h, q, k: may_see(b, h, q, k) and same_segment(b, h, q, k))
    np.testing.assert_allclose(ours((mod,)), expected, atol=2e-6)
    if name != "document":
        np.testing.assert_allclose(ours((mod,), Mask("bidirectional")), in_float64(may_see), atol=2e-6)


@pytest.mark.parametrize("name", SCORES)
def test_scores(name):
    mod, rescore = SCORES[name]
    expected = in_float64(lambda b, h, q, k: k <= q, rescore)
    np.testing.assert_allclose(ours((mod,), Mask("causal")), expected, atol=4e-6)


def test_score_mods_apply_in_order():
    both = (ALiBi(), SoftCap(cap=2.0))
    for mods in (both, both[::-1], (And(mods=both),)):
        flat = mods[0].mods if isinstance(mods[0], And) else mods
        oracles = [SCORES[mod.type][1] for mod in flat]
        expected = in_float64(
            lambda b, h, q, k: True,
            lambda s, b, h, q, k, oracles=oracles: oracles[1](oracles[0](s, b, h, q, k), b, h, q, k),
        )
        np.testing.assert_allclose(ours(mods, Mask("bidirectional")), expected, atol=4e-6)
    assert not np.allclose(ours(both, Mask()), ours(both[::-1], Mask()), atol=1e-3)


@pytest.mark.parametrize("first", MASKS)
@pytest.mark.parametrize("second", MASKS)
def test_or_is_a_union_and_a_list_an_intersection(first, second):
    (one, sees_one), (other, sees_other) = MASKS[first], MASKS[second]
    asked = "document" in (first, second)

    def rest(b, h, q, k):
        padding = SEGMENTS[b, k] == 0 and SEGMENTS[b, q] != 0
        return not padding if asked else same_segment(b, h, q, k)

    def either(b, h, q, k):
        return (sees_one(b, h, q, k) or sees_other(b, h, q, k)) and rest(b, h, q, k)

    def both(b, h, q, k):
        return sees_one(b, h, q, k) and sees_other(b, h, q, k) and same_segment(b, h, q, k)

    np.testing.assert_allclose(ours((Or(mods=(one, other)),)), in_float64(either), atol=2e-6)
    for mods in ((one, other), (And(mods=(one, other)),), (Or(mods=(And(mods=(one, other)),)),)):
        np.testing.assert_allclose(ours(mods), in_float64(both), atol=2e-6)


def test_seeing_ahead_replaces_the_causal_rule_of_the_objective_and_no_more():
    prefix, near = PrefixLM(length=4), SlidingWindow(window=3)
    causal = Mask("causal")
    expected = in_float64(lambda b, h, q, k: k <= q or k < 4)
    np.testing.assert_allclose(ours((prefix,), causal), expected, atol=2e-6)
    # A window sees both ways; joined to a prefix, it still must not show a query what comes after the prefix.
    expected = in_float64(lambda b, h, q, k: k <= q or k < 4)
    np.testing.assert_allclose(ours((Or(mods=(prefix, near)),), causal), expected, atol=2e-6)
    expected = in_float64(lambda b, h, q, k: (k <= q or k < 4) and abs(q - k) < 3)
    np.testing.assert_allclose(ours((prefix, near), causal), expected, atol=2e-6)
    expected = in_float64(lambda b, h, q, k: k <= q)
    np.testing.assert_allclose(ours((prefix, Causal()), causal), expected, atol=2e-6)
    np.testing.assert_allclose(ours((GlobalLocal(window=9, num_global=1),), causal), expected, atol=2e-6)


def test_a_query_without_keys_gives_0():
    mod = FunctionMod(mask=f"{HERE}:sees_nothing_at_first")
    out = ours((mod,), Mask("bidirectional"))
    assert (out[:, :, :3] == 0).all()
    expected = in_float64(lambda b, h, q, k: True)
    np.testing.assert_allclose(out[:, :, 3:], expected[:, :, 3:], atol=2e-6)


def sees_nothing_at_first(b, h, q, k):
    return (q >= 3) & (k >= 0)


def test_lookahead_and_segments_are_found_in_the_tree():
    tree = (SlidingWindow(window=3), Or(mods=(Causal(), And(mods=(PrefixLM(length=5), Document())))))
    config = FlexAttentionConfig(mods=tree)
    assert (config.num_lookahead, config.needs_segments) == (5, True)
    assert FlexAttentionConfig(mods=(FunctionMod(mask=f"{HERE}:every_third", num_lookahead=2),)).num_lookahead == 2
    plain = FlexAttentionConfig(mods=(Causal(), SoftCap(cap=1.0)))
    assert (plain.num_lookahead, plain.needs_segments) == (0, False)


@pytest.mark.parametrize(
    ("num_heads", "expected"),
    [
        (1, [2**-8]),
        (8, [2**-i for i in range(1, 9)]),
        (16, [2 ** (-i / 2) for i in range(1, 17)]),
        (6, SLOPES_OF_6),
        (3, [2**-4, 2**-8, 2**-2]),
        (12, [2**-i for i in range(1, 9)] + [2 ** (-i / 2) for i in (1, 3, 5, 7)]),
    ],
)
def test_alibi_slopes(num_heads, expected):
    np.testing.assert_allclose(alibi_slopes(num_heads), expected)


def test_functions_of_ones_own():
    section = {
        "type": "flex",
        "mods": [{"type": "function", "mask": f"{HERE}:every_third", "score": f"{HERE}:head_bias"}],
    }
    config = build_section(FlexAttentionConfig, section)
    expected = in_float64(lambda b, h, q, k: (q - k) % 3 == 0, lambda s, b, h, q, k: s * (1 + 0.1 * h))
    np.testing.assert_allclose(ours(config.mods, Mask("bidirectional")), expected, atol=2e-6)
    assert config.mods[0].name == f"function {HERE}:every_third {HERE}:head_bias"


class Diagonal(Mod):
    """A mod as a person writes it."""

    type: str = f"{HERE}:Diagonal"
    """Import path."""
    step: int = 1
    """Keys at multiples of this distance."""

    def allowed(self, b, h, q, k):
        return (q - k) % self.step == 0


def test_a_class_of_ones_own_is_named_by_its_import_path():
    config = build_section(FlexAttentionConfig, {"mods": [{"type": f"{HERE}:Diagonal", "step": 3}]})
    assert config.mods[0].name == f"{HERE}:Diagonal 3"
    expected = in_float64(lambda b, h, q, k: (q - k) % 3 == 0)
    np.testing.assert_allclose(ours(config.mods, Mask("bidirectional")), expected, atol=2e-6)


def test_sections_are_written_as_they_were_read():
    mods = [
        {"type": "sliding_window", "window": 8},
        {"type": "or", "mods": [{"type": "document"}, {"type": "and", "mods": [{"type": "causal"}]}]},
        {"type": "soft_cap", "cap": 30.0},
    ]
    config = build_section(FlexAttentionConfig, {"mods": mods})
    assert dump(config)["mods"] == mods
    assert "window: 8" in to_yaml(config)
    assert build_section(FlexAttentionConfig, dump(config)) == config


@pytest.mark.parametrize(
    ("mods", "words"),
    [
        ([{"type": "sliding_windo", "window": 3}], "did you mean 'sliding_window'"),
        ([{"type": "sliding_window"}], "mods[0].window: is required"),
        ([{"type": "sliding_window", "window": 0}], "mods[0].window: must be greater than 0, got 0"),
        ([{"type": "soft_cap", "cap": -1}], "mods[0].cap: must be greater than 0, got -1"),
        ([{"type": "prefix_lm", "length": 0}], "mods[0].length: must be greater than 0, got 0"),
        ([{"type": "or", "mods": [{"type": "soft_cap", "cap": 1}]}], "mods[0]: soft_cap changes scores"),
        ([{"type": "or", "mods": []}], "mods[0].mods"),
        ([{"type": "function"}], "mods[0]: give mask or score"),
        ([{"type": "function", "mask": "no_such_module:f"}], "there is no module 'no_such_module'"),
        ([{"type": "function", "mask": "math:no_such_name"}], "'math' has no 'no_such_name'"),
        ([{"type": "function", "mask": "math:pi"}], "'math:pi' is no function"),
        ([{"type": "function", "mask": "sin"}], "write module:function"),
        ([{"type": "math:pi"}], "expected a subclass of models.attention.mods:Mod"),
        ([3], "expected a section such as {type: "),
        ({"type": "causal"}, "expected a list"),
    ],
)
def test_what_is_refused_when_a_config_is_read(mods, words):
    with pytest.raises(ConfigError) as raised:
        build_section(FlexAttentionConfig, {"mods": mods})
    assert words in str(raised.value)


def test_a_score_inside_or_is_refused_in_python_too():
    with pytest.raises(ValidationError, match="only join masks"):
        Or(mods=(Causal(), And(mods=(Causal(), ALiBi()))))


def fails(b, h, q, k):
    raise RuntimeError("no such luck")


def test_what_goes_wrong_inside_a_mod_names_it():
    allowed = mask_of((Or(mods=(FunctionMod(mask=f"{HERE}:fails"),)),), Setting(1))
    assert allowed is not None
    with pytest.raises(ConfigError, match="attention mod 'function .*fails' failed: RuntimeError: no such luck"):
        allowed(*(mx.array(0) for _ in range(4)))


def test_lists_without_masks_or_scores():
    assert mask_of((ALiBi(),), Setting(2)) is None
    assert score_of((Causal(),), Setting(2)) is None
    assert mask_of((), Setting(2)) is None
