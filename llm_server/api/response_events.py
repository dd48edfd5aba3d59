"""From a worker's events to those of the Responses API, and to the response they add up to.

An answer is a list of items, one open at a time: a thought, a message, a call. It knows nothing of
HTTP, and of the request only what the response repeats of it.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace

from llm_server.api import sse
from llm_server.api.response_json import (
    ArgumentsDelta,
    ArgumentsDone,
    Broken,
    CallOut,
    Completed,
    Created,
    Event,
    Incomplete,
    IncompleteDetails,
    InProgress,
    ItemAdded,
    ItemDone,
    ItemOut,
    MessageOut,
    OutputText,
    PartAdded,
    PartDone,
    ReasoningOut,
    ReasoningText,
    ResponseOut,
    Status,
    TextDelta,
    TextDone,
    ThoughtDelta,
    ThoughtDone,
    response_error,
    response_usage,
)
from llm_server.api.usage import Origin, timings_json
from llm_server.errors import ErrorInfo
from llm_server.worker.messages import (
    Content,
    Delta,
    Finished,
    Reasoning,
    RequestEvent,
    ToolCall,
)

_DELTAS: dict[type[Delta], type[Event]] = {
    Content: TextDelta,
    Reasoning: ThoughtDelta,
    ToolCall: ArgumentsDelta,
}


@dataclass(slots=True)
class _Open:
    """The item that grows: which of the worker's deltas belong to it, and its text so far."""

    kind: type[Delta]
    call_index: int | None
    item: ItemOut
    output_index: int
    pieces: list[str] = field(default_factory=list)

    @property
    def place(self) -> dict[str, Any]:
        """The members that say where an event belongs."""
        return {"item_id": self.item.id, "output_index": self.output_index}


class ResponseEvents:
    """The events of one response: each method returns those that belong to one moment.

    A response that is not streamed is what they add up to (`chat.Folder`).
    `warming`: nothing was to be generated, so that an end without output is no early one.
    """

    framing = sse.NAMED

    def __init__(
        self, origin: Origin, start: Callable[[Origin], ResponseOut], warming: bool = False
    ) -> None:
        self.response = start(origin)
        self._warming = warming
        self._n_events = 0
        self._open: _Open | None = None

    def opening(self) -> list[Event]:
        """The response, before anything is known of it."""
        return [
            self._event(Created, response=self.response),
            self._event(InProgress, response=self.response),
        ]

    def of(self, event: RequestEvent) -> Sequence[Event]:
        """The events that an event of the worker becomes."""
        if isinstance(event, Content | Reasoning):
            return self._grow(event, None, event.text)
        if isinstance(event, ToolCall):
            return self._grow(event, event.index, event.arguments)
        if isinstance(event, Finished):
            return self._finish(event)
        return []

    add = of

    def whole(self) -> ResponseOut:
        """The response, after the last event."""
        return self.response

    def failed(self, info: ErrorInfo) -> Event:
        """The last event of a response that has failed.

        The open item is part of it, but is not told as done: clients act on calls that are.
        """
        error = response_error(info)
        if self._open is not None:
            self._join(_ended(self._open, "incomplete"))
        self.response = replace(self.response, status="failed", error=error)
        return self._event(Broken, response=self.response)

    def _event(self, kind: type[Event], **members: Any) -> Event:
        self._n_events += 1
        return kind(sequence_number=self._n_events - 1, **members)

    def _grow(self, event: Delta, call_index: int | None, text: str) -> list[Event]:
        """More of the open item, or of a new one behind it."""
        events: list[Event] = []
        opened = self._open
        if opened is None or (opened.kind, opened.call_index) != (type(event), call_index):
            events += self._close("completed")
            opened = _Open(type(event), call_index, _new_item(event), len(self.response.output))
            self._open = opened
            events += self._begin(opened)
        if text:
            opened.pieces.append(text)
            events.append(self._event(_DELTAS[opened.kind], **opened.place, delta=text))
        return events

    def _begin(self, opened: _Open) -> list[Event]:
        index, item = opened.output_index, opened.item
        added = self._event(ItemAdded, output_index=index, item=item)
        if isinstance(item, CallOut):
            return [added]
        part = OutputText("") if isinstance(item, MessageOut) else ReasoningText("")
        return [added, self._event(PartAdded, **opened.place, part=part)]

    def _close(self, status: Status) -> list[Event]:
        """The end of the open item, if there is one: it joins the response's output."""
        opened, self._open = self._open, None
        if opened is None:
            return []
        item = _ended(opened, status)
        if isinstance(item, CallOut):
            whole = {"name": item.name, "arguments": item.arguments}
            events = [self._event(ArgumentsDone, **opened.place, **whole)]
        else:
            done = TextDone if isinstance(item, MessageOut) else ThoughtDone
            (part,) = item.content
            events = [
                self._event(done, **opened.place, text=part.text),
                self._event(PartDone, **opened.place, part=part),
            ]
        self._join(item)
        return [*events, self._event(ItemDone, output_index=opened.output_index, item=item)]

    def _join(self, item: ItemOut) -> None:
        self.response = replace(self.response, output=[*self.response.output, item])

    def _finish(self, event: Finished) -> list[Event]:
        early = event.reason == "length" and not self._warming
        events = self._close("incomplete" if early else "completed")
        self.response = replace(
            self.response,
            status="incomplete" if early else "completed",
            incomplete_details=IncompleteDetails() if early else None,
            usage=response_usage(event.usage),
            timings=timings_json(event.usage, event.timings),
            completed_at=None if early else int(time.time()),
        )
        last = Incomplete if early else Completed
        return [*events, self._event(last, response=self.response)]


def _new_item(event: Delta) -> ItemOut:
    """The empty item that an event is the first of."""
    if isinstance(event, ToolCall):
        assert event.call_id is not None and event.name is not None, "a call's first delta names it"
        return CallOut(new_id("fc"), "in_progress", event.call_id, event.name)
    if isinstance(event, Reasoning):
        return ReasoningOut(new_id("rs"), "in_progress")
    return MessageOut(new_id("msg"), "in_progress")


def _ended(opened: _Open, status: Status) -> ItemOut:
    """The open item with all of its text."""
    text, item = "".join(opened.pieces), opened.item
    if isinstance(item, CallOut):
        return replace(item, status=status, arguments=text)
    if isinstance(item, MessageOut):
        return replace(item, status=status, content=[OutputText(text)])
    return replace(item, status=status, content=[ReasoningText(text)])


def new_id(kind: str) -> str:
    """An id that says what it is of, as unguessable as OpenAI's."""
    return f"{kind}_{secrets.token_hex(16)}"
