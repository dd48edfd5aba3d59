"""A queue whose owners take turns: who waits with much does not hold up who waits with little."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Turns(Generic[T]):
    """First come, first served for each owner; the owners one after the other."""

    def __init__(self) -> None:
        self._of: dict[str, deque[T]] = {}  # the owner whose turn it is comes first; none is empty

    def __bool__(self) -> bool:
        return bool(self._of)

    def __iter__(self) -> Iterator[T]:
        return (item for queue in self._of.values() for item in queue)

    @property
    def first(self) -> T:
        """Whose turn it is; there must be one."""
        return next(iter(self._of.values()))[0]

    def add(self, owner: str, item: T) -> None:
        """Queue an item behind the others of its owner."""
        self._of.setdefault(owner, deque()).append(item)

    def take(self) -> T:
        """Remove the first one; its owner's next turn comes after everybody else's."""
        owner = next(iter(self._of))
        queue = self._of.pop(owner)
        item = queue.popleft()
        if queue:
            self._of[owner] = queue
        return item

    def drop(self, unwanted: Callable[[T], bool]) -> None:
        """Remove items; the turns stay as they are."""
        kept = {
            owner: deque(item for item in queue if not unwanted(item))
            for owner, queue in self._of.items()
        }
        self._of = {owner: queue for owner, queue in kept.items() if queue}
