"""JSON Schema's words that no grammar here enforces, and those that say nothing at all.

A tool that is not `strict` may use the former: they are ignored. A strict one, and the format of
an answer, is refused (llguidance names the word). It looks into schemas and compiles none.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

UNENFORCED = frozenset(
    "not if then else uniqueItems contains minContains maxContains propertyNames dependentRequired "
    "dependentSchemas dependencies unevaluatedProperties unevaluatedItems $dynamicRef".split()
)
"""What llguidance does not know; a test holds this against it."""

_BY_NAME = ("properties", "patternProperties", "$defs", "definitions")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
_SINGLE = ("items", "additionalProperties", "additionalItems")


def ignored_words(schema: object) -> list[str]:
    """The words of a schema that have an effect and are not enforced, each once, sorted."""
    found: set[str] = set()
    stack = [schema]
    while stack:
        part = stack.pop()
        if isinstance(part, dict):
            found |= {word for word in UNENFORCED & part.keys() if not _says_nothing(word, part)}
            stack += [value for _, value in _parts(part)]
    return sorted(found)


def without_idle_words(schema: Any) -> Any:
    """A schema that means the same without the unenforced words that say nothing in it.

    Generators write such words: `uniqueItems: false`, or that names of properties are strings.
    """
    if not isinstance(schema, dict):
        return schema
    kept = {
        word: value
        for word, value in schema.items()
        if word not in UNENFORCED or not _says_nothing(word, schema)
    }
    for word in {place for place, _ in _parts(schema)}:
        value = kept[word]
        if isinstance(value, list):
            kept[word] = [without_idle_words(part) for part in value]
        elif word in _BY_NAME:
            kept[word] = {name: without_idle_words(part) for name, part in value.items()}
        else:
            kept[word] = without_idle_words(value)
    return kept


def _parts(schema: dict[str, Any]) -> Iterator[tuple[str, Any]]:
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
