"""From an answer's text to text that may be shown: nothing of a stop string.

Holds back only what the next piece could still change.
"""

from __future__ import annotations

from collections.abc import Sequence

from llm_server.chat.syntax.reader import overlap


class StopStrings:
    """Finds the first of some stop strings in a stream of text, also across pieces."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [s for s in stops if s]
        self._held = ""
        self.found: str | None = None
        """The one that ended the stream, once one has."""

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
        found = [(at, stop) for stop in self._stops if (at := buffer.find(stop)) >= 0]
        if found:
            self._held = ""
            at, self.found = min(found)
            return buffer[:at], True
        cut = len(buffer) - max(overlap(buffer, stop) for stop in self._stops)
        self._held = buffer[cut:]
        return buffer[:cut], False

    def flush(self) -> str:
        """What was held back, once no more text comes."""
        held, self._held = self._held, ""
        return held
