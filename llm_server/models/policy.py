"""The pool's judgements, as plain functions: what fits, and how long to wait after crashes."""

from __future__ import annotations

FIRST_BACKOFF_S = 0.5
LONGEST_BACKOFF_S = 30.0


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
