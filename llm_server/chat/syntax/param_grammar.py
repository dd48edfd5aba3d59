"""The grammar of arguments that are parameters one by one: what `params` reads, by a schema."""

from __future__ import annotations

import re
from collections.abc import Sequence

from llm_server.chat.grammar import Lark
from llm_server.chat.syntax.format import Kind, ParamArgs, Wrapper
from llm_server.chat.syntax.literal import Slot, fill, text_of
from llm_server.chat.syntax.values import JsonValue, kinds_of, resolve
from llm_server.worker.messages import JsonObject

MAX_DEPTH = 5
_NUMBER = r"/-?(0|[1-9][0-9]{0,15})(\.[0-9]{1,15})?/"
_INTEGER = r"/-?(0|[1-9][0-9]{0,15})/"


class ParamGrammar:
    """Writes one tool's parameters into a grammar, in the order of its schema."""

    def __init__(self, lark: Lark, args: ParamArgs, schema: JsonObject, strict: bool) -> None:
        self._lark = lark
        self._args = args
        self._schema = schema
        self._strict = strict

    def parameters(self) -> str:
        """An expression for all parameters, with their separators."""
        properties = self._schema.get("properties") or {}
        required = set(self._schema.get("required") or ())
        if not properties:
            return "" if self._schema.get("additionalProperties") is False else self._free()
        parts = [(self.parameter(key, s), key in required) for key, s in properties.items()]
        return self._sequence(parts, text_of(self._args.separator))

    def _sequence(self, parts: Sequence[tuple[str, bool]], separator: str) -> str:
        """Some of the parts in their order, the required ones at least, separators between."""
        between = self._lark.text(separator)
        first, later = '""', '""'
        for part, required in reversed(parts):
            follow = self._lark.rule(later)
            taken_first, taken_later = f"{part} {follow}", f"{between} {part} {follow}"
            if required:
                first, later = taken_first, taken_later
            else:
                first = f"{taken_first} | {self._lark.rule(first)}"
                later = f"{taken_later} | {follow}"
        return self._lark.rule(first)

    def _free(self) -> str:
        """Parameters of any name, for a tool that does not name its own."""
        wrapper = self._args.wrappers["string"]
        if any(isinstance(part, Slot) for part in wrapper.post):
            return ""
        key = "/[a-zA-Z_][a-zA-Z0-9_]{0,63}/"
        pre = self._lark.text(text_of(self._args.pre))
        one = self._lark.rule(f"{pre} {key} {self._text(wrapper, '', {})}")
        between = self._lark.text(text_of(self._args.separator))
        return self._lark.rule(f'"" | {one} ( {between} {one} )*')

    def parameter(self, key: str, schema: JsonValue) -> str:
        """An expression for one parameter."""
        schema = self._resolved(schema)
        head = self._lark.text(text_of(self._args.pre) + key)
        kinds = kinds_of(schema, self._schema)
        options: list[str] = []
        if "string" in kinds and self._args.escape != "json":
            options.append(self._text(self._args.wrappers["string"], key, schema))
            kinds -= {"string"}
            if self._args.wrappers["number"].mid == self._args.wrappers["string"].mid:
                kinds = frozenset()  # any text is allowed here already
        groups: dict[tuple[str, str], list[Kind]] = {}
        for kind, wrapper in self._args.wrappers.items():
            if kind in kinds:
                around = self._around(wrapper, key)
                groups.setdefault(around, []).append(kind)
        for (mid, post), found in groups.items():
            value = self._value(schema, found)
            options.append(" ".join(p for p in (mid, value, post) if p))
        return self._lark.rule(f"{head} ( {' | '.join(options)} )")

    def _resolved(self, schema: JsonValue) -> JsonValue:
        """`schema`, or what its local reference stands for."""
        for _ in range(MAX_DEPTH):
            if not isinstance(schema, dict) or not isinstance(schema.get("$ref"), str):
                break
            schema = resolve(schema["$ref"], self._schema)
        return schema

    def _json(self, schema: JsonValue, kinds: Sequence[str]) -> str:
        narrowed = _narrowed(schema, kinds)
        shared: JsonObject = {
            key: self._schema[key] for key in ("$defs", "definitions") if key in self._schema
        }
        return self._lark.json({**shared, **narrowed}, spaced=True, lenient=not self._strict)

    def _around(self, wrapper: Wrapper, key: str) -> tuple[str, str]:
        post = text_of(fill(wrapper.post, {Slot.KEY: key}))
        return self._lark.text(text_of(wrapper.mid)), self._lark.text(post)

    # ---- values --------------------------------------------------------------------------------

    def _text(self, wrapper: Wrapper, key: str, schema: JsonValue) -> str:
        """A text as it is, with what stands around it."""
        mid = self._lark.text(text_of(wrapper.mid))
        post = text_of(fill(wrapper.post, {Slot.KEY: key}))
        schema = schema if isinstance(schema, dict) else {}
        values = [schema["const"]] if "const" in schema else schema.get("enum")
        if isinstance(values, list) and values:
            texts = [self._lark.text(v + post) for v in values if isinstance(v, str)]
            return f"{mid} ( {' | '.join(texts)} )"
        char = "[^<&]" if self._args.escape in ("xml", "cdata") else "(?s:.)"
        body = _pattern(schema, char)
        return f"{mid} {self._lark.any_text_until(post, body)}"

    def _value(self, schema: JsonValue, kinds: Sequence[Kind]) -> str:
        """A value of one of these kinds, as the dialect writes it."""
        if self._args.quote is not None or self._args.item or self._args.member:
            return self._dialect(schema, kinds, 0)
        if self._args.words[0] == "true" or set(kinds) <= {"number", "array", "object"}:
            return self._json(schema, kinds)
        true, false, null = map(self._lark.text, self._args.words)
        options = []
        if "boolean" in kinds:
            options.append(f"{true} | {false}")
        if "null" in kinds:
            options.append(null)
        rest: list[Kind] = [k for k in kinds if k not in ("boolean", "null")]
        if rest:
            options.append(self._json(schema, rest))
        return f"( {' | '.join(options)} )"

    def _dialect(self, schema: JsonValue, kinds: Sequence[str], depth: int) -> str:
        schema = self._resolved(schema)
        schema = schema if isinstance(schema, dict) else {}
        options: list[str] = []
        for kind in kinds:
            if kind == "string":
                options.append(self._dialect_text(schema))
            elif kind == "number":
                options.append(_INTEGER if schema.get("type") == "integer" else _NUMBER)
            elif kind == "boolean":
                options += [self._lark.text(word) for word in self._args.words[:2]]
            elif kind == "null":
                options.append(self._lark.text(self._args.words[2]))
            elif kind == "array" and depth < MAX_DEPTH:
                options.append(self._array(schema, depth))
            elif kind == "object" and depth < MAX_DEPTH:
                options.append(self._object(schema, depth))
        return self._lark.rule(" | ".join(options) or self._lark.text(self._args.words[2]))

    def _dialect_text(self, schema: JsonObject) -> str:
        opening, closing = self._args.quote or ("", "")
        if not closing:
            values = schema.get("enum")
            if isinstance(values, list) and values:
                return " | ".join(self._lark.text(v) for v in values if isinstance(v, str) and v)
            return "/[^<>\\]]+/"
        return self._text(Wrapper((opening,), (closing,)), "", schema)

    def _inner(self, schema: JsonValue, depth: int) -> str:
        kinds = sorted(kinds_of(schema, self._schema))
        if depth and not isinstance(schema, dict):
            kinds = ["string", "number", "boolean"]
        return self._dialect(schema, kinds, depth + 1)

    def _array(self, schema: JsonObject, depth: int) -> str:
        inner = self._inner(schema.get("items"), depth)
        if self._args.item is not None:
            before = self._lark.text(text_of(self._args.item.mid))
            after = self._lark.text(text_of(self._args.item.post))
            return self._lark.rule(f"( {before} {inner} {after} )*")
        few = "" if schema.get("minItems") else '"" | '
        return self._lark.rule(f'"[" ( {few}{inner} ( "," {inner} )* ) "]"')

    def _object(self, schema: JsonObject, depth: int) -> str:
        properties = schema.get("properties") or {}
        required = set(schema.get("required") or ())
        parts = []
        for key, part in properties.items():
            value = self._inner(part, depth)
            if self._args.member is not None:
                opening = text_of(self._args.pre) + key + text_of(self._args.member.mid)
                closing = text_of(fill(self._args.member.post, {Slot.KEY: key}))
                member = f"{self._lark.text(opening)} {value} {self._lark.text(closing)}"
            else:
                member = f"{self._lark.text(key + ':')} {value}"
            parts.append((self._lark.rule(member), key in required))
        if self._args.member is not None:
            return self._sequence(parts, "") if parts else '""'
        inside = self._sequence(parts, ",") if parts else ""
        return self._lark.rule(f'"{{" {inside} "}}"')


def _narrowed(schema: JsonValue, kinds: Sequence[str]) -> JsonObject:
    """`schema` for some of the kinds it allows."""
    base: JsonObject = schema if isinstance(schema, dict) else {}
    if set(kinds) == set(kinds_of(base)):
        return base
    allowed = [kind for kind in kinds if kind != "number" or "integer" not in _types(base)]
    if "number" in kinds and "integer" in _types(base):
        allowed.append("integer")
    return (
        {"allOf": [base, {"type": allowed}]}
        if base.get("type") is None
        else {
            **base,
            "type": allowed,
        }
    )


def _types(schema: JsonObject) -> list[str]:
    types = schema.get("type")
    return types if isinstance(types, list) else [types] if isinstance(types, str) else []


def _pattern(schema: JsonObject, char: str) -> str:
    """A regular expression for the texts of `char`s that a schema allows."""
    pattern = schema.get("pattern")
    if isinstance(pattern, str) and len(pattern) < 1000 and char == "(?s:.)":
        before = "" if pattern.startswith("^") else "(?s:.*)"
        after = "" if re.search(r"(?<!\\)\$$", pattern) else "(?s:.*)"
        inner = pattern.removeprefix("^")
        inner = inner.removesuffix("$") if not after else inner
        return f"{before}({inner}){after}".replace("/", "\\/")
    low, high = schema.get("minLength"), schema.get("maxLength")
    if isinstance(low, int) or isinstance(high, int):
        return f"{char}{{{low or 0},{high if isinstance(high, int) else ''}}}"
    return f"{char}*"
