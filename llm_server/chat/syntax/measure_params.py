"""Measuring calls whose arguments are parameters one by one instead of one JSON object.

It looks at renders of probe calls only; `measure` makes them.
"""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Sequence
from typing import Literal as OneOf

from llm_server.chat.syntax.format import KINDS, Kind, ParamArgs, Wrapper
from llm_server.chat.syntax.literal import (
    Literal,
    Slot,
    build,
    common_prefix,
    common_suffix,
)
from llm_server.chat.syntax.probes import KEYS, VALUES
from llm_server.worker.messages import JsonObject

_HOLE = "\x00"
_AWKWARD = 'a<b&"c\n'
_ARRAY = [VALUES[0]]
_OBJECT = {KEYS[1]: VALUES[0]}
_SPELLINGS: tuple[tuple[Kind, object, tuple[str, ...]], ...] = (
    ("boolean", True, ("true", "True")),
    ("null", None, ("null", "None", "none", "nil")),
    ("array", _ARRAY, (json.dumps(_ARRAY), repr(_ARRAY))),
    ("object", _OBJECT, (json.dumps(_OBJECT), repr(_OBJECT))),
)

Render = Callable[[JsonObject], str | None]


class _Mismatch(Exception):
    """A render does not look as the others make expect."""


def measure_params(body: str, render: Render) -> tuple[ParamArgs, str, str, str] | None:
    """The arguments' format, their text in `body`, and the texts before and after them."""
    try:
        return _measure(body, render)
    except (_Mismatch, ValueError, IndexError):
        return None


def _sorts(render: Render) -> bool:
    turned = render(dict(zip(KEYS[::-1], VALUES[::-1], strict=True))) or ""
    return 0 <= turned.find(VALUES[0]) < turned.find(VALUES[1])


def _measure(body: str, render: Render) -> tuple[ParamArgs, str, str, str]:
    key_a, rest = _cut(body, KEYS[0])
    mid, rest = _cut(rest, VALUES[0])
    between, rest = _cut(rest.replace(KEYS[0], _HOLE), KEYS[1])
    mid_b, after = _cut(rest, VALUES[1])
    if mid != mid_b:
        raise _Mismatch
    after = after.replace(KEYS[1], _HOLE)
    pre = common_suffix(key_a, between)
    middle = between[: len(between) - len(pre)]
    post = common_prefix(middle, after)
    separator, tail = middle[len(post) :], after[len(post) :]
    if not mid or not (tail or post):
        raise _Mismatch
    wrappers: dict[Kind, Wrapper] = {"string": Wrapper(_literal(mid), _literal(post))}
    values = _Values(render, key_a, tail)
    values.measure(wrappers)
    args = ParamArgs(
        pre=build(pre),
        separator=build(separator),
        wrappers=wrappers,
        escape="python" if _in_quotes(mid, post, wrappers) else values.escape(mid, post),
        quote=values.quote,
        item=values.item,
        member=values.member,
        words=values.words(),
        sorts=_sorts(render),
    )
    if args.quoted:
        wrappers["string"] = wrappers["number"]
    region = "".join(
        (pre, KEYS[0], mid, VALUES[0], post.replace(_HOLE, KEYS[0]), separator)
        + (pre, KEYS[1], mid, VALUES[1], post.replace(_HOLE, KEYS[1]))
    )
    return args, region, key_a[: len(key_a) - len(pre)], tail.replace(_HOLE, KEYS[1])


class _Values:
    """Renders one parameter of each kind and reads off what stands around the value."""

    def __init__(self, render: Render, before: str, tail: str) -> None:
        self._render = render
        self._before = before
        self._tail = tail
        self._post = ""
        self._spelled: dict[Kind, str] = {}
        self.quote: tuple[str, str] | None = None
        self.item: Wrapper | None = None
        self.member: Wrapper | None = None

    def measure(self, wrappers: dict[Kind, Wrapper]) -> None:
        """Fill in the wrappers of the kinds other than text."""
        mid, self._post = _cut(self._value({KEYS[0]: 7310}, ""), "7310")
        for kind in KINDS[1:]:
            wrappers[kind] = Wrapper(_literal(mid), _literal(self._post))
        for kind, value, spellings in _SPELLINGS:
            try:
                text = self._value({KEYS[0]: value}, self._post)
            except _Mismatch:
                if kind == "null":  # left out or refused: there is no way to write it
                    del wrappers[kind]
                continue
            spelled = next((s for s in _written(spellings) if text.endswith(s)), None)
            if spelled is None:
                spelled = text.removeprefix(mid)
                self._dialect(value, spelled)
            self._spelled[kind] = spelled
            wrappers[kind] = Wrapper(
                _literal(text[: len(text) - len(spelled)]), _literal(self._post)
            )

    def escape(self, mid: str, post: str) -> OneOf["raw", "xml", "cdata", "json"]:
        """How a text with signs of its own is written."""
        try:
            text = self._value({KEYS[0]: _AWKWARD}, post).removeprefix(mid)
        except (_Mismatch, ValueError):
            return "raw"
        if text == _AWKWARD:
            return "raw"
        if text == f"<![CDATA[{_AWKWARD}]]>":
            return "cdata"
        if html.unescape(text) == _AWKWARD:
            return "xml"
        return "json" if mid.endswith('"') else "raw"

    def words(self) -> tuple[str, str, str]:
        """The spellings of true, false and null."""
        true = self._spelled.get("boolean") or "true"
        return true, "False" if true[0] == "T" else "false", self._spelled.get("null") or "null"

    def _value(self, arguments: JsonObject, post: str) -> str:
        """What stands between the parameter's name and `post`."""
        body = self._render(arguments)
        if body is None or self._before not in body:
            raise _Mismatch
        start = body.index(self._before) + len(self._before)
        if not body.startswith(KEYS[0], start):
            raise _Mismatch
        rest = body[start + len(KEYS[0]) :].replace(KEYS[0], _HOLE)
        end = rest.find(post + self._tail) if post + self._tail else len(rest)
        if end < 0:
            raise _Mismatch
        return rest[:end]

    def _dialect(self, value: object, text: str) -> None:
        """Arrays and objects that are not JSON: other quotes, or elements of their own."""
        before, after = _cut(text, VALUES[0])
        if isinstance(value, list):
            if before.startswith("[") and after.endswith("]"):
                self.quote = (before[1:], after[:-1])
            else:
                self.item = Wrapper(build(before), build(after))
        elif not before.startswith("{"):
            _, mid = _cut(before, KEYS[1])
            self.member = Wrapper(build(mid), _literal(after.replace(KEYS[1], _HOLE)))


def _in_quotes(mid: str, post: str, wrappers: dict[Kind, Wrapper]) -> bool:
    """Whether texts differ from other values by a quote at each end alone, which is no JSON."""
    return post == "'" and (_literal(mid), ()) == (
        build(*wrappers["number"].mid, post),
        wrappers["number"].post,
    )


def _written(spellings: Sequence[str]) -> list[str]:
    """Spellings as they are, and with their quotes as XML's entities."""
    return [s.replace('"', quote) for s in spellings for quote in ('"', "&#34;", "&quot;")]


def _cut(text: str, word: str) -> tuple[str, str]:
    before, found, after = text.partition(word)
    if not found:
        raise _Mismatch
    return before, after


def _literal(text: str) -> Literal:
    """A text with holes for the parameter's name."""
    parts: list[str | Slot] = []
    for i, piece in enumerate(text.split(_HOLE)):
        parts += [Slot.KEY, piece] if i else [piece]
    return build(*parts)
