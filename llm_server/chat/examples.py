"""Short texts that fit the patterns and formats of a schema, so that a text may end in one.

Each should match, but need not: who uses one tries it first. It compiles no grammar.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Iterator

LONGEST = 256
"""Characters of an example, and of each part of it: more is cut off."""

_MOST = 64  # patterns of a schema, and groups of a pattern

_FORMATS = {"email": "a@a.aa", "uri": "a:a", "duration": "P1DT1S"}
"""Those whose texts may go on for ever without being complete."""

_TOKEN = re.compile(
    r"(?P<group>\((?:\?(?:[:=!>]|<[=!]|P?<\w+>|[a-zA-Z-]+:?))?)"
    r"|(?P<times>[*+?]|\{(?P<least>\d+)(?:,\d*)?\})[?+]?"
    r"|(?P<mark>[|)^$])"
    r"|(?P<one>\\[pP](?:\{[^}]*\}|.)|\\x..|\\u.{4}|\[\^?\]?(?:\\.|[^\]\\])*\]|\\?.)",
    re.DOTALL,
)
_UNESCAPED = re.compile(r"(?<!\\)(?:(?<=-)-|[\[&~|])")  # in a set, what Python's `re` warns of
_CANDIDATES = "a0A" + string.printable + "".join(map(chr, range(256)))


def endings(schema: object) -> list[str]:
    """What may complete a text that a pattern or format of the schema wants, the shortest first.

    As it stands in raw text, and as in a JSON string.
    """
    found: set[str] = set()
    for text in _examples(schema):
        for shown in (text, json.dumps(text, ensure_ascii=False)[1:-1]):
            found.update(shown[i:] for i in range(len(shown)))
    return sorted(found, key=lambda text: (len(text), text))[:LONGEST]


def _examples(schema: object) -> Iterator[str]:
    patterns: set[str] = set()
    stack = [schema]
    while stack and len(patterns) < _MOST:
        part = stack.pop()
        if isinstance(part, list):
            stack += part
        elif isinstance(part, dict):
            stack += part.values()
            if isinstance(pattern := part.get("pattern"), str):
                patterns.add(pattern)
            if isinstance(by_name := part.get("patternProperties"), dict):
                patterns.update(by_name)
            if isinstance(name := part.get("format"), str) and name in _FORMATS:
                yield _FORMATS[name]
    for pattern in patterns:
        if pattern.count("(") <= _MOST:
            yield from _Pattern(pattern).examples()


class _Pattern:
    """The short texts of a regular expression: one for each alternative in it."""

    def __init__(self, pattern: str) -> None:
        self._tokens = list(_TOKEN.finditer(pattern))[::-1]
        self._found: list[str] = []

    def examples(self) -> list[str]:
        self._alternatives()
        return self._found

    def _alternatives(self) -> str:
        texts = [self._sequence()]
        while self._take("|"):
            texts.append(self._sequence())
        self._found += texts
        return min(texts, key=len)

    def _sequence(self) -> str:
        text = ""
        while self._tokens and self._tokens[-1]["mark"] not in ("|", ")"):
            text += self._piece()
        return text[:LONGEST]

    def _piece(self) -> str:
        token = self._tokens.pop()
        if token["group"]:
            text = self._alternatives()
            self._take(")")
        else:
            text = _character(token["one"]) if token["one"] else ""
        while self._tokens and (times := self._tokens[-1]["times"]):
            least = self._tokens.pop()["least"] or (times == "+")
            text = (text * min(int(least), LONGEST))[:LONGEST]
        return text

    def _take(self, mark: str) -> bool:
        if not self._tokens or self._tokens[-1]["mark"] != mark:
            return False
        self._tokens.pop()
        return True


def _character(expression: str) -> str:
    """A character that an expression for one matches."""
    if len(expression) == 1 and expression != ".":
        return expression
    if expression[0] == "[":
        expression = "[" + _UNESCAPED.sub(r"\\\g<0>", expression[1:])
    try:
        one = re.compile(expression, re.DOTALL)
    except re.error:
        return "a"
    return next((char for char in _CANDIDATES + expression if one.fullmatch(char)), "a")
