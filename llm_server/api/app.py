"""The ASGI application: endpoints, error handlers, and the life of the pool around them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from llm_server import __version__
from llm_server.api import (
    cache,
    errors,
    metrics,
    models,
    native,
    ollama,
    ollama_models,
    openai,
    status,
    ui,
)
from llm_server.api.access import Access
from llm_server.api.context import Context
from llm_server.api.edge import Edge
from llm_server.api.keys import Keyring
from llm_server.api.schema import document
from llm_server.api.sse import Patience
from llm_server.api.traffic import Traffic
from llm_server.config import Settings, cache_config, make_registry
from llm_server.errors import ServerError
from llm_server.models.backend import Backend
from llm_server.opening import make_pool, preload
from llm_server.worker.process import WORKER_ARGV


class App(FastAPI):
    """FastAPI inside the outermost layer."""

    make_edge: Callable[[ASGIApp], Edge]

    def build_middleware_stack(self) -> ASGIApp:
        """The stack of FastAPI, wrapped once more."""
        return self.make_edge(super().build_middleware_stack())

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document."""
        if self.openapi_schema is None:
            self.openapi_schema = document(self.title, self.version, self.routes)
        return self.openapi_schema


def create_app(
    settings: Settings,
    *,
    worker_argv: Sequence[str] | None = None,
    patience: Patience | None = None,
    stand_in: Path | None = None,
    backend: Backend | None = None,
    preloads: bool = True,
    ids_given: bool = False,
) -> App:
    """The application for `settings`. Nothing is started before its lifespan begins.

    `worker_argv` is the command of worker processes, when it is not our own; `stand_in` the model
    that serves while the folder holds none. Both are for the pool that is made here, unless
    `backend` holds the models. `preloads`: the lifespan begins with loading the first model.
    `ids_given` is for the `Edge`. Raises InvalidKey.
    """
    cached = cache_config(settings)
    pool = backend or make_pool(
        settings, make_registry(settings, stand_in), cached, worker_argv or WORKER_ARGV
    )
    app = App(
        title="llm-server",
        version=__version__,
        lifespan=_lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        exception_handlers={
            ServerError: errors.on_server_error,
            HTTPException: errors.on_http_exception,
            Exception: errors.on_unexpected,
        },
    )
    access = access_of(settings)
    traffic = Traffic()
    app.make_edge = partial(
        Edge,
        max_body_bytes=settings.max_body_bytes,
        access=access,
        traffic=traffic,
        shared_cache=settings.shared_cache,
        ids_given=ids_given,
    )
    registry = pool.planner.registry
    app.state.preloads = preloads
    app.state.context = Context(registry, pool, access, traffic, patience or Patience(), cached)
    app.include_router(native.router)
    app.include_router(models.router)
    app.include_router(openai.router)
    for part in (ollama, ollama_models, metrics, status, cache, ui):
        app.include_router(part.router)
    app.router.routes += ui.file_routes()
    return app


def access_of(settings: Settings) -> Access:
    """Who may speak to a server with these settings. Raises InvalidKey."""
    keys = [key.get_secret_value() for key in settings.api_key]
    hosts = {*settings.allowed_hosts, settings.host}
    keyring = Keyring(keys, settings.api_key_file)
    return Access(hosts, settings.allowed_origins, keyring, settings.insecure_no_auth)


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    context = app.state.context
    pool = context.pool
    beside = [asyncio.create_task(preload(pool))] if app.state.preloads else []
    beside.append(asyncio.create_task(context.journal.watch(pool)))
    try:
        yield
    except asyncio.CancelledError:
        pass  # The server was told to end twice, which is no fault of the app's.
    finally:
        for task in beside:
            task.cancel()
        await context.renderer.close()
        await pool.close()
