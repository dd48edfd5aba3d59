"""What may lie unread of one answer, and that it has one end whatever lies there."""

from __future__ import annotations

import asyncio

import pytest

from llm_server.worker.messages import (
    Content,
    Finished,
    Progress,
    RequestEvent,
    Timings,
    Told,
    Usage,
)
from llm_server.worker.stream import MAX_UNREAD, EventStream

HALF = Content(1, "x" * (MAX_UNREAD // 2))
END = Finished(1, "stop", Usage(1, 1, 0), Timings(0.0, 0.0, 0.0))


def stream() -> EventStream:
    return EventStream(range(1, 2), lambda _: None)


def told(stream: EventStream, *events: RequestEvent) -> list[bool]:
    """Add each as a frame of its own, which nobody reads; what came of it."""
    taken = []
    for event in events:
        taken.append(stream.add(event))
        stream.wake()
    return taken


def test_a_reader_that_leaves_too_much_is_behind() -> None:
    assert told(stream(), HALF, HALF, Content(1, "y")) == [True, True, False]


@pytest.mark.parametrize("end", [END, Told(1)])
def test_an_end_is_taken_however_much_lies_unread(end: RequestEvent) -> None:
    unread = stream()
    assert told(unread, HALF, HALF, HALF, end) == [True, True, False, True]
    assert not unread.open
    assert asyncio.run(anext(unread)) == [HALF, HALF, end]


def test_what_comes_at_once_is_no_fault_of_the_reader() -> None:
    """`echo` tells a whole prompt in one piece, together with what the model says to it."""
    prompt = Content(1, "x" * (2 * MAX_UNREAD))
    events = [Progress(1, 9, 9, 0), prompt, Content(1, "y")]
    unread = stream()
    assert [unread.add(event) for event in events] == [True] * 3
    unread.wake()
    assert asyncio.run(anext(unread)) == events
    assert told(unread, Content(1, "z"), END) == [True, True]
