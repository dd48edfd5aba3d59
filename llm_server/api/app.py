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
from llm_server.api import cache, errors, metrics, models, native, openai, status, ui
from llm_server.api.access import Access
from llm_server.api.chat import Patience
from llm_server.api.context import Context
from llm_server.api.edge import Edge
from llm_server.api.keys import Keyring
from llm_server.api.schema import document
from llm_server.api.traffic import Traffic
from llm_server.config import Settings, cache_config, make_planner, make_registry
from llm_server.errors import ServerError
from llm_server.models.backend import Backend
from llm_server.models.loader import Loader
from llm_server.models.policy import keep_alive_seconds
from llm_server.models.pool import Pool
from llm_server.models.registry import Registry
from llm_server.worker.client import Worker
from llm_server.worker.config import CacheConfig
from llm_server.worker.process import WORKER_ARGV
from llm_server.worker.watchdog import Limits


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
) -> App:
    """The application for `settings`. Nothing is started before its lifespan begins.

    `worker_argv` is the command of worker processes, when it is not our own; `stand_in` the model
    that serves while the folder holds none. Both are for the pool that is made here, unless
    `backend` holds the models. Raises InvalidKey.
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
    )
    registry = pool.planner.registry
    app.state.context = Context(registry, pool, access, traffic, patience or Patience(), cached)
    app.include_router(native.router)
    app.include_router(models.router)
    app.include_router(openai.router)
    for router in (metrics.router, status.router, cache.router, ui.router):
        app.include_router(router)
    app.router.routes += ui.file_routes()
    return app


def make_pool(
    settings: Settings,
    registry: Registry,
    cached: CacheConfig | None,
    worker_argv: Sequence[str],
) -> Pool:
    """The pool of models for `settings`; nothing is loaded yet."""
    start_worker = partial(
        Worker.start,
        argv=worker_argv,
        limits=Limits(memory=settings.worker_memory),
    )
    return Pool(
        make_planner(settings, registry),
        Loader(
            cached,
            log_level=settings.log_level,
            log_format=settings.log_format,
            sandbox=not settings.no_sandbox,
            start_worker=start_worker,
        ),
        queue_size=settings.queue_size,
        first_model=settings.model_name,
        keep_alive_s=keep_alive_seconds(settings.keep_alive),
    )


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
    preloading = asyncio.create_task(_preload(pool))
    watching = asyncio.create_task(context.journal.watch(pool))
    try:
        yield
    finally:
        preloading.cancel()
        watching.cancel()
        await context.renderer.close()
        await pool.close()


async def _preload(pool: Backend) -> None:
    """Load the first model behind the server's back, so that it answers /health meanwhile."""
    # The pool logs what goes wrong, and an empty folder is no error.
    with contextlib.suppress(ServerError):
        lease = await pool.acquire(None)
        lease.release()
