"""From an answer's text to the deltas a client sees."""

from __future__ import annotations

from llm_server.worker.messages import Content, Delta


class PlainText:
    """An answer without tools or reasoning: all of it is content."""

    def __init__(self, id: int) -> None:
        self._id = id

    def feed(self, text: str) -> list[Delta]:
        """The deltas that `text` makes visible."""
        return [Content(self._id, text)]

    def close(self) -> list[Delta]:
        """What was held back, once no more text comes: nothing."""
        return []
