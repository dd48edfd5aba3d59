"""From a worker's events to those of the Responses API, and to the response they add up to.

It knows nothing of HTTP, and of the request only what the response repeats of it.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from llm_server.api.items import ItemEvents, Open, first_of_call
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
    ToolCall,
)

_DELTAS: dict[type[Delta], type[Event]] = {
    Content: TextDelta,
    Reasoning: ThoughtDelta,
    ToolCall: ArgumentsDelta,
}


class ResponseEvents(ItemEvents[Event, ItemOut]):
    """The events of one response.

    `warming`: nothing was to be generated, so that an end without output is no early one.
    """

    def __init__(
        self, origin: Origin, start: Callable[[Origin], ResponseOut], warming: bool = False
    ) -> None:
        super().__init__()
        self.response = start(origin)
        self._warming = warming
        self._n_events = 0

    def opening(self) -> list[Event]:
        """The response, before anything is known of it."""
        return [
            self._event(Created, response=self.response),
            self._event(InProgress, response=self.response),
        ]

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

    def _new(self, event: Delta) -> ItemOut:
        if isinstance(event, ToolCall):
            return CallOut(new_id("fc"), "in_progress", *first_of_call(event))
        if isinstance(event, Reasoning):
            return ReasoningOut(new_id("rs"), "in_progress")
        return MessageOut(new_id("msg"), "in_progress")

    def _begin(self, opened: Open[ItemOut]) -> list[Event]:
        item = opened.item
        added = self._event(ItemAdded, output_index=opened.index, item=item)
        if isinstance(item, CallOut):
            return [added]
        part = OutputText("") if isinstance(item, MessageOut) else ReasoningText("")
        return [added, self._event(PartAdded, **_place(opened), part=part)]

    def _more(self, opened: Open[ItemOut], text: str) -> Event:
        return self._event(_DELTAS[opened.kind], **_place(opened), delta=text)

    def _end(self, opened: Open[ItemOut], status: Status = "completed") -> list[Event]:
        item = _ended(opened, status)
        if isinstance(item, CallOut):
            whole = {"name": item.name, "arguments": item.arguments}
            events = [self._event(ArgumentsDone, **_place(opened), **whole)]
        else:
            done = TextDone if isinstance(item, MessageOut) else ThoughtDone
            (part,) = item.content
            events = [
                self._event(done, **_place(opened), text=part.text),
                self._event(PartDone, **_place(opened), part=part),
            ]
        self._join(item)
        return [*events, self._event(ItemDone, output_index=opened.index, item=item)]

    def _join(self, item: ItemOut) -> None:
        self.response = replace(self.response, output=[*self.response.output, item])

    def _finish(self, event: Finished) -> list[Event]:
        early = event.reason == "length" and not self._warming
        opened, self._open = self._open, None
        events = self._end(opened, "incomplete" if early else "completed") if opened else []
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


def _place(opened: Open[ItemOut]) -> dict[str, Any]:
    """The members that say where an event belongs."""
    return {"item_id": opened.item.id, "output_index": opened.index}


def _ended(opened: Open[ItemOut], status: Status) -> ItemOut:
    """The open item with all of its text."""
    text, item = opened.text, opened.item
    if isinstance(item, CallOut):
        return replace(item, status=status, arguments=text)
    if isinstance(item, MessageOut):
        return replace(item, status=status, content=[OutputText(text)])
    return replace(item, status=status, content=[ReasoningText(text)])


def new_id(kind: str) -> str:
    """An id that says what it is of, as unguessable as OpenAI's."""
    return f"{kind}_{secrets.token_hex(16)}"
