"""A model that repeats a digit for ever writes numbers that end, and texts that do not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llm_server.chat.numbers import MAX_DIGITS
from llm_server.worker.messages import ChatRequest, ResponseFormat
from tests.chat.generation import allows
from tests.chat.published import TEMPLATES
from tests.chat.test_constraint import CHATML, HERMES_MARKERS, QUESTION, build
from tests.chat.test_syntax import fold, tool

MAX_TOKENS = 2000


def repeated(request: ChatRequest, begun: str, digit: str, source: str = CHATML) -> str:
    """What a model says that begins so, and then wants `digit` for ever, or else to end."""
    d, vocabulary = build(source, HERMES_MARKERS)
    constraint = d.prepare(1, request).constraint
    assert constraint is not None
    wanted = vocabulary.tokenize(begun, parse_special=True)
    tokens: list[int] = []
    while len(tokens) < MAX_TOKENS and not constraint.finished:
        coming = constraint.forced(MAX_TOKENS - len(tokens))
        if not coming and not constraint.finished:
            mask = constraint.mask()
            if len(tokens) < len(wanted):
                options = wanted[len(tokens) : len(tokens) + 1]
            else:
                options = list(f'{digit}}}"<\n'.encode())
            options += vocabulary.eog
            coming = [next(t for t in options if mask is None or allows(mask, t))]
        if not coming or coming[0] in vocabulary.eog:
            break
        for token in coming:
            constraint.accept(token)
            tokens.append(token)
    assert len(tokens) < MAX_TOKENS
    return b"".join(vocabulary.piece(t, special=True) for t in tokens).decode()


def by_schema(schema: dict[str, Any], begun: str = "", digit: str = "7") -> str:
    form = ResponseFormat("json_schema", schema)
    return repeated(ChatRequest(QUESTION, response_format=form), begun, digit)


@pytest.mark.parametrize(
    ("schema", "begun"),
    [
        ({"type": "integer"}, ""),
        ({"type": "integer"}, "-"),
        ({"type": "integer", "minimum": 1}, ""),
        ({"type": ["integer", "null"]}, ""),
        ({"type": "number"}, ""),
        ({"type": "number"}, "0."),
        ({"type": "number", "maximum": 5}, "0."),
        ({"type": "number"}, "1e-"),
        ({"anyOf": [{"type": "number"}, {"type": "boolean"}]}, ""),
        ({}, ""),
    ],
)
def test_every_part_of_a_number_ends(schema: dict[str, Any], begun: str) -> None:
    assert by_schema(schema, begun) == begun + "7" * MAX_DIGITS
    whole = {"type": "object", "properties": {"x": schema}, "required": ["x"]}
    assert by_schema(whole, f'{{"x":{begun}') == f'{{"x":{begun}{"7" * MAX_DIGITS}}}'


def test_a_json_object_has_numbers_that_end() -> None:
    request = ChatRequest(QUESTION, response_format=ResponseFormat("json_object"))
    assert repeated(request, '{"x":', "7") == f'{{"x":{"7" * MAX_DIGITS}}}'


@pytest.mark.parametrize(
    ("source", "begun"),
    [
        (CHATML, '<tool_call>\n{"name": "fn", "arguments": {"x": '),
        (TEMPLATES["Qwen3-Coder"], "<tool_call>\n<function=fn>\n<parameter=x>\n"),
        (TEMPLATES["google-gemma-4-31B-it-interleaved"], "<|tool_call>call:fn{x:"),
    ],
)
def test_calls_have_numbers_that_end(source: str, begun: str) -> None:
    schema = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
    request = ChatRequest(
        QUESTION, [tool("fn", schema)], tool_choice="required", parallel_tool_calls=False
    )
    text = repeated(request, begun, "7", source)
    d, _ = build(source, HERMES_MARKERS)
    parser = d.prepare(1, request).parser
    ((_, arguments),) = fold([*parser.feed(text), *parser.close()])[2]
    assert 0 < json.loads(arguments)["x"] < 10**MAX_DIGITS


def test_a_number_goes_on_where_it_may_not_end() -> None:
    text = by_schema({"type": "integer", "multipleOf": 7}, digit="1")
    assert len(text) > MAX_DIGITS and int(text) % 7 == 0
    text = by_schema({"type": "string", "pattern": "^[0-9]{25}$"}, '"')
    assert text == '"' + "7" * 25 + '"'


@pytest.mark.parametrize(
    "schema", [{"maxLength": 60}, {"pattern": "^[0-9]{1,60}$"}, {"pattern": "^[0-9a-f]{60}$"}]
)
def test_texts_have_as_many_digits_as_they_like(schema: dict[str, Any]) -> None:
    assert by_schema({"type": "string", **schema}, '"') == '"' + "7" * 60 + '"'
