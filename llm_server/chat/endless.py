"""Whether anything finite fits a JSON Schema.

An object that must hold another of its kind never ends. Generators write such a schema for a class
with a member of its own kind that may not be null. It knows nothing of grammars.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from llm_server.chat.schemas import subschemas
from llm_server.chat.syntax.values import DEFINITIONS, resolve

_PASSES = 32
"""Looks at all parts that are referred to. Most schemas take two, one of them to see that nothing
changes any more; who needs more than these gets the benefit of the doubt."""

_Ends = Callable[[Any], bool]


def is_endless(schema: dict[str, Any]) -> bool:
    """Whether no finite value fits a schema that llguidance compiles.

    It follows references and nothing else: False says only that they do not speak against one.
    """
    parts = _referred(schema)
    ending: set[str] = set()

    def ends(part: Any) -> bool:
        if not isinstance(part, dict) or "enum" in part or "const" in part:
            return True
        pointer = part.get("$ref")
        if pointer in parts and pointer not in ending:
            return False
        return (
            all(map(ends, part.get("allOf") or ()))
            and all(any(map(ends, part[word])) for word in ("anyOf", "oneOf") if part.get(word))
            and _ends_as_typed(part, ends)
        )

    # What is referred to last is looked at first: it is what the others rest on.
    for _ in range(_PASSES):
        n_ending = len(ending)
        for pointer in reversed(parts):
            if pointer not in ending and ends(parts[pointer]):
                ending.add(pointer)
        if len(ending) == n_ending:
            return not ends(schema)
    return False


def _ends_as_typed(part: dict[str, Any], ends: _Ends) -> bool:
    """Whether one of the types that a part allows has a finite value."""
    types = part.get("type", "null")  # what names no type lets null fit, too
    for type in [types] if isinstance(types, str) else types:
        if type == "object":
            if all(map(ends, _required(part))):
                return True
        elif type != "array" or all(map(ends, _first_items(part))):
            return True
    return False


def _required(part: dict[str, Any]) -> Iterator[Any]:
    """The schemas of the members that an object must have."""
    properties = part.get("properties") or {}
    for name in part.get("required") or ():
        yield properties.get(name, part.get("additionalProperties"))


def _first_items(part: dict[str, Any]) -> Iterator[Any]:
    """The schemas of the items that an array must have; of those that are alike, one."""
    n_items = part.get("minItems") or 0
    prefix = part.get("prefixItems") or []
    yield from prefix[:n_items]
    if n_items > len(prefix):
        yield part.get("items")


def _referred(schema: dict[str, Any]) -> dict[str, Any]:
    """The parts of a schema that it refers to, by their pointers, in the order they are met."""
    found: dict[str, Any] = {}
    stack: list[Any] = [schema]
    while stack:
        part = stack.pop()
        if isinstance(part, dict):
            # Definitions that nothing refers to say nothing, and may be anything.
            stack += [inner for word, inner in subschemas(part) if word not in DEFINITIONS]
            pointer = part.get("$ref")
            if isinstance(pointer, str) and pointer not in found:
                found[pointer] = at(schema, pointer)
                stack.append(found[pointer])
    return found


def at(schema: Any, pointer: str) -> Any:
    """What a reference stands for: True, which anything fits, where another document holds it."""
    return resolve(pointer, schema) if pointer.startswith("#") else True
