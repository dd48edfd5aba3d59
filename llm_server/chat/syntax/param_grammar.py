"""The grammar of arguments that are parameters one by one: what `params` reads, by a schema."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import chain, product

from llm_server.chat.grammar import Lark
from llm_server.chat.syntax.format import Kind, ParamArgs, Wrapper
from llm_server.chat.syntax.formats import FORMATS
from llm_server.chat.syntax.literal import Slot, fill, text_of
from llm_server.chat.syntax.patterns import search_regex
from llm_server.chat.syntax.values import JsonValue, kinds_of, read_value, resolve
from llm_server.errors import InvalidRequest
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

_NUMBER = r"/-?(0|[1-9][0-9]{0,15})(\.[0-9]{1,15})?/"
TEXT = frozenset({"string"})
_INTEGER = r"/-?(0|[1-9][0-9]{0,15})/"


class ParamGrammar:
    """Writes one tool's parameters into a grammar, in the order of its schema.

    Raises InvalidRequest for `param` where a schema cannot be said in a grammar of raw texts.
    """

    def __init__(
        self, lark: Lark, args: ParamArgs, schema: JsonObject, *, strict: bool, param: str
    ) -> None:
        self._lark = lark
        self._args = args
        self._schema = schema
        self._strict = strict
        self._param = param

    def parameters(self) -> str:
        """An expression for all parameters, with their separators."""
        properties = self._schema.get("properties") or {}
        required = set(self._schema.get("required") or ())
        if not properties:
            return "" if self._schema.get("additionalProperties") is False else self._free()
        parts = []
        for key, part in properties.items():
            kinds = kinds_of(part, self._schema)
            # Where null is not written, a parameter that may be null may be left out.
            may_lack = "null" in kinds and "null" not in self._args.wrappers
            if not may_lack or kinds != {"null"}:
                parts.append((self.parameter(key, part), key in required and not may_lack))
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
        head = self._lark.text(text_of(self._args.pre) + key)
        branches = [(part, self._kinds(part)) for part in self._branches(schema)]
        kinds = frozenset[str]().union(*(found for _, found in branches))
        texts = [part for part, found in branches if "string" in found and self._writes_text]
        options = [
            text
            for part in texts
            if (text := self._text(self._args.wrappers["string"], key, part, kinds))
        ]
        wrappers = self._args.wrappers
        if wrappers["number"].mid == wrappers["string"].mid and any(map(_is_free, texts)):
            branches = []  # any text is allowed here already
        for part, found in branches:
            rest = found - {"string"} if self._writes_text else found
            options += self._grouped(key, part, rest)
        return self._lark.rule(f"{head} ( {' | '.join(dict.fromkeys(options))} )")

    def _grouped(self, key: str, schema: JsonValue, kinds: frozenset[str]) -> list[str]:
        """Expressions for values of some kinds, those wrapped alike together."""
        groups: dict[tuple[str, str], list[Kind]] = {}
        for kind, wrapper in self._args.wrappers.items():
            if kind in kinds:
                groups.setdefault(self._around(wrapper, key), []).append(kind)
        return [
            " ".join(part for part in (mid, self._value(schema, found), post) if part)
            for (mid, post), found in groups.items()
        ]

    @property
    def _writes_text(self) -> bool:
        return self._args.escape != "json"

    def _kinds(self, schema: JsonValue) -> frozenset[str]:
        """The kinds of a schema that this dialect can write; all, if it can write none."""
        kinds = kinds_of(schema, self._schema)
        return kinds & self._args.wrappers.keys() or kinds

    def _branches(self, schema: JsonValue, depth: int = 0) -> list[JsonValue]:
        """The alternatives of a schema, each without alternatives of its own."""
        schema = self._resolved(schema)
        if isinstance(schema, dict) and depth < MAX_DEPTH:
            for word in ("anyOf", "oneOf", "allOf"):
                if not (isinstance(parts := schema.get(word), list) and parts):
                    continue
                rest = {key: value for key, value in schema.items() if key != word}
                if word == "allOf":
                    return self._all_of([rest, *parts], depth + 1)
                return [b for part in parts for b in self._all_of([rest, part], depth + 1)]
        return [schema]

    def _all_of(self, parts: Sequence[JsonValue], depth: int) -> list[JsonValue]:
        """The alternatives that are left where all of `parts` hold."""
        found = [self._branches(part, depth) for part in parts if part is not True]
        if math.prod(map(len, found)) > MAX_BRANCHES:
            raise InvalidRequest(
                f"The schema's `allOf` and `anyOf` make more than {MAX_BRANCHES} alternatives of "
                "one parameter.",
                param=self._param,
                code="invalid_json_schema",
            )
        chosen = [[b for b in branch if isinstance(b, dict)] for branch in product(*found)]
        return [_merged(branch) for branch in chosen if _agree(branch)] or [{}]

    def _resolved(self, schema: JsonValue) -> JsonValue:
        """`schema`, or what its local reference stands for."""
        for _ in range(MAX_DEPTH):
            if not (isinstance(schema, dict) and isinstance(schema.get("$ref"), str)):
                break
            rest = {key: value for key, value in schema.items() if key != "$ref"}
            target = resolve(schema["$ref"], self._schema)
            schema = {"allOf": [rest, target]} if rest.keys() - _NOTES else target
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

    def _text(
        self, wrapper: Wrapper, key: str, schema: JsonValue, kinds: frozenset[str] = TEXT
    ) -> str:
        """A text as it is, with what stands around it; empty if there is none to choose from.

        Where other `kinds` are written alike, only texts that are not read as one of those.
        """
        mid = self._lark.text(text_of(wrapper.mid))
        post = text_of(fill(wrapper.post, {Slot.KEY: key}))
        schema = schema if isinstance(schema, dict) else {}
        values, bounds = _values(schema), self._bounds(schema)
        if values is not None:
            texts = [v for v in values if isinstance(v, str) and self._reads_back(v, kinds)]
            if not texts:
                return ""
            if not bounds:
                return f"{mid} ( {' | '.join(self._lark.text(text + post) for text in texts)} )"
            bounds.append(f"/{'|'.join(map(_escaped, texts))}/")
        return f"{mid} {self._lark.any_text_until(post, self._body(bounds, post))}"

    def _reads_back(self, text: str, kinds: frozenset[str]) -> bool:
        return kinds == TEXT or not kinds_of({"const": read_value(text, self._args, None)}) & (
            kinds - TEXT
        )

    def _bounds(self, schema: JsonObject) -> list[str]:
        """Regular expressions that all match the texts that a schema allows, but for its values."""
        bounds = []
        for part in _parts(schema):
            if isinstance(part.get("pattern"), str):
                bounds.append(f"/{search_regex(part['pattern'], self._param)}/")
            if part.get("format") in FORMATS:
                bounds.append(f"/{FORMATS[part['format']]}/")
            low, high = part.get("minLength"), part.get("maxLength")
            if isinstance(low, int) or isinstance(high, int):
                bounds.append(f"/(?s:.){{{low or 0},{high if isinstance(high, int) else ''}}}/")
        return bounds

    def _body(self, bounds: list[str], post: str) -> str:
        """A regular expression for the texts within `bounds` before `post`."""
        escaped = self._args.escape in ("xml", "cdata")
        parts = ["/[^<&]*/" if escaped else "/(?s:.*)/", *bounds]
        lead, _ = self._lark.leading(post)
        if len(parts) == 1 and lead:
            return parts[0]
        # A text that holds its own end would be cut there.
        parts.append(f"~/(?s:.*){_escaped(post.strip())}(?s:.*)/")
        return self._lark.terminal(" & ".join(parts))

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
        branches = self._branches(schema)
        schema = branches[0] if len(branches) == 1 else self._resolved(schema)
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


def _parts(schema: JsonObject) -> list[JsonObject]:
    """A schema without alternatives, and the parts that `_merged` left in its `allOf`."""
    return [schema, *schema.get("allOf", ())]


def _agree(parts: Sequence[JsonObject]) -> bool:
    """Whether some type of value is allowed by all of `parts`."""
    return bool(frozenset.intersection(kinds_of(None), *map(kinds_of, parts)))


def _merged(parts: Sequence[JsonObject]) -> JsonObject:
    """One schema for all of `parts`, which have no alternatives; what does not go together stays
    in its `allOf`."""
    whole: JsonObject = {}
    others: list[JsonObject] = []
    for part in chain.from_iterable(map(_parts, parts)):
        bare = {key: value for key, value in part.items() if key not in _NOTES | {"allOf"}}
        split = any(keys & whole.keys() and keys & bare.keys() for keys in _TOGETHER)
        if split or any(whole.get(key, value) != value for key, value in bare.items()):
            others.append(bare)
        else:
            whole = {**whole, **bare}
    return {**whole, "allOf": others} if others else whole


def _values(schema: JsonObject) -> list[JsonValue] | None:
    """The only values that a schema allows, if it lists them."""
    found: list[JsonValue] | None = None
    for part in _parts(schema):
        values = [part["const"]] if "const" in part else part.get("enum")
        if isinstance(values, list) and values:
            found = values if found is None else [value for value in found if value in values]
    return found


def _escaped(text: str) -> str:
    """An expression for this text alone, ready to stand between slashes."""
    return re.escape(text).replace("/", "\\/").replace("\\\n", "\\n")


def _is_free(schema: JsonValue) -> bool:
    """Whether any text fits a schema."""
    if not isinstance(schema, dict):
        return True
    bounds = {"const", "enum", "pattern", "minLength", "maxLength", "allOf"}
    return not bounds & schema.keys() and schema.get("format") not in FORMATS
