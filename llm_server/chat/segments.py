"""Keeping text from outside apart from a template's own text through a render.

A control token's spelling inside a message must not become that control token. Before the render
every such look-alike gets a mark, one character that occurs nowhere else, after its first
character; the mark survives strip, split, concatenation and JSON. Afterwards the marks say which
spans of the prompt are plain text. It knows nothing of Jinja or tokenizers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any, NamedTuple

MARKS = "".join(map(chr, [*range(0x1D000, 0x1D020), *range(0x10F000, 0x10FFFE)]))
"""Notes of Byzantine music, which few texts hold and Python's `repr` leaves as they are; then
private-use characters."""


class Segment(NamedTuple):
    """A piece of the prompt. `special`: whether control tokens may be recognised in it."""

    text: str
    special: bool


class Lookalikes:
    """The spellings of a vocabulary's control tokens, found in text from outside.

    `specials` may hold tens of thousands of spellings; matching one position costs the length of
    the longest. `stubborn` are spellings that a tokenizer recognises in plain text too, such as
    user-defined tokens: they are cut in two behind their first character.
    """

    def __init__(self, specials: Iterable[str], stubborn: Iterable[str] = ()) -> None:
        self._stubborn = frozenset(s for s in stubborn if len(s) > 1)
        self._specials = self._stubborn.union(s for s in specials if s)

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        """Longest spelling at a position."""
        return re.compile(_trie_pattern(self._specials), re.DOTALL)

    @cached_property
    def _starts(self) -> re.Pattern[str]:
        """The first character of each spelling, also of those that overlap."""
        return re.compile(f"(?={_trie_pattern(self._specials)})(.)", re.DOTALL)

    def marker(self, texts: Iterable[str]) -> Marks:
        """Marks for a render in which the outside strings are `texts` and no others."""
        joined = "".join(texts)
        mark = next((m for m in MARKS if m not in joined), "")
        return Marks(self, mark)

    def add_marks(self, text: str, mark: str) -> str:
        """`text` with `mark` after the first character of every look-alike."""
        if not self._specials:
            return text
        return self._starts.sub(lambda m: m.group(1) + mark, text)

    def plain(self, span: str) -> list[Segment]:
        """Segments that make plain text of a span of look-alikes."""
        cuts = {0, len(span)}
        for spelling in self._stubborn:
            at = span.find(spelling)
            while at >= 0:
                cuts.add(at + 1)
                at = span.find(spelling, at + 1)
        edges = sorted(cuts)
        return [Segment(span[a:b], False) for a, b in zip(edges, edges[1:], strict=False)]

    def spans(self, text: str, starts: Iterable[int]) -> Iterator[tuple[int, int]]:
        """The look-alikes at `starts`, ascending, joined where they overlap."""
        begin = end = 0
        for start in starts:
            match = self._pattern.match(text, start)
            if match is None:
                continue
            if start >= end:
                if end > begin:
                    yield begin, end
                begin = start
            end = max(end, match.end())
        if end > begin:
            yield begin, end


class Marks:
    """One render's mark. `mark` is empty only if the texts hold every possible one."""

    def __init__(self, lookalikes: Lookalikes, mark: str) -> None:
        self._lookalikes = lookalikes
        self.mark = mark

    def add(self, value: Any) -> Any:
        """A copy of a JSON value with every look-alike in its strings and keys marked."""
        if isinstance(value, str):
            return self._lookalikes.add_marks(value, self.mark)
        if isinstance(value, dict):
            return {self.add(k): self.add(v) for k, v in value.items()}
        if isinstance(value, list):
            return [self.add(item) for item in value]
        return value

    def split(self, rendered: str) -> list[Segment]:
        """The rendered text without marks, cut at the look-alikes. Never empty segments."""
        if not self.mark:
            return [Segment(rendered, False)] if rendered else []
        pieces = rendered.split(self.mark)
        text = "".join(pieces)
        starts, position = [], 0
        for piece in pieces[:-1]:
            position += len(piece)
            if position:
                starts.append(position - 1)
        segments, done = [], 0
        for begin, end in self._lookalikes.spans(text, starts):
            segments.append(Segment(text[done:begin], True))
            segments += self._lookalikes.plain(text[begin:end])
            done = end
        segments.append(Segment(text[done:], True))
        return [s for s in segments if s.text]


def _trie_pattern(words: Iterable[str]) -> str:
    """A pattern that matches the longest of `words` without trying each in turn."""
    root: dict[str, Any] = {}
    for word in words:
        node = root
        for char in word:
            node = node.setdefault(char, {})
        node[""] = {}
    return _node_pattern(root) if root else "(?!)"


def _node_pattern(node: dict[str, Any]) -> str:
    tail = ""
    while len(node) == 1:
        char = next(iter(node))
        if not char:
            return tail
        tail += re.escape(char)
        node = node[char]
    branches = "|".join(
        re.escape(char) + _node_pattern(child) for char, child in node.items() if char
    )
    return f"{tail}(?:{branches}){'?' if '' in node else ''}"
