"""From token bytes to text that may be shown: whole characters, and nothing of a stop string.

Both classes hold back only what the next token could still change.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class Utf8Stream:
    """Bytes in, whole characters out; a character split over tokens waits for its last byte.

    Bytes that can never become a character are shown as U+FFFD, an unfinished end is dropped.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, piece: bytes) -> str:
        """The characters that `piece` completes."""
        return self._decoder.decode(piece)


class StopStrings:
    """Finds the first of some stop strings in a stream of text, also across pieces."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [s for s in stops if s]
        self._held = ""

    @property
    def holding(self) -> bool:
        """Whether text is held back, which may be the beginning of a stop string."""
        return bool(self._held)

    def feed(self, text: str) -> tuple[str, bool]:
        """Text that is safe to show, and whether a stop string ended the stream.

        The stop string itself and what follows it are never returned.
        """
        if not self._stops:
            return text, False
        buffer = self._held + text
        found = [at for stop in self._stops if (at := buffer.find(stop)) >= 0]
        if found:
            self._held = ""
            return buffer[: min(found)], True
        cut = len(buffer) - self._overlap(buffer)
        self._held = buffer[cut:]
        return buffer[:cut], False

    def flush(self) -> str:
        """What was held back, once no more text comes."""
        held, self._held = self._held, ""
        return held

    def _overlap(self, buffer: str) -> int:
        """Length of the longest end of `buffer` that begins a stop string."""
        longest = min(len(buffer), max(len(stop) for stop in self._stops) - 1)
        for n in range(longest, 0, -1):
            end = buffer[-n:]
            if any(stop.startswith(end) for stop in self._stops):
                return n
        return 0
