"""JSON Schema's words that no grammar here enforces, and those that say nothing at all.

A tool that is not `strict` may use the former: they are ignored. A strict one, and the format of
an answer, is refused by the word's name. Patterns count as such a word where they are no regular
expressions in the strict sense, and so do words with values that llguidance cannot hold an answer
to. It looks into schemas and compiles none.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from llm_server.chat.syntax.formats import FORMATS
from llm_server.chat.syntax.values import DEFINITIONS

UNENFORCED = frozenset(
    "not if then else uniqueItems contains minContains maxContains propertyNames dependentRequired "
    "dependentSchemas dependencies unevaluatedProperties unevaluatedItems $dynamicRef".split()
)
"""What llguidance does not know; a test holds this against it."""

_BY_VALUE = frozenset({"format", "multipleOf", "minProperties", "maxProperties"})
"""What llguidance enforces for some values only."""

MAX_MULTIPLE = 400_000_000
"""Largest `multipleOf`: llguidance counts in 32 bits, up to ten times as far."""

MAX_MULTIPLE_DIGITS = 20_000
"""Most of a `multipleOf`'s digits, without its decimal point and the zeros at its ends, and five
times that for each zero at the end of a whole number: about half a second for this many, 20 s and
500 MB for ten times as many."""

_MERGED = frozenset({"allOf", "anyOf", "oneOf", "$ref"})

_OUTERMOST = 9 * 10**18
"""llguidance writes bounds as 64-bit numbers, and fails at the last of them."""

_IRREGULAR = re.compile(
    r"\[(?:\\.|[^\]\\])*\]"  # a set, in which nothing looks around
    r"|(?P<irregular>\(\?<?[=!]|\\[bBk1-9])"
    r"|\\.",
    re.DOTALL,
)

_BARE = frozenset({"type", "properties", "required", "title", "description", "$schema"})
"""Words beside which `properties: {}` is all that a schema says."""

_BY_NAME = ("properties", "patternProperties", *DEFINITIONS)
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
_SINGLE = ("items", "additionalProperties", "additionalItems")


def parameters_of(function: dict[str, Any]) -> dict[str, Any]:
    """The schema of a tool's arguments: an object, and an empty one where none are named.

    So OpenAI has it where `parameters` is missing; by the letter of JSON Schema, a model could
    invent some for `properties: {}`.
    """
    schema = function.get("parameters") or {"properties": {}}
    named = schema.get("properties") != {} or schema.get("required") or schema.keys() - _BARE
    closed = {} if named else {"additionalProperties": False}
    return {**schema, **closed, "type": "object"}


def ignored_words(schema: object) -> list[str]:
    """The words of a schema that have an effect and are not enforced, each once, sorted."""
    found: set[str] = set()
    stack = [schema]
    while stack:
        part = stack.pop()
        if isinstance(part, dict):
            found |= {word for word in UNENFORCED & part.keys() if not _says_nothing(word, part)}
            found |= {word for word, _ in _irregular(part)} | _beyond(part)
            stack += [value for _, value in subschemas(part)]
    return sorted(found)


def enforceable(schema: Any) -> Any:
    """A schema as llguidance takes it, which means the same, but for `ignored_words`.

    Without words that say nothing, which generators write (`uniqueItems: false`, or that names of
    properties are strings), and without patterns and values that no grammar can say. Bounds at the
    ends of 64 bits are a little narrower.
    """
    if not isinstance(schema, dict):
        return schema
    beyond = _beyond(schema)
    kept = {
        word: _within_64_bits(word, value)
        for word, value in schema.items()
        if word not in beyond and (word not in UNENFORCED or not _says_nothing(word, schema))
    }
    for word in {place for place, _ in subschemas(schema)}:
        value = kept[word]
        if isinstance(value, list):
            kept[word] = [enforceable(part) for part in value]
        elif word in _BY_NAME:
            kept[word] = {name: enforceable(part) for name, part in value.items()}
        else:
            kept[word] = enforceable(value)
    for word, pattern in _irregular(schema):
        if word == "pattern":
            del kept[word]
        else:
            del kept[word][pattern]
    return kept


def is_irregular(pattern: str) -> bool:
    """Whether a pattern looks around, at the border of a word or back: no grammar can say that."""
    return any(found["irregular"] for found in _IRREGULAR.finditer(pattern))


def is_beyond_multiples(number: object) -> bool:
    """Whether a `multipleOf` is too large to be counted in, or takes too long."""
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        return False
    if abs(number) > MAX_MULTIPLE:
        return True
    written = repr(number).partition("e")[0].removesuffix(".0").lstrip("-")
    digits = int(written.replace(".", "").strip("0") or "0")
    n_zeros = len(written) - len(written.rstrip("0"))
    return digits * max(1, 5 * n_zeros) > MAX_MULTIPLE_DIGITS


def merged_multiple(schema: object) -> int | float | None:
    """The least common multiple of all `multipleOf` where parts of the schema are merged, as
    llguidance does with `allOf` and its like; else None."""
    stack, multiples, merges = [schema], set[Fraction](), False
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            merges |= not _MERGED.isdisjoint(item)
            number = item.get("multipleOf")
            if isinstance(number, (int, float)) and not is_beyond_multiples(number) and number > 0:
                multiples.add(Fraction(repr(number)))
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)
    if not merges or not multiples:
        return None
    whole = math.lcm(*(number.denominator for number in multiples))
    common = Fraction(math.lcm(*(int(number * whole) for number in multiples)), whole)
    is_whole = common.denominator == 1 or common > MAX_MULTIPLE
    return int(common) if is_whole else float(common)


def _beyond(schema: dict[str, Any]) -> set[str]:
    """The words of a schema that llguidance knows, but not with such a value."""
    return {word for word in _BY_VALUE & schema.keys() if _is_beyond(word, schema)}


def _is_beyond(word: str, schema: dict[str, Any]) -> bool:
    value = schema[word]
    if word == "multipleOf":
        return is_beyond_multiples(value)
    if word == "format":
        # Without a type, what is no text fits any.
        is_text = "string" in str(schema.get("type", "string"))
        return is_text and isinstance(value, str) and value not in FORMATS
    # llguidance counts no properties beside one that may be missing, and those of one name twice.
    required = _names(schema.get("required"))
    optional = _names(schema.get("properties")) - required
    if word == "maxProperties":
        return bool(optional)
    return isinstance(value, (int, float)) and value > len(required) + (not optional)


def _names(named: object) -> set[str]:
    listed = named if isinstance(named, (dict, list)) else ()
    return {name for name in listed if isinstance(name, str)}


def _irregular(schema: dict[str, Any]) -> list[tuple[str, str]]:
    """The patterns of a schema that no grammar can say, each with its word."""
    pattern, by_name = schema.get("pattern"), schema.get("patternProperties")
    patterns = [("pattern", pattern)] if isinstance(pattern, str) else []
    if isinstance(by_name, dict):
        patterns += [("patternProperties", name) for name in by_name]
    return [(word, pattern) for word, pattern in patterns if is_irregular(pattern)]


def _within_64_bits(word: str, value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        if word in ("minimum", "exclusiveMinimum"):
            return max(value, -_OUTERMOST)
        if word in ("maximum", "exclusiveMaximum"):
            return min(value, _OUTERMOST)
    return value


def subschemas(schema: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The schemas inside one, as far as grammars look into them, each with its word."""
    for word in _BY_NAME:
        if isinstance(named := schema.get(word), dict):
            yield from ((word, part) for part in named.values())
    for word in _LISTS:
        if isinstance(listed := schema.get(word), list):
            yield from ((word, part) for part in listed)
    for word in _SINGLE:
        if isinstance(part := schema.get(word), dict):
            yield word, part


def _says_nothing(word: str, schema: dict[str, Any]) -> bool:
    """Whether a schema would mean the same without this word."""
    value = schema[word]
    match word:
        case "uniqueItems":
            return value is False
        case "propertyNames":
            return value is True or value in ({}, {"type": "string"})
        case "unevaluatedProperties" | "unevaluatedItems":
            return value is True or value == {}
        case "dependentRequired" | "dependentSchemas" | "dependencies":
            return bool(value == {})
        case "if":
            return not {"then", "else"} & schema.keys()
        case "then" | "else":
            return "if" not in schema
        case "contains" | "minContains" | "maxContains":
            any_number = schema.get("minContains") == 0 and "maxContains" not in schema
            return any_number or "contains" not in schema
        case _:
            return False
