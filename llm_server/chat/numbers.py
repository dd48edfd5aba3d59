"""Where a number has digits enough: JSON lets it go on for ever, and a weak model does.

It knows tokens' spellings and masks, but no grammar.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MAX_DIGITS = 20
"""Digits in a row behind which a number ends if it may: 64 bits have no more."""

_DIGITS = b"0123456789"
_OF_TEXTS = b'"ABCDFGHIJKLMNOPQRSTUVWXYZabcdfghijklmnopqrstuvwxyz'
"""What never comes behind the digits of a number: all letters but that of an exponent."""


class Numbers:
    """Which tokens of a vocabulary go on with a number, and which are of a text."""

    def __init__(self, spellings: Sequence[bytes]) -> None:
        begins = np.frombuffer(b"".join(text[:1] or b"\0" for text in spellings), np.uint8)
        self._digits = _bits(begins, _DIGITS)
        self._texts = _bits(begins, _OF_TEXTS)

    def end(self, mask: NDArray[np.int32]) -> None:
        """Take the digits out of `mask`, if a number may end there; a text may have as many as
        it likes."""
        if not (mask & self._texts).any() and (rest := mask & ~self._digits).any():
            mask[:] = rest


def digits_behind(text: bytes, n_before: int) -> int:
    """How many digits in a row end `text`, with those before it."""
    rest = text.rstrip(_DIGITS)
    return len(text) - len(rest) + (0 if rest else n_before)


def _bits(begins: NDArray[np.uint8], among: bytes) -> NDArray[np.int32]:
    """The tokens that begin with one of these, 32 to a word, the lowest first."""
    bits = np.zeros((len(begins) + 31) // 32 * 32, dtype=bool)
    bits[: len(begins)] = np.isin(begins, np.frombuffer(among, np.uint8))
    return np.packbits(bits, bitorder="little").view(np.int32)
