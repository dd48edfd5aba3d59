"""`/api/status`: everything about the moment, once or as a stream; and `cancel` for requests.

Made for the page at /ui and for whoever wants to look without scraping `/metrics`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any, Literal

import msgspec
import psutil
from fastapi import APIRouter
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from llm_server import __version__
from llm_server.api import sse
from llm_server.api.body import read_body
from llm_server.api.chat import until_disconnected
from llm_server.api.context import Context, context_of
from llm_server.api.errors import json_response
from llm_server.api.journal import INTERVAL_S, Entry, Sample
from llm_server.api.schema import operation
from llm_server.errors import InvalidRequest
from llm_server.models.backend import LoadedModel
from llm_server.models.status import ModelState, State, Status
from llm_server.worker.messages import Sampling

router = APIRouter()

TICK_S = 1.0
"""Between two events of the stream."""


class LoadJson(msgspec.Struct):
    """A load on its way; progress from 0 to 1."""

    model: str
    progress: float


class RunningJson(msgspec.Struct):
    """A request that is being answered or waits for it; `state` says which, in words.

    `pieces` are those of the answer so far, about one a token.
    """

    id: str
    path: str
    model: str | None
    state: str
    seconds: float
    prompt_tokens: int
    cached_tokens: int
    pieces: int
    tokens_per_second: float


class ErrorJson(msgspec.Struct):
    """An error that was answered; `time` in seconds since the epoch."""

    time: float
    status: int
    code: str | None
    message: str


class LoadedModelJson(msgspec.Struct):
    """A model that is loaded, or `unloading`: then it ends the requests it has.

    `waiting` requests are for it, too. `cells_running` of its `n_ctx` cells belong to running
    requests, `cells_idle` to cached prompts alone, as the worker told within the last second; null
    where that is not known.
    `n_gpu_layers` of `max_gpu_layers` are on graphics cards: of 0 where there is none, of null
    where llama.cpp was built for cards and sees none, as it does where none is to be used.
    `memory` is in bytes, `keep_alive` in seconds, -1 for ever; in `expires_in` seconds it goes if
    nobody asks for it, null while somebody does and if it is to stay.
    """

    model: str
    state: ModelState
    n_ctx: int
    n_gpu_layers: int
    max_gpu_layers: int | None
    running: int
    waiting: int
    cells_running: int | None
    cells_idle: int | None
    memory: int
    keep_alive: float
    expires_in: float | None


class WorkerJson(msgspec.Struct):
    """The worker processes: what the newest gave up, and how many ended unasked since the start."""

    sandbox: str | None
    crashes: int


class MemoryNowJson(msgspec.Struct):
    """Bytes: resident in the server and its workers, and what the machine has."""

    server: int
    workers: int
    available: int
    total: int


class TotalsJson(msgspec.Struct):
    """Sums since the start. Prompt tokens by where they came from, chunks of the disk cache."""

    completion_tokens: int
    cells_tokens: int
    disk_tokens: int
    computed_tokens: int
    cache_hits: int
    cache_misses: int
    cache_written: int
    cache_evicted: int
    requests: dict[str, int]


class ServerStatus(msgspec.Struct):
    """The server at one moment; `model` is the default one, `models` are all that are loaded.

    `history` and `sampling`, the defaults of requests, are in the first event of a stream alone,
    as is `interval_seconds`, the time between two samples of the history.
    """

    version: str
    uptime_seconds: float
    state: State
    model: str | None
    n_ctx: int
    parallel: int
    running: int
    waiting: int
    loading: LoadJson | None
    load_error: str | None
    models: list[LoadedModelJson]
    worker: WorkerJson
    memory: MemoryNowJson
    requests: list[RunningJson]
    errors: list[ErrorJson]
    totals: TotalsJson
    sample: Sample | None
    history: list[Sample] | UnsetType = UNSET
    interval_seconds: float | UnsetType = UNSET
    sampling: dict[str, Any] | UnsetType = UNSET


class CancelledJson(msgspec.Struct):
    """Which request was told to stop."""

    id: str
    status: Literal["cancelled"] = "cancelled"


class UnknownRequest(InvalidRequest):
    """No request of that id is being answered."""

    status = 404
    code = "request_not_found"


@router.get("/api/status", openapi_extra=operation(ServerStatus, errors=(), chunk=ServerStatus))
async def server_status(request: Request) -> Response:
    """All there is to show; a stream of it, one event a second, for `Accept: text/event-stream`."""
    context = context_of(request)
    if "text/event-stream" in request.headers.get("accept", ""):
        return StatusStream(context)
    return json_response(await whole_status(context))


@router.post("/api/requests/{id}/cancel", openapi_extra=operation(CancelledJson))
async def cancel(request: Request, id: str) -> Response:
    """Stop answering a request. Its client is told with an error, `request_cancelled`.

    The id is that of its `x-request-id`, as `/api/status` lists it. There need not be a body.
    """
    if await request.body():
        await read_body(request, dict)
    entry = context_of(request).journal.running.get(id)
    if entry is None:
        raise UnknownRequest("No request of this id is being answered; it may have ended.")
    entry.answer.cancel()
    return json_response(CancelledJson(entry.id))


class StatusStream(sse.EventStreamResponse):
    """The status as an event stream, until the client goes or the server stops."""

    def __init__(self, context: Context) -> None:
        super().__init__(context.patience, headers={})
        self._context = context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write an event a second."""
        await until_disconnected(receive, self._write(send))

    async def _write(self, send: Send) -> None:
        with self.writer(send, on_quiet=lambda: None) as writer:
            now = await whole_status(self._context)
            while now.state != "stopping":
                await writer.write(sse.data(now))
                await asyncio.sleep(TICK_S)
                now = await moment(self._context)
            await writer.write(sse.data(now), last=True)


async def whole_status(context: Context) -> ServerStatus:
    """The moment, with what does not change and what has been."""
    now = await moment(context)
    now.history = list(context.journal.samples)
    now.interval_seconds = INTERVAL_S
    now.sampling = msgspec.structs.asdict(Sampling())
    return now


async def moment(context: Context) -> ServerStatus:
    """What is now."""
    status, totals = context.pool.status(), context.pool.totals
    memory = psutil.virtual_memory()
    sample = context.journal.samples[-1] if context.journal.samples else None
    return ServerStatus(
        version=__version__,
        uptime_seconds=round(time.monotonic() - context.started, 3),
        state=status.state,
        model=status.model,
        n_ctx=status.n_ctx,
        parallel=status.parallel,
        running=status.running,
        waiting=status.waiting,
        loading=loading_json(status),
        load_error=status.error,
        models=[_loaded(loaded, context.pool.waiting) for loaded in context.pool.loaded],
        worker=WorkerJson(status.sandbox, totals.worker_crashes),
        memory=MemoryNowJson(
            sample.server_bytes if sample else 0,
            sample.worker_bytes if sample else 0,
            memory.available,
            memory.total,
        ),
        requests=[_running(entry) for entry in context.journal.running.values()],
        errors=[
            ErrorJson(round(at, 1), info.status, info.code, info.message)
            for at, info in reversed(totals.errors)
        ],
        totals=TotalsJson(
            completion_tokens=totals.completion_tokens,
            cells_tokens=totals.cells_tokens,
            disk_tokens=totals.disk_tokens,
            computed_tokens=totals.prompt_tokens - totals.cells_tokens - totals.disk_tokens,
            cache_hits=totals.cache.hits,
            cache_misses=totals.cache.misses,
            cache_written=totals.cache.written,
            cache_evicted=totals.cache.evicted,
            requests=dict(totals.requests),
        ),
        sample=sample,
    )


def loading_json(now: Status) -> LoadJson | None:
    """What is on its way, if anything."""
    return LoadJson(now.loading, round(now.fraction, 3)) if now.loading else None


def _loaded(loaded: LoadedModel, waiting: Mapping[str, int]) -> LoadedModelJson:
    expires_in, cells = loaded.expires_in_s, loaded.cells
    return LoadedModelJson(
        model=loaded.model.name,
        state=loaded.state,
        n_ctx=loaded.worker.loaded.n_ctx,
        n_gpu_layers=loaded.worker.loaded.n_gpu_layers,
        max_gpu_layers=loaded.worker.loaded.max_gpu_layers,
        running=loaded.n_running,
        waiting=waiting.get(loaded.model.name, 0),
        cells_running=cells.running if cells else None,
        cells_idle=cells.idle if cells else None,
        memory=loaded.memory,
        keep_alive=loaded.keep_alive_s,
        expires_in=None if expires_in is None else round(expires_in, 1),
    )


def _running(entry: Entry) -> RunningJson:
    now = time.monotonic()
    rate = 0.0
    if entry.first is not None and now > entry.first:
        rate = entry.pieces / (now - entry.first)
    return RunningJson(
        id=entry.id,
        path=entry.path,
        model=entry.passage.model,
        state="answering" if entry.first is not None else entry.answer.describe(),
        seconds=round(now - entry.passage.started, 1),
        prompt_tokens=entry.prompt_tokens,
        cached_tokens=entry.cached_tokens,
        pieces=entry.pieces,
        tokens_per_second=round(rate, 1),
    )
