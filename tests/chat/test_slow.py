"""Schemas that would hold others up are refused, and those that people write are not."""

from __future__ import annotations

from typing import Any

import pytest

from llm_server.chat.grammar import Grammars, check_schema
from llm_server.chat.slow import MAX_FORCED, MAX_MEETING, least_length, why_slow
from llm_server.errors import InvalidRequest
from tests.chat.vocabulary import ByteVocabulary

PATTERNS = [{"pattern": f"[{c}-z].{{{n}}}x"} for n, c in enumerate("abcdefghij")]


def _text(**words: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": {"type": "string", **words}}}


def _chain(n: int) -> dict[str, Any]:
    defs = {f"d{i}": {**PATTERNS[i], "$ref": f"#/$defs/d{i + 1}"} for i in range(n)}
    return {"$ref": "#/$defs/d0", "$defs": {**defs, f"d{n}": {"type": "string"}}}


SLOW = [
    _text(allOf=PATTERNS[: MAX_MEETING + 1]),
    _text(allOf=PATTERNS[:MAX_MEETING], format="email"),
    _text(allOf=[{"allOf": PATTERNS[:3]}, {"anyOf": [{"allOf": PATTERNS[3:6]}, {}]}]),
    _chain(MAX_MEETING + 1),
    {"allOf": [_text(**pattern) for pattern in PATTERNS]},
    {"allOf": [{"additionalProperties": pattern} for pattern in PATTERNS]},
    {"allOf": [{"items": pattern} for pattern in PATTERNS]},
    {"allOf": [{"patternProperties": {"^a": pattern}} for pattern in PATTERNS]},
    _text(pattern="^(a{1000}){1000}$"),
    _text(pattern="^(a{300}b{300}){300}$"),
    _text(pattern="^" + "(?:b{5000})" * 5 + "$"),
    _text(pattern="^a{99999999999999999999}$"),
    _text(pattern="^((a{1000}){1000})?$"),
    _text(const="a" * (MAX_FORCED + 1)),
    {"type": "array", "items": {"const": "a" * 1000}, "minItems": 1000},
    {
        "$defs": {"a": {"type": "array", "items": {"type": "null"}, "minItems": 200}},
        "type": "array",
        "items": {"$ref": "#/$defs/a"},
        "minItems": 200,
    },
    {
        "type": "object",
        "properties": {f"p{i}": {"const": "b" * 400} for i in range(900)},
        "required": [f"p{i}" for i in range(900)],
    },
    {"patternProperties": {"^a{1000000}$": {}}},
]
QUICK = [
    _text(allOf=PATTERNS[:MAX_MEETING]),
    _text(anyOf=PATTERNS),
    {"anyOf": [_text(**pattern) for pattern in PATTERNS]},
    _text(pattern="^[^x]{1,50000}$"),
    {"type": "array", "minItems": 1000, "items": _text() | {"required": ["a"]}},
    {"type": "array", "minItems": 1000, "items": {"enum": ["red", "green", "light green"]}},
    {
        "type": "object",
        "properties": {
            f"p{i}": {"type": "string", "pattern": f"^[A-Z]{{1,{i + 1}}}-[0-9]{{4}}$"}
            for i in range(100)
        },
    },
    {
        "type": "object",
        "properties": {
            name: {"type": "string", "format": name} for name in ("date", "uuid", "email", "uri")
        },
    },
    {"type": "object", "properties": {"next": {"$ref": "#"}, "id": {"pattern": "^[0-9]+$"}}},
]


@pytest.mark.parametrize("schema", SLOW)
def test_a_schema_that_would_hold_others_up_is_refused(schema: dict[str, Any]) -> None:
    grammars = Grammars(ByteVocabulary(["<s>", "</s>"]), [])
    with pytest.raises(InvalidRequest, match="schema"):
        check_schema(grammars, schema, lenient=True, param="tools")
    assert why_slow(schema)


@pytest.mark.parametrize("schema", QUICK)
def test_a_schema_that_people_write_is_not(schema: dict[str, Any]) -> None:
    assert why_slow(schema) is None


def test_a_schema_whose_references_never_seem_to_end_is_refused() -> None:
    defs = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(5000)}
    assert why_slow({"$ref": "#/$defs/d0", "$defs": defs}) == (
        "The schema's references lead too deep."
    )


@pytest.mark.parametrize(
    ("pattern", "length"),
    [
        ("", 0),
        ("^abc$", 3),
        (r"a{3}b*", 4),
        (r"(?:[a-z]{2}\d){4,}", 12),
        (r"(a(?<x>b{2}){3}){2}", 14),
        (r"\(a\){2}", 4),
        ("(a", 1),
        ("a)b", 2),
    ],
)
def test_a_pattern_demands_so_many_characters(pattern: str, length: int) -> None:
    assert least_length(pattern) == length
