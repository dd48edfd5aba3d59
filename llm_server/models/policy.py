"""The pool's judgements, as plain functions: what fits, and how long to wait after crashes."""

from __future__ import annotations

from dataclasses import dataclass

FIRST_BACKOFF_S = 0.5
LONGEST_BACKOFF_S = 30.0
FORGIVEN_S = 10.0
"""A worker that lived this long before it crashed makes the earlier crashes count no more."""


@dataclass(slots=True)
class Crashes:
    """How often a model's worker has died in a row, and when the next one may be started."""

    count: int = 0
    not_before: float = 0.0

    def note(self, now: float, lived_s: float) -> None:
        """One has died at `now`, `lived_s` seconds after its model was loaded."""
        self.count = 1 if lived_s > FORGIVEN_S else self.count + 1
        self.not_before = now + backoff_s(self.count)


def fits_beside(size: int, available: int) -> bool:
    """Whether a model of `size` bytes can be loaded while another one stays.

    Weights, and a quarter of them for context and buffers, must leave 1 GiB of the `available`
    bytes. A guess on the safe side: being wrong costs the old model a reload, being too bold
    costs a process.
    """
    return size * 5 // 4 + (1 << 30) <= available


def backoff_s(crashes: int) -> float:
    """Seconds to wait before the next start after that many crashes in a row."""
    return min(FIRST_BACKOFF_S * 2.0 ** (crashes - 1), LONGEST_BACKOFF_S)
