"""The outermost layer of the server: an id for each request, limits, and no way past the envelope.

Plain ASGI, because it wraps every write of every stream. It knows nothing of endpoints.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections import Counter

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llm_server.api.errors import INTERNAL, error_response
from llm_server.errors import RequestTooLarge

logger = logging.getLogger(__name__)

_GONE = 499  # nginx's number for a client that left before it was answered


class Edge:
    """Wraps the app. Bodies over `max_body_bytes` are refused, before they are read if declared.

    `responses` counts what goes out, by status.
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int, responses: Counter[int]) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._responses = responses

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection scope."""
        if scope["type"] == "http":
            exchange = _Exchange(scope, receive, send, self._max_body_bytes)
            try:
                await exchange.run(self._app)
            finally:
                self._responses[exchange.status or _GONE] += 1
        elif scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1000})


class _Exchange:
    """One request and its response."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, max_body_bytes: int) -> None:
        self.id = "req_" + secrets.token_hex(12)
        self._scope = scope
        self._receive = receive
        self._send = send
        self._left = max_body_bytes
        self.status: int | None = None
        scope.setdefault("state", {})["request_id"] = self.id

    async def run(self, app: ASGIApp) -> None:
        started = time.monotonic()
        try:
            if _declared_length(self._scope) > self._left:
                error = RequestTooLarge(f"The request body is longer than {self._left} bytes.")
                await error_response(error.info)(self._scope, self._receive, self.send)
            else:
                await app(self._scope, self.receive, self.send)
        except Exception:
            # The border of a request: whatever it was, it must not reach the server around us.
            logger.exception("%s failed", self.id)
            if self.status is None:
                await error_response(INTERNAL)(self._scope, self._receive, self.send)
        finally:
            logger.info(
                "%s %s %s %s %.3f s",
                self.id,
                self._scope["method"],
                ascii(self._scope["path"])[1:-1],
                self.status or "gone",
                time.monotonic() - started,
            )

    async def receive(self) -> Message:
        """The next piece of the body, counted. Raises RequestTooLarge."""
        message = await self._receive()
        if message["type"] == "http.request":
            self._left -= len(message.get("body", b""))
            if self._left < 0:
                raise RequestTooLarge("The request body is too long.")
        return message

    async def send(self, message: Message) -> None:
        """A piece of the response, its head with the id."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message.get("headers", []), (b"x-request-id", self.id.encode())]
            if self.status == 413:
                headers.append((b"connection", b"close"))  # The rest of the body is not read.
            message = {**message, "headers": headers}
        await self._send(message)


def _declared_length(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value) if value.isdigit() else 0
    return 0
