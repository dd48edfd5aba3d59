"""The event loop's life: uvicorn around the app, and an orderly end of both.

Apart from `server.py`, so that a start that fails has not waited for these imports.
"""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import uvicorn

from llm_server import notify
from llm_server.api.app import create_app
from llm_server.config import Settings
from llm_server.models.pool import Pool

KEEP_ALIVE_S = 65
"""Seconds an idle connection is kept: longer than the pools of usual clients keep theirs, so that
they never send into a connection that is just being closed."""


def run(
    settings: Settings,
    listener: socket.socket,
    worker_argv: Sequence[str] | None = None,
    stand_in: Path | None = None,
) -> int:
    """Serve on `listener` until told to stop. 0, or 1 when it was told twice."""
    app = create_app(settings, worker_argv=worker_argv, stand_in=stand_in)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="on",
        ws="none",
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=math.ceil(settings.grace_seconds) + 5,
    )
    server = Server(config, app.state.context.pool, settings.grace_seconds)
    server.run(sockets=[listener])
    return 1 if server.force_exit else 0


class Server(uvicorn.Server):
    """uvicorn, with our rules for the end: refuse the waiting, give the running a time, then cut.

    The second signal ends everything at once, worker included.
    """

    def __init__(self, config: uvicorn.Config, pool: Pool, grace_s: float) -> None:
        super().__init__(config)
        self._pool = pool
        self._grace_s = grace_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._keeping_alive: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start serving."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self._keeping_alive = self._loop.create_task(notify.keep_alive())
        notify.ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the listener and end all requests."""
        notify.stopping()
        self._pool.begin_close()
        cutting = asyncio.create_task(self._cut())
        await super().shutdown(sockets)
        cutting.cancel()

    async def _cut(self) -> None:
        if not await self._pool.drained(self._grace_s):
            self._pool.fail_running()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal. Not recorded for uvicorn, which would end the process by it after all."""
        if self.should_exit:
            self.force_exit = True
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._pool.kill)
        self.should_exit = True
