"""From a worker's events to an answer that is a list of items, one open at a time: a thought, a
text, a call. Which items and events there are is a dialect's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from llm_server.worker.messages import (
    Content,
    Delta,
    Finished,
    Reasoning,
    RequestEvent,
    ToolCall,
)

E = TypeVar("E")
T = TypeVar("T")


@dataclass(slots=True)
class Open(Generic[T]):
    """The item that grows: which of the worker's deltas belong to it, and its text so far."""

    kind: type[Delta]
    call_index: int | None
    item: T
    index: int
    pieces: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All of it that has come."""
        return "".join(self.pieces)


class ItemEvents(Generic[E, T]):
    """Makes the events `E` of an answer of items `T`: each method returns those of one moment.

    An answer that is not streamed is what they add up to (`chat.Folder`).
    """

    def __init__(self) -> None:
        self._open: Open[T] | None = None
        self._n_items = 0

    def of(self, event: RequestEvent) -> Sequence[E]:
        """The events that an event of the worker becomes."""
        if isinstance(event, Content | Reasoning):
            return self._grow(event, None, event.text)
        if isinstance(event, ToolCall):
            return self._grow(event, event.index, event.arguments)
        if isinstance(event, Finished):
            return self._finish(event)
        return []

    def add(self, event: RequestEvent) -> object:
        """The same for an answer that is not streamed."""
        return self.of(event)

    def _grow(self, event: Delta, call_index: int | None, text: str) -> list[E]:
        """More of the open item, or of a new one behind it."""
        events: list[E] = []
        opened = self._open
        if opened is None or (opened.kind, opened.call_index) != (type(event), call_index):
            events += self._close()
            opened = self._open = Open(type(event), call_index, self._new(event), self._n_items)
            self._n_items += 1
            events += self._begin(opened)
        if text:
            opened.pieces.append(text)
            events.append(self._more(opened, text))
        return events

    def _close(self) -> list[E]:
        """The end of the open item, if there is one."""
        opened, self._open = self._open, None
        return [] if opened is None else self._end(opened)

    # ---- what a dialect makes of it ------------------------------------------------------------

    def _new(self, event: Delta) -> T:
        """The empty item that an event is the first of."""
        raise NotImplementedError

    def _begin(self, opened: Open[T]) -> list[E]:
        """It is there, and empty."""
        raise NotImplementedError

    def _more(self, opened: Open[T], text: str) -> E:
        """It has grown by `text`."""
        raise NotImplementedError

    def _end(self, opened: Open[T]) -> list[E]:
        """It is whole, and joins the answer."""
        raise NotImplementedError

    def _finish(self, event: Finished) -> list[E]:
        """The answer is complete."""
        raise NotImplementedError


def first_of_call(event: ToolCall) -> tuple[str, str]:
    """The id and the name of a call, by its first delta."""
    assert event.call_id is not None and event.name is not None, "a call's first delta names it"
    return event.call_id, event.name
