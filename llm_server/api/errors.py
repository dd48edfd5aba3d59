"""Errors on the wire in the shape of each dialect, and the headers that SDKs obey, in one place."""

from __future__ import annotations

import logging

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from llm_server.api.traffic import passage_of
from llm_server.errors import ErrorInfo, InvalidRequest, ServerError

logger = logging.getLogger(__name__)

_MESSAGES = ("/messages", "/v1/messages")
_OLLAMA = tuple(
    "/api/" + name
    for name in "blobs chat copy create delete embed generate ps pull push show tags "
    "version".split()
)
"""How paths begin for which clients of Ollama's API ask, also those that are not there."""

INTERNAL = ErrorInfo("The server made a mistake. Its log has details under this request's id.")


def envelope(info: ErrorInfo) -> dict[str, object]:
    """The JSON object of an error: all four keys always, then the details."""
    members: dict[str, object] = {
        "message": info.message,
        "type": info.type,
        "param": info.param,
        "code": info.code,
    }
    return {"error": members | {k: v for k, v in info.details.items() if k not in members}}


_ANTHROPIC = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
"""What Anthropic calls errors, by their status; the others are an `api_error`."""


def anthropic_envelope(info: ErrorInfo) -> dict[str, object]:
    """The same as Anthropic has it, with our own members behind."""
    kind = _ANTHROPIC.get(
        info.status, "invalid_request_error" if info.status < 500 else "api_error"
    )
    error = envelope(info)["error"]
    assert isinstance(error, dict)
    return {"type": "error", "error": error | {"type": kind}}


def ollama_envelope(info: ErrorInfo) -> dict[str, object]:
    """The same as Ollama has it: the message, with our own members behind."""
    members = envelope(info)["error"]
    assert isinstance(members, dict)
    return {"error": members.pop("message")} | members


def speaks_anthropic(path: str) -> bool:
    """Whether clients of Anthropic's API ask for this path."""
    return path.startswith(_MESSAGES)


def error_body(info: ErrorInfo, path: str, request_id: str) -> dict[str, object]:
    """The JSON object of an error in the shape of the dialect that is spoken at `path`."""
    if speaks_anthropic(path):
        return anthropic_envelope(info) | {"request_id": request_id}
    return ollama_envelope(info) if path.startswith(_OLLAMA) else envelope(info)


def headers(info: ErrorInfo) -> dict[str, str]:
    """When, and whether, a client should repeat the request."""
    result: dict[str, str] = {}
    if info.retry_after is not None:
        result["retry-after"] = str(info.retry_after)
    if info.status >= 500 and not info.retry:
        result["x-should-retry"] = "false"
    return result


def json_response(
    value: object, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """Any msgspec-encodable value as a response."""
    return Response(msgspec.json.encode(value), status, headers, "application/json")


def error_response(info: ErrorInfo, scope: Scope, extra: dict[str, str] | None = None) -> Response:
    """An error as the response to the request with this scope, which has its passage."""
    body = error_body(info, scope["path"], passage_of(scope).request_id)
    return json_response(body, info.status, headers(info) | (extra or {}))


async def on_server_error(request: Request, error: Exception) -> Response:
    """Handler of our own errors."""
    assert isinstance(error, ServerError)
    request.app.state.context.pool.totals.add_error(error.info)
    return error_response(error.info, request.scope)


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Handler of the router's errors: no such path, or not with this method."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        allowed = {*(error.headers or {}).get("Allow", "").split(", ")}
        extra = {"allow": ", ".join(sorted(allowed | ({"HEAD"} if "GET" in allowed else set())))}
        message = "This path does not take this method."
        refusal = InvalidRequest(message, status=405, code="method_not_allowed")
        return error_response(refusal.info, request.scope, extra)
    message = "There is nothing at this path. GET / lists what is."
    refusal = InvalidRequest(message, status=404, code="unknown_url")
    return error_response(refusal.info, request.scope)


class _NoResponse(Response):
    """Sends nothing."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        pass


async def on_unexpected(request: Request, error: Exception) -> Response:
    """Handler of everything else; the outermost layer logs it.

    That a client has left is no mistake of the server's, and nobody is there to be told.
    """
    if isinstance(error, ClientDisconnect):
        return _NoResponse()
    request.app.state.context.pool.totals.add_error(INTERNAL)
    return error_response(INTERNAL, request.scope)
