"""Texts at which an answer changes its kind, and the tokens that hold their end and more.

Tokens are cut where the vocabulary likes it: `>{` may end a marker and begin what follows. What
has to follow is constrained, so such a token must not come where its rest does not fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray

TAIL = 256
"""Bytes of free text in which an edge is looked for, with all of the last token."""


@dataclass(frozen=True, slots=True)
class Overhang:
    """A token that holds the end of a text and more.

    `n` bytes of the text come before the token; if none do, `lead` stands in it before the text.
    `rest` is what stands behind the text, as tokens `rest_tokens`.
    """

    token: int
    n: int
    lead: bytes
    rest: bytes
    rest_tokens: list[int]


@dataclass(frozen=True, slots=True)
class Edge:
    """A text, and the tokens that must not come where `n` bytes of it end what was said, by `n`."""

    text: bytes
    blocked: dict[int, NDArray[np.int32]]


NOWHERE = Edge(b"", {})
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

    def behind(self, text: bytes, *, anchored: bool = False) -> bytes | None:
        """What the last token holds behind a text that it completed; None if it did not.

        `anchored`: with nothing but blanks before the text.
        """
        start = max(len(self.text) - self._n_last - len(text) + 1, 0)
        at = self.text.find(text, start) if text else -1
        if at < 0 or (anchored and self._says_something(at)):
            return None
        return self.text[at + len(text) :]

    def blocked(self, edge: Edge, *, anchored: bool) -> Iterator[NDArray[np.int32]]:
        """The tokens that must not come next."""
        for n, tokens in edge.blocked.items():
            if self.text.endswith(edge.text[:n]) and not (
                anchored and self._says_something(len(self.text) - n)
            ):
                yield tokens

    def _says_something(self, before: int) -> bool:
        return self._cut or bool(self.text[:before].strip())


class Edges:
    """Finds the overhangs of one vocabulary. Threads may share it.

    A text takes 30 ms for 150,000 tokens, once.
    """

    def __init__(self, spellings: Sequence[bytes], tokenize: Callable[[bytes], list[int]]) -> None:
        self._spellings = spellings
        self._tokenize = tokenize
        self._found: dict[bytes, list[Overhang]] = {}

    def edge(
        self, text: bytes, fits: Callable[[Overhang], bool], *, anchored: bool = False
    ) -> Edge:
        """The edge at `text`, behind which only what `fits` may come. `anchored`: it is one only
        where nothing but blanks comes before it."""
        blocked: dict[int, list[int]] = {}
        for overhang in self.overhangs(text):
            if not (anchored and overhang.lead.strip()) and not fits(overhang):
                blocked.setdefault(overhang.n, []).append(overhang.token)
        return Edge(text, {n: np.array(tokens, np.int32) for n, tokens in blocked.items()})

    def overhangs(self, text: bytes) -> list[Overhang]:
        """The tokens that hold the end of `text` and more."""
        found = self._found.get(text)
        if found is None:
            found = self._found[text] = list(self._search(text)) if text else []
        return found

    def _search(self, text: bytes) -> Iterator[Overhang]:
        ends = tuple(text[n:] for n in range(1, len(text)))
        for token, spelled in enumerate(self._spellings):
            places = []
            if text in spelled:
                lead, _, rest = spelled.partition(text)
                places.append((0, lead, rest))
            if spelled.startswith(ends):
                for n in range(1, len(text)):
                    if spelled.startswith(text[n:]):
                        places.append((n, b"", spelled[len(text) - n :]))
            for n, lead, rest in places:
                if rest:
                    yield Overhang(token, n, lead, rest, self._tokenize(rest))


def begins(matcher: LLMatcher) -> Callable[[Overhang], bool]:
    """Whether what an overhang holds behind the text may be what a matcher begins with."""
    return lambda overhang: (
        matcher.validate_tokens(overhang.rest_tokens) == len(overhang.rest_tokens)
    )


def blank(overhang: Overhang) -> bool:
    """Whether an overhang holds nothing but blanks behind the text."""
    return not overhang.rest.strip()
