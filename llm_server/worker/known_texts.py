"""Token ids of pieces of prompts that came lately: a system prompt comes with every request."""

from __future__ import annotations

import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable

from llm_server.chat.segments import Segment

BUDGET = 4 << 20
"""Characters that are kept; their ids take about as many bytes again."""

WORTH_KEEPING = 256
"""Characters of the shortest text that is kept: some 0.1 ms of tokenizing."""


class KnownTexts:
    """Tokenizes segments. Threads may share it."""

    def __init__(self, tokenize: Callable[[Segment], list[int]], budget: int = BUDGET) -> None:
        self._tokenize = tokenize
        self._budget = budget
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[str, str, bool], array[int]] = OrderedDict()
        self._size = 0

    def tokens(self, segment: Segment, namespace: str) -> list[int]:
        """The tokens of a segment, at once if it was there before.

        What one namespace has asked does not show in the times of another.
        """
        if len(segment.text) < WORTH_KEEPING:
            return self._tokenize(segment)
        key = (namespace, segment.text, segment.special)
        with self._lock:
            if (known := self._known.get(key)) is not None:
                self._known.move_to_end(key)
                return known.tolist()
        tokens = self._tokenize(segment)
        with self._lock:
            self._keep(key, array("i", tokens))
        return tokens

    def _keep(self, key: tuple[str, str, bool], tokens: array[int]) -> None:
        if key not in self._known:
            self._known[key] = tokens
            self._size += len(key[1])
        while self._size > self._budget:
            (_, text, _), _ = self._known.popitem(last=False)
            self._size -= len(text)
