"""Which heads are worth storing at once: not where none is used twice, as with the time in it.

Counts by namespace, and knows no memory and no disk.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

N_IN_VAIN = 4
"""So many heads of a namespace in a row that nobody used again: the next one may wait for a use."""
MAX_NAMESPACES = 1000
"""Those that are remembered, the last ones; some 1 KB each."""


class Heads:
    """The last heads that were computed, and whether they were used again. Not thread-safe."""

    def __init__(self) -> None:
        self._last: OrderedDict[str, dict[int, bool]] = OrderedDict()

    def computed(self, head: Sequence[int], namespace: str) -> bool:
        """A head was computed, again if it is known; whether to store it now."""
        last = self._last.setdefault(namespace, {})
        self._last.move_to_end(namespace)
        if len(self._last) > MAX_NAMESPACES:
            self._last.popitem(last=False)
        key = hash(tuple(head))
        worth = key in last or len(last) < N_IN_VAIN or any(last.values())
        last[key] = key in last
        if len(last) > N_IN_VAIN:
            del last[next(iter(last))]
        return worth

    def used(self, head: Sequence[int], namespace: str) -> None:
        """Somebody began with a head and did not compute it."""
        last = self._last.get(namespace, {})
        key = hash(tuple(head))
        if key in last:
            last[key] = True
