"""The grammar of arguments that are parameters one by one: what `params` reads, by a schema."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from functools import partial

from llm_server.chat.grammar import Lark
from llm_server.chat.syntax.alternatives import (
    MAX_DEPTH,
    Alternatives,
    Members,
    joined,
    members_of,
    mixed,
    narrowed,
    parts_of,
    types_of,
    values_of,
)
from llm_server.chat.syntax.format import Kind, ParamArgs, Wrapper
from llm_server.chat.syntax.formats import is_free
from llm_server.chat.syntax.literal import Literal, Slot, fill, text_of
from llm_server.chat.syntax.names import Names
from llm_server.chat.syntax.patterns import escaped
from llm_server.chat.syntax.texts import bounds_of
from llm_server.chat.syntax.values import JsonValue, count_of, kinds_of, read_value
from llm_server.errors import InvalidSchema
from llm_server.worker.messages import JsonObject

_NUMBER = r"/-?(0|[1-9][0-9]{0,15})(\.[0-9]{1,15})?/"
_NUMBERS = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"})
"""What JSON Schema says of numbers."""
_NAME = "/[a-zA-Z_][a-zA-Z0-9_]{0,63}/"
_SINGLE_QUOTED = r"""/'([^'\\\x00-\x1F\x7F]|\\['"\\nrt])*'/"""
_ESCAPES = str.maketrans({"\\": r"\\", "'": r"\'", "\n": r"\n", "\r": r"\r", "\t": r"\t"})
TEXT = frozenset({"string"})
_INTEGER = r"/-?(0|[1-9][0-9]{0,15})/"


class ParamGrammar:
    """Writes one tool's parameters into a grammar, in the order of its schema.

    `tails` are what may follow the last one. Raises InvalidSchema for `param` where a schema
    cannot be said in a grammar of raw texts.
    """

    def __init__(
        self,
        lark: Lark,
        args: ParamArgs,
        schema: JsonObject,
        tails: Sequence[Literal],
        *,
        strict: bool,
        param: str,
    ) -> None:
        self._lark = lark
        self._args = args
        self._schema = schema
        self._alternatives = Alternatives(schema, param)
        self._names = Names(args, tails, param)
        self._written: dict[tuple[str, tuple[str, ...], int], str] = {}
        self._bounds = partial(bounds_of, strict=strict, param=param)
        self._strict = strict
        self._param = param

    def parameters(self) -> str:
        """An expression for all parameters, with their separators."""
        branches = self._alternatives.members()
        if self._strict and (key := mixed(branches, self._kinds)) is not None:
            raise self._refusal(f"Alternatives that differ in the type of `{key}`")
        always = joined(branches).required
        options = [self._parameters(members, always) or '""' for members in branches]
        return f"( {' | '.join(dict.fromkeys(options))} )"

    def _check_words(self, members: Members) -> None:
        if self._strict and members.unsaid:
            raise self._refusal(" and ".join(members.unsaid))

    def _refusal(self, what: str) -> InvalidSchema:
        return InvalidSchema(
            f"{what} cannot be enforced in this model's syntax of calls.", self._param
        )

    def _parameters(self, members: Members, always: Collection[str]) -> str:
        """An expression for the parameters of one alternative; `always`: required in all."""
        self._check_words(members)
        if not members.properties:
            return "" if members.others is False else self._free(members.others)
        parts = []
        for key, part in self._in_order(members.properties):
            kinds, required = kinds_of(part, self._schema), key in members.required
            # Where null is not written, a parameter that may be null may be left out.
            may_lack = "null" in kinds and "null" not in self._args.wrappers
            needed = required and not (may_lack and key in always)
            if may_lack and kinds == {"null"}:
                continue
            if self._names.carries(key, required=needed):
                parts.append((self.parameter(key, part), needed))
        return self._sequence(parts, text_of(self._args.separator))

    def _in_order(self, properties: JsonObject) -> Iterator[tuple[str, JsonValue]]:
        """Parameters or members as the model writes them; by Jinja's `dictsort` if it sorts."""
        names = sorted(properties, key=str.lower) if self._args.sorts else list(properties)
        return ((name, properties[name]) for name in names)

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

    def _free(self, others: JsonValue) -> str:
        """Parameters of any name, for a tool that does not name its own."""
        wrapper = self._args.wrappers["string"]
        if any(isinstance(part, Slot) for part in wrapper.post):
            return ""
        pre = self._lark.text(text_of(self._args.pre))
        if isinstance(others, dict) and others:
            values = self._values("", others)
        elif self._writes_text:
            values = [self._text(wrapper, "", {})]
        else:
            values = self._grouped("", {}, frozenset(self._args.wrappers))
        one = self._lark.rule(f"{pre} {_NAME} ( {' | '.join(values)} )")
        between = self._lark.text(text_of(self._args.separator))
        return self._lark.rule(f'"" | {one} ( {between} {one} )*')

    def parameter(self, key: str, schema: JsonValue) -> str:
        """An expression for one parameter."""
        head = self._lark.text(text_of(self._args.pre) + key)
        return self._lark.rule(f"{head} ( {' | '.join(self._values(key, schema))} )")

    def _values(self, key: str, schema: JsonValue) -> list[str]:
        """Expressions for what may follow the name of a parameter."""
        branches = [(part, self._kinds(part)) for part in self._alternatives.of(schema)]
        kinds = frozenset[str]().union(*(found for _, found in branches))
        texts = [part for part, found in branches if "string" in found and self._writes_text]
        options = [
            text
            for part in texts
            if (text := self._text(self._args.wrappers["string"], key, part, kinds))
        ]
        wrappers = self._args.wrappers
        if wrappers["number"].mid == wrappers["string"].mid and any(map(is_free, texts)):
            branches = []  # any text is allowed here already
        for part, found in branches:
            rest = found - {"string"} if self._writes_text else found
            options += self._grouped(key, part, rest)
        return list(dict.fromkeys(options))

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
        return not self._args.quoted

    def _kinds(self, schema: JsonValue) -> frozenset[str]:
        """The kinds of a schema that this dialect can write; all, if it can write none."""
        kinds = kinds_of(schema, self._schema)
        return kinds & self._args.wrappers.keys() or kinds

    def _json(self, schema: JsonValue, kinds: Sequence[str]) -> str:
        alone = self._alternatives.alone(narrowed(schema, kinds))
        return self._lark.json(alone, spaced=True, lenient=not self._strict)

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
        values, bounds = values_of(schema), self._bounds(schema)
        if values is not None:
            texts = [v for v in values if isinstance(v, str) and self._reads_back(v, kinds)]
            if not texts:
                return ""
            if not bounds:
                return f"{mid} ( {' | '.join(self._lark.text(text + post) for text in texts)} )"
            bounds.append(f"/{'|'.join(map(escaped, texts))}/")
        return f"{mid} {self._lark.any_text_until(post, self._body(bounds, post))}"

    def _reads_back(self, text: str, kinds: frozenset[str]) -> bool:
        return kinds == TEXT or not kinds_of({"const": read_value(text, self._args, None)}) & (
            kinds - TEXT
        )

    def _body(self, bounds: list[str], post: str) -> str:
        """A regular expression for the texts within `bounds` before `post`."""
        in_xml = self._args.escape in ("xml", "cdata")
        parts = ["/[^<&]*/" if in_xml else "/(?s:.*)/", *bounds]
        lead, _ = self._lark.leading(post)
        if len(parts) == 1 and lead:
            return parts[0]
        # A text that holds its own end would be cut there.
        parts.append(f"~/(?s:.*){escaped(post.strip())}(?s:.*)/")
        return self._lark.terminal(" & ".join(parts))

    def _value(self, schema: JsonValue, kinds: Sequence[Kind]) -> str:
        """A value of one of these kinds, as the dialect writes it."""
        if self._args.quote is not None or self._args.item or self._args.member:
            return self._dialect(schema, kinds, 0) or self._nothing()
        if self._args.words[0] == "true" or set(kinds) <= {"number", "array", "object"}:
            return self._json(schema, kinds)
        part = schema if isinstance(schema, dict) else {}
        words = [kind for kind in ("boolean", "null") if kind in kinds]
        options = [option for kind in words for option in self._of_kind(kind, part, 0)]
        rest: list[Kind] = [k for k in kinds if k not in ("boolean", "null")]
        if rest:
            options.append(self._json(schema, rest))
        if "string" in kinds and self._args.escape == "python":
            options += self._single_quoted(part)
        return f"( {' | '.join(options)} )"

    def _single_quoted(self, schema: JsonObject) -> list[str]:
        """Texts between single quotes; within bounds they stand between double ones alone."""
        if self._bounds(schema):
            return []
        values = values_of(schema)
        if values is None:
            return [_SINGLE_QUOTED]
        escaped = (v.translate(_ESCAPES) for v in values if isinstance(v, str))
        return [self._lark.text(f"'{text}'") for text in escaped]

    def _dialect(self, schema: JsonValue, kinds: Sequence[str], depth: int) -> str:
        """A value in a syntax of its own; empty if there is none that is not too deep.

        The same part at the same depth is written once.
        """
        key = json.dumps(schema, sort_keys=True), tuple(kinds), depth
        if key not in self._written:
            options: list[str] = []
            for part in self._alternatives.of(schema):
                part = part if isinstance(part, dict) else {}
                found = kinds_of(part, self._schema)
                for kind in kinds:
                    if kind in found:
                        options += filter(None, self._of_kind(kind, part, depth))
            expression = " | ".join(dict.fromkeys(options))
            self._written[key] = self._lark.rule(expression) if options else ""
        return self._written[key]

    def _nothing(self) -> str:
        """In place of a value that there must be and cannot be."""
        if self._strict:
            raise self._refusal(f"Values that lie deeper than {MAX_DEPTH} levels")
        return self._lark.text(self._args.words[2])

    def _of_kind(self, kind: str, schema: JsonObject, depth: int) -> list[str]:
        """Expressions for the values of one kind; none for what lies too deep."""
        values = values_of(schema)
        if kind == "string":
            return [self._dialect_text(schema)]
        if kind == "number":
            if values is not None or any(_NUMBERS & part.keys() for part in parts_of(schema)):
                return [self._json(schema, ["number"])]
            types = types_of(schema)
            whole = "integer" in types and "number" not in types
            return [_INTEGER if whole else _NUMBER]
        if kind == "boolean":
            words = zip((True, False), self._args.words, strict=False)
            among = values if values is not None else [True, False]
            return [self._lark.text(word) for value, word in words if _holds(among, value)]
        if kind == "null":
            return [self._lark.text(self._args.words[2])]
        if depth >= MAX_DEPTH:
            return []
        if values is not None:
            of_kind = list if kind == "array" else dict
            return [self._exactly(value, depth) for value in values if isinstance(value, of_kind)]
        return [self._array(schema, depth) if kind == "array" else self._object(schema, depth)]

    def _dialect_text(self, schema: JsonObject) -> str:
        opening, closing = self._args.quote or ("", "")
        if closing:
            return self._text(Wrapper((opening,), (closing,)), "", schema)
        values, bounds = values_of(schema), self._bounds(schema)
        if values is not None and not bounds:
            return " | ".join(self._lark.text(v) for v in values if isinstance(v, str) and v)
        if values is not None:
            texts = [value for value in values if isinstance(value, str)]
            bounds.append(f"/{'|'.join(map(escaped, texts))}/")
        return self._lark.terminal(" & ".join(["/[^<>\\]]+/", *bounds]))

    def _exactly(self, value: list[JsonValue] | JsonObject, depth: int) -> str:
        """This array or object and no other."""
        if isinstance(value, dict):
            members = {key: {"const": part} for key, part in value.items()}
            only = {"properties": members, "required": [*value], "additionalProperties": False}
            return self._object(only, depth)
        items = [self._inner({"const": part}, depth) or self._nothing() for part in value]
        if self._args.item is None:
            listed = ' "," '.join(items)
            return f'"[" {listed} "]"'
        before, after = self._around(self._args.item, "")
        return " ".join(f"{before} {item} {after}" for item in items) or '""'

    def _inner(self, schema: JsonValue, depth: int) -> str:
        kinds = sorted(kinds_of(schema, self._schema))
        if depth and not isinstance(schema, dict):
            kinds = ["string", "number", "boolean"]
        return self._dialect(schema, kinds, depth + 1)

    def _array(self, schema: JsonObject, depth: int) -> str:
        """Items of one schema, as many as are allowed."""
        for part in parts_of(schema):
            if self._strict and ("prefixItems" in part or isinstance(part.get("items"), list)):
                raise self._refusal("prefixItems")
        inner = self._inner(schema.get("items"), depth)
        low = max(count_of(part.get("minItems")) or 0 for part in parts_of(schema))
        highs = [count_of(part.get("maxItems")) for part in parts_of(schema)]
        high = min((max(low, most) for most in highs if most is not None), default=None)
        if not inner and low:
            inner = self._nothing()
        elif not inner:
            high = 0
        if self._args.item is not None:
            before, after = self._around(self._args.item, "")
            if high == 0:
                return '""'
            return self._lark.rule(f"( {before} {inner} {after} ){_times(low, high)}")
        if high == 0:
            return '"[]"'
        more = f'( "," {inner} ){_times(max(0, low - 1), high and high - 1)}' if high != 1 else ""
        few = "" if low else '"" | '
        return self._lark.rule(f'"[" ( {few}{inner} {more} ) "]"')

    def _object(self, schema: JsonObject, depth: int) -> str:
        members = members_of(schema)
        self._check_words(members)
        parts = []
        for key, part in self._in_order(members.properties):
            required = key in members.required
            value = self._inner(part, depth)
            if not value and not required:
                continue
            if not self._names.carries(key, required=required, inside=True):
                continue
            value = value or self._nothing()
            if self._args.member is not None:
                opening = text_of(self._args.pre) + key + text_of(self._args.member.mid)
                closing = text_of(fill(self._args.member.post, {Slot.KEY: key}))
                member = f"{self._lark.text(opening)} {value} {self._lark.text(closing)}"
            else:
                member = f"{self._lark.text(key + ':')} {value}"
            parts.append((self._lark.rule(member), required))
        if self._args.member is not None:
            return self._sequence(parts, "") if parts else '""'
        inside = self._sequence(parts, ",") if parts else self._free_members(members.others, depth)
        return self._lark.rule(f'"{{" {inside} "}}"')

    def _free_members(self, others: JsonValue, depth: int) -> str:
        """Members of any name, where a schema names none and forbids none."""
        value = "" if others is False else self._inner(others, depth)
        if not value:
            return ""
        one = self._lark.rule(f'{_NAME} ":" {value}')
        return self._lark.rule(f'"" | {one} ( "," {one} )*')


def _times(low: int, high: int | None) -> str:
    return f"{{{low},{'' if high is None else high}}}"


def _holds(values: Sequence[JsonValue], boolean: bool) -> bool:
    """Whether this very value is among them: for Python 1 is True."""
    return any(value is boolean for value in values)
