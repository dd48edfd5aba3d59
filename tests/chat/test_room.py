"""With few tokens left the model decides as long as a good end is still within reach."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import jsonschema
import pytest

from llm_server.chat.room import MARGIN
from llm_server.worker.messages import ChatRequest, ResponseFormat
from tests.chat.generation import allows
from tests.chat.published import TEMPLATES
from tests.chat.test_constraint import CHATML, HERMES_MARKERS, QUESTION, build
from tests.chat.test_syntax import fold, tool

FORM = {
    "type": "object",
    "properties": {f"field_{i}": {"type": "string"} for i in range(20)},
    "required": [f"field_{i}" for i in range(20)],
}
TIMER = {
    "type": "object",
    "properties": {"minutes": {"type": "integer"}},
    "required": ["minutes"],
}
TOOLS = [tool("fill_form", FORM), tool("delete_file", TIMER), tool("set_timer", TIMER)]
CALL = '<tool_call>\n{"name": "set_timer", "arguments": {"minutes": 12}}\n</tool_call>'


def said(
    request: ChatRequest,
    wish: str,
    max_tokens: int,
    markers: Sequence[str] = HERMES_MARKERS,
    source: str = CHATML,
) -> tuple[str, str, list[tuple[str | None, str]], bool]:
    """Text, content, calls and whether it was cut, of a model that wants to say `wish`."""
    d, vocabulary = build(source, list(markers))
    prepared = d.prepare(1, request)
    constraint = prepared.constraint
    assert constraint is not None
    wanted, tokens = vocabulary.tokenize(wish, parse_special=True), list[int]()
    end = min(vocabulary.eog)
    while len(tokens) < max_tokens and not constraint.finished:
        coming = constraint.forced(max_tokens - len(tokens))
        if constraint.finished:
            break
        if not coming:
            mask = constraint.mask()
            coming = wanted[len(tokens) : len(tokens) + 1] or [end]
            if constraint.refuses(coming[0]):
                mask = constraint.mask()
                assert mask is not None
                coming = [t for t in range(vocabulary.n_tokens) if allows(mask, t)]
                assert len(coming) == 1 or constraint.finished
            assert mask is None or allows(mask, coming[0])
        if coming[0] in vocabulary.eog:
            break
        for token in coming:
            constraint.accept(token)
            tokens.append(token)
    assert len(tokens) <= max_tokens
    text = b"".join(vocabulary.piece(t, special=True) for t in tokens).decode()
    content, _, calls = fold([*prepared.parser.feed(text), *prepared.parser.close()])
    return text, content, calls, constraint.cut


def length(text: str) -> int:
    _, vocabulary = build(markers=HERMES_MARKERS)
    return len(vocabulary.tokenize(text, parse_special=True))


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_a_call_that_fits_is_the_models_own(choice: Any) -> None:
    request = ChatRequest(QUESTION, TOOLS, tool_choice=choice)
    for spare in (MARGIN + 1, 50, 200, 400):
        text, _, calls, cut = said(request, CALL, length(CALL) + spare)
        assert (text, calls) == (CALL, [("set_timer", '{"minutes": 12}')])
        assert not cut


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_no_tool_is_called_that_was_not_chosen(choice: Any) -> None:
    """Not even where the one that was chosen cannot be called any more."""
    members = ", ".join(f'"field_{i}": "x"' for i in range(20))
    wish = f'<tool_call>\n{{"name": "fill_form", "arguments": {{{members}}}}}\n</tool_call>'
    text, _, calls, _ = said(ChatRequest(QUESTION, TOOLS, tool_choice=choice), wish, 120)
    assert wish.startswith(text) and length(text) == 120
    assert [name for name, _ in calls] in ([], ["fill_form"])


def test_another_call_begins_only_where_any_tool_would_fit() -> None:
    request = ChatRequest(QUESTION, TOOLS, tool_choice="required")
    two = f"{CALL}\n{CALL}"
    _, _, calls, cut = said(request, two, length(two) + 40)
    assert calls == [("set_timer", '{"minutes": 12}')] and cut
    _, _, calls, cut = said(request, two, length(two) + 500)
    assert len(calls) == 2 and not cut


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_another_call_needs_the_room_of_one(choice: Any) -> None:
    clock = tool("get_time", {"type": "object", "properties": {}})
    request = ChatRequest(QUESTION, [TOOLS[2], clock], tool_choice=choice)
    small = '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'
    apart = length(CALL) - length(small)
    for wish, spare in ((f"{CALL}\n{small}", apart), (f"{small}\n{CALL}", 0)):
        text, _, calls, cut = said(request, wish, length(wish) + spare + 2 * MARGIN)
        assert text == wish and len(calls) == 2 and not cut
        for n in range(length(CALL) + MARGIN + 1, length(wish) + 2 * MARGIN):
            _, _, calls, _ = said(request, wish, n)
            assert calls and all(isinstance(json.loads(text), dict) for _, text in calls)


@pytest.mark.parametrize("max_tokens", range(10, 62, 3))
def test_arguments_end_as_late_as_they_can(max_tokens: int) -> None:
    text = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
    request = ChatRequest(QUESTION, [tool("note", text)], tool_choice="required")
    head, tail = '<tool_call>\n{"name": "note", "arguments": {"text": "', '"}}\n</tool_call>'
    whole, least = head + "y" * 200 + tail, length(head + tail)
    answer, _, calls, cut = said(request, whole, least + max_tokens)
    ((name, arguments),) = calls
    assert name == "note" and cut
    written = json.loads(arguments)["text"]
    assert written == "y" * len(written)
    assert least + max_tokens - MARGIN - 2 <= length(answer) <= least + max_tokens - MARGIN


def test_json_keeps_what_was_written() -> None:
    schema = {
        "type": "object",
        "properties": {key: {"type": "string"} for key in "abcdef"},
        "required": list("abcdef"),
        "additionalProperties": False,
    }
    whole = json.dumps(dict.fromkeys("abcdef", "word"), separators=(",", ":"))
    request = ChatRequest(QUESTION, response_format=ResponseFormat("json_schema", schema))
    for n in range(length(whole) + MARGIN + 1, length(whole) + 300, 37):
        text, *_, cut = said(request, whole, n)
        assert text == whole and not cut
    for n in (52, 56, 60):
        text, *_, cut = said(request, whole, n)
        answer = json.loads(text)
        jsonschema.validate(answer, schema)
        assert cut and answer["a"] == "word" and answer["f"] == ""


@pytest.mark.parametrize(
    "form",
    [
        {"format": "email"},
        {"format": "uri"},
        {"format": "duration"},
        {"pattern": "@"},
        {"pattern": "[A-Z]"},
        {"pattern": r"\.(md|txt)$"},
        {"pattern": r"^\S+@\S+\.\S+$"},
        {"pattern": r"^[\w.%+-]+@[\w.-]+\.[a-z]{2,}$"},
        {"pattern": r"^\w+=\w+(;\w+=\w+)*$"},
    ],
)
@pytest.mark.parametrize("begun", [False, True])
def test_texts_end_as_their_pattern_wants(form: dict[str, str], begun: bool) -> None:
    schema = {
        "type": "object",
        "properties": {"text": {"type": "string"}, "it": {"type": "string", **form}},
        "required": ["text", "it"],
        "additionalProperties": False,
    }
    form_of_answer = ChatRequest(QUESTION, response_format=ResponseFormat("json_schema", schema))
    wish = '{"text":"","it":"' if begun else '{"text":"'
    text, *_, cut = said(form_of_answer, wish + "P" + "1" * 100, 80)
    jsonschema.validate(json.loads(text), schema)
    assert cut
    call = ChatRequest(QUESTION, [tool("note", schema)], tool_choice="required")
    wish = "<tool_call>\n<function=note>\n<parameter=text>\n" + "</parameter>\n" * begun
    source = TEMPLATES["Qwen3-Coder"]
    _, _, ((_, arguments),), cut = said(call, wish + "P" + "1" * 200, 250, source=source)
    jsonschema.validate(json.loads(arguments), schema)
    assert cut


@pytest.mark.parametrize("wish", ["", 'ab:<|"|>cd<|"|>,', "abc"])
def test_members_of_any_name_end_too(wish: str) -> None:
    """The name of the tool would fit into theirs, which have no quotes in this syntax."""
    anything = {"type": "object"}
    request = ChatRequest(QUESTION, [tool("fn", anything)], tool_choice="required")
    source = TEMPLATES["google-gemma-4-31B-it-interleaved"]
    begun = "<|tool_call>call:fn{" + wish
    _, _, ((name, arguments),), cut = said(request, begun + "x" * 300, 120, source=source)
    assert name == "fn" and isinstance(json.loads(arguments), dict) and cut


def test_numbers_end_like_everything_else() -> None:
    kinds = {"a": "number", "b": "integer", "c": "number"}
    schema = {
        "type": "object",
        "properties": {key: {"type": kind} for key, kind in kinds.items()},
        "required": list(kinds),
        "additionalProperties": False,
    }
    request = ChatRequest(QUESTION, response_format=ResponseFormat("json_schema", schema))
    whole = '{"a":86343.25,"b":-17,"c":1.5e-7}'
    for n in (length(whole) + MARGIN + 1, 100, 400):
        text, *_, cut = said(request, whole, n)
        assert text == whole and not cut
    text, *_, cut = said(request, '{"a":86343.2500000000000000000000000', 40)
    jsonschema.validate(json.loads(text), schema)
    assert cut and text.startswith('{"a":86343.25000')


def test_an_optional_member_begins_only_where_it_fits() -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": FORM},
        "required": ["a"],
        "additionalProperties": False,
    }
    request = ChatRequest(QUESTION, response_format=ResponseFormat("json_schema", schema))
    text, *_, cut = said(request, '{"a":1,"b":{"field_0":"', 100)
    assert text == '{"a":1}' and cut
