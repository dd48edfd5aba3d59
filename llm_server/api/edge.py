"""The outermost layer of the server: who may pass, limits, an id and a log line for each request.

Plain ASGI, because it wraps every write of every stream. It knows nothing of endpoints.
"""

from __future__ import annotations

import logging
import time

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llm_server.api.access import Access, InvalidApiKey, preflight
from llm_server.api.errors import INTERNAL, error_response, speaks_anthropic
from llm_server.api.traffic import Passage, Traffic, new_request_id
from llm_server.errors import RequestTooLarge, ServerError

logger = logging.getLogger(__name__)

_LOGGED_PATH = 256
_GONE = 499  # nginx's number for a client that left before it was answered


class Edge:
    """Wraps the app: nothing reaches it that `access` does not admit, and HEAD reaches it as GET.

    Bodies over `max_body_bytes` are refused, before they are read if declared. `shared_cache` lets
    API keys use each other's cached prompts. With `ids_given`, a proxy in front has chosen each
    request's id, and tells it to the client.
    """

    def __init__(
        self,
        app: ASGIApp,
        max_body_bytes: int,
        access: Access | None = None,
        traffic: Traffic | None = None,
        shared_cache: bool = False,
        ids_given: bool = False,
    ) -> None:
        self.app = app
        self.max_body_bytes = max_body_bytes
        self.access = access or Access()
        self.traffic = traffic or Traffic()
        self.shared_cache = shared_cache
        self.ids_given = ids_given

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection scope."""
        if scope["type"] == "http":
            await _Exchange(self, scope, receive, send).run()
        elif scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1000})


class _Exchange:
    """One request and its response."""

    def __init__(self, edge: Edge, scope: Scope, receive: Receive, send: Send) -> None:
        self._edge = edge
        self._method = scope["method"]
        if self._method == "HEAD":
            scope = {**scope, "method": "GET"}
        self._scope = scope
        self._receive = receive
        self._send = send
        self._left = edge.max_body_bytes
        self._status = 0
        self._finished = False
        self._extra: list[tuple[bytes, bytes]] = []
        given = Headers(scope=scope).get("x-request-id") if edge.ids_given else None
        self._passage = Passage(edge.traffic, given or new_request_id())
        if given is None:
            self._extra.append((b"x-request-id", self._passage.request_id.encode()))
        if speaks_anthropic(scope["path"]):  # Their SDKs look for it under this name.
            self._extra.append((b"request-id", self._passage.request_id.encode()))
        scope.setdefault("state", {})["passage"] = self._passage

    async def run(self) -> None:
        try:
            await self._serve()
        except ClientDisconnect:
            pass
        except ServerError as error:
            extra = {"www-authenticate": "Bearer"} if isinstance(error, InvalidApiKey) else None
            self._edge.traffic.refuse(error.info)
            response = error_response(error.info, self._scope, extra)
            await response(self._scope, self._receive, self.send)
        except Exception:
            # The border of a request: whatever it was, it must not reach the server around us.
            logger.exception("%s failed", self._passage.request_id)
            if not self._status:
                response = error_response(INTERNAL, self._scope)
                await response(self._scope, self._receive, self.send)
        finally:
            self._finish()

    async def _serve(self) -> None:
        """Pass the request on, or answer it here. Raises ServerError before anything is sent."""
        headers = Headers(scope=self._scope)
        access = self._edge.access
        access.check_exposure(self._scope)
        access.check_host(headers)
        access.check_site(self._scope["path"], headers)
        self._extra += access.cors(headers)
        if self._scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            start = {"type": "http.response.start", "status": 204, "headers": preflight(headers)}
            await self.send(start)
            await self.send({"type": "http.response.body", "body": b""})
            return
        key = access.key(self._scope["path"], headers)
        self._passage.stranger = key is None and bool(access.keyring)
        if key is not None and not self._edge.shared_cache:
            self._passage.cache_salt = key.salt
        if key is not None and access.keyring.several:
            self._passage.owner = key.salt
        if _declared_length(headers) > self._left:
            raise RequestTooLarge(f"The request body is longer than {self._left} bytes.")
        await self._edge.app(self._scope, self.receive, self.send)

    async def receive(self) -> Message:
        """The next piece of the body, counted. Raises RequestTooLarge."""
        message = await self._receive()
        if message["type"] == "http.request":
            self._left -= len(message.get("body", b""))
            if self._left < 0:
                raise RequestTooLarge("The request body is too long.")
        return message

    async def send(self, message: Message) -> None:
        """A piece of the response, its head with the id. For HEAD that is all.

        Raises ClientDisconnect for what an endless stream has behind that.
        """
        if self._method == "HEAD" and message["type"] == "http.response.body":
            if self._finished:
                raise ClientDisconnect
            message = {"type": "http.response.body", "body": b""}
        if message["type"] == "http.response.start":
            self._status = message["status"]
            headers = [*message.get("headers", []), *self._extra]
            if self._status == 413:
                headers.append((b"connection", b"close"))  # The rest of the body is not read.
            message = {**message, "headers": headers}
        elif not message.get("more_body", False):
            self._finish()  # Before the client sees the end, so that it finds itself counted.
        await self._send(message)

    def _finish(self) -> None:
        """Count and log, once."""
        if self._finished:
            return
        self._finished = True
        scope, passage, status = self._scope, self._passage, self._status or _GONE
        self._edge.traffic.count(_route(scope), status)
        record = {
            "method": self._method,
            "path": ascii(scope["path"][:_LOGGED_PATH])[1:-1],
            "status": status,
            "ms": round((time.monotonic() - passage.started) * 1000, 1),
            "prompt_tokens": passage.prompt_tokens,
            "completion_tokens": passage.completion_tokens,
            "model": passage.model,
            "request_id": passage.request_id,
            "client": scope["client"][0] if scope.get("client") else None,
        }
        logger.info(
            "%(method)s %(path)s %(status)s %(ms)s ms, %(prompt_tokens)s+%(completion_tokens)s "
            "tokens, %(model)s, %(request_id)s from %(client)s",
            record,
            extra={"request": record},
        )


def _route(scope: Scope) -> str:
    """The template of the route that served: of bounded number, unlike paths."""
    route = getattr(scope.get("route"), "path", None)
    if not isinstance(route, str):
        return "(none)"
    # A router inside another one leaves the outer prefix out.
    prefix = "/v1" if scope["path"].startswith("/v1/") and not route.startswith("/v1/") else ""
    return prefix + route


def _declared_length(headers: Headers) -> int:
    value = headers.get("content-length", "")
    return int(value) if value.isascii() and value.isdigit() else 0
