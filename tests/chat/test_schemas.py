"""Words of JSON Schema: what llguidance enforces, what is ignored and named, what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer

from llm_server.chat.schemas import (
    MAX_MULTIPLE,
    UNENFORCED,
    enforceable,
    ignored_words,
    is_irregular,
    merged_multiple,
    parameters_of,
)
from llm_server.chat.syntax.formats import FORMATS

BYTES = LLTokenizer("byte")
VALUES: dict[str, Any] = {
    "not": {"const": "a"},
    "uniqueItems": True,
    "minContains": 1,
    "maxContains": 2,
    "dependentRequired": {"a": ["b"]},
    "dependentSchemas": {"a": {"required": ["b"]}},
    "dependencies": {"a": ["b"]},
    "propertyNames": {"pattern": "^a"},
    "unevaluatedProperties": False,
    "unevaluatedItems": False,
    "$dynamicRef": "#a",
}
ENFORCED: list[dict[str, Any]] = [
    {"minProperties": 1, "maxProperties": 2, "patternProperties": {"^a": {"type": "integer"}}},
    {"items": [{"type": "integer"}], "additionalItems": False},
    {"prefixItems": [{"type": "integer"}], "minItems": 1, "maxItems": 3},
    {"type": "number", "multipleOf": 3, "exclusiveMinimum": 1, "maximum": 9},
    {"type": "string", "pattern": "^a", "minLength": 1, "maxLength": 9},
    {"type": "string", "format": "date"},
    {"anyOf": [{"enum": [1]}, {"const": 2}], "allOf": [{"minimum": 1}]},
    {"$ref": "#/$defs/a", "$defs": {"a": {"type": "integer"}}},
]


def complaints(schema: dict[str, Any]) -> str:
    """What llguidance does not know of a schema."""
    matcher = LLMatcher(BYTES, "start: %json " + json.dumps(schema), log_level=0)
    return str(matcher.get_error()) if matcher.is_error() else ""


@pytest.mark.parametrize("word", sorted(UNENFORCED))
def test_llguidance_does_not_know_the_unenforced_words(word: str) -> None:
    schema = {word: VALUES.get(word, {"minimum": 1})}
    assert f'"{word}"' in complaints(schema)
    whole = schema | {"if": {}, "then": {"minimum": 1}, "contains": {"minimum": 1}} | schema
    assert word in ignored_words({"properties": {"a": {"items": {"anyOf": [whole]}}}})


@pytest.mark.parametrize("schema", ENFORCED, ids=lambda schema: next(iter(schema)))
def test_the_others_are_enforced(schema: dict[str, Any]) -> None:
    assert complaints(schema) == ""
    assert ignored_words(schema) == [] and enforceable(schema) == schema


@pytest.mark.parametrize(
    "idle",
    [
        {"uniqueItems": False},
        {"propertyNames": {"type": "string"}},
        {"propertyNames": True},
        {"unevaluatedProperties": True, "unevaluatedItems": {}},
        {"dependentRequired": {}, "dependentSchemas": {}, "dependencies": {}},
        {"if": {"minimum": 1}},
        {"then": {"minimum": 1}, "else": {"minimum": 2}},
        {"minContains": 1, "maxContains": 2},
        {"contains": {"minimum": 1}, "minContains": 0},
    ],
    ids=lambda idle: next(iter(idle)),
)
def test_what_says_nothing_is_no_reason_to_refuse(idle: dict[str, Any]) -> None:
    schema = {"$defs": {"x": {"type": "array", "items": {"type": "object"} | idle}}} | idle
    assert complaints(schema)
    assert ignored_words(schema) == []
    cleaned = enforceable(schema)
    assert complaints(cleaned) == ""
    assert cleaned["$defs"]["x"]["items"]["type"] == "object"


def test_names_and_values_are_no_words() -> None:
    schema = {
        "properties": {
            "not": {"type": "string"},
            "uniqueItems": {"enum": [{"uniqueItems": False}]},
        },
        "required": ["not"],
        "default": {"propertyNames": True},
    }
    assert ignored_words(schema) == [] and enforceable(schema) == schema


@pytest.mark.parametrize(
    ("pattern", "irregular"),
    [
        ("(?!a)b", True),
        ("(?<=a)b", True),
        (r"\bfoo", True),
        (r"(a)\1", True),
        (r"(?<n>a)\k<n>", True),
        ("(?<n>a)(?:b)", False),
        (r"[(?=]", False),
        (r"[^\](?!]", False),
        (r"\\b\(?=", False),
        (r"\d\S[\b]", False),
    ],
)
def test_patterns_that_no_grammar_can_say(pattern: str, irregular: bool) -> None:
    assert is_irregular(pattern) == irregular
    schema: dict[str, Any] = {"properties": {"a": {"type": "string", "pattern": pattern}}}
    assert ignored_words(schema) == (["pattern"] if irregular else [])
    if irregular:
        assert complaints(schema) and not complaints(enforceable(schema))


A = {"properties": {"a": {"type": "integer"}}}
PATTERN = {"patternProperties": {"^[ab]$": {"type": "integer"}}, "additionalProperties": False}


@pytest.mark.parametrize(
    ("schema", "word"),
    [
        (PATTERN | {"minProperties": 2}, "minProperties"),
        (PATTERN | {"minProperties": 1, "maxProperties": 9}, ""),
        ({"required": ["x", "y", "x"], "minProperties": 4}, "minProperties"),
        ({"required": ["x", "y", "x"], "minProperties": 3}, ""),
        (A | {"minProperties": 1}, "minProperties"),
        (A | {"minProperties": 0}, ""),
        (A | {"maxProperties": 1}, "maxProperties"),
        (A | {"required": ["a"], "minProperties": 2, "maxProperties": 2}, ""),
        ({"type": "string", "format": "color"}, "format"),
        ({"type": ["string", "null"], "format": "color"}, "format"),
        ({"format": "unknown"}, "format"),
        ({"type": "integer", "format": "int32"}, ""),
        ({"multipleOf": 19_999}, ""),
        ({"multipleOf": 20_001}, "multipleOf"),
        ({"multipleOf": 1.0001}, ""),
        ({"multipleOf": 1_999_700}, "multipleOf"),
        ({"multipleOf": 400_000_000}, ""),
        ({"multipleOf": 1_000_000_000}, "multipleOf"),
        ({"multipleOf": -1e30}, "multipleOf"),
    ],
)
def test_values_that_are_not_enforced(schema: dict[str, Any], word: str) -> None:
    whole = {"items": {"$defs": {"x": schema}}}
    assert ignored_words(whole) == ([word] if word else [])
    left = {key: value for key, value in schema.items() if key != word}
    assert enforceable(whole) == {"items": {"$defs": {"x": left}}}


@pytest.mark.parametrize(
    ("schema", "multiple"),
    [
        ({"allOf": [{"multipleOf": 4}, {"items": {"multipleOf": 6}}]}, 12),
        ({"$ref": "#/$defs/a", "multipleOf": 0.25, "$defs": {"a": {"multipleOf": 0.1}}}, 0.5),
        ({"anyOf": [{"multipleOf": 1e-9}, {"multipleOf": 19_997}]}, 19_997),
        ({"oneOf": [{"multipleOf": 19_997}, {"multipleOf": 0.7}]}, 139_979),
        ({"anyOf": [{"multipleOf": 0}, {"multipleOf": "x"}]}, None),
        ({"items": [{"multipleOf": 4}, {"multipleOf": 6}]}, None),
        (True, None),
    ],
)
def test_multiples_that_are_merged(schema: object, multiple: float | None) -> None:
    assert merged_multiple(schema) == multiple


@pytest.mark.parametrize("name", FORMATS)
def test_llguidance_knows_the_formats(name: str) -> None:
    assert complaints({"type": "string", "format": name}) == ""


def test_llguidance_counts_the_largest_multiple() -> None:
    def fits(text: str) -> bool:
        grammar = "start: %json " + json.dumps({"type": "integer", "multipleOf": MAX_MULTIPLE})
        matcher = LLMatcher(BYTES, grammar, log_level=0)
        n_taken = matcher.try_consume_tokens(list(text.encode()))
        return n_taken == len(text) and bool(matcher.is_accepting())

    assert fits(str(MAX_MULTIPLE * 77))
    assert not fits(str(MAX_MULTIPLE * 77 + MAX_MULTIPLE // 2))


@pytest.mark.parametrize("kind", ["integer", "number"])
@pytest.mark.parametrize("end", [2**63 - 1, 2**63, 1.7976931348623157e308])
def test_bounds_at_the_ends_of_64_bits(kind: str, end: float) -> None:
    schema = {"type": kind, "minimum": -end, "maximum": end}
    assert complaints(schema)
    assert not complaints(enforceable({"items": schema}))
    assert enforceable({"minimum": -5, "maximum": True}) == {"minimum": -5, "maximum": True}


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ({}, {"properties": {}, "additionalProperties": False}),
        ({"parameters": {}}, {"properties": {}, "additionalProperties": False}),
        (
            {"parameters": {"properties": {}, "required": [], "title": "x"}},
            {"properties": {}, "required": [], "title": "x", "additionalProperties": False},
        ),
        ({"parameters": {"type": "object"}}, {}),
        ({"parameters": {"properties": {}, "additionalProperties": True}},) * 2,
        ({"parameters": {"properties": {}, "required": ["a"]}},) * 2,
        ({"parameters": {"type": ["object", "null"], "properties": {"a": {}}}},) * 2,
    ],
)
def test_a_tool_that_names_no_arguments_has_none(
    function: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert parameters_of(function) == {**expected.get("parameters", expected), "type": "object"}
