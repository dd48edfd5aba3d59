"""One HTTP/1.1 connection: uvicorn's httptools protocol with the deadlines and limits it lacks.

httptools rather than h11 because its framing is strict: both lengths at once, bare line feeds and
folded headers are refused, where h11 serves what hides behind them. What is refused here never
becomes a request; everything else is the business of `edge.py`.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, ClassVar

import httptools
import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from llm_server.api.errors import error_body
from llm_server.api.traffic import Traffic, new_request_id
from llm_server.api.versions import head_without_upgrade, unframed
from llm_server.errors import ErrorInfo, InvalidRequest, Unavailable

logger = logging.getLogger(__name__)

_LINGER_S = 2.0
"""How long a client that is refused may go on sending: closing at once would reset the connection,
and it would never read why."""
_SILENT_S = 1.0
"""Whose request has not begun, or has no whole head, for so long makes room for others."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds from a request's first byte (or the connection's start), and sizes in bytes."""

    head_s: float = 10.0
    body_s: float = 30.0
    body_s_per_mb: float = 20.0
    """Added to `body_s` for each megabyte that has arrived."""
    write_s: float = 30.0
    """How long a client may read nothing worth mentioning of what waits for it."""
    read_bytes: int = 32 * 1024
    """What is worth mentioning: 1 kB a second."""
    url: int = 8192
    header_bytes: int = 32 * 1024
    headers: int = 64
    pipelined: int = 16
    """How many requests may wait behind the one that is being answered."""
    connections: int = 1024
    refused: int = 16
    """How many beyond them may be told why they are refused at a time: each is open until then."""
    tiny_pieces: int = 1000
    """A body of more pieces than this may not have pieces of less than `piece_bytes` on average:
    what a piece costs hardly depends on its size."""
    piece_bytes: int = 16


class ConnectionRefused(Unavailable):
    """More connections are open than the server may hold."""

    code = "too_many_connections"


class _Outlet:
    """The transport as a response sees it: closing waits for what the client still sends."""

    def __init__(self, connection: Connection, transport: asyncio.Transport) -> None:
        self._connection = connection
        self.write = transport.write
        self.is_closing = transport.is_closing

    def close(self) -> None:
        self._connection.hang_up()


class Connection(HttpToolsProtocol):
    """A connection within `limits`; what it refuses is told to `traffic`."""

    limits: ClassVar[Limits] = Limits()
    traffic: ClassVar[Traffic] = Traffic()

    url = b""
    """What is asked for, as far as it has come."""
    _receipt: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None
    _running: RequestResponseCycle | None = None
    _refusal: ErrorInfo | None = None
    _in_head = False
    _in_body = False
    _deaf = False
    _upgrading = False
    _head_bytes = 0
    _header_bytes = 0
    _body_bytes = 0
    _body_pieces = 0
    _body_began = 0.0

    # ---- the connection's life -----------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(transport)
        self._await_head()
        beyond = len(self.connections) - self.limits.connections
        if beyond <= 0 or self._evict_idle():
            return
        if beyond > self.limits.refused:
            transport.abort()
        else:
            info = ConnectionRefused("Too many connections are open. Try again in a moment.").info
            self._refuse(info)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone, whoever ended it."""
        for timer in (self._receipt, self._unread):
            if timer is not None:
                timer.cancel()
        self._unset_keepalive_if_required()
        self._disconnect_running()  # The base class tells the newest, which may wait behind it.
        super().connection_lost(exc)

    def _disconnect_running(self) -> None:
        """Tell whoever answers that nobody will read it."""
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()

    def data_received(self, data: bytes) -> None:
        """Bytes from the client, parsed within the limits."""
        if self._deaf:
            return
        self._unset_keepalive_if_required()
        self._feed(data)
        if not self._deaf and self._awaits_head() and self._receipt is None:
            self._await_head()  # Blank lines between requests must not keep a connection open.

    def _feed(self, data: bytes) -> None:
        if self._in_head:
            self._head_bytes += len(data)
        while data:
            try:
                self.parser.feed_data(data)
                data = b""
            except httptools.HttpParserUpgrade as stop:
                data = self._without_upgrade() + data[stop.args[0] :]
            except httptools.HttpParserError:
                self._refuse(self._refusal or _malformed("The request is not valid HTTP/1.1."))
                return
        if self._in_head and self._head_bytes > self.limits.url + self.limits.header_bytes:
            self._refuse(_headers_too_large(self.limits.header_bytes))

    def hang_up(self) -> None:
        """Close, once the client has had time to read the answer to what it may still send."""
        self._stop_receipt()
        self._deaf = True
        self.pipeline.clear()
        if not self._in_head and not self._in_body:
            self.transport.close()
            self._expect_reading()
        elif not self.transport.is_closing():
            self.flow.resume_reading()
            self.transport.write_eof()
            self.loop.call_later(_LINGER_S, self.transport.abort)

    def timeout_keep_alive_handler(self) -> None:
        """Nothing has come for a while: close, also when the last answer was never read."""
        self.transport.abort()

    # ---- deadlines -----------------------------------------------------------------------------

    def pause_writing(self) -> None:
        """The client reads slower than we write."""
        super().pause_writing()
        self._expect_reading()

    def resume_writing(self) -> None:
        """The client has caught up."""
        if self._unread is not None and not self.transport.is_closing():
            self._unread.cancel()
            self._unread = None
        super().resume_writing()

    def _expect_reading(self) -> None:
        """Have an eye on how much of the written data is left, as long as some is."""
        if self._unread is not None:
            self._unread.cancel()
        left = self.transport.get_write_buffer_size()
        self._unread = self.loop.call_later(self.limits.write_s, self._check_reading, left)

    def _check_reading(self, before: int) -> None:
        self._unread = None
        left = self.transport.get_write_buffer_size()
        if left == 0 or before - left >= self.limits.read_bytes:
            self._expect_reading()
        else:
            self.transport.abort()

    def _await_head(self) -> None:
        self._receipt = self.loop.call_later(self.limits.head_s, self._too_slow)

    def _await_body(self, seconds: float) -> None:
        self._receipt = self.loop.call_later(seconds, self._check_body)

    def _stop_receipt(self) -> None:
        if self._receipt is not None:
            self._receipt.cancel()
            self._receipt = None

    def _check_body(self) -> None:
        now = self.loop.time()
        if self.flow.read_paused:
            self._body_began = now  # It is us who do not read.
        allowed = self.limits.body_s + self.limits.body_s_per_mb * self._body_bytes / 1e6
        left = self._body_began + allowed - now
        if left > 0:
            self._await_body(left)
        else:
            self._too_slow()

    def _too_slow(self) -> None:
        if self._in_head or self._in_body:
            message = "The request took too long to arrive."
            self._refuse(InvalidRequest(message, status=408, code="request_timeout").info)
        else:
            self.transport.abort()

    def _awaits_head(self) -> bool:
        return self._is_answered() and not (self.pipeline or self._in_body)

    def _is_answered(self) -> bool:
        return self._running is None or self._running.response_complete

    def _evict_idle(self) -> bool:
        """Close the idle or slow connection that would be closed next; whether there was one."""
        ends = {
            connection: timer.when()
            for connection in self.connections
            if isinstance(connection, Connection) and (timer := connection._idling) is not None
        }
        if not ends:
            return False
        min(ends, key=ends.__getitem__).timeout_keep_alive_handler()
        return True

    @property
    def _idling(self) -> asyncio.TimerHandle | None:
        """The timer that closes it, if a head is long in coming, or none began since an answer."""
        head = self._receipt if self._awaits_head() else None
        if head and head.when() - self.loop.time() < self.limits.head_s - _SILENT_S:
            return head
        return self.timeout_keep_alive_task

    # ---- the parser's callbacks ----------------------------------------------------------------

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        self._in_head = True
        self._head_bytes = self._header_bytes = 0
        if self._receipt is None:
            self._await_head()

    def on_url(self, url: bytes) -> None:
        """A piece of the request's target."""
        super().on_url(url)
        if len(self.url) > self.limits.url:
            message = f"The URL is longer than {self.limits.url} bytes."
            self._stop(InvalidRequest(message, status=414, code="url_too_long").info)

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header, or one trailer behind a chunked body: those are dropped."""
        self._header_bytes += len(name) + len(value) + 4
        if self._header_bytes > self.limits.header_bytes:
            self._stop(_headers_too_large(self.limits.header_bytes))
        if self._in_head:
            super().on_header(name, value)
            if len(self.headers) > self.limits.headers:
                message = f"The request has more than {self.limits.headers} headers."
                self._stop(InvalidRequest(message, status=431, code="headers_too_large").info)

    def on_headers_complete(self) -> None:
        """The head is whole: from here on there is a request."""
        names = [name for name, _ in self.headers]
        if self.parser.get_http_version() not in ("1.0", "1.1") or names.count(b"host") != 1:
            self._stop(_malformed("The request must be HTTP/1.1 with exactly one Host header."))
        if self.parser.should_upgrade():
            offers = {value.lower() for name, value in self.headers if name == b"upgrade"}
            if b"websocket" in offers or self.parser.get_method() == b"CONNECT":
                self._stop(_malformed("There are no WebSockets and no tunnels here."))
            if not self._is_answered():  # Each costs a parser, and a piece may hold thousands.
                self._stop(_malformed("An Upgrade header may not follow an unanswered request."))
            self._upgrading = True
            return
        if len(self.pipeline) >= self.limits.pipelined:
            message = f"More than {self.limits.pipelined} requests wait for the one before them."
            self._stop(_malformed(message))
        self._in_head, self._in_body = False, True
        self._stop_receipt()
        self._body_bytes = self._body_pieces = 0
        self._body_began = self.loop.time()
        self._await_body(self.limits.body_s)
        super().on_headers_complete()
        if len(self.pipeline) == 1:
            self.flow.resume_reading()  # Or nobody would see that the client leaves.
        self.cycle.transport = _Outlet(self, self.transport)  # type: ignore[assignment]

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self._body_bytes += len(body)
        self._body_pieces += 1
        if self._body_pieces > self.limits.tiny_pieces:
            if self._body_bytes < self.limits.piece_bytes * self._body_pieces:
                self._stop(_malformed("The body comes in too many pieces of a few bytes each."))
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        if self._upgrading:
            return
        self._in_body = False
        self._stop_receipt()
        super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        if cycle.scope["http_version"] == "1.0":
            app = unframed(app, cycle)
        super()._start_asgi_task(cycle, app)

    def _without_upgrade(self) -> bytes:
        """The head that was just read, for a parser of its own, which does not skip the body."""
        self._upgrading = False
        method, version = self.parser.get_method(), self.parser.get_http_version()
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return head_without_upgrade(method, self.url, version, self.headers)

    # ---- refusing ------------------------------------------------------------------------------

    def _stop(self, info: ErrorInfo) -> None:
        """Leave the parser from one of its callbacks."""
        self._refusal = info
        raise ValueError(info.code)

    def _refuse(self, info: ErrorInfo) -> None:
        """Answer with an error and take nothing more from this client."""
        self._deaf = True
        self._stop_receipt()
        running = self._running
        if running is not None and not running.response_complete:
            if running is not self.cycle or self._in_head or running.response_started:
                # Something before it is still being answered: that is the last answer then.
                self.pipeline.clear()
                running.keep_alive = False
                if running.response_started and running is self.cycle and self._in_body:
                    self.transport.abort()
                return
            self._disconnect_running()
        request_id = new_request_id()
        self._log(info, request_id)
        body = msgspec.json.encode(error_body(info, self.url.decode("latin-1"), request_id))
        lines = [
            b"HTTP/1.1 %d %b" % (info.status, HTTPStatus(info.status).phrase.encode()),
            b"content-type: application/json",
            b"content-length: %d" % len(body),
            b"x-request-id: " + request_id.encode(),
            b"connection: close",
        ]
        if info.retry_after is not None:
            lines.append(b"retry-after: %d" % info.retry_after)
        self.transport.write(b"\r\n".join(lines) + b"\r\n\r\n" + body)
        self._in_body = True  # Whatever it was, there may be more of it.
        self.hang_up()

    def _log(self, info: ErrorInfo, request_id: str) -> None:
        self.traffic.count("(refused)", info.status)
        self.traffic.refuse(info)
        client = self.client[0] if self.client else "-"
        logger.info("refused %s %s from %s %s", info.status, info.code, client, request_id)


def connection_class(limits: Limits, traffic: Traffic) -> type[Connection]:
    """The protocol of a server with these limits."""
    return type("Connection", (Connection,), {"limits": limits, "traffic": traffic})


def _malformed(message: str) -> ErrorInfo:
    return InvalidRequest(message, code="invalid_http").info


def _headers_too_large(limit: int) -> ErrorInfo:
    message = f"The headers are longer than {limit} bytes."
    return InvalidRequest(message, status=431, code="headers_too_large").info
