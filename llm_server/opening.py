"""Opens a server: the first model is loaded by its worker while this process imports the API.

Either takes some half a second, on different cores. Imports nothing of the API itself.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import socket
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from llm_server.config import Settings, cache_config, make_planner, make_registry
from llm_server.errors import ServerError
from llm_server.models.backend import Backend
from llm_server.models.loader import Loader
from llm_server.models.policy import keep_alive_seconds
from llm_server.models.pool import Pool
from llm_server.models.registry import Registry
from llm_server.worker.client import Worker
from llm_server.worker.config import CacheConfig
from llm_server.worker.process import WORKER_ARGV, spawn
from llm_server.worker.standby import Standby
from llm_server.worker.watchdog import Limits

logger = logging.getLogger(__name__)


def run(
    settings: Settings,
    listener: socket.socket,
    worker_argv: Sequence[str] | None = None,
    stand_in: Path | None = None,
) -> int:
    """Serve on `listener` until told to stop. 0, or 1 when it was told twice."""
    registry = make_registry(settings, stand_in)
    pool = make_pool(settings, registry, cache_config(settings), worker_argv or WORKER_ARGV)
    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(_serve(settings, listener, pool))


async def _serve(settings: Settings, listener: socket.socket, pool: Pool) -> int:
    preloading = asyncio.create_task(preload(pool))
    try:
        await asyncio.to_thread(importlib.import_module, "llm_server.running")
        from llm_server import running

        return await running.serve(settings, listener, pool)
    finally:
        preloading.cancel()
        # Nothing to do behind an orderly end; Ctrl-C may come before that could be.
        pool.kill()


def new_loop() -> asyncio.AbstractEventLoop:
    """The loop that uvicorn would take."""
    try:
        uvloop = importlib.import_module("uvloop")
    except ImportError:  # There is none for Windows.
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


def make_pool(
    settings: Settings,
    registry: Registry,
    cached: CacheConfig | None,
    worker_argv: Sequence[str],
    *,
    switches: bool = True,
) -> Pool:
    """The pool of models for `settings`; nothing is loaded yet.

    `switches`: other models than the first may be wanted, so that a process waits for them.
    """
    standby = Standby(worker_argv) if switches else None
    start_worker = partial(
        Worker.start,
        spawn=standby.spawn if standby else partial(spawn, argv=worker_argv),
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
            standby=standby,
        ),
        queue_size=settings.queue_size,
        first_model=settings.model_name,
        keep_alive_s=keep_alive_seconds(settings.keep_alive),
    )


async def preload(pool: Backend) -> None:
    """Load the first model behind the server's back, so that it answers /health meanwhile."""
    try:
        lease = await pool.acquire(None)
    except ServerError:
        pass  # The pool logs what goes wrong, and an empty folder is no error.
    except Exception:
        logger.exception("the first model was not loaded")  # Nobody waits for this task.
    else:
        lease.release()
