"""The events of one answer on their way from a worker's pipe to the task that answers it.

One writer, `worker/client.py`, and one reading task. It bounds what may lie unread, and knows
nothing of processes, pipes and HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from llm_server.worker.messages import (
    Asked,
    Content,
    Embedded,
    Failed,
    Finished,
    Logprobs,
    Reasoning,
    RequestEvent,
    Told,
    ToolCall,
)

MAX_UNREAD = 1024 * 1024
"""Bytes of events that one answer's reader may leave unread, woken for them, before it is given up:
it is stuck. What comes at once may be more: a prompt that is told again comes in one piece."""


class EventStream:
    """The events of one request as batches, each holding all those of one frame or more.

    `ids` are those of the requests that make the answer. Each ends in `Finished` or `Told`, or
    the last event is a `Failed` for them all. Iterated by one task. `close` at any time: requests
    that have not ended are cancelled in the worker.
    """

    __slots__ = (
        "_close",
        "_left_bytes",
        "_n_open",
        "_poked",
        "_unread",
        "_unread_bytes",
        "_waiter",
        "begun",
        "ids",
    )

    def __init__(self, ids: range, close: Callable[[EventStream], None]) -> None:
        self.ids = ids
        self.begun = False
        """Whether anything has come: nothing does before the worker has turned to one of them."""
        self._close = close
        self._n_open = len(ids)
        self._unread: list[RequestEvent] = []
        self._unread_bytes = 0
        self._left_bytes = 0  # those that its reader was woken for
        self._waiter: asyncio.Future[None] | None = None
        self._poked = False

    @property
    def open(self) -> bool:
        """Whether more events can come."""
        return self._n_open > 0

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> list[RequestEvent]:
        if not self._unread and not self._poked:
            if not self._n_open:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        self._poked = False
        batch, self._unread = self._unread, []
        self._unread_bytes = self._left_bytes = 0
        return batch

    def poke(self) -> None:
        """Let the iterating task go round once, with an empty batch if nothing has come."""
        self._poked = True
        self.wake()

    def close(self) -> None:
        """Nobody reads on. Cancels what has not ended. Safe to repeat."""
        if self._n_open:
            self._n_open = 0
            self._close(self)

    def add(self, event: RequestEvent) -> bool:
        """Take an event, to be read after `wake`. False, and it is not taken, when the reader is
        too far behind; an end always is taken."""
        if isinstance(event, Finished | Told):
            self._n_open -= 1
        elif isinstance(event, Failed):
            self._n_open = 0
        elif self._left_bytes > MAX_UNREAD:
            return False
        self.begun = True
        self._unread.append(event)
        self._unread_bytes += 100 + _text_length(event)
        return True

    def wake(self) -> None:
        """Let the iterating task read what was added."""
        self._left_bytes = self._unread_bytes
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


@dataclass(frozen=True, slots=True)
class Sent:
    """A request that a worker has, where its events go, and how many bytes it was."""

    request: Asked
    stream: EventStream
    size: int


def _text_length(event: RequestEvent) -> int:
    if isinstance(event, Content | Reasoning):
        return len(event.text)
    if isinstance(event, ToolCall):
        return len(event.arguments)
    if isinstance(event, Embedded):
        return len(event.vectors)
    if isinstance(event, Logprobs):
        return sum(50 * (1 + len(token.top)) for token in event.tokens)
    return 0
