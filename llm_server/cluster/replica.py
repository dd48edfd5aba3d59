"""A replica: one model on one node, in the worker process of the single-machine server.

It holds a pool of one model, whose worker is started again when it crashes, as everywhere. What it
does not know: HTTP, other models, other replicas.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from llm_server.cluster import messages
from llm_server.cluster.messages import Opening
from llm_server.config import Settings, cache_config, make_registry
from llm_server.errors import ServerError
from llm_server.models.lease import Lease, Overrides
from llm_server.models.pool import Pool
from llm_server.opening import make_pool
from llm_server.server import configure_logging
from llm_server.worker import frames

logger = logging.getLogger(__name__)

UNBOUNDED = 1 << 30
"""Room in the pool's queue: Ray Serve bounds how many requests a replica has."""


class Replica:
    """The class of a model's deployment."""

    async def __init__(  # type: ignore[misc]  # Ray Serve awaits it.
        self,
        settings: Settings,
        model: str,
        load: Overrides,
        budget: int,
        worker_argv: Sequence[str],
        stand_in: Path | None,
    ) -> None:
        """Load the model. One that cannot be loaded tells so to each request."""
        configure_logging(settings)
        self._model, self._load = model, load
        alone = settings.model_copy(
            update={"queue_size": UNBOUNDED, "model_name": model, "keep_alive": "-1"}
        )
        registry = make_registry(settings, stand_in)
        self._pool: Pool = make_pool(
            alone, registry, cache_config(settings), worker_argv, switches=False
        )
        # Where it goes was decided by who placed it: what it takes is what it may take.
        self._pool.planner.budget = max(self._pool.planner.budget, budget)
        with contextlib.suppress(ServerError):  # The loader has logged it.
            (await self._acquire("")).release()

    async def answer(self, marks: bytes, call: bytes) -> AsyncIterator[bytes]:
        """Answer a call (`messages`): its opening, then its events step by step."""
        requests = messages.decode_call(call)
        owner = requests[0].owner
        with contextlib.ExitStack() as stack:
            try:
                lease = await self._acquire(owner)
                stack.callback(lease.release)
                asked = [submit.request for submit in requests]
                stream = lease.worker.submit(*asked, owner=owner)
                stack.callback(stream.close)
            except ServerError as error:
                yield messages.encode_opening(Opening(error=error.info))
                return
            loaded = lease.worker.loaded
            yield messages.encode_opening(
                Opening(stream.ids[0], loaded, events=list(await anext(stream)))
            )
            async for batch in stream:
                yield frames.encode_events(list(batch))

    async def describe(self, marks: bytes) -> bytes:
        """What is loaded, as an opening; loads it if need be."""
        try:
            lease = await self._acquire("")
        except ServerError as error:
            return messages.encode_opening(Opening(error=error.info))
        lease.release()
        return messages.encode_opening(Opening(loaded=lease.worker.loaded))

    async def unload(self) -> bool:
        """End the worker after its requests; the next one starts another. Whether there was one."""
        return (await self._pool.unload(self._model)).was_loaded

    async def _acquire(self, owner: str) -> Lease:
        return await self._pool.acquire(self._model, self._load, owner=owner)

    async def __del__(self) -> None:
        """Ray Serve ends this replica: its last request is over."""
        await self._pool.close()
