"""Mods whose functions the blockwise engine could not bear are refused when a config is built, each by its fault."""

from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest

from models.attention.mod_checks import Grid, mod_problems
from models.attention.mods import And, FunctionMod, Mod, Or
from models.attention.named_mods import ALiBi, Causal, Document, GlobalLocal, PrefixLM, SlidingWindow, SoftCap
from models.llama import LlamaConfig
from utils.errors import ConfigError

HERE = __name__
MODEL = SimpleNamespace(num_attention_heads=6, max_position_embeddings=64)
FIRST_VALUES = mx.random.uniform(shape=(64,))


def depends_on_a_value(b, h, q, k):
    return k <= q if q[0, 0, 0, 0].item() == 0 else k < q


def branches(b, h, q, k):
    return k <= q if (q > 3).all() else k < q


def through_numpy(b, h, q, k):
    return mx.array((np.array(k) <= np.array(q)).tolist())


def depends_on_the_first_key(b, h, q, k):
    return (k - mx.min(k)) <= 3


def depends_on_the_shape(b, h, q, k):
    return k <= q + k.shape[-1]


def uses_positions_in_the_array(b, h, q, k):
    return mx.arange(k.shape[-1]) <= q


def flips_coins(b, h, q, k):
    return mx.random.uniform(shape=mx.broadcast_arrays(q, k)[0].shape) < 0.5


def drops_axes(b, h, q, k):
    return (k <= q)[0, 0]


def transposes(b, h, q, k):
    return (k <= q).swapaxes(-1, -2)[..., :1, :2]


def gives_numbers(b, h, q, k):
    return (k <= q).astype(mx.float32)


def gives_a_bool(b, h, q, k):
    return True


def takes_too_little(b, h, q):
    return q >= 0


def normalises(score, b, h, q, k):
    return score - mx.mean(score, axis=-1, keepdims=True)


def hides(score, b, h, q, k):
    return mx.where(k <= q, score, -mx.inf)


def root(score, b, h, q, k):
    return score + mx.sqrt((q - k).astype(mx.float32))


def halves(score, b, h, q, k):
    return score.astype(mx.float16)


def forgets_the_score(score, b, h, q, k):
    return (q - k).astype(mx.float32)


def table(score, b, h, q, k):
    return score * FIRST_VALUES[q] + 0.1 * b.astype(mx.float32)


def hides_all(b, h, q, k):
    return (k < 0) & (q >= 0)


def fine(b, h, q, k):
    return ((q - k) % (h + 2) == 0) | (b == 1)


def problem(mask: str | None = None, score: str | None = None) -> str:
    mod = FunctionMod(mask=mask and f"{HERE}:{mask}", score=score and f"{HERE}:{score}")
    found = mod_problems(mod, MODEL)
    assert len(found) <= 1
    return found[0] if found else ""


@pytest.mark.parametrize("name", ["depends_on_a_value", "branches", "through_numpy"])
def test_values_are_not_known_while_tracing(name):
    found = problem(mask=name)
    assert name in found
    assert "looks at the values of its arrays" in found
    assert "mx.where" in found


@pytest.mark.parametrize(
    "name", ["depends_on_the_first_key", "depends_on_the_shape", "uses_positions_in_the_array", "flips_coins"]
)
def test_a_pair_has_one_answer_whatever_else_is_asked(name):
    found = problem(mask=name)
    assert "allowed answers differently for the same pair" in found or "gives shape" in found, found


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("drops_axes", "gives shape [24, 24] for pairs of shape [2, 6, 24, 24]"),
        ("transposes", "gives shape [1, 1, 1, 2] for pairs of shape"),
        ("gives_numbers", "gives mlx.core.float32, not mlx.core.bool: compare"),
        ("gives_a_bool", "gives bool, not an MLX array"),
        ("takes_too_little", "takes 3 positional arguments but 4 were given"),
    ],
)
def test_masks_of_a_wrong_kind(name, words):
    assert words in problem(mask=name)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("normalises", "depending on the scores beside it"),
        ("hides", "gives scores that are not finite; keys are hidden with `allowed`"),
        ("root", "gives scores that are not finite"),
        ("halves", "gives mlx.core.float16, not mlx.core.float32"),
        ("forgets_the_score", "gives shape [1, 1, 24, 24] for pairs of shape [2, 6, 24, 24]"),
    ],
)
def test_scores_of_a_wrong_kind(name, words):
    assert words in problem(score=name)


def test_a_mask_that_leaves_nothing_to_see():
    assert "hides every key from every query" in problem(mask="hides_all")


def test_what_is_fine():
    assert problem(mask="fine", score="table") == ""
    mods = [SlidingWindow(window=64), PrefixLM(length=64), GlobalLocal(window=3, num_global=2), Document(), Causal()]
    assert [mod_problems(mod, MODEL) for mod in (*mods, ALiBi(), SoftCap(cap=9.0), Or(mods=tuple(mods)))] == [[]] * 8


@pytest.mark.parametrize("longest", [1, 2, 3, 7, 16, 23, 25, 40])
def test_short_rows_and_few_heads_can_be_asked_too(longest):
    model = SimpleNamespace(num_attention_heads=1, max_position_embeddings=longest)
    for mod in (Causal(), ALiBi(), FunctionMod(mask=f"{HERE}:fine")):
        assert mod_problems(mod, model) == []
    positions = Grid(1, longest).positions
    assert sorted(set(positions.tolist())) == positions.tolist()
    assert positions[-1] == longest - 1


def test_sizes_that_do_not_fit_are_all_named():
    mods = (
        SlidingWindow(window=65),
        And(mods=(PrefixLM(length=100), GlobalLocal(window=3, num_global=65))),
        FunctionMod(mask=f"{HERE}:fine", num_lookahead=70),
    )
    found = [problem for mod in mods for problem in mod_problems(mod, MODEL)]
    assert len(found) == 4
    for words, line in zip(("window 65", "length 100", "num_global 65", "over 70 positions"), found, strict=True):
        assert words in line
        assert "64" in line


class Empty(Mod):
    """Nothing."""

    type: str = f"{HERE}:Empty"
    """Import path."""


class Changing(Causal):
    """A list can change."""

    steps: list[int] = [1]
    """Steps."""


def test_mods_that_do_nothing_or_may_change():
    assert "changes nothing: define allowed(self, b, h, q, k)" in mod_problems(Empty(), MODEL)[0]
    assert "tuples" in mod_problems(Changing(), MODEL)[0]


def test_a_model_names_the_key_of_every_fault():
    from core.config import build_section

    attention = {
        "type": "flex",
        "mods": [{"type": "sliding_window", "window": 70}, {"type": "prefix_lm", "length": 90}],
    }
    section = {"vocab_size": 9, "hidden_size": 8, "num_attention_heads": 2, "max_position_embeddings": 64}
    with pytest.raises(ConfigError) as raised:
        build_section(LlamaConfig, {**section, "attention": attention})
    assert len(raised.value.problems) == 2
    assert all(
        "attention.mods: mod '" in line and "max_position_embeddings 64" in line for line in raised.value.problems
    )
    with pytest.raises(ConfigError, match="attention_dropout is 0.1"):
        build_section(LlamaConfig, {**section, "attention": {"type": "flex"}, "attention_dropout": 0.1})
