"""The native endpoints at the root: status, health, models, switching, and warming the cache."""

from __future__ import annotations

import time
from functools import partial
from typing import Literal

import msgspec
from fastapi import APIRouter
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from llm_server import __version__
from llm_server.api import openai, ui
from llm_server.api.access import wants_page
from llm_server.api.chat import ignored_header
from llm_server.api.context import answer, context_of, read_call
from llm_server.api.errors import envelope, headers, json_response
from llm_server.api.models import all_models
from llm_server.api.requests import restore_call, set_model_call
from llm_server.api.schema import endpoints, operation
from llm_server.api.status import LoadJson, loading_json
from llm_server.api.traffic import passage_of
from llm_server.api.usage import Ends, Origin
from llm_server.api.wire import CHAT_EXAMPLE, ChatBody, SetModelBody
from llm_server.errors import ModelLoading, ShuttingDown
from llm_server.models.status import Status
from llm_server.worker.messages import Finished, RequestEvent, Usage

router = APIRouter()


class StatusJson(msgspec.Struct):
    """What the server is and does."""

    name: str
    version: str
    status: str
    model: str | None
    n_ctx: int
    parallel: int
    running: int
    waiting: int
    loading: LoadJson | None
    error: str | None
    uptime_seconds: float
    endpoints: list[str]


class HealthJson(msgspec.Struct):
    """A model is loaded. `sandbox` is what its worker gave up.

    Where keys are asked for, whoever has none is told the status alone.
    """

    message: str | UnsetType = UNSET
    sandbox: str | UnsetType | None = UNSET
    status: str = "ok"


class ModelsJson(openai.ModelListJson):
    """The names alone, beside OpenAI's list."""

    models: list[str] = []


class SetModelJson(msgspec.Struct):
    """What is loaded now."""

    model: str
    n_ctx: int
    parallel: int
    status: str = "ok"


class RestoredJson(msgspec.Struct):
    """What warming a prompt took: `source` is where most of the prompt came from.

    `bytes` are those of its state on the disk, 0 if it is not there; the log has the reason.
    `milliseconds` is `ms` under its older name.
    """

    model: str
    prompt_tokens: int
    cached_tokens: int
    source: Literal["cells", "disk", "computed"]
    bytes: int
    ms: float
    milliseconds: float
    status: str = "ok"


@router.get("/", openapi_extra=operation(StatusJson, errors=()))
async def status(request: Request) -> Response:
    """What the server is and does at the moment. A browser is sent to the page, `/ui`."""
    if wants_page(request.headers):
        return ui.redirect()
    context = context_of(request)
    now = context.pool.status()
    return json_response(
        StatusJson(
            name="llm-server",
            version=__version__,
            status=now.state,
            model=now.model,
            n_ctx=now.n_ctx,
            parallel=now.parallel,
            running=now.running,
            waiting=now.waiting,
            loading=loading_json(now),
            error=now.error,
            uptime_seconds=round(time.monotonic() - context.started, 3),
            endpoints=endpoints(request.app.routes),
        ),
        headers={"vary": "accept"},
    )


@router.get("/health", openapi_extra=operation(HealthJson, errors=(503,)))
async def health(request: Request) -> Response:
    """200 when a model is loaded, else 503."""
    now = context_of(request).pool.status()
    stranger = passage_of(request.scope).stranger
    message = "No model is ready." if stranger else _health_message(now)
    if now.state == "ready":
        return json_response(HealthJson() if stranger else HealthJson(message, now.sandbox))
    error = ModelLoading(message, code=None if now.state == "loading" else "model_not_loaded").info
    body = {"status": now.state, "message": message} | envelope(error)
    return json_response(body, error.status, headers(error))


@router.get("/models", openapi_extra=operation(ModelsJson, errors=()))
async def models(request: Request) -> Response:
    """The models of the models folder, as names and as OpenAI lists them."""
    found = await all_models(context_of(request))
    return json_response(ModelsJson(models=[model.id for model in found], data=found))


@router.post(
    "/setModel",
    openapi_extra=operation(
        SetModelJson,
        body=SetModelBody,
        example={"model_name": "demo.gguf", "load_model_configs": {"n_ctx": 4096}},
    ),
)
async def set_model(request: Request) -> Response:
    """Load a model and switch to it: requests that name none get it from now on.

    What is loaded stays as far as the memory holds it. A model that has to go for it, and one
    that is loaded otherwise now, finish their requests first.
    """
    call = await read_call(request, set_model_call)
    lease = await context_of(request).pool.acquire(
        call.model,
        call.overrides,
        keep_alive_s=call.keep_alive_s,
        make_default=True,
        owner=passage_of(request.scope).owner,
    )
    lease.release()
    loaded = lease.worker.loaded
    return json_response(
        SetModelJson(lease.model.name, loaded.n_ctx, loaded.parallel),
        headers=ignored_header(call),
    )


@router.post(
    "/restore_cache", openapi_extra=operation(RestoredJson, body=ChatBody, example=CHAT_EXAMPLE)
)
async def restore_cache(request: Request) -> Response:
    """Compute and store a prompt: the next request that begins like it starts at once."""
    call = await read_call(request, restore_call)
    return answer(request, call, partial(RestoredFold, started=time.monotonic()))


class RestoredFold:
    """Makes the answer about a prompt that was warmed (`chat.Folder`)."""

    def __init__(self, origin: Origin, started: float) -> None:
        self._origin = origin
        self._started = started
        self._ends = Ends(origin)

    def add(self, event: RequestEvent) -> None:
        """Take the next event."""
        if isinstance(event, Finished):
            self._ends.add(event)

    def whole(self) -> RestoredJson:
        """What it took, after the last event."""
        usage = self._ends.usage
        ms = round((time.monotonic() - self._started) * 1000, 3)
        return RestoredJson(
            self._origin.model,
            usage.prompt_tokens,
            usage.cached_tokens,
            _source(usage),
            usage.state_bytes,
            ms,
            ms,
        )


def _source(usage: Usage) -> Literal["cells", "disk", "computed"]:
    """Where most of a prompt came from."""
    cells = usage.cached_tokens - usage.disk_tokens
    computed = usage.prompt_tokens - usage.cached_tokens
    if computed >= max(cells, usage.disk_tokens):
        return "computed"
    return "disk" if usage.disk_tokens > cells else "cells"


def _health_message(now: Status) -> str:
    match now.state:
        case "ready":
            return f"{now.model} is loaded."
        case "loading":
            return f"Loading {now.loading}: {now.fraction:.0%}."
        case "stopping":
            return str(ShuttingDown())
        case "failed":
            return f"No model is loaded. The last load failed: {now.error}"
    return "No model is loaded. The next request loads one."


router.include_router(openai.shared)
