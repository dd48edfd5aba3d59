"""Texts at which an answer changes its kind, and tokens that hold the end of one and more.

Tokens are cut where the vocabulary likes it: `>{` may end a marker and begin what follows. What
has to follow is constrained, so such a token must not come where its rest does not fit.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass

TAIL = 256
"""Bytes of free text in which an edge is looked for, with all of the last token."""


def anything(rest: bytes) -> bool:
    """Whether it may come where any text may."""
    return True


def blank(rest: bytes) -> bool:
    """Whether it holds nothing but blanks."""
    return not rest.strip()


@dataclass(frozen=True, slots=True)
class Edge:
    """A text, and whether what a token holds that ends with more than the text `fits` behind it.

    `anchored`: it is one only with nothing but blanks before it.
    """

    text: bytes
    fits: Callable[[bytes], bool] = anything
    anchored: bool = False


NOWHERE = Edge(b"")
"""No text."""


class Tail:
    """The end of free text, as far as an edge may lie in it."""

    def __init__(self) -> None:
        self.text = b""
        self._n_last = 0  # bytes of the last token
        self._cut = False  # text came before

    def add(self, spelled: bytes) -> None:
        """One more token."""
        if len(self.text) > TAIL:
            self.text, self._cut = self.text[-TAIL:], True
        self.text += spelled
        self._n_last = len(spelled)

    def clear(self) -> None:
        """What was said is used up."""
        self.text = b""

    def behind(self, edge: Edge) -> bytes | None:
        """What the last token holds behind an edge that it completed; None if it did not."""
        start = max(len(self.text) - self._n_last - len(edge.text) + 1, 0)
        at = self.text.find(edge.text, start) if edge.text else -1
        if at < 0 or (edge.anchored and self._says_something(at)):
            return None
        return self.text[at + len(edge.text) :]

    def misfit(self, edge: Edge, spelled: bytes) -> bool:
        """Whether a token that is spelled so would complete `edge` and go on as it must not."""
        after = copy(self)
        after.add(spelled)
        rest = after.behind(edge)
        return bool(rest) and not edge.fits(rest or b"")

    def _says_something(self, before: int) -> bool:
        return self._cut or bool(self.text[:before].strip())
