"""A way out is looked for as long as a step may take, and seldom where there is none."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from llguidance import LLMatcher, LLTokenizer

from llm_server.chat.closing import SECONDS, WayOut
from llm_server.chat.room import RESERVE, Room

TOKENIZER = LLTokenizer("byte")


def matcher(pattern: str, begun: str = "") -> LLMatcher:
    found = LLMatcher(TOKENIZER, LLMatcher.grammar_from_regex(pattern))
    assert found.consume_tokens(tokens(begun))
    return found


def tokens(text: str) -> list[int]:
    return list(TOKENIZER.tokenize_str(text))


def way_out(clock: Callable[[], float] = lambda: 0.0) -> WayOut:
    return WayOut(TOKENIZER, tokens, (), clock=clock)


def test_a_search_ends_with_its_seconds() -> None:
    lines = matcher("([a-z][0-9]){100}")
    path = way_out().find(lines)
    assert path is not None and len(path) == 200
    times = itertools.count(0.0, SECONDS / 20)
    assert way_out(times.__next__).find(lines) is None
    assert next(times) < 2 * SECONDS


def test_where_there_is_no_way_out_looks_for_one_become_rare() -> None:
    looks: list[int] = []

    def clock() -> float:
        looks.append(n)
        return 0.0

    out = way_out(clock)
    room = Room(lambda: out, lambda token: bytes([token]), [])
    state, n = matcher("[a-z]{2000}"), 0
    for n in range(RESERVE):
        remaining = RESERVE - n
        assert not room.over(state, remaining)
        (token,) = tokens("q")
        assert room.takes(state, token, remaining)
        state.consume_tokens([token])
        room.accept(token)
    assert sorted(set(looks)) == [0, 16, 48, 112, 240, 496]
