"""Guessing what an answer will copy: prompt-lookup drafts, and how many tokens of them pay.

Summaries, edits and answers from documents repeat what stands in the prompt or in the answer so
far. A guess is computed in the same step as the token before it; the engine keeps what agrees with
what it samples, so a guess changes nothing but the speed. Pure bookkeeping: it decodes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

_MATCH = 3  # tokens that must have occurred before, in a row, to guess what follows them
_WEIGHT = 0.2  # of the newest token in the running share of right guesses
_MARGIN = 1.05  # what a guess must promise to win, against errors in the estimates
_SIZES = (2, 4, 8, 16, 32)
"""Rows of a step worth considering: kernels compute them in tiles, so that those between cost as
much as the next larger one."""


class Lookup:
    """Where the end of a text has stood before, and so what may follow it now.

    `rate` is the share of its guesses that were right lately, also of those that nobody computed:
    whether copying goes on is known before a single row is risked.
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = list(tokens)
        self._next = _follow_ups(self._tokens)
        self._at: int | None = None
        self._sure = False
        self.rate = 0.5

    def extend(self, tokens: Sequence[int]) -> None:
        """The text goes on with `tokens`: judge the guesses for them."""
        for token in tokens:
            self._add(token)

    def guess(self, n: int) -> list[int]:
        """The next `n` tokens as after the last occurrence; none if there was none."""
        if self._at is None:
            return []
        length, guess = len(self._tokens), list[int]()
        for at in range(self._at, self._at + n):
            # A repetition shorter than the guess goes on into the guess itself.
            guess.append(self._tokens[at] if at < length else guess[at - length])
        return guess

    def expected(self, n: int) -> float:
        """How many of a guess of `n` tokens will be right: a geometric series of the rate."""
        if self._at is None:
            return 0.0
        rate = min(self.rate, 0.99)
        return float(rate * (1 - rate**n) / (1 - rate))

    def _add(self, token: int) -> None:
        if self._at is not None:
            right = self._tokens[self._at] == token
            self.rate += _WEIGHT * (right - self.rate)
            # One word may be another and the copy go on behind it; if not, the next match tells.
            self._at += 1
            self._sure = self._sure and right
        self._tokens.append(token)
        if len(self._tokens) < _MATCH:
            return
        key = _key(self._tokens[-_MATCH:])
        if not self._sure and key in self._next:
            self._at, self._sure = self._next[key], True
        self._next[key] = len(self._tokens)


class Guessable(Protocol):
    """What a draft needs of a sequence."""

    id: int

    @property
    def lookup(self) -> Lookup: ...

    @property
    def n_left(self) -> int: ...


def guesses(
    decoding: Sequence[Guessable], n_max: int, room: int, seconds: Callable[[int], float]
) -> dict[int, list[int]]:
    """By sequence, what to compute behind its next token: at most `n_max` guesses each.

    `seconds` is the expected time of a step with that many rows, `room` how many it may have.
    """
    lookups = [sequence.lookup for sequence in decoding]
    return {
        sequence.id: sequence.lookup.guess(min(n, n_max, sequence.n_left - 1))
        for sequence, n in zip(decoding, sizes(lookups, seconds, room), strict=True)
    }


def sizes(lookups: Sequence[Lookup], seconds: Callable[[int], float], room: int) -> list[int]:
    """How many tokens to guess for each of the sequences that decode in the next step.

    As many as raise the expected tokens a second of all of them together.
    """
    n_rows, n_tokens = len(lookups), float(len(lookups))
    chosen = [0] * len(lookups)
    costs = [(size, seconds(size)) for size in _SIZES if n_rows < size <= room]
    for i, lookup in enumerate(lookups):
        if not lookup.expected(1):
            continue
        best_speed = _MARGIN * n_tokens / seconds(n_rows)
        for size, cost in costs:
            n = size - n_rows
            speed = (n_tokens + lookup.expected(n)) / cost if n > 0 else 0.0
            if speed > best_speed:
                chosen[i], best_speed = n, speed
        n_rows += chosen[i]
        n_tokens += lookup.expected(chosen[i])
    return chosen


def _follow_ups(tokens: list[int]) -> dict[int, int]:
    """For every run of `_MATCH` tokens: the position behind its last occurrence."""
    if len(tokens) < _MATCH:
        return {}
    ids = np.array(tokens, np.int64)
    keys = (ids[:-2] << 42) | (ids[1:-1] << 21) | ids[2:]
    return dict(zip(keys.tolist(), range(_MATCH, len(tokens) + 1), strict=True))


def _key(tokens: Sequence[int]) -> int:
    """Three token ids, below 2^21 each, in one integer."""
    return tokens[0] << 42 | tokens[1] << 21 | tokens[2]
