"""The models that are loaded: who holds a lease on which, and how they come to their end.

A resident that is to leave takes no more requests, ends those it has, and only then is ended
itself. Why it has to leave is the pool's business.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any

from llm_server.errors import ShuttingDown
from llm_server.models.lease import Lease, Resident, Ticket
from llm_server.models.plan import Plan
from llm_server.models.policy import Holding, whom_to_evict
from llm_server.models.registry import ModelFile
from llm_server.worker.client import Worker

logger = logging.getLogger(__name__)

STOP_DEADLINE_S = 10.0
"""Seconds a worker gets to end itself when its model is unloaded."""


class Residents:
    """All loaded models by name. `on_change` is called when one can take or make room for more,
    `on_end` when a worker has ended, as it was told to or not."""

    def __init__(self, on_change: Callable[[], None], on_end: Callable[[Resident], None]) -> None:
        self._on_change = on_change
        self._on_end = on_end
        self._residents: dict[str, Resident] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    def __iter__(self) -> Iterator[Resident]:
        return iter(list(self._residents.values()))  # A scrape of the metrics has its own thread.

    def get(self, model: ModelFile) -> Resident | None:
        """The resident of that model's name."""
        return self._residents.get(model.name)

    @property
    def n_leases(self) -> int:
        """Leases held."""
        return sum(len(resident.leases) for resident in self)

    @property
    def n_queued(self) -> int:
        """Requests among them that wait in a worker."""
        return sum(resident.n_queued for resident in self)

    def held_by(self, owner: str) -> int:
        """Leases held by one owner."""
        return sum(lease.owner == owner for resident in self for lease in resident.leases)

    @property
    def unused(self) -> list[Resident]:
        """Those on which no lease is held."""
        return [resident for resident in self if not resident.leases]

    async def all_idle(self) -> None:
        """Wait until no lease is held."""
        await self._idle.wait()

    # ---- coming and being used -----------------------------------------------------------------

    def settle_in(self, plan: Plan, worker: Worker, memory: int, keep_alive_s: float) -> None:
        """A worker is ready."""
        resident = Resident(plan, worker, memory, keep_alive_s)
        resident.idle.set()
        self._residents[plan.model.name] = resident
        self._spawn(self._watch(resident))

    def expect_expiries(self) -> None:
        """Whoever a model was loaded for has it now, or has left: then its time begins."""
        for resident in self:
            if not resident.leases and resident.expiry is None:
                self._expect_expiry(resident)

    def grant(self, ticket: Ticket, resident: Resident) -> None:
        """Give the ticket a lease, unless its request is gone."""
        if ticket.granted.done():
            return
        worker = resident.worker
        lease = Lease(
            resident.plan, worker, lambda lease: self._released(resident, lease), ticket.owner
        )
        resident.leases.add(lease)
        resident.idle.clear()
        self._idle.clear()
        if resident.expiry is not None:
            resident.expiry.cancel()
        if ticket.keep_alive_s is not None:
            resident.keep_alive_s = ticket.keep_alive_s
        ticket.granted.set_result(lease)

    def _released(self, resident: Resident, lease: Lease) -> None:
        if lease not in resident.leases:
            return
        resident.leases.remove(lease)
        resident.used = time.monotonic()
        if not resident.leases:
            resident.idle.set()
            self._expect_expiry(resident)
        self._note_idle()
        self._on_change()

    def _expect_expiry(self, resident: Resident) -> None:
        """Nobody uses it: its time begins."""
        if resident.keep_alive_s >= 0 and self.get(resident.model) is resident:
            loop = asyncio.get_running_loop()
            resident.expiry = loop.call_later(resident.keep_alive_s, self._expire, resident)

    def _note_idle(self) -> None:
        if self.n_leases == 0:
            self._idle.set()

    # ---- leaving -------------------------------------------------------------------------------

    def in_the_way(self, plan: Plan, budget: int) -> list[Resident]:
        """Who must be gone before a load: the same model, whom the budget has no room for, and
        who is on the way out where there is no room until then."""
        same = [resident for resident in self if resident.model.name == plan.model.name]
        others = [resident for resident in self if resident not in same]
        if plan.memory.total + sum(resident.memory for resident in others) <= budget:
            return same
        staying = [resident for resident in others if resident.stopping is None]
        holdings = [Holding(r.memory, r.used, bool(r.leases)) for r in staying]
        evicted = [staying[i] for i in whom_to_evict(plan.memory.total, budget, holdings)]
        return same + [r for r in others if r in evicted or r.stopping is not None]

    async def let_go(self, residents: Sequence[Resident]) -> None:
        """Let them end what they have, then end them. Cancelled before that, they stay."""
        for resident in residents:
            resident.leaving += 1
        try:
            for resident in residents:
                if resident.worker.alive:
                    await resident.idle.wait()
        except BaseException:
            for resident in residents:
                resident.leaving -= 1
            raise
        await self._end(residents)

    async def close(self) -> None:
        """End all workers now; what still runs is failed."""
        await self._end(list(self))
        while self._tasks:
            await asyncio.wait(self._tasks)

    def fail_running(self) -> None:
        """End the requests that still run with ShuttingDown."""
        for resident in self:
            resident.worker.fail_running(ShuttingDown().info)

    def kill(self) -> None:
        """End the workers at once, without waiting for anything."""
        for resident in self:
            resident.worker.kill()

    async def _end(self, residents: Sequence[Resident]) -> None:
        """End workers, whatever they do. Safe to repeat; cancelled, they end nevertheless."""
        await asyncio.gather(*[asyncio.shield(self._begin_end(r)) for r in residents])
        for resident in residents:
            self._forget(resident)

    def _begin_end(self, resident: Resident) -> asyncio.Task[None]:
        if resident.expiry is not None:
            resident.expiry.cancel()
        if resident.stopping is None:
            resident.stopping = self._spawn(_stop(resident))
        return resident.stopping

    def _expire(self, resident: Resident) -> None:
        """Nobody has asked for a model in the time it was to be kept."""
        resident.leaving += 1
        self._begin_end(resident)

    async def _watch(self, resident: Resident) -> None:
        """Wait for a worker's end. Until then it counts: its memory is not free before."""
        await resident.worker.wait()
        self._forget(resident)
        self._on_end(resident)

    def _forget(self, resident: Resident) -> None:
        """Its process is no more. Safe to repeat."""
        if resident.expiry is not None:
            resident.expiry.cancel()
        resident.idle.set()  # Whoever still reads its answers needs it no more.
        if self.get(resident.model) is resident:
            del self._residents[resident.model.name]
        self._note_idle()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def _stop(resident: Resident) -> None:
    try:
        await resident.worker.stop(STOP_DEADLINE_S)
    except BaseException:
        resident.worker.kill()
        raise
    logger.info("unloaded %s", resident.model.name)
