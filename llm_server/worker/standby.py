"""A process that waits for the next model with its imports made: a switch costs the load alone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from llm_server.worker import frames, process
from llm_server.worker.messages import StandBy
from llm_server.worker.process import WORKER_ARGV, Owner, Process

logger = logging.getLogger(__name__)

REST_S = 2.0
"""How long nothing was to do before a process is made ready: it costs a core for some 0.2 s."""


class Standby:
    """Spawns workers, and keeps at most one waiting. All methods belong to the loop's thread."""

    def __init__(self, argv: Sequence[str] = WORKER_ARGV) -> None:
        self._argv = argv
        self._waiting: Process | None = None
        self._refilling: asyncio.Task[None] | None = None
        self._gone = asyncio.Event()
        self._gone.set()

    @property
    def pid(self) -> int | None:
        """The process that waits, if there is one."""
        return self._waiting.pid if self._waiting else None

    async def spawn(self, owner: Owner) -> None:
        """Give `owner` the process that waits, or a new one. Raises OSError."""
        waiting = self._waiting
        if waiting is None or waiting.ended:
            await process.spawn(owner, self._argv)
            return
        self._waiting = None
        self._gone.set()
        waiting.owner = owner
        owner.connected(waiting)

    def refill(self, busy: Callable[[], bool]) -> None:
        """Have a process wait again, as soon as the machine is not `busy`."""
        if self._refilling is None or self._refilling.done():
            self._refilling = asyncio.get_running_loop().create_task(self._refill(busy))

    async def close(self) -> None:
        """End the process that waits; none will wait again."""
        if self._refilling is not None:
            self._refilling.cancel()
            await asyncio.wait([self._refilling])
        self.kill()
        await self._gone.wait()

    def kill(self) -> None:
        """End the process that waits, at once."""
        if self._waiting is not None:
            self._waiting.kill()

    async def _refill(self, busy: Callable[[], bool]) -> None:
        while True:
            await asyncio.sleep(REST_S)
            if not busy():
                break
        if self._waiting is not None:
            return
        try:
            await process.spawn(self, self._argv)
        except OSError as error:
            logger.warning("no worker can be kept ready: %s", error)

    # ---- the waiting process's owner -----------------------------------------------------------

    def connected(self, process: Process) -> None:
        """It runs."""
        self._gone.clear()
        self._waiting = process
        process.write(frames.pack(frames.encode_command(StandBy())), droppable=False)

    def received(self, data: bytes) -> None:
        """It has nothing to say before it is told what to load."""
        logger.error("a worker spoke before it was asked to load")
        self.kill()

    def output_ended(self) -> None:
        """It is about to end."""
        self.kill()

    def exited(self, status: int) -> None:
        """It has ended; the next load starts another."""
        logger.debug("the worker that waited has ended with status %d", status)
        if self._waiting is not None:
            self._waiting.close()
        self._waiting = None
        self._gone.set()
