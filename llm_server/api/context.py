"""What every endpoint may use: the pool, the registry, and what the server was told."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import Response

from llm_server.api import sse
from llm_server.api.access import Access
from llm_server.api.body import Json, parse_body, receive_body
from llm_server.api.chat import Chunker, FoldedResponse, Folder, StreamedResponse, plain_error
from llm_server.api.journal import Journal
from llm_server.api.requests import Call
from llm_server.api.sse import Patience
from llm_server.api.traffic import Traffic, passage_of
from llm_server.api.usage import Origin
from llm_server.errors import ErrorInfo
from llm_server.models.backend import Backend
from llm_server.models.registry import Registry
from llm_server.web.renderer import Renderer
from llm_server.worker.config import CacheConfig

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Context:
    """One per app, made with it."""

    registry: Registry
    pool: Backend
    access: Access
    traffic: Traffic
    patience: Patience = Patience()
    cache: CacheConfig | None = None
    journal: Journal = field(default_factory=Journal)
    renderer: Renderer = field(default_factory=Renderer)
    started: float = field(default_factory=time.monotonic)


def context_of(request: Request) -> Context:
    """The context of the app that serves this request."""
    context = request.app.state.context
    assert isinstance(context, Context)
    return context


async def read_call(request: Request, parse: Callable[[dict[str, Json]], T]) -> T:
    """`read_body` for a request that a worker is to answer.

    Where the queue has no room the request is refused before its body is parsed, so that refusals
    are quick when many come at once: also a wrong one, which else gets 400. Raises as `read_body`
    and `Backend.check_room` do.
    """
    body = await receive_body(request)
    context_of(request).pool.check_room(passage_of(request.scope).owner)
    return await parse_body(body, parse)


def answer(
    request: Request,
    call: Call,
    make_fold: Callable[[Origin], Folder],
    make_chunks: Callable[[Origin], Chunker] | None = None,
    framing: sse.Framing = sse.PLAIN,
    early: Callable[[ErrorInfo], bytes] = plain_error,
) -> Response:
    """What answers a call: at once or, where it says so and there are chunks, as a stream in some
    `framing`, of which `early` writes an error that comes before them."""
    context = context_of(request)
    if make_chunks is not None and call.stream:
        return StreamedResponse(context.pool, call, make_chunks, context.patience, framing, early)
    return FoldedResponse(context.pool, call, make_fold)
