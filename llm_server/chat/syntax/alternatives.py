"""A schema as alternatives without alternatives of their own, for `param_grammar` and `params`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, product

from llm_server.chat.syntax.values import DEFINITIONS, JsonValue, count_of, kinds_of, resolve
from llm_server.errors import InvalidSchema
from llm_server.worker.messages import JsonObject

MAX_DEPTH = 5
MAX_BRANCHES = 64
"""Most alternatives of one parameter: each is a part of the grammar."""

_NOTES = frozenset({"title", "description", "default", "examples", "$comment", "deprecated"})
"""What says nothing about values."""

_TOGETHER = (
    frozenset({"properties", "patternProperties", "additionalProperties"}),
    frozenset({"items", "prefixItems"}),
    frozenset({"if", "then", "else"}),
)
"""Words that mean something else when they stand in one schema."""

_WHOLE = "whole-schema"
_NO_SCHEMAS = frozenset({"const", "enum", "default", "examples"})


@dataclass(frozen=True, slots=True)
class Members:
    """What an object holds: by name, and the schema of those of other names, False for none.

    `unsaid` are the words of its schema that this does not say.
    """

    properties: JsonObject
    required: frozenset[str]
    others: JsonValue
    unsaid: Sequence[str] = ()


class Alternatives:
    """Of schemas that are parts of `root`. Raises InvalidSchema for `param` for too many."""

    def __init__(self, root: JsonObject, param: str) -> None:
        self._root = root
        self._param = param

    def of(self, schema: JsonValue, depth: int = 0) -> list[JsonValue]:
        """The alternatives of a schema, each without alternatives of its own."""
        schema = self.resolved(schema)
        if isinstance(schema, dict) and depth < MAX_DEPTH:
            for word in ("anyOf", "oneOf", "allOf"):
                if not (isinstance(parts := schema.get(word), list) and parts):
                    continue
                rest = {key: value for key, value in schema.items() if key != word}
                if word == "allOf":
                    return self._all_of([rest, *parts], depth + 1)
                return [b for part in parts for b in self._all_of([rest, part], depth + 1)]
        return [schema]

    def members(self) -> list[Members]:
        """The members of the root's alternatives."""
        return [members_of(part) for part in self.of(self._root)]

    def _all_of(self, parts: Sequence[JsonValue], depth: int) -> list[JsonValue]:
        """The alternatives that are left where all of `parts` hold."""
        found = [self.of(part, depth) for part in parts if part is not True]
        if math.prod(map(len, found)) > MAX_BRANCHES:
            raise InvalidSchema(
                f"The schema's `allOf` and `anyOf` make more than {MAX_BRANCHES} alternatives of "
                "one parameter.",
                self._param,
            )
        chosen = [[b for b in branch if isinstance(b, dict)] for branch in product(*found)]
        return [_merged(branch) for branch in chosen if _agree(branch)] or [{}]

    def resolved(self, schema: JsonValue) -> JsonValue:
        """`schema`, or what its local reference stands for."""
        for _ in range(MAX_DEPTH):
            if not (isinstance(schema, dict) and isinstance(schema.get("$ref"), str)):
                break
            rest = {key: value for key, value in schema.items() if key != "$ref"}
            target = resolve(schema["$ref"], self._root)
            schema = {"allOf": [rest, target]} if rest.keys() - _NOTES else target
        return schema

    def alone(self, schema: JsonObject) -> JsonObject:
        """`schema` as a document of its own, with all that its references lead to."""
        shared = {key: self._root[key] for key in DEFINITIONS if key in self._root}
        document = {**shared, **schema}
        starts = tuple(f"#/{key}/" for key in DEFINITIONS)
        if all(reference.startswith(starts) for reference in _references(document)):
            return document
        root = {key: value for key, value in self._root.items() if key not in ("$id", "$schema")}
        return {**_moved(schema), "$defs": {_WHOLE: _moved(root)}}


def narrowed(schema: JsonValue, kinds: Sequence[str]) -> JsonObject:
    """`schema` for some of the kinds it allows."""
    base: JsonObject = schema if isinstance(schema, dict) else {}
    if set(kinds) == set(kinds_of(base)):
        return base
    allowed = [kind for kind in kinds if kind != "number" or "integer" not in types_of(base)]
    if "number" in kinds and "integer" in types_of(base):
        allowed.append("integer")
    return (
        {"allOf": [base, {"type": allowed}]}
        if base.get("type") is None
        else {
            **base,
            "type": allowed,
        }
    )


def types_of(schema: JsonObject) -> list[str]:
    types = schema.get("type")
    return types if isinstance(types, list) else [types] if isinstance(types, str) else []


def parts_of(schema: JsonObject) -> list[JsonObject]:
    """A schema without alternatives, and the parts that `_merged` left in its `allOf`."""
    return [schema, *schema.get("allOf", ())]


def members_of(schema: JsonValue) -> Members:
    """The members of the objects that a schema without alternatives allows."""
    parts = parts_of(schema) if isinstance(schema, dict) else []
    required = frozenset(name for part in parts for name in part.get("required") or ())
    named = [name for part in parts for name in part.get("properties") or ()]
    properties = {
        name: allowed
        for name in dict.fromkeys([*named, *sorted(required)])
        if (allowed := _all_hold([_member(part, name) for part in parts])) is not False
    }
    others = _all_hold([part.get("additionalProperties", True) for part in parts])
    free = not properties and others is not False
    fewest = max((count_of(part.get("minProperties")) or 0 for part in parts), default=0)
    mosts = [count_of(part.get("maxProperties")) for part in parts]
    too_few = any(most is not None and (free or most < len(properties)) for most in mosts)
    words = {
        "minProperties": fewest > len(required),
        "maxProperties": too_few,
        "patternProperties": free and any("patternProperties" in part for part in parts),
    }
    return Members(properties, required, others, [word for word, unsaid in words.items() if unsaid])


def joined(branches: Sequence[Members]) -> Members:
    """What a member may be in any of the branches, and the members that all of them require."""
    found: dict[str, list[JsonValue]] = {}
    for branch in branches:
        for name, part in branch.properties.items():
            if part not in found.setdefault(name, []):
                found[name].append(part)
    properties = {
        name: parts[0] if len(parts) == 1 else {"anyOf": parts} for name, parts in found.items()
    }
    return Members(properties, frozenset.intersection(*(b.required for b in branches)), True)


def mixed(branches: Sequence[Members], kinds: Callable[[JsonValue], frozenset[str]]) -> str | None:
    """A member that is a text in one branch and something else in another, where a reader cannot
    tell which; None if there is no such."""
    found: dict[str, frozenset[str]] = {}
    for name, part in chain.from_iterable(branch.properties.items() for branch in branches):
        before = found.setdefault(name, kinds(part))
        if kinds(part) != before and "string" in kinds(part) | before:
            return name
    return None


def _member(schema: JsonObject, name: str) -> JsonValue:
    named = schema.get("properties") or {}
    return named[name] if name in named else schema.get("additionalProperties", True)


def _all_hold(schemas: Sequence[JsonValue]) -> JsonValue:
    """One schema for what fits all of them."""
    if any(schema is False for schema in schemas):
        return False
    some = [schema for schema in schemas if schema is not True]
    return {"allOf": some} if len(some) > 1 else some[0] if some else True


def _agree(parts: Sequence[JsonObject]) -> bool:
    """Whether some type of value is allowed by all of `parts`."""
    return bool(frozenset.intersection(kinds_of(None), *map(kinds_of, parts)))


def _merged(parts: Sequence[JsonObject]) -> JsonObject:
    """One schema for all of `parts`, which have no alternatives; what does not go together stays
    in its `allOf`."""
    whole: JsonObject = {}
    others: list[JsonObject] = []
    for part in chain.from_iterable(map(parts_of, parts)):
        bare = {key: value for key, value in part.items() if key not in _NOTES | {"allOf"}}
        split = any(keys & whole.keys() and keys & bare.keys() for keys in _TOGETHER)
        if split or any(whole.get(key, value) != value for key, value in bare.items()):
            others.append(bare)
        else:
            whole = {**whole, **bare}
    return {**whole, "allOf": others} if others else whole


def values_of(schema: JsonObject) -> list[JsonValue] | None:
    """The only values that a schema allows, if it lists them."""
    found: list[JsonValue] | None = None
    for part in parts_of(schema):
        values = [part["const"]] if "const" in part else part.get("enum")
        if isinstance(values, list) and values:
            found = values if found is None else [value for value in found if value in values]
    return found


def _references(schema: JsonValue) -> Iterator[str]:
    """The local references in a schema."""
    if isinstance(schema, dict):
        if isinstance(reference := schema.get("$ref"), str) and reference.startswith("#"):
            yield reference
        for key, part in schema.items():
            if key not in _NO_SCHEMAS:
                yield from _references(part)
    elif isinstance(schema, list):
        yield from chain.from_iterable(map(_references, schema))


def _moved(schema: JsonValue) -> JsonValue:
    """A schema whose local references lead into `_WHOLE`."""
    if isinstance(schema, list):
        return [_moved(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {key: part if key in _NO_SCHEMAS else _moved(part) for key, part in schema.items()}
    if isinstance(reference := schema.get("$ref"), str) and reference.startswith("#"):
        moved["$ref"] = f"#/$defs/{_WHOLE}{reference[1:]}"
    return moved
