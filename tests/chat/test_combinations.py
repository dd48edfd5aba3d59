"""What a request may demand at once: a format, tools, thoughts, each in every combination."""

from __future__ import annotations

import itertools
import json
from typing import Any

import jsonschema
import pytest

from llm_server.chat.dialogue import Dialogue
from llm_server.worker.messages import ChatRequest, ResponseFormat
from tests.chat.generation import Answer, generate
from tests.chat.published import TEMPLATES
from tests.chat.test_constraint import (
    HERMES_MARKERS,
    QUESTION,
    SCHEMA,
    TOOLS,
    arguments,
    build,
)
from tests.chat.test_syntax import fold, tool
from tests.chat.vocabulary import ByteVocabulary
from tests.sampling import rotated

FORMATS = {
    "text": ResponseFormat("text"),
    "json_object": ResponseFormat("json_object"),
    "json_schema": ResponseFormat("json_schema", SCHEMA),
}
STRICT = [tool(t["function"]["name"], t["function"]["parameters"]) for t in TOOLS]
for t in STRICT:
    t["function"]["strict"] = True
CHOICES: dict[str, dict[str, Any]] = {
    "no tools": {},
    "none": {"tools": TOOLS, "tool_choice": "none"},
    "auto": {"tools": STRICT},
    "required": {"tools": TOOLS, "tool_choice": "required"},
    "required, one call": {
        "tools": STRICT,
        "tool_choice": "required",
        "parallel_tool_calls": False,
    },
    "named": {"tools": STRICT, "tool_name": "do-it"},
}
BUDGET = 12
THOUGHTS: dict[str, tuple[dict[str, Any], str]] = {
    "as it likes": ({}, ""),
    "off": ({"template_kwargs": {"enable_thinking": False}}, ""),
    "closed": ({}, "<think>\nHm, {\n</think>\n\n"),
    "with a budget": ({"reasoning_budget": BUDGET}, "<think>\n" + "x" * (BUDGET - 1)),
    "without an end": ({}, "<think>\n" + "x" * 2000),
}
MARKERS = [[], [*HERMES_MARKERS, "<think>", "</think>"]]


@pytest.mark.parametrize(
    ("demand", "markers"), rotated(itertools.product(FORMATS, CHOICES, THOUGHTS), MARKERS)
)
def test_every_demand_is_met_together_with_the_others(
    demand: tuple[str, str, str], markers: list[str]
) -> None:
    format, choice, thoughts = demand
    options, script = THOUGHTS[thoughts]
    free = format == "text" and choice in ("no tools", "none", "auto")
    d, vocabulary = build(markers=markers)
    request = ChatRequest(QUESTION, response_format=FORMATS[format], **CHOICES[choice], **options)
    prepared = d.prepare(1, request)
    got = generate(prepared, vocabulary, script=script, seed=len(markers), max_tokens=800)
    content, reasoning, calls = fold(got.deltas)
    names = arguments(calls)
    assert got.ended or free
    assert free or bool(names) != bool(content)
    assert names or not choice.startswith(("required", "named"))
    assert not names or choice not in ("no tools", "none")
    assert len(names) <= 1 or choice != "required, one call"
    assert set(names) <= {"do-it"} or choice != "named"
    if content and format != "text":
        value = json.loads(content)
        jsonschema.validate(value, SCHEMA if format == "json_schema" else {"type": "object"})
    check_thought(thoughts, reasoning, free=free)
    check_cuts(d.prepare(1, request).parser, got)


def check_thought(thoughts: str, reasoning: str, *, free: bool) -> None:
    if thoughts == "off":
        assert not reasoning or free
    elif thoughts == "closed":
        assert reasoning == "Hm, {"
    elif thoughts == "with a budget":
        assert reasoning == "x" * (BUDGET - 1)
    elif thoughts == "without an end":
        assert reasoning.startswith("xxx") and set(reasoning) == {"x"}


def check_cuts(parser: Any, answer: Answer) -> None:
    """One character at a time shows what the whole text shows."""
    deltas = list(itertools.chain.from_iterable(map(parser.feed, answer.text)))
    assert fold([*deltas, *parser.close()]) == fold(answer.deltas)


def test_a_fence_that_the_prompt_has_opened_is_not_opened_again() -> None:
    if "Kimi-K3" not in TEMPLATES:
        pytest.skip("no published templates beside the checkout")
    vocabulary = ByteVocabulary(["<s>", "</s>"])
    d = Dialogue(TEMPLATES["Kimi-K3"], vocabulary)
    off = {"enable_thinking": False, "thinking": False}
    for choice in ("auto", "required"):
        request = ChatRequest(
            QUESTION, **CHOICES[choice], template_kwargs=off, response_format=FORMATS["json_schema"]
        )
        prepared = d.prepare(1, request)
        assert prepared.segments[-1].text.endswith(d.syntax.content_open)
        got = generate(prepared, vocabulary, max_tokens=900)
        assert d.syntax.content_open not in got.text
        content, _, calls = fold(got.deltas)
        assert bool(arguments(calls)) != bool(content)
        if content:
            jsonschema.validate(json.loads(content), SCHEMA)
