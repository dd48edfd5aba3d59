"""The pool's judgements, as plain functions: how much, who waits, who goes, when after crashes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from llm_server.errors import QueueFull, RateLimitExceeded
from llm_server.machine import Memory

LEAVE_SHARE = 10
"""A tenth of the machine's memory is left to everybody else, unless told otherwise."""

_SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>%|[kmgt]?i?b?)", re.IGNORECASE)
_PREFIXES = "kmgt"
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_DURATION = re.compile(
    r"(?P<seconds>-?\d+(?:\.\d+)?)"
    r"|(?=.)" + "".join(rf"(?:(?P<{unit}>\d+(?:\.\d+)?){unit})?" for unit in _UNITS)
)

FIRST_BACKOFF_S = 0.5
LONGEST_BACKOFF_S = 30.0
MAX_REVIVALS = 3
"""Crashes in a row after which a model waits for somebody to ask for it again."""
FORGIVEN_S = 10.0
"""A worker that lived this long, and answered, before it crashed makes the earlier crashes count no
more. One that only lived does not: it would be loaded again for ever, and nobody asks for it."""


@dataclass(slots=True)
class Crashes:
    """How often a model's worker has died in a row, and when the next one may be started."""

    count: int = 0
    not_before: float = 0.0

    def note(self, now: float, lived_s: float, *, answered: bool) -> None:
        """One has died at `now`, `lived_s` seconds after its model was loaded.

        `answered`: it had brought a request to its end.
        """
        self.count = 1 if answered and lived_s > FORGIVEN_S else self.count + 1
        self.not_before = now + backoff_s(self.count)


@dataclass(frozen=True, slots=True)
class Holding:
    """What a loaded model holds of the budget, and whether it is in use."""

    memory: int
    used: float
    """When its last request ended; only the order counts."""
    busy: bool


def whom_to_evict(needed: int, budget: int, holdings: Sequence[Holding]) -> list[int]:
    """Which of `holdings` go, by index, so that `needed` bytes fit into `budget`.

    Idle ones before busy ones, the least recently used first, and nobody for nothing. What never
    fits must have been refused before: then all go.
    """
    order = sorted(range(len(holdings)), key=lambda i: (holdings[i].busy, holdings[i].used))
    short = needed + sum(holding.memory for holding in holdings) - budget
    gone: list[int] = []
    for i in order:
        if short <= 0:
            break
        gone.append(i)
        short -= holdings[i].memory
    # A small one that went first may stay after all when a big one had to follow it.
    for i in list(gone):
        if short + holdings[i].memory <= 0:
            gone.remove(i)
            short += holdings[i].memory
    return gone


def check_room(n_taken: int, n_owned: int, at_once: int, queue_size: int) -> None:
    """Whether one more request may wait beside `n_taken`; if it has an owner, `n_owned` are theirs.

    Raises QueueFull, and RateLimitExceeded for an owner with more places than are left. So there is
    one left for somebody who has none: the first gets at most half of the places, the next half of
    the rest. What can run `at_once` is nobody's loss.
    """
    left = at_once + queue_size - n_taken
    if left <= 0:
        raise QueueFull
    if n_taken >= at_once and n_owned >= left:
        raise RateLimitExceeded(
            "Too many requests with this API key are waiting; what room is left is for others. "
            "Try again in a moment."
        )


def budget_bytes(told: str | None, machine: Memory) -> int:
    """Bytes that models may take: as told ("8GB", "6GiB", "80%" of all), else what is free now
    less a tenth of all.

    Raises:
        ValueError: it is not told in such words.
    """
    if told is None:
        return max(0, machine.available - machine.total // LEAVE_SHARE)
    match = _SIZE.fullmatch(told.strip())
    if match is None:
        raise ValueError("write a size such as 8GB, or a share such as 80%")
    number, unit = float(match["number"]), match["unit"].lower()
    if unit == "%":
        if number > 100:
            raise ValueError("a share cannot be more than 100%")
        return int(machine.total * number / 100)
    power = _PREFIXES.find(unit[0]) + 1 if unit and unit[0] in _PREFIXES else 0
    return int(number * (1024 if "i" in unit else 1000) ** power)


def keep_alive_seconds(told: str | float) -> float:
    """Seconds of a time such as 300, "5m" or "1.5h"; -1 for "forever" and anything negative.

    Raises:
        ValueError: it is not told in such words.
    """
    if isinstance(told, str):
        if told.strip() == "forever":
            return -1.0
        match = _DURATION.fullmatch(told.strip())
        if match is None:
            raise ValueError("write seconds, a time such as 5m, or forever")
        if match["seconds"] is None:
            return sum(float(match[unit] or 0) * seconds for unit, seconds in _UNITS.items())
        told = float(match["seconds"])
    return float(told) if told >= 0 else -1.0


def backoff_s(crashes: int) -> float:
    """Seconds to wait before the next start after that many crashes in a row."""
    return min(FIRST_BACKOFF_S * 2.0 ** (crashes - 1), LONGEST_BACKOFF_S)
