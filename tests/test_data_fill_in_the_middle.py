"""Filling in the middle: undone it is the text again, nothing is lost, and it happens as often as asked."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.fill_in_the_middle import FillInTheMiddleConfig, Sentinels, rearrange, sentinels_of
from tests.stored_documents import fim_tokenizer, tokenizer
from utils.errors import DataError

SENTINELS = Sentinels(prefix=901, suffix=902, middle=903)


def undo(told: list[int], has_bos: bool, has_eos: bool) -> tuple[list[int], bool]:
    """The tokens as they were, and whether the suffix came first; an oracle that looks for the sentinels."""
    first, last = told[:has_bos], told[len(told) - has_eos :]
    body = told[has_bos : len(told) - has_eos]
    assert body[0] == 901
    suffix, middle = body.index(902), body.index(903)
    assert suffix < middle
    if suffix == 1:  # An empty prefix looks the same in both.
        return first + body[middle + 1 :] + body[2:middle] + last, True
    return first + body[1:suffix] + body[middle + 1 :] + body[suffix + 1 : middle] + last, False


@settings(max_examples=100, deadline=None)
@given(
    count=st.integers(0, 12),
    points=st.tuples(st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True)),
    suffix_first=st.booleans(),
    has_bos=st.booleans(),
    has_eos=st.booleans(),
)
def test_undone_it_is_the_text_again(count, points, suffix_first, has_bos, has_eos):
    tokens = [7] * has_bos + list(range(100, 100 + count)) + [8] * has_eos
    cuts = np.sort(np.array(points))
    told = rearrange(np.array(tokens, np.uint16), has_bos, has_eos, cuts, suffix_first, SENTINELS)
    assert told.dtype == np.uint16
    assert sorted(told.tolist()) == sorted([*tokens, *SENTINELS])
    original, looks_suffix_first = undo(told.tolist(), has_bos, has_eos)
    assert original == tokens
    if int(cuts[0] * (count + 1)):
        assert looks_suffix_first == suffix_first


def test_the_two_orders_of_the_paper():
    tokens, points = np.arange(7), np.array([2 / 6, 4 / 6 + 0.01])
    assert rearrange(tokens, True, True, points, False, SENTINELS).tolist() == [0, 901, 1, 2, 902, 5, 903, 3, 4, 6]
    assert rearrange(tokens, True, True, points, True, SENTINELS).tolist() == [0, 901, 902, 5, 903, 1, 2, 3, 4, 6]


def places(count):
    return np.zeros(count, int), np.arange(count), np.zeros(count, int), np.zeros(count, int)


def test_rates_and_cuts_are_as_asked():
    config = FillInTheMiddleConfig(rate=0.5, spm_rate=0.25)
    cuts = config.choose(1, places(20_000))
    assert abs(cuts.transformed.mean() - 0.5) < 0.015
    assert abs(cuts.suffix_first[cuts.transformed].mean() - 0.25) < 0.015
    assert not cuts.suffix_first[~cuts.transformed].any()
    points = cuts.points[cuts.transformed]
    assert (points[:, 0] <= points[:, 1]).all()
    # The smaller and the larger of two uniform numbers have means 1/3 and 2/3.
    assert np.allclose(points.mean(axis=0), [1 / 3, 2 / 3], atol=0.01)
    assert not FillInTheMiddleConfig(rate=0).choose(1, places(1000)).transformed.any()
    always = FillInTheMiddleConfig(rate=1, spm_rate=1).choose(1, places(1000))
    assert always.suffix_first.all()


def test_the_choice_depends_on_the_seed_and_on_each_part_of_the_place():
    config, alone = FillInTheMiddleConfig(), [np.zeros(1000, int)] * 4
    numbers = np.arange(1000)
    found = [tuple(config.choose(seed, places(1000)).transformed.tolist()) for seed in (0, 1)]
    for part in range(4):
        origins = list(alone)
        origins[part] = numbers
        cuts = config.choose(0, origins)
        assert 400 < cuts.transformed.sum() < 600
        found.append(tuple(cuts.transformed.tolist()))
    assert len(set(found)) == 5  # The first of the second list is that of the document, which came before.
    some = config.choose(0, [each[500:510] for each in places(1000)])
    assert some.points.tolist() == config.choose(0, places(1000)).points[500:510].tolist()


def test_sentinels_are_special_tokens_of_the_tokenizer():
    found = sentinels_of(fim_tokenizer)
    assert [fim_tokenizer.decode([token], skip_special_tokens=False) for token in found] == [
        "<prefix>",
        "<suffix>",
        "<middle>",
    ]
    with pytest.raises(DataError, match="the tokenizer has no 'fim_prefix' token"):
        sentinels_of(tokenizer)
