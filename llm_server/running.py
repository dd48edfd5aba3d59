"""The event loop's life: uvicorn around the app, and an orderly end of both.

Apart from `server.py`, so that a start that fails has not waited for these imports.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import signal
import socket
import sys
import threading
from types import FrameType

import uvicorn

from llm_server import notify
from llm_server.api.app import App, create_app
from llm_server.api.context import Context
from llm_server.api.keys import InvalidKey
from llm_server.api.transport import Limits, connection_class
from llm_server.config import Settings
from llm_server.machine import open_files
from llm_server.models.pool import Pool
from llm_server.threads import start

logger = logging.getLogger(__name__)

SPARE_DESCRIPTORS = 128
"""Open files beside connections: workers' pipes, models that are looked at, libraries."""

LAST_WORDS_S = 2.0
"""How long clients may take to read that the server is shutting down."""

KEEP_ALIVE_S = 65
"""Seconds an idle connection is kept: longer than the pools of usual clients keep theirs, so that
they never send into a connection that is just being closed."""


async def serve(settings: Settings, listener: socket.socket, pool: Pool) -> int:
    """Serve on `listener` until told to stop. 0, or 1 when it was told twice.

    `pool` has been told to load the first model.
    """
    app = create_app(settings, backend=pool, preloads=False)
    limits = Limits(connections=affordable_connections(settings.max_connections))
    server = Server(app, limits, settings.grace_seconds)
    # What is here now stays: searching all of it for garbage takes 20 ms each time.
    gc.freeze()
    await server.serve(sockets=[listener])
    return 1 if server.force_exit else 0


def affordable_connections(wanted: int) -> int:
    """As many connections as this process may have open, with descriptors left for its work.

    Beyond them the listener would fail to accept, and no client would be told.
    """
    files = open_files(wanted + SPARE_DESCRIPTORS)
    affordable = min(wanted, max(files - SPARE_DESCRIPTORS, files // 4))
    if affordable < wanted:
        logger.warning(
            "%d connections at once, not %d, because only %d files may be open (ulimit -n)",
            affordable,
            wanted,
            files,
        )
    return affordable


class Server(uvicorn.Server):
    """uvicorn, with our rules for the end: refuse the waiting, give the running a time, then cut.

    The second signal ends everything at once, worker included.
    """

    def __init__(self, app: App, limits: Limits, grace_s: float) -> None:
        context: Context = app.state.context
        config = uvicorn.Config(
            app,
            http=connection_class(limits, context.traffic),
            ws="none",
            log_config=None,
            access_log=False,
            lifespan="on",
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=math.ceil(grace_s) + 5,
        )
        super().__init__(config)
        assert isinstance(context.pool, Pool)
        self._pool = context.pool
        self._keyring = context.access.keyring
        self._grace_s = grace_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._keeping_alive: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start serving."""
        self._loop = asyncio.get_running_loop()
        if sys.platform != "win32" and threading.current_thread() is threading.main_thread():
            # The file of keys may lie on a disk that hangs.
            self._loop.add_signal_handler(signal.SIGHUP, start, self._reload)
        await super().startup(sockets)
        self._keeping_alive = self._loop.create_task(notify.keep_alive())
        notify.ready()

    def _reload(self) -> None:
        """SIGHUP: the terminal is gone, or somebody has changed the keys. Answers go on."""
        try:
            self._keyring.reload()
        except InvalidKey as error:
            logger.error("the API keys stay as they were: %s", error)
        else:
            logger.info("the API keys were read again")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the listener and end all requests."""
        notify.stopping()
        self._pool.begin_close()
        cutting = asyncio.create_task(self._cut())
        await super().shutdown(sockets)
        cutting.cancel()
        await self._hang_up()  # Where it was told twice, there may be some.

    async def _cut(self) -> None:
        """End what takes too long: requests, and then connections whose clients do not read."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self._grace_s + LAST_WORDS_S
        if not await self._pool.drained(self._grace_s):
            self._pool.fail_running()
        await asyncio.sleep(end - loop.time())
        await self._hang_up()

    async def _hang_up(self) -> None:
        """Close what connections are left; their requests end by that, and need not be cancelled.

        uvicorn and asyncio would do so, with a traceback in the log for each.
        """
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        if self.server_state.tasks:
            await asyncio.wait(self.server_state.tasks, timeout=LAST_WORDS_S)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal. Not recorded for uvicorn, which would end the process by it after all."""
        if self.should_exit:
            self.force_exit = True
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._pool.kill)
        self.should_exit = True
