"""What a model may write: for every published call syntax, text of its own pieces in any order."""

from __future__ import annotations

import time
from functools import cache

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llm_server.chat.stream import AnswerParser
from llm_server.worker.messages import Message
from tests.chat.published import TEMPLATES, dialogue_of
from tests.chat.test_syntax import TOOLS, calls_of, fold, written

if not TEMPLATES:
    pytest.skip("no published templates beside the checkout", allow_module_level=True)

NOISE = [
    "{",
    "}",
    '"',
    "\\",
    "\n",
    "<",
    ">",
    "[",
    "]",
    ",",
    ":",
    "(",
    "=",
    "é",
    "\0",
    "\ud800",
    " ",
]


@cache
def answer_of(name: str) -> str:
    """A call as that template writes it."""
    message = Message("assistant", "", tool_calls=calls_of({"s": "x", "n": 1}))
    return written(dialogue_of(name), message)[0]


def parse(name: str, text: str, step: int) -> None:
    parser = AnswerParser(1, dialogue_of(name).syntax, TOOLS)
    deltas = []
    for at in range(0, len(text), step):
        deltas += parser.feed(text[at : at + step])
    content, reasoning, calls = fold(deltas + parser.close())
    # A syntax without quotes gets them, and one with parameters gets JSON around them.
    assert len(content) + len(reasoning) <= len(text)
    assert all(name in ("get_weather", "do-it") for name, _ in calls)


@settings(max_examples=150)
@given(
    name=st.sampled_from(sorted(TEMPLATES)),
    cuts=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 60)), max_size=8),
    noise=st.lists(st.sampled_from(NOISE), min_size=8, max_size=8),
    step=st.sampled_from([1, 3, 10_000]),
)
@example(name=sorted(TEMPLATES)[0], cuts=[(0, 60)] * 8, noise=["{"] * 8, step=1)
@example(name=sorted(TEMPLATES)[-1], cuts=[(0, 0)], noise=["\\"] * 8, step=3)
def test_any_answer_is_parsed_and_nothing_raises(
    name: str, cuts: list[tuple[int, int]], noise: list[str], step: int
) -> None:
    answer = answer_of(name)
    parts = [answer[at % len(answer) :][:n] for at, n in cuts]
    parse(name, "".join(a + b for a, b in zip(parts, noise, strict=False)), step)


@pytest.mark.parametrize("name", TEMPLATES)
def test_repeated_beginnings_cost_linear_time(name: str) -> None:
    """Call after call that opens and never ends, and one call that does not end."""
    answer = answer_of(name)
    half = answer[: len(answer) // 2]
    for text in (half * (20_000 // len(half)), half + '{"' * 10_000, half + "\\" * 20_000):
        begin = time.process_time()
        parse(name, text, 7)
        assert time.process_time() - begin < 3
