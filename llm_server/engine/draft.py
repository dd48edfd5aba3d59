"""Guessing what an answer will copy: prompt-lookup drafts, and how many tokens of them pay.

Summaries, edits and answers from documents repeat what stands in the prompt or in the answer so
far. A guess is computed in the same step as the token before it; the engine keeps what agrees with
what it samples, so a guess changes nothing but the speed. Pure bookkeeping: it decodes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np

_MATCH = 3  # tokens that must have occurred before, in a row, to guess what follows them
_MEMORY = 0.98  # weight of what was seen a token earlier: some 50 tokens count
_MARGIN = 1.1  # what guesses must promise to win, against errors in the estimates


class Chance:
    """How often something has come true lately; a half until anything is known."""

    __slots__ = ("_n", "_n_right")

    def __init__(self) -> None:
        self._n = 2.0
        self._n_right = 1.0

    def learn(self, right: bool) -> None:
        """It did, or did not."""
        self._n = _MEMORY * self._n + 1
        self._n_right = _MEMORY * self._n_right + right

    @property
    def value(self) -> float:
        """Between 0 and 1."""
        return self._n_right / self._n


class Lookup:
    """Where the end of a text has stood before, and so what may follow it now.

    It judges all its guesses, also those that nobody computed: whether copying goes on is known
    before a single row is risked. A guess behind a right one (`_goes_on`) has another chance than
    the first one of a copy or the one behind an error (`_begins`): an edit is one wrong word in a
    long run of right ones, and a false trail one right word after the other that leads nowhere.
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = list(tokens)
        self._next = _follow_ups(self._tokens)
        self._at: int | None = None
        self._sure = False
        self._in_copy = False
        self._begins, self._goes_on = Chance(), Chance()

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

    def chances(self, n: int) -> Iterator[float]:
        """How likely it is for each of `n` guesses that it, and all before it, are right."""
        if self._at is None:
            return
        goes_on = self._goes_on.value
        chance = goes_on if self._in_copy else self._begins.value
        for _ in range(n):
            yield chance
            chance *= goes_on

    def _add(self, token: int) -> None:
        if self._at is not None:
            right = self._tokens[self._at] == token
            (self._goes_on if self._in_copy else self._begins).learn(right)
            self._in_copy = right
            # One word may be another and the copy go on behind it; if not, the next match tells.
            self._at += 1
            self._sure = self._sure and right
        self._tokens.append(token)
        if len(self._tokens) < _MATCH:
            return
        key = _key(self._tokens[-_MATCH:])
        if not self._sure and key in self._next:
            self._in_copy = self._in_copy and self._at == self._next[key]
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
    return {
        sequence.id: sequence.lookup.guess(n)
        for sequence, n in zip(decoding, sizes(decoding, n_max, room, seconds), strict=True)
    }


def sizes(
    decoding: Sequence[Guessable], n_max: int, room: int, seconds: Callable[[int], float]
) -> list[int]:
    """How many tokens to guess for each of the sequences that decode in the next step.

    Rows go to the likeliest guesses first, and as many are taken as raise the expected tokens a
    second of all sequences together.
    """
    n = len(decoding)
    chances = [
        (chance, i)
        for i, sequence in enumerate(decoding)
        for chance in sequence.lookup.chances(min(n_max, sequence.n_left - 1))
    ]
    chosen = [0] * n
    if not chances:
        return chosen
    # Each guess is less likely than the one before it, so that none is taken without that one.
    chances.sort(reverse=True)
    n_tokens, n_guesses = float(n), 0
    best_speed = _MARGIN * n_tokens / seconds(n)
    for n_rows, (chance, _) in enumerate(chances[: max(0, room - n)], n + 1):
        n_tokens += chance
        if (speed := n_tokens / seconds(n_rows)) > best_speed:
            best_speed, n_guesses = speed, n_rows - n
    for _, i in chances[:n_guesses]:
        chosen[i] += 1
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
