"""The shortest way out of a grammar, so that an answer that runs out of tokens still ends well.

It tries a few characters on copies of the matcher and follows what narrows the choice. It knows
no syntax but the texts that close values.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from llguidance import LLMatcher, LLTokenizer

from llm_server.chat.syntax.reader import overlap

MAX_STEPS = 512

SECONDS = 0.1
"""Processor time of one search, for which all answers wait. With a vocabulary of 150,000 the way
out of an object with twenty texts takes 0.03; without a limit, long patterns took 6."""

_SIGNS = ["}", "]", ")", '"', "'", ",", ":", "0", "1", "t", "f", "n", "{", "[", "a", "-"]
"""What ends something comes before what goes on for ever, as digits do."""
_LAST = ["\n", " "]
_REPEATS = 4  # what comes so often would go on for ever: a digit, a letter


class WayOut:
    """Finds endings for matchers of one tokenizer.

    `tokens` makes tokens of a text in the middle of an answer. `closers` are texts that close a
    value, `texts` such that may have to stand before, and `endings` such that close a call. What
    ends the grammar is tried first: a sign may lead from where a call could end into the next one,
    for ever. `tools` are the names of tools, with about how many tokens the shortest call of each
    takes: `n_call` is that of the longest, `n_apart` how many more these are than the least.
    `clock` tells the seconds that a search may have `SECONDS` of.
    """

    def __init__(
        self,
        tokenizer: LLTokenizer,
        tokens: Callable[[str], list[int]],
        closers: Sequence[str],
        texts: Sequence[str] = (),
        endings: Sequence[str] = (),
        tools: Mapping[str, int] | None = None,
        clock: Callable[[], float] = time.thread_time,
    ) -> None:
        tools = tools or {}
        self.n_call = max(tools.values(), default=0)
        self.n_apart = self.n_call - min(tools.values(), default=0)
        self._clock = clock
        self._n_words = (tokenizer.vocab_size + 31) // 32
        self._mask = np.zeros(self._n_words, dtype=np.uint32)
        self._narrow = max(tokenizer.vocab_size // 4, 16)
        signs, last = (
            [list(tokenizer.tokenize_str(text)) for text in texts] for texts in (_SIGNS, _LAST)
        )
        self._tokens = tokens
        self._closers = closers
        self._ends = [t for text in ('"', *closers) if (t := tokens(text))]
        self._texts = [t for text in texts if (t := tokens(text))]
        self._endings = [t for text in endings if (t := tokens(text))]
        self._options = [t for t in (*map(tokens, closers), *signs, *self._endings, *last) if t]
        self._tools = [t for tool in sorted(tools, key=tools.__getitem__) if (t := tokens(tool))]
        self._eos = set(tokenizer.eos_tokens)

    def find(self, matcher: LLMatcher, written: bytes = b"") -> list[int] | None:
        """Tokens that lead to where the grammar may end; None if none is found in time.

        `written` is the end of what came: a value's closing text may have begun in it.
        """
        deadline = self._clock() + SECONDS
        matcher = matcher.deep_copy()
        path = self._rest_of_closer(matcher, written.decode("utf-8", "replace"))
        matcher.consume_tokens(path)
        while not may_end(matcher):
            if len(path) > MAX_STEPS or matcher.is_error() or self._clock() > deadline:
                return None
            tokens = matcher.compute_ff_tokens() or self._step(matcher, path)
            if tokens and path[-_REPEATS * len(tokens) :] == tokens * _REPEATS:
                tokens = self._any(matcher, tokens[0]) or tokens
            if not tokens or not matcher.consume_tokens(tokens):
                return None
            path += tokens
        return None if matcher.is_error() else path

    def closes(self, written: bytes) -> bool:
        """Whether the text that closes a value may have begun."""
        text = written.decode("utf-8", "replace")
        return any(overlap(text, closer) for closer in self._closers)

    def _rest_of_closer(self, matcher: LLMatcher, written: str) -> list[int]:
        """What is missing of a closing text that has begun; nothing if none has.

        Where a value is raw text, what has come of it would else stay in the value.
        """
        begun = [(n, closer) for closer in self._closers if (n := overlap(written, closer))]
        for n, closer in sorted(begun, reverse=True):
            rest = self._tokens(closer[n:])
            after = self._after(matcher, rest)
            if after is not None and (may_end(after) or self._n_allowed(after) <= self._narrow):
                return rest
        return []

    def _step(self, matcher: LLMatcher, path: list[int]) -> list[int]:
        """What to try next: the first option after which little is allowed."""
        for ending in self._endings:
            if (after := self._after(matcher, ending)) and may_end(after):
                return ending
        if not self._end_of_text(matcher) and (
            option := self._completed(matcher) or self._tool(matcher, path)
        ):
            return option
        possible: list[list[int]] = []
        for option in self._options:
            after = self._after(matcher, option)
            if after is None:
                continue
            if may_end(after) or self._n_allowed(after) <= self._narrow:
                return option
            possible.append(option)
        return possible[0] if possible else self._any(matcher)

    def _completed(self, matcher: LLMatcher) -> list[int]:
        """What ends a text that may not end yet, as by its pattern something has still to come."""
        for text in self._texts:
            if (after := self._after(matcher, text)) and (end := self._end_of_text(after)):
                return text + end
        return []

    def _tool(self, matcher: LLMatcher, path: list[int]) -> list[int]:
        """A tool that may be named here, but none twice: it may fit into a name without quotes."""
        for tool in self._tools:
            if path[-len(tool) :] == tool or not (after := self._after(matcher, tool)):
                continue
            if self._n_allowed(after) <= self._narrow:
                return tool
        return []

    def _end_of_text(self, matcher: LLMatcher) -> list[int]:
        """What closes a text that may end here; nothing else leaves so little to come."""
        for end in self._ends:
            if (after := self._after(matcher, end)) and self._n_allowed(after) <= self._narrow:
                return end
        return []

    def _after(self, matcher: LLMatcher, tokens: list[int]) -> LLMatcher | None:
        """The matcher behind these tokens; None if they may not come."""
        if matcher.validate_tokens(tokens) < len(tokens):
            return None
        after = matcher.deep_copy()
        after.consume_tokens(tokens)
        return after

    def _n_allowed(self, matcher: LLMatcher) -> int:
        matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        return int(np.bitwise_count(self._mask).sum())

    def _any(self, matcher: LLMatcher, other_than: int = -1) -> list[int]:
        """Any token that is allowed, but not the end."""
        matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        bits = np.unpackbits(self._mask.view(np.uint8), bitorder="little")
        not_these = self._eos | {other_than}
        allowed = [int(t) for t in np.flatnonzero(bits)[:8] if int(t) not in not_these]
        return allowed[:1]


def may_end(matcher: LLMatcher) -> bool:
    """Whether nothing more has to come."""
    return bool(matcher.is_accepting() or matcher.is_stopped())
