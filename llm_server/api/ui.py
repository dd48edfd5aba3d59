"""The page at /ui: its files under a strict Content-Security-Policy, and Markdown for it.

The page may load nothing from elsewhere and run no script but its own files. It uses the public
API alone.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated

import msgspec
from fastapi import APIRouter
from pydantic import Field
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from llm_server.api.body import read_body
from llm_server.api.context import context_of
from llm_server.api.errors import json_response
from llm_server.api.fields import validated
from llm_server.api.parameters import Wire
from llm_server.api.schema import operation
from llm_server.web.assets import Asset, assets

router = APIRouter()

POLICY = (
    "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
    "trusted-types rendered"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",
}


class RenderBody(Wire):
    """`POST /api/render`."""

    texts: Annotated[list[str], Field(max_length=256)]


class RenderedJson(msgspec.Struct):
    """HTML for each text: sanitised, without script, style, image or form."""

    html: list[str]


@router.post(
    "/api/render",
    openapi_extra=operation(
        RenderedJson, body=RenderBody, example={"texts": ["Some **bold** text"]}
    ),
)
async def render(request: Request) -> Response:
    """Markdown to HTML that is safe to insert into a page, code highlighted."""
    wanted = await read_body(request, partial(validated, RenderBody))
    return json_response(RenderedJson(await context_of(request).renderer.render(wanted.texts)))


def redirect() -> Response:
    """To the page."""
    return RedirectResponse("/ui", 303, {"vary": "accept"})


def file_routes() -> list[Route]:
    """One exact route for each file: nothing of a path is ever looked up on the disk."""
    files = [Route(path, _File(asset), methods=["GET"]) for path, asset in assets().items()]
    return [*files, Route("/ui/", RedirectResponse("/ui"), methods=["GET"])]


class _File:
    """Serves one file, to `GET` and `HEAD`. Plain ASGI."""

    def __init__(self, asset: Asset) -> None:
        self._asset = asset

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; with nothing but the headers if the browser has it already."""
        asset, headers = self._asset, HEADERS | {"etag": self._asset.etag}
        if Headers(scope=scope).get("if-none-match") == asset.etag:
            answer = Response(status_code=304, headers=headers)
        else:
            answer = Response(asset.body, headers=headers, media_type=asset.media_type)
        await answer(scope, receive, send)
