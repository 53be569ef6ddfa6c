"""Encoding in groups: the same ids in the same order whatever the groups, and arrays laid out as documents are."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.encoding import encode_in_groups, group_texts, join_groups, surround
from data.tokenizer import BytesTokenizerConfig

backend = BytesTokenizerConfig().build().backend
TEXTS = st.lists(st.text(st.sampled_from("abc \u00e9"), max_size=12), max_size=12)


@settings(max_examples=60, deadline=None)
@given(texts=TEXTS, group_size=st.integers(1, 40))
def test_groups_give_each_text_once_and_in_order(texts, group_size):
    groups = list(encode_in_groups(backend, iter(texts), group_size))
    assert [ids for group in groups for ids in group] == [list(text.encode("utf-8")) for text in texts]
    assert all(groups)
    sizes = [sum(map(len, group)) for group in group_texts(texts, group_size)]
    assert all(size >= group_size for size in sizes[:-1])
    assert all(sum(map(len, group[:-1])) < group_size for group in group_texts(texts, group_size))


@settings(max_examples=60, deadline=None)
@given(texts=TEXTS, group_size=st.integers(1, 40), dtype=st.sampled_from([np.uint16, np.uint32]))
def test_joined_and_surrounded_documents_are_those_of_lists(texts, group_size, dtype):
    ids, counts = join_groups(encode_in_groups(backend, texts, group_size), np.dtype(dtype))
    tokens, offsets = surround(ids, counts, 500, 600)
    expected = [[500, *text.encode("utf-8"), 600] for text in texts]
    assert tokens.tolist() == [token for document in expected for token in document]
    assert offsets.tolist() == [sum(map(len, expected[:number])) for number in range(len(texts) + 1)]
    assert (tokens.dtype, offsets.dtype) == (dtype, np.int64)


def test_an_id_that_does_not_fit_is_never_cut_off():
    with pytest.raises(OverflowError):
        join_groups([[[70_000]]], np.dtype(np.uint16))


def test_an_error_in_a_group_reaches_the_caller_and_threads_end():
    with pytest.raises(TypeError):
        list(encode_in_groups(backend, ["a", "b", 5, "c"], 1))  # pyright: ignore[reportArgumentType]
