"""`/api/cache`: the prompts kept on disk, of all models together, and how to be rid of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from llm_server.api.body import read_body
from llm_server.api.context import context_of
from llm_server.api.errors import json_response
from llm_server.api.fields import validated
from llm_server.api.parameters import Wire
from llm_server.api.schema import operation
from llm_server.api.wire import ModelName
from llm_server.cache import survey
from llm_server.cache.index import Stored
from llm_server.cache.survey import Survey
from llm_server.errors import ServerError
from llm_server.looks import ask
from llm_server.models.registry import Registry
from llm_server.worker.config import CacheConfig

router = APIRouter()

MAX_HEADS = 100
PATIENCE_S = 300.0
"""A big folder on an SD card takes minutes to be cleared. Nobody waits but who asks."""


class CachedModelJson(msgspec.Struct):
    """The chunks of one model. Its `id` is the beginning of its fingerprint, `name` how it was
    called when it was last loaded, null where that is not known: it is on the disk within a minute.
    """

    id: str
    name: str | None
    chunks: int
    tokens: int
    bytes: int
    head_bytes: int


class HeadJson(msgspec.Struct):
    """A system prompt with its tools: `tokens` from the beginning, last used at `used`.

    `hits` requests began with it and did not compute it, since it was stored; a count is on the
    disk within a minute. `bytes` are those of its own end; what it shares with other heads is
    stored once.
    """

    model: str
    name: str | None
    tokens: int
    bytes: int
    hits: int
    used: float


class CacheJson(msgspec.Struct):
    """The cache folder against its budget, in bytes. Without a cache on disk both are 0.

    The last used heads are listed, `hits` and `misses` count chunks read since the server's start.
    """

    bytes: int
    budget: int
    write: str
    hits: int
    misses: int
    models: list[CachedModelJson]
    heads: list[HeadJson]


class ClearBody(Wire):
    """`POST /api/cache/clear`: a model by its name, or by its id as `/api/cache` lists it; `*` for
    all."""

    model: ModelName


class ClearedJson(msgspec.Struct):
    """What was deleted."""

    chunks: int
    bytes: int
    status: str = "ok"


@router.get("/api/cache", openapi_extra=operation(CacheJson, errors=(500,)))
async def look(request: Request) -> Response:
    """What the cache folder holds."""
    context = context_of(request)
    stats, config = context.pool.totals.cache, context.cache
    found = survey.Survey()
    if config is not None:
        with _told("looked at"):
            found = await ask(config.folder, partial(survey.survey, config.folder), PATIENCE_S)
    return json_response(_cache_json(found, config, stats.hits, stats.misses))


@router.post(
    "/api/cache/clear",
    openapi_extra=operation(ClearedJson, body=ClearBody, example={"model": "*"}),
)
async def clear(request: Request) -> Response:
    """Delete the stored prompts of one model, or of all. What is in memory stays."""
    wanted = await read_body(request, partial(validated, ClearBody))
    context = context_of(request)
    if context.cache is None:
        return json_response(ClearedJson(0, 0))
    folder = context.cache.folder
    with _told("cleared"):
        clearing = partial(_clear, folder, wanted.model, context.registry)
        done = await ask(folder, clearing, PATIENCE_S)
    return json_response(done)


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Raises ServerError where the disk does not let the cache be `what` it was to be."""
    try:
        yield
    except OSError as error:
        raise ServerError(f"The prompt cache cannot be {what} ({error.strerror}).") from error


def _clear(folder: Path, name: str, registry: Registry) -> ClearedJson:
    """Raises ModelNotFound and OSError."""
    if name == "*":
        return ClearedJson(*survey.clear(folder))
    found = survey.survey(folder)
    ids = {id for id in found.records if name in (id, found.name(id))}
    if not ids:
        # Another spelling of a name, or a model that has nothing stored.
        registry.scan()
        named = registry.find(name).name
        ids = {id for id in found.records if found.name(id) == named}
    return ClearedJson(*survey.clear(folder, ids))


def _cache_json(found: Survey, config: CacheConfig | None, hits: int, misses: int) -> CacheJson:
    heads = sorted(found.heads(), key=lambda head: -head.used)[:MAX_HEADS]
    return CacheJson(
        bytes=sum(file.size for file in found.stored),
        budget=config.size_bytes if config else 0,
        write=config.write if config else "off",
        hits=hits,
        misses=misses,
        models=[_model_json(id, found.name(id), files) for id, files in found.by_model().items()],
        heads=[
            HeadJson(
                head.model,
                found.name(head.model),
                head.n_tokens,
                head.size,
                head.hits,
                round(head.used, 1),
            )
            for head in heads
        ],
    )


def _model_json(id: str, name: str | None, files: list[Stored]) -> CachedModelJson:
    return CachedModelJson(
        id=id,
        name=name,
        chunks=len(files),
        tokens=sum(len(file.chunk.positions) for file in files),
        bytes=sum(file.size for file in files),
        head_bytes=sum(file.size for file in files if file.chunk.head),
    )
