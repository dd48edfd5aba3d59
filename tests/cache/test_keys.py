"""Chains of keys: equal exactly when everything before is equal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_server.cache.keys import Chain, Kind, common_tokens, pack, root_key, unpack

TOKENS = st.lists(st.integers(0, 2**31 - 1) | st.integers(0, 1), max_size=40)
ROOT = root_key(b"f" * 32)


@given(TOKENS)
def test_packing_loses_nothing(tokens: list[int]) -> None:
    assert unpack(pack(tokens)) == tokens


@given(TOKENS, TOKENS)
def test_common_tokens_counts_the_shared_beginning(a: list[int], b: list[int]) -> None:
    expected = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
    if expected is None:
        expected = min(len(a), len(b))
    assert common_tokens(pack(a), pack(b)) == expected


@given(TOKENS, TOKENS, st.integers(1, 5))
def test_keys_agree_as_far_as_tokens_do(a: list[int], b: list[int], size: int) -> None:
    one, other = Chain.of(ROOT, a, size), Chain.of(ROOT, b, size)
    assert len(one.keys) == len(a) // size + 1
    for i, (x, y) in enumerate(zip(one.keys, other.keys, strict=False)):
        assert (x == y) == (a[: i * size] == b[: i * size])


def test_salt_and_fingerprint_and_kind_separate() -> None:
    roots = {root_key(b"f" * 32), root_key(b"g" * 32), root_key(b"f" * 32, "salt")}
    assert len(roots) == 3
    chain = Chain.of(ROOT, [1, 2, 3], 2)
    assert chain.key(Kind.RANGE, 0, 2) == chain.keys[1] != chain.key(Kind.CHECKPOINT, 0, 2)


@pytest.mark.parametrize(("start", "stop"), [(1, 2), (0, 0), (0, 3), (2, 4), (4, 2), (4, 5)])
def test_only_chunks_have_keys(start: int, stop: int) -> None:
    with pytest.raises(ValueError, match="is not a chunk of 3 tokens"):
        Chain.of(ROOT, [1, 2, 3], 2).key(Kind.RANGE, start, stop)


def test_a_chunk_ends_where_it_is_said_to() -> None:
    chain = Chain.of(ROOT, [1, 2, 3, 4, 5], 2)
    assert [chain.chunk_start(stop) for stop in (1, 2, 3, 4, 5)] == [0, 0, 2, 2, 4]
