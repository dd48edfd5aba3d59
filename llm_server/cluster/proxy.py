"""What Ray Serve's proxies do first, and how the ingress takes it: a request's id, and its body.

Ray Serve takes the id that a client sends, and tells each client the id it uses: it is given one of
ours, and has the same one in its logs. A body is fetched by the ingress with a call of its own back
to the proxy, which takes longer than all else that happens there: a short one goes with the head.
`tuning` says where proxies find this.
"""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llm_server.api.traffic import new_request_id

EARLY_BYTES = 1 << 20
"""Longest body that goes with the head of its request."""

_BODY = "llm_server.body"


class AtTheProxy:
    """Gives each request its id, and a body that goes with it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection scope."""
        if scope["type"] == "http":
            headers = MutableHeaders(scope=scope)
            headers["x-request-id"] = new_request_id()
            length = headers.get("content-length", "")
            if length.isascii() and length.isdigit() and int(length) <= EARLY_BYTES:
                scope[_BODY] = await _messages(receive)
        await self._app(scope, receive, send)


def middlewares() -> list[Middleware]:
    """As RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH wants them."""
    return [Middleware(AtTheProxy)]


def with_body(scope: Scope, receive: Receive) -> Receive:
    """What an application receives of a request: first what came with its head, if any did."""
    early: list[Message] = scope.pop(_BODY, [])

    async def receive_one() -> Message:
        return early.pop(0) if early else await receive()

    return receive_one


async def _messages(receive: Receive) -> list[Message]:
    """A whole body, or as much of it as came before its client went."""
    messages = [await receive()]
    while messages[-1].get("more_body", False):
        messages.append(await receive())
    return messages
