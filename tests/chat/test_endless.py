"""Schemas that only values without end fit."""

from __future__ import annotations

from typing import Any

import pytest

from llm_server.chat.endless import is_endless

NODE = {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]}
LIST = {"type": "array", "items": {"$ref": "#"}, "minItems": 1}


def defined(root: dict[str, Any], **parts: Any) -> dict[str, Any]:
    """A schema with definitions."""
    return {**root, "$defs": parts}


def member(pointer: str, **more: Any) -> dict[str, Any]:
    """An object that must have one member, by a reference."""
    return {"type": "object", "properties": {"x": {"$ref": pointer}}, "required": ["x"], **more}


ENDLESS: list[dict[str, Any]] = [
    NODE,
    LIST,
    {"type": "array", "prefixItems": [{"$ref": "#"}], "minItems": 1},
    defined({"$ref": "#/$defs/a"}, a=member("#/$defs/b"), b=member("#/$defs/a")),
    {"allOf": [{"type": "object"}, NODE], "type": "object"},
    {"anyOf": [NODE, LIST]},
    {"type": ["object", "array"], **NODE, "items": {"$ref": "#"}, "minItems": 2}
    | {"type": "object"},
    {"type": "object", "required": ["any"], "additionalProperties": {"$ref": "#"}},
    defined(member("#/$defs/a~1b%20~0"), **{"a/b ~": {"$ref": "#"}}),
    defined(member("#/$defs/a%2Fb"), a={"b": {"$ref": "#"}}),
]
ENDING: list[dict[str, Any]] = [
    {"type": "object", "properties": {"next": {"$ref": "#"}}},
    {"type": "array", "items": {"$ref": "#"}},
    {"type": "array", "prefixItems": [{"type": "null"}], "items": {"$ref": "#"}, "minItems": 1},
    {"anyOf": [NODE, {"type": "null"}]},
    {"type": ["object", "null"], "properties": NODE["properties"], "required": ["next"]},
    {"properties": NODE["properties"], "required": ["next"]},
    defined(member("#/$defs/a"), a=member("#/$defs/b"), b=member("#/$defs/c"), c={"const": 1}),
    defined(
        member("#/$defs/a"), a={"oneOf": [{"$ref": "#"}, {"$ref": "#/$defs/b"}]}, b={"enum": [1]}
    ),
    defined({"type": "string"}, unused={"anyOf": 5, "$ref": []}),
    {"type": "object", "properties": {"x": {"const": {"$ref": "#"}}}, "required": ["x"]},
    {"type": "object", "required": ["any"]},
    member("http://example.org/schema"),
    member("#/nowhere/0"),
]


@pytest.mark.parametrize("schema", ENDLESS)
def test_nothing_finite_fits(schema: dict[str, Any]) -> None:
    assert is_endless(schema)


@pytest.mark.parametrize("schema", ENDING)
def test_something_finite_fits(schema: dict[str, Any]) -> None:
    assert not is_endless(schema)


def test_a_long_chain_is_followed_to_its_end() -> None:
    n = 2000
    links = {f"n{i}": member(f"#/$defs/n{i + 1}") for i in range(n)}
    assert not is_endless(defined(member("#/$defs/n0"), **links, **{f"n{n}": {"type": "null"}}))
    assert is_endless(defined(member("#/$defs/n0"), **links, **{f"n{n}": member("#/$defs/n0")}))
