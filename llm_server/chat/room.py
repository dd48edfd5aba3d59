"""Whether an answer can still end well with the tokens that it has left, and how it does.

The way out of a grammar is known all the time, and each token that the model picks is tried before
it is taken: where no way out would fit behind it, the answer ends as it could before. So the model
decides as long as there is room. It knows matchers and tokens, but no syntax.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cached_property

from llguidance import LLMatcher

from llm_server.chat.closing import WayOut, may_end
from llm_server.chat.edges import TAIL

RESERVE = 512
"""With more tokens left than this, there is room for any way out that is found."""

MARGIN = 4
"""Tokens left over at the end of an answer that had to be closed, at least."""

EVERY = 16
"""Tokens until the next look for a way out where one found none; after each more, twice as many."""


class Room:
    """The way out of one answer's grammar. `tools` are the names that a call may have.

    A call of a tool that the model did not choose does more harm than one that is cut, so no such
    way is taken: the answer is `lost`, and goes on to its last token.
    """

    def __init__(
        self,
        way_out: Callable[[], WayOut],
        spelled: Callable[[int], bytes],
        tools: Sequence[bytes],
    ) -> None:
        self._find_way_out = way_out
        self._spelled = spelled
        names = sorted(tools, key=len, reverse=True)
        self._names = re.compile(b"|".join(map(re.escape, names))) if len(names) > 1 else None
        self._said: list[int] = []
        self._path: list[int] | None = None
        self._unknown = 0  # tokens to wait before looking again
        self._wait = EVERY  # how many these are next time
        self._next: tuple[int, list[int]] | None = None
        self.lost = False
        self.leaving = False
        """Whether nothing but `path` may come."""

    @property
    def left(self) -> bool:
        """Whether the way out was taken to its end."""
        return self.leaving and not self._path

    @property
    def path(self) -> list[int]:
        """The tokens that lead out."""
        return self._path or []

    def enter(self, tokens: Sequence[int] = ()) -> None:
        """A grammar begins, and with it these tokens."""
        self._said = list(tokens)
        self._path, self._next = None, None
        self._unknown, self._wait = 0, EVERY

    def accept(self, token: int) -> None:
        """The answer goes on with `token`."""
        self._said.append(token)
        self._unknown = max(0, self._unknown - 1)
        if self._path and self._path[0] == token:
            self._path = self._path[1:]
        elif self._next is not None and self._next[0] == token:
            self._path = self._next[1]
        else:
            self._path = None
        self._next = None

    def over(self, matcher: LLMatcher, remaining: int) -> bool:
        """Whether the answer must take its way out now, with `remaining` tokens left."""
        if self.lost or remaining > RESERVE:
            return False
        if self._path is None and not self._unknown:
            self._path = self._way_out.find(matcher, self._written())
            if self._path is None:
                self._unknown, self._wait = self._wait, 2 * self._wait
            else:
                self._wait = EVERY
        if self._path is None:
            return False
        if not self.leaving and len(self._path) + MARGIN > remaining:
            self.lost = self._chooses(None, ())
            self.leaving = not self.lost
        return self.leaving

    def takes(self, matcher: LLMatcher, token: int, remaining: int) -> bool:
        """Whether `token` may come, as there is a way out behind it; else the answer is over."""
        if self.lost or self.leaving or remaining > RESERVE or self._path is None:
            return True
        behind = self._behind(matcher, token, self._path)
        if behind is None:
            # None was found in time. With more room one may be, further on.
            fits = remaining > 2 * len(self._path) + EVERY
        else:
            fits = self._needed(token, behind) + MARGIN < remaining
            self._next = token, behind
        if fits:
            return True
        self.lost = self._chooses(token, behind or ())
        self.leaving = not self.lost
        return self.lost

    def shortest(self, matcher: LLMatcher) -> int:
        """How many tokens the shortest way through a grammar takes, whichever tool it calls."""
        return max(len(self._way_out.find(matcher) or ()), self._way_out.n_call)

    @cached_property
    def _way_out(self) -> WayOut:
        """Made when tokens first run short, as they rarely do."""
        return self._find_way_out()

    def _behind(self, matcher: LLMatcher, token: int, path: list[int]) -> list[int] | None:
        """A way out behind `token`: what it was before, if that will do, as it mostly does."""
        after = matcher.deep_copy()
        if not after.consume_token(token) or may_end(after):
            return []
        written = self._written(token)
        for known in () if self._way_out.closes(written) else (path[1:], path):
            if known and after.validate_tokens(known) == len(known):
                end = after.deep_copy()
                end.consume_tokens(known)
                if may_end(end):
                    return known
        return self._way_out.find(after, written)

    def _needed(self, token: int, behind: list[int]) -> int:
        """Tokens that must be left behind `token`. Who begins one more call may want any tool:
        `behind` holds the shortest one's call."""
        if self._names is None or len(behind) <= len(self.path):
            return len(behind)
        n_calls = len(self._named([*self._said, token, *behind]))
        if n_calls <= len(self._named([*self._said, *self.path])):
            return len(behind)
        return len(behind) + self._way_out.n_apart

    def _chooses(self, token: int | None, behind: Sequence[int]) -> bool:
        """Whether the way out names a tool that the model, which wants `token`, has not named."""
        if self._names is None:
            return False
        chosen = self._named(self._said)
        out = self._named([*self._said, *self.path])
        if len(out) == len(chosen):
            return False
        return token is None or self._named([*self._said, token, *behind]) != out

    def _written(self, *more: int) -> bytes:
        """The end of what came."""
        return b"".join(map(self._spelled, [*self._said[-TAIL:], *more]))[-TAIL:]

    def _named(self, tokens: Sequence[int]) -> list[bytes]:
        assert self._names is not None
        return self._names.findall(b"".join(map(self._spelled, tokens)))
