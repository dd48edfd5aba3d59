"""Values of parameters: from the spelling of a dialect to JSON.

Never evaluates anything: JSON, Python's literals, and the measured dialects only. What cannot be
read is text.
"""

from __future__ import annotations

import ast
import html
import json
import math
import re
import sys
from typing import Any, TypeAlias
from urllib.parse import unquote

from llm_server.chat.syntax.format import KINDS, ParamArgs
from llm_server.chat.syntax.literal import Slot, fill, text_of

JsonValue: TypeAlias = Any
"""What JSON can hold."""

DEFINITIONS = ("$defs", "definitions")
"""Where a schema has what its references lead to."""

MAX_NESTING = 64
_WORDS = {"true": True, "false": False, "null": None, "True": True, "False": False, "None": None}
_KINDS = {
    bool: "boolean",
    type(None): "null",
    int: "number",
    float: "number",
    str: "string",
    list: "array",
}
_NUMBER = re.compile(r"-?\d+(\.\d+)?([eE][+-]?\d+)?")
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_SIGNS = {"\\": "\\", "'": "'", '"': '"', "n": "\n", "t": "\t", "r": "\r", "\n": ""}
_WORD = re.compile(r"[^,:{}\[\]]*")


class _Unreadable(Exception):
    """The text is no value of this dialect."""


def read_text(raw: str, args: ParamArgs) -> str:
    """The text that a parameter's raw text stands for."""
    if args.escape == "xml":
        return html.unescape(raw)
    if args.escape == "cdata" and raw.startswith("<![CDATA[") and raw.endswith("]]>"):
        return raw[len("<![CDATA[") : -len("]]>")]
    return raw


def read_value(raw: str, args: ParamArgs, schema: JsonValue, root: JsonValue = None) -> JsonValue:
    """The value that a parameter's raw text stands for; the text itself if it is none.

    Follows local references of `root`.
    """
    text = read_text(raw, args).strip()
    if text in args.words:
        return (True, False, None)[args.words.index(text)]
    try:
        if args.item is not None or args.member is not None:
            return _read_elements(text, args, schema, root)
        if args.quote is not None:
            value, end = _read_dialect(text, 0, args.quote, 0)
            if text[end:].strip():
                raise _Unreadable
            return value
        return read_literal(text)
    except (_Unreadable, RecursionError):
        return _in_quotes(text) if args.escape == "python" else read_text(raw, args)


def _in_quotes(text: str) -> str:
    """A text between quotes that is no literal: with line breaks, or with quotes that are not
    escaped, as some templates write them. Nothing is escaped then."""
    quote = text[:1]
    if quote not in ("'", '"') or len(text) < 2 or not text.endswith(quote):
        return text
    inner = text[1:-1]
    if _ESCAPED.sub("", inner).count(quote):
        return inner
    return _ESCAPED.sub(lambda match: _SIGNS.get(match[1], match[0]), inner)


def read_literal(text: str) -> JsonValue:
    """JSON, or a literal as Python prints it."""
    try:
        return json.loads(text, parse_constant=_refuse, parse_float=finite)
    except ValueError:
        pass
    try:
        value = ast.literal_eval(text)
        json.dumps(value, allow_nan=False)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise _Unreadable from None
    return value


def finite(spelled: str) -> float:
    """A number of JSON; the largest of its sign for what overflows, since JSON has no infinity."""
    value = float(spelled)
    return value if math.isfinite(value) else math.copysign(sys.float_info.max, value)


def _refuse(constant: str) -> JsonValue:
    raise ValueError(constant)


def _read_dialect(text: str, at: int, quote: tuple[str, str], depth: int) -> tuple[JsonValue, int]:
    """Objects with bare keys, texts between `quote`."""
    if depth > MAX_NESTING:
        raise _Unreadable
    if text.startswith(quote[0], at):
        start = at + len(quote[0])
        end = text.find(quote[1], start)
        if end < 0:
            raise _Unreadable
        return text[start:end], end + len(quote[1])
    if text.startswith("[", at):
        return _read_array(text, at + 1, quote, depth)
    if text.startswith("{", at):
        return _read_object(text, at + 1, quote, depth)
    word = _WORD.match(text, at)
    assert word is not None
    spelled = word.group().strip()
    if spelled in _WORDS:
        return _WORDS[spelled], word.end()
    if _NUMBER.fullmatch(spelled):
        return json.loads(spelled, parse_float=finite), word.end()
    raise _Unreadable


def _read_array(text: str, at: int, quote: tuple[str, str], depth: int) -> tuple[JsonValue, int]:
    items: list[JsonValue] = []
    while not text.startswith("]", at):
        value, at = _read_dialect(text, at, quote, depth + 1)
        items.append(value)
        if text.startswith(",", at):
            at += 1
        elif not text.startswith("]", at):
            raise _Unreadable
    return items, at + 1


def _read_object(text: str, at: int, quote: tuple[str, str], depth: int) -> tuple[JsonValue, int]:
    members: dict[str, JsonValue] = {}
    while not text.startswith("}", at):
        colon = text.find(":", at)
        if colon < 0:
            raise _Unreadable
        key = text[at:colon].strip()
        if key.startswith(quote[0]) and key.endswith(quote[1]):
            key = key[len(quote[0]) : -len(quote[1])]
        members[key], at = _read_dialect(text, colon + 1, quote, depth + 1)
        if text.startswith(",", at):
            at += 1
        elif not text.startswith("}", at):
            raise _Unreadable
    return members, at + 1


def _read_elements(
    text: str, args: ParamArgs, schema: JsonValue, root: JsonValue, depth: int = 0
) -> JsonValue:
    """Arrays and objects as elements; texts and numbers look alike, the schema tells."""
    if depth > MAX_NESTING:
        raise _Unreadable
    kinds = kinds_of(schema, root)
    while isinstance(schema, dict) and isinstance(schema.get("$ref"), str) and depth < MAX_NESTING:
        schema, depth = resolve(schema["$ref"], root), depth + 1
    schema = schema if isinstance(schema, dict) else {}
    opening = text_of(args.item.mid) if args.item is not None else ""
    # A member may be called as items are.
    listed = "array" in kinds or ("object" not in kinds and text.startswith(opening))
    if args.item is not None and listed:
        parts = _split_items(text, opening, text_of(args.item.post))
        if parts is not None:
            inner = schema.get("items")
            return [_read_elements(part, args, inner, root, depth + 1) for part in parts]
    if args.member is not None and ("object" in kinds or text.startswith(text_of(args.pre))):
        members = _split_members(text, args)
        if members is not None:
            inner = schema.get("properties") or {}
            return {
                key: _read_elements(part, args, inner.get(key), root, depth + 1)
                for key, part in members
            }
    if kinds == {"string"}:
        return text
    try:
        return read_literal(text)
    except _Unreadable:
        return text


def _split_items(text: str, opening: str, closing: str) -> list[str] | None:
    """The contents of elements of one name, one after the other; None if the text is not that."""
    items: list[str] = []
    at = 0
    while at < len(text):
        end = _content_end(text, at, opening, closing)
        if end < 0:
            return None
        items.append(text[at + len(opening) : end])
        at = end + len(closing)
    return items


def _split_members(text: str, args: ParamArgs) -> list[tuple[str, str]] | None:
    """Names and contents of elements of any name; None if the text is not that."""
    assert args.member is not None
    members: list[tuple[str, str]] = []
    before, mid = text_of(args.pre), text_of(args.member.mid)
    at = 0
    while at < len(text):
        name_end = text.find(mid, at + len(before))
        key = text[at + len(before) : max(name_end, at)]
        opening = f"{before}{key}{mid}"
        closing = text_of(fill(args.member.post, {Slot.KEY: key}))
        end = _content_end(text, at, opening, closing) if key else -1
        if end < 0:
            return None
        members.append((key, text[at + len(opening) : end]))
        at = end + len(closing)
    return members


def _content_end(text: str, at: int, opening: str, closing: str) -> int:
    """Where the element that `opening` begins at `at` is closed; -1 if that is not so."""
    if not text.startswith(opening, at):
        return -1
    depth, at = 1, at + len(opening)
    while True:
        end = text.find(closing, at)
        nested = text.find(opening, at, max(end, 0))
        if end < 0:
            return -1
        if nested >= 0:
            depth, at = depth + 1, nested + len(opening)
            continue
        depth -= 1
        if not depth:
            return end
        at = end + len(closing)


def kinds_of(schema: JsonValue, root: JsonValue = None, depth: int = 0) -> frozenset[str]:
    """The JSON types that a schema allows, "number" for integers too; all six if it says nothing.

    Follows local references of `root`.
    """
    everything = frozenset[str](KINDS)
    if not isinstance(schema, dict) or depth > 8:
        return everything
    if isinstance(schema.get("$ref"), str) and root is not None:
        return kinds_of(resolve(schema["$ref"], root), root, depth + 1)
    for key in ("anyOf", "oneOf"):
        if isinstance(schema.get(key), list) and schema[key]:
            parts = [kinds_of(part, root, depth + 1) for part in schema[key]]
            return frozenset().union(*parts)
    if isinstance(schema.get("allOf"), list) and schema["allOf"]:
        found = [kinds_of(part, root, depth + 1) for part in schema["allOf"]]
        rest = {key: value for key, value in schema.items() if key != "allOf"}
        return everything.intersection(kinds_of(rest, root, depth + 1), *found) or everything
    if "const" in schema or isinstance(schema.get("enum"), list):
        values = [schema["const"]] if "const" in schema else schema["enum"]
        return frozenset(_KINDS.get(type(value), "object") for value in values)
    types = schema.get("type")
    names = types if isinstance(types, list) else [types]
    known = {"number" if name == "integer" else str(name) for name in names}
    return everything & known or everything


def resolve(reference: str, root: JsonValue) -> JsonValue:
    """What a local reference of a schema stands for; None if nothing."""
    target = root
    for part in unquote(reference).removeprefix("#").split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(target, list):
            target = target[int(key)] if key.isdecimal() and int(key) < len(target) else None
        else:
            target = target.get(key) if isinstance(target, dict) else None
    return target


def count_of(bound: JsonValue) -> int | None:
    """A number of items that a schema tells; None for what is none."""
    return int(bound) if isinstance(bound, int | float) and not isinstance(bound, bool) else None
