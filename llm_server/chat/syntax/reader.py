"""Text that arrives in pieces, read by generators that pause when they need more of it.

A parsing function is a generator: it yields nothing, only to wait for text. It reads from `pos`
on and moves `pos` forward; what lies behind is dropped with the next piece. It knows no syntax.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TypeAlias, TypeVar

from llm_server.chat.syntax.literal import Literal, Matcher

T = TypeVar("T")
Parse: TypeAlias = Generator[None, None, T]
"""A parsing function in progress; its value is a `T`."""

MAX_HEADER = 4096
"""Longest text that may be held back while it could still become a marker."""


class EndOfText(Exception):
    """No more text comes, and the parsing function asked for more."""


class Reader:
    """The text not read yet."""

    def __init__(self) -> None:
        self.text = ""
        self.pos = 0
        self.closed = False
        self._mark: int | None = None

    def feed(self, text: str) -> None:
        """More text has come."""
        behind = self.pos if self._mark is None else self._mark
        self.text = self.text[behind:] + text
        self.pos -= behind
        self._mark = None if self._mark is None else 0

    def mark(self) -> None:
        """Remember this place, to `go_back` to it."""
        self._mark = self.pos

    def unmark(self) -> None:
        """There is no going back."""
        self._mark = None

    def go_back(self) -> None:
        """Read again from the mark on, if there is one."""
        if self._mark is not None:
            self.pos = self._mark
        self._mark = None

    def more(self) -> Parse[None]:
        """Wait for text. Raises EndOfText when there is no more."""
        if self.closed:
            raise EndOfText
        yield

    def need(self, n: int) -> Parse[bool]:
        """Wait until `n` characters are there; False when they never will be."""
        while len(self.text) - self.pos < n:
            if self.closed:
                return False
            yield
        return True

    def take(self, n: int) -> str:
        """Read `n` characters that are there."""
        taken = self.text[self.pos : self.pos + n]
        self.pos += len(taken)
        return taken

    def match(
        self, literals: Sequence[Literal], consume: bool = True
    ) -> Parse[tuple[int, Matcher] | None]:
        """Read the longest of `literals` that comes next; None, and nothing read, if none does."""
        found = yield from self._follow([Matcher(literal) for literal in literals])
        if found is not None and consume:
            self.pos += found[1].length
        return found

    def _follow(self, matchers: list[Matcher]) -> Parse[tuple[int, Matcher] | None]:
        best: tuple[int, Matcher] | None = None
        offset = 0
        while offset < MAX_HEADER:
            for i, m in enumerate(matchers):
                if m.done and (best is None or m.length > best[1].length):
                    best = i, m
            running = [m for m in matchers if m.alive and not m.done]
            if not running or not (yield from self.need(offset + 1)):
                return best
            char = self.text[self.pos + offset]
            for m in running:
                m.push(char)
            offset += 1
        return best

    def peek(self, literals: Sequence[Literal], offset: int) -> Parse[bool]:
        """Whether one of `literals`, or the end of the text, comes `offset` characters ahead."""
        matchers = [Matcher(literal) for literal in literals]
        for ahead in range(offset, offset + MAX_HEADER):
            if any(m.done for m in matchers):
                return True
            matchers = [m for m in matchers if m.alive]
            if not matchers:
                return False
            if not (yield from self.need(ahead + 1)):
                return True
            char = self.text[self.pos + ahead]
            for m in matchers:
                m.push(char)
        return False


def overlap(text: str, marker: str) -> int:
    """Length of the longest end of `text` that begins `marker` without being all of it."""
    for n in range(min(len(text), len(marker) - 1), 0, -1):
        if marker.startswith(text[-n:]):
            return n
    return 0
