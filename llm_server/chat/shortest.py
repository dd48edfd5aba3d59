"""About the shortest JSON that fits a schema: how many tokens a call takes at least.

It need not be valid, only about as long as what is.
"""

from __future__ import annotations

import json

LONGEST = 8192
"""Characters of a shortest call that are looked at: it is asked whether some 500 tokens do."""


def shortest(schema: object, depth: int = 0) -> str:
    """About the shortest JSON that fits a schema, or the beginning of it."""
    if not isinstance(schema, dict) or depth > 16:
        return "{}"
    values = schema.get("enum")
    if isinstance(values, list) and values:
        return min((json.dumps(value) for value in values), key=len)
    if isinstance(schema.get("properties"), dict):
        members = shortest_members(schema, depth)
        return "{" + ", ".join(f"{json.dumps(k)}: {v}" for k, v in members)[:LONGEST] + "}"
    if n := _count(schema.get("minItems")):
        item = shortest(schema.get("items"), depth + 1)
        return "[" + ", ".join([item] * min(n, LONGEST // len(item))) + "]"
    # Letters and digits by turns, so that hardly two share a token.
    return json.dumps("a1" * (_count(schema.get("minLength")) // 2 + 1))


def shortest_members(schema: object, depth: int) -> list[tuple[str, str]]:
    """The keys that an object must have, with their shortest values."""
    if not isinstance(schema, dict) or not isinstance(schema.get("properties"), dict):
        return []
    properties = schema["properties"]
    required = [key for key in schema.get("required") or () if isinstance(key, str)]
    return [(key, shortest(properties.get(key), depth + 1)) for key in required]


def _count(bound: object) -> int:
    return min(bound, LONGEST) if isinstance(bound, int) and bound > 0 else 0
