"""Fixed text with holes: what stands around the names and arguments of a call.

A literal is compared piece by piece (a marker, a word, a run of blanks, a sign), so that what two
renders have in common never ends inside a marker. It knows nothing of templates.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from enum import Enum
from itertools import takewhile
from typing import TypeAlias


class Slot(Enum):
    """A hole: the called function, the one called before, the call's id, its running number, a
    parameter's name, the type of a message's text."""

    NAME = "name"
    LAST = "last"
    ID = "id"
    INDEX = "index"
    KEY = "key"
    TYPE = "type"


Literal: TypeAlias = tuple[str | Slot, ...]
"""Adjacent texts are joined, empty ones absent."""

_PIECE = re.compile(
    r"<\|[^<>|\s]+\|>"  # <|im_end|>
    r"|<[|｜/]?[^<>\s=\"']+[|｜]?>"  # </tool_call>, <｜tool▁sep｜>, <|turn>, <turn|>
    r"|<[|｜/]?[^<>\s=\"']+(?==)"  # <function=
    r"|\[/?[A-Z][A-Z_]+\]"  # [TOOL_CALLS]
    r"|\w+|\s|.",
    re.DOTALL,
)
_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
_SIGNS = frozenset("{}[]:,\"'()")

SLOT_CHARS: dict[Slot, Callable[[str], bool]] = {
    Slot.NAME: _NAME.__contains__,
    Slot.LAST: _NAME.__contains__,
    Slot.ID: lambda c: c in _NAME or c in ".:",
    Slot.INDEX: lambda c: "0" <= c <= "9",
    Slot.TYPE: _NAME.__contains__,
    Slot.KEY: lambda c: not c.isspace() and c not in "<>\"'=:",
}
MAX_SLOT = 256
BLANKS = r"\s{0,16}"
"""So many blanks more are no reason to take a header for plain text."""


def pieces(text: str) -> list[str]:
    """The pieces of a text; joined they are the text."""
    return _PIECE.findall(text)


def is_marker(piece: str) -> bool:
    """Whether a piece is a tag or a bracketed marker rather than a word or a sign."""
    return len(piece) > 2 and piece[0] in "<[" and piece[-1] in ">]"


def has_marker(text: str) -> bool:
    """Whether one of the pieces of a text is a marker."""
    return any(map(is_marker, pieces(text)))


def up_to_marker(text: str) -> str:
    """A text up to its first marker, and with that."""
    out = ""
    for piece in pieces(text):
        out += piece
        if is_marker(piece):
            break
    return out


def common_prefix(a: str, b: str) -> str:
    """The longest common beginning of whole pieces."""
    return "".join(_agreeing(pieces(a), pieces(b)))


def common_suffix(a: str, b: str) -> str:
    """The longest common end of whole pieces."""
    return "".join(_agreeing(pieces(a)[::-1], pieces(b)[::-1])[::-1])


def _agreeing(a: Sequence[str], b: Sequence[str]) -> list[str]:
    pairs = zip(a, b, strict=False)
    return [x for x, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]


def build(*parts: str | Slot) -> Literal:
    """A literal in its normal form."""
    out: list[str | Slot] = []
    for part in parts:
        if isinstance(part, str) and out and isinstance(out[-1], str):
            out[-1] += part
        elif part != "":
            out.append(part)
    return tuple(out)


def fill(literal: Literal, values: dict[Slot, str]) -> Literal:
    """`literal` with some holes filled."""
    return build(*(values.get(p, p) if isinstance(p, Slot) else p for p in literal))


def fits_slot(slot: Slot, text: str) -> bool:
    """Whether a hole can hold this text."""
    return 0 < len(text) <= MAX_SLOT and all(map(SLOT_CHARS[slot], text))


def text_of(literal: Literal) -> str:
    """The text before the first hole."""
    return literal[0] if literal and isinstance(literal[0], str) else ""


class Matcher:
    """Follows one literal through a text, a character at a time.

    Blanks are optional where the literal has blanks or a sign of JSON, and nowhere else.
    """

    __slots__ = ("_at", "_items", "_slot", "alive", "done", "length", "values")

    def __init__(self, literal: Literal) -> None:
        self._items = _items(literal)
        self._at = 0
        self._slot = ""
        self.alive = True
        self.done = not self._items
        self.length = 0
        self.values: dict[Slot, str] = {}

    def push(self, char: str) -> None:
        """One more character. Sets `alive`, `done` when complete, `length` to what it covers.

        A literal that ends in a hole is complete at the first character behind the hole.
        """
        item, loose = self._items[self._at]
        if isinstance(item, Slot):
            if SLOT_CHARS[item](char) and len(self._slot) < MAX_SLOT:
                self._slot += char
                self.length += 1
            elif self._slot:
                self._end_slot(item)
                if self.alive and not self.done:
                    self.push(char)
            else:
                self.alive = loose and char.isspace()
                self.length += 1
        elif char == item:
            self._advance()
            self.length += 1
        elif loose and char.isspace():
            self.length += 1
        else:
            self.alive = False

    def _end_slot(self, slot: Slot) -> None:
        # A hole that comes twice (a name in the header and in the tag) must be filled alike.
        self.alive = self.values.setdefault(slot, self._slot) == self._slot or slot is Slot.INDEX
        self._slot = ""
        self._advance()

    def _advance(self) -> None:
        self._at += 1
        self.done = self._at == len(self._items)


def header_complete(headers: Sequence[Literal], names: Collection[str], text: str) -> bool | None:
    """Whether `text` begins with one of `headers` for one of `names`; None: it still may."""
    answer: bool | None = False
    for header in headers:
        matcher = Matcher(header)
        for char in text:
            if matcher.done or not matcher.alive:
                break
            matcher.push(char)
        if not matcher.alive or (matcher.done and matcher.values.get(Slot.NAME) not in names):
            continue
        last = header[-1] if isinstance(header[-1], str) else ""
        blanks = last[len(last.rstrip()) :]
        rest = text[matcher.length :]
        if matcher.done and (rest.startswith(blanks) or rest.lstrip().startswith("{")):
            return True
        if not matcher.done or not rest.strip():
            answer = None
    return answer


def loose_regex(text: str) -> str:
    """A regular expression for `text` with the freedom of blanks that `Matcher` leaves."""
    out = ""
    loose = False
    for char in text:
        sign = char in _SIGNS
        if char.isspace() or ((loose or sign) and not out.endswith(BLANKS)):
            out += "" if out.endswith(BLANKS) else BLANKS
        if not char.isspace():
            out += "\\/" if char == "/" else re.escape(char)
        loose = sign
    return out + BLANKS if loose and not out.endswith(BLANKS) else out


def marker_regex(markers: Collection[str]) -> re.Pattern[str]:
    """An expression to split texts at these markers; the longest one where one begins another."""
    longest_first = sorted(markers, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")


def _items(literal: Literal) -> list[tuple[str | Slot, bool]]:
    """Characters and holes to match in order, each with whether blanks may come before it."""
    out: list[tuple[str | Slot, bool]] = []
    loose = True
    for part in literal:
        if isinstance(part, Slot):
            out.append((part, loose))
            loose = True
            continue
        for char in part:
            if char.isspace():
                loose = True
                continue
            sign = char in _SIGNS
            out.append((char, loose or sign))
            loose = sign
    return out
