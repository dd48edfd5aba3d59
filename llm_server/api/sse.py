"""Streams: server-sent events or lines of JSON, and sending them to a client that may stall.

It knows the framing and the clock, not what the data means.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec
from starlette.responses import Response
from starlette.types import Send

EVENTS = "text/event-stream"
DONE = b"data: [DONE]\n\n"

_LINE_ENDS = [(c.encode(), f"\\u{ord(c):04x}".encode()) for c in "\x85\u2028\u2029"]
"""What JSON allows in texts as it is, and `str.splitlines` takes for the end of a line."""

_encoder = msgspec.json.Encoder()


def line(value: object) -> bytes:
    """A msgspec-encodable value as one line, also where Unicode's ends of lines count."""
    encoded = _encoder.encode(value)
    for raw, escaped in _LINE_ENDS:
        encoded = encoded.replace(raw, escaped)
    return encoded + b"\n"


def data(value: object) -> bytes:
    """The same as an event."""
    return b"data: " + line(value) + b"\n"


def named(value: msgspec.Struct) -> bytes:
    """An event whose name is the struct's tag, as the Responses API has them."""
    name = value.__struct_config__.tag
    return f"event: {name}\n".encode() + data(value)


def comment(text: str) -> bytes:
    """A line that clients skip, and that keeps connections and people from giving up."""
    return b": " + " ".join(text.split()).encode() + b"\n\n"


def silence(_: str) -> bytes:
    """Where there are no comments. The headers that go out before the first one say something."""
    return b""


class Framing(NamedTuple):
    """How a dialect writes its events and comments, and what ends a stream that went well."""

    event: Callable[[Any], bytes]
    end: bytes
    comment: Callable[[str], bytes] = comment
    media_type: str = EVENTS


PLAIN = Framing(data, DONE)
NAMED = Framing(named, b"")
LINES = Framing(line, b"", silence, "application/x-ndjson")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long clients are kept without a sign, in seconds."""

    headers_s: float = 2.0
    """A stream whose first event takes longer starts with comments. Errors that come earlier are
    plain HTTP errors."""
    keep_alive_s: float = 5.0
    """Longest silence in a stream."""
    stall_s: float = 30.0
    """Longest time a client may take to accept a write."""


class EventWriter:
    """Sends one response as an event stream, and watches the time between writes.

    While it is entered, `on_quiet` is called when nothing was written for `keep_alive_s`, and the
    task that entered is cancelled when one write hangs for `stall_s`: the client reads no more.
    """

    def __init__(
        self,
        send: Send,
        headers: list[tuple[bytes, bytes]],
        patience: Patience,
        on_quiet: Callable[[], None],
    ) -> None:
        self._send = send
        self._headers = headers
        self._patience = patience
        self._on_quiet = on_quiet
        self._last = 0.0
        self._writing = False
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[object] | None = None
        self.started = False
        """Whether the status line is out, so that errors must go into the stream."""

    def __enter__(self) -> EventWriter:
        self._task = asyncio.current_task()
        self._last = time.monotonic()
        self._schedule()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._timer is not None:
            self._timer.cancel()

    async def write(self, body: bytes, last: bool = False) -> None:
        """Send bytes, with the status line before the first ones; `last` ends the response."""
        self._last = time.monotonic()
        self._writing = True
        if not self.started:
            self.started = True
            await self._send(
                {"type": "http.response.start", "status": 200, "headers": self._headers}
            )
        await self._send({"type": "http.response.body", "body": body, "more_body": not last})
        self._writing = False

    def _schedule(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._patience.keep_alive_s, self._tick)

    def _tick(self) -> None:
        quiet = time.monotonic() - self._last
        if self._writing:
            if quiet >= self._patience.stall_s and self._task is not None:
                self._task.cancel()
                return
        elif quiet >= self._patience.keep_alive_s / 2:
            self._on_quiet()
        self._schedule()


class EventStreamResponse(Response):
    """A response that is an event stream, as long as its client accepts it."""

    def __init__(
        self, patience: Patience, headers: dict[str, str], media_type: str = EVENTS
    ) -> None:
        super().__init__(
            media_type=media_type,
            headers={"cache-control": "no-cache", "x-accel-buffering": "no"} | headers,
        )
        self._patience = patience

    def writer(self, send: Send, on_quiet: Callable[[], None]) -> EventWriter:
        """What sends it."""
        # The empty body of the base class has set a length.
        headers = [(name, value) for name, value in self.raw_headers if name != b"content-length"]
        return EventWriter(send, headers, self._patience, on_quiet)
