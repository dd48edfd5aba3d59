"""Schemas that would take too long: many patterns on one text, long texts without a choice, and
multiples of large numbers.

It measures what a schema says and compiles nothing.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from llm_server.chat.endless import at
from llm_server.chat.schemas import is_beyond_multiples, merged_multiple, subschemas

MAX_MEETING = 4
"""Most patterns and formats of one text. With five, llguidance may take 0.9 s to look for a text
that fits all of them, with eight 10 s; its own limits do not see it."""

MAX_FORCED = 20_000
"""Longest text that leaves no choice: it is made into tokens again at each step, in 0.1 s."""

_MAX_COUNTS = 500_000  # entries in `_Meeting`, some 0.3 s
_DEEPEST = 8
_PIECE = re.compile(
    r"(?P<open>\((?:\?(?:[:=!>]|<[=!]|P?<\w+>|[a-zA-Z-]+:?))?)|(?P<close>\))"
    r"|[*+?]\??|\{(?P<least>\d+)(?:,\d*)?\}\??|(?P<mark>[|^$])"
    r"|(?:\\[pP](?:\{[^}]*\}|.)|\\x\{[^}]*\}|\\x..|\\u.{4}|\[\^?\]?(?:\\.|[^\]\\])*\]|\\?.)",
    re.DOTALL,
)

_TOGETHER = (("additionalProperties", "patternProperties"), ("items", "prefixItems"))
"""What may hold for a member, beside what is said of its name or place."""

_Counts = Counter[tuple[int, str]]
"""How many patterns meet, by depth and by name of property."""


def why_slow(schema: dict[str, Any]) -> str | None:
    """What of a schema would hold up others, as a sentence for its author, if anything does."""
    try:
        return _why_slow(schema)
    except RecursionError:
        return "The schema's references lead too deep."


def _why_slow(schema: dict[str, Any]) -> str | None:
    if is_beyond_multiples(merged_multiple(schema)):
        return "The common multiple of the schema's multipleOf is too large."
    if max(_forced(schema), default=0) > MAX_FORCED or _Runs(schema).longest > MAX_FORCED:
        return f"The schema demands more than {MAX_FORCED} characters that leave no choice."
    meeting = _Meeting(schema)
    if meeting.is_too_large:
        return "The schema refers to too many parts."
    if meeting.is_too_much:
        return f"More than {MAX_MEETING} patterns and formats of the schema meet on one text."
    return None


def least_length(pattern: str) -> int:
    """About how many characters a pattern demands; of alternatives and optional ones, all."""
    sums, last = [0], 0
    for piece in _PIECE.finditer(pattern):
        if piece["open"]:
            sums.append(0)
            last = 0
        elif piece["close"]:
            last = sums.pop() if len(sums) > 1 else 0
            sums[-1] += last
        elif piece["least"]:
            times = max(1, int(piece["least"][:9]))
            sums[-1] += last * (times - 1)
            last *= times
        elif not piece["mark"] and piece[0][0] not in "*+?":
            last = 1
            sums[-1] += 1
        if sums[-1] > MAX_FORCED:
            break
    return sum(sums)


def _forced(schema: Any) -> Iterator[int]:
    """Lengths of texts that a schema leaves no choice about, wherever a reference may find them."""
    stack = [schema]
    while stack:
        part = stack.pop()
        if isinstance(part, list):
            stack += part
        elif isinstance(part, dict):
            stack += part.values()
            values = _list(part, "enum") + [part[word] for word in ("const",) if word in part]
            yield from (len(json.dumps(value, ensure_ascii=False)) for value in values)
            if isinstance(pattern := part.get("pattern"), str):
                yield least_length(pattern)
            for word, length in (("properties", len), ("patternProperties", least_length)):
                if isinstance(named := part.get(word), dict):
                    yield from map(length, named)


class _Runs:
    """Looks for the longest run of JSON that a schema leaves no choice about, or a longer one."""

    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root
        self._known: dict[str, tuple[int, bool]] = {}
        self.longest = 0
        self._of(root)

    def _of(self, part: Any) -> tuple[int, bool]:
        """The length of a part's run, and whether it goes on behind the part."""
        if not isinstance(part, dict):
            return 0, False
        runs = [self._own(part), *map(self._of, _list(part, "allOf"))]
        for word in ("anyOf", "oneOf"):
            if options := [self._of(option) for option in _list(part, word)]:
                runs.append((max(n for n, _ in options), all(fixed for _, fixed in options)))
        if isinstance(pointer := part.get("$ref"), str):
            if pointer not in self._known:
                self._known[pointer] = 0, False  # for references back to it
                self._known[pointer] = self._of(at(self._root, pointer))
            runs.append(self._known[pointer])
        length = min(sum(n for n, _ in runs), 10 * MAX_FORCED)
        self.longest = max(self.longest, length)
        return length, any(fixed for _, fixed in runs)

    def _own(self, part: dict[str, Any]) -> tuple[int, bool]:
        """What a part says itself, without those that are merged with it."""
        inner = {name: self._of(value) for name, value in _members(part)}
        if values := [part["const"]] if "const" in part else _list(part, "enum"):
            texts = {json.dumps(value, ensure_ascii=False) for value in values}
            return max(map(len, texts)), len(texts) == 1
        if isinstance(pattern := part.get("pattern"), str):
            return least_length(pattern), True
        if names := [name for name in _list(part, "required") if isinstance(name, str)]:
            members = [inner.get(name, (0, False)) for name in names]
            length = sum(len(name) + 5 for name in names) + sum(n for n, _ in members)
            return length, all(fixed for _, fixed in members)
        n_items, (length, fixed) = part.get("minItems"), inner.get("items", (0, False))
        if fixed and isinstance(n_items, int | float):
            return int(min(n_items, 10 * MAX_FORCED)) * (length + 2), True
        return length, part.get("type") in ("null", ["null"])


class _Meeting:
    """Counts the patterns that meet where parts of a schema are merged."""

    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root
        self._known: dict[str, _Counts] = {}
        self._n_counted = 0
        self.is_too_much = self.is_too_large = False
        self._of(root)

    def _of(self, part: Any) -> _Counts:
        counts: _Counts = Counter()
        if not isinstance(part, dict) or self.is_too_much or self.is_too_large:
            return counts
        for name, inner in _members(part):
            for (depth, last), n in self._of(inner).items():
                key = (min(depth + 1, _DEEPEST), last if depth else name)
                counts[key] = max(counts[key], n)
        counts[0, ""] += isinstance(part.get("pattern"), str)
        counts[0, ""] += isinstance(part.get("format"), str)
        for inner in _list(part, "allOf"):
            counts += self._of(inner)
        for word in ("anyOf", "oneOf"):
            either: _Counts = Counter()
            for inner in _list(part, word):
                either |= self._of(inner)
            counts += either
        if isinstance(pointer := part.get("$ref"), str):
            counts += self._referred(pointer)
        self._n_counted += len(counts)
        self.is_too_much |= _most(counts) > MAX_MEETING
        self.is_too_large |= self._n_counted > _MAX_COUNTS
        return counts

    def _referred(self, pointer: str) -> _Counts:
        if pointer not in self._known:
            self._known[pointer] = Counter()  # for references back to it
            self._known[pointer] = self._of(at(self._root, pointer))
        return self._known[pointer]


def _most(counts: _Counts) -> int:
    """The most that may meet on one text."""
    most = max(counts.values(), default=0)
    for depth in range(1, _DEEPEST + 1):
        for words in _TOGETHER:
            if n_beside := sum(counts[depth, word] for word in words):
                others = (
                    n for (at, last), n in counts.items() if at == depth and last not in words
                )
                most = max(most, n_beside + max(others, default=0))
    return most


def _members(part: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """What is inside a value: by name, or by the word that says it."""
    if isinstance(named := part.get("properties"), dict):
        yield from named.items()
    merged = ("properties", "allOf", "anyOf", "oneOf", "$defs", "definitions")
    yield from ((word, inner) for word, inner in subschemas(part) if word not in merged)


def _list(part: dict[str, Any], word: str) -> list[Any]:
    return part[word] if isinstance(part.get(word), list) else []
