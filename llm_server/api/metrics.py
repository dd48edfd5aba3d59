"""`GET /metrics` for Prometheus: what the server has done and what it is doing."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from llm_server.api.context import context_of
from llm_server.api.schema import plain_text
from llm_server.api.traffic import Traffic
from llm_server.models.backend import Backend

router = APIRouter()


@router.get("/metrics", openapi_extra=plain_text("The families of metrics."))
async def metrics(request: Request) -> Response:
    """Counters, gauges and histograms in Prometheus's text format."""
    context = context_of(request)
    body = await asyncio.to_thread(_text, context.pool, context.traffic)
    return Response(body, media_type="text/plain; version=0.0.4; charset=utf-8")


def _text(pool: Backend, traffic: Traffic) -> bytes:
    from llm_server.api import exposition  # at the first scrape: see there

    return exposition.text(pool, traffic)
