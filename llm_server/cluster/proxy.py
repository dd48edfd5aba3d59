"""What Ray Serve does first with a request, wherever it comes in: it is given an id of ours.

Ray Serve takes the id that a client sends, and tells each client the id it uses: it is given one of
ours, and has the same one in its logs. `tuning` says where Ray Serve finds this.
"""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from llm_server.api.traffic import new_request_id


class Named:
    """Gives each request its id."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection scope."""
        if scope["type"] == "http":
            MutableHeaders(scope=scope)["x-request-id"] = new_request_id()
        await self._app(scope, receive, send)


def middlewares() -> list[Middleware]:
    """As RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH wants them."""
    return [Middleware(Named)]
