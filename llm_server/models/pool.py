"""Who is loaded: the one owner of every worker's life.

Requests ask for a lease on a ready worker and wait in one queue. Those whose model is loaded go in
at once; for the others models are brought in, one at a time, in the order in which they came and
owner by owner in turn. When the budget does not hold one beside the others, the least recently used
go: they take no more requests, end those they have, and only then are ended themselves. Knows no
HTTP and no wire format.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from llm_server.errors import (
    InsufficientMemory,
    ServerError,
    ShuttingDown,
)
from llm_server.looks import give_up, in_thread
from llm_server.models.choice import Choice
from llm_server.models.lease import Lease, Overrides, Resident, Ticket, revival
from llm_server.models.loader import Loader
from llm_server.models.plan import Plan, Planner
from llm_server.models.policy import MAX_REVIVALS, check_room
from llm_server.models.registry import ModelFile
from llm_server.models.residents import Residents
from llm_server.models.status import Status, Unloaded, state_of
from llm_server.worker.config import LoadConfig
from llm_server.worker.totals import Totals

logger = logging.getLogger(__name__)

DEFAULT_PARALLEL = 4
"""Requests assumed to run at once before a worker has said how many do."""


class Pool:
    """The loaded models and the queue before them. All methods belong to the loop's thread."""

    def __init__(
        self,
        planner: Planner,
        loader: Loader,
        *,
        queue_size: int,
        first_model: str | None = None,
        keep_alive_s: float = -1.0,
    ) -> None:
        self.planner = planner
        self._loader = loader
        self._registry = planner.registry
        self._queue_size = queue_size
        self._keep_alive_s = keep_alive_s
        self._residents = Residents(self._advance, self._ended)
        self._choice = Choice(planner, self._residents, loader, first_model)
        self._waiting: deque[Ticket] = deque()
        self._bringing: asyncio.Task[None] | None = None
        self._brought_for: Ticket | None = None
        self._last_turn: dict[str, float] = {}
        self._closing = False

    @property
    def totals(self) -> Totals:
        """What all workers have done."""
        return self._loader.totals

    @property
    def default(self) -> ModelFile | None:
        """The model that requests get which name none."""
        return self._choice.default

    @property
    def loaded(self) -> list[Resident]:
        """The models that are loaded, the most recently used first."""
        residents = [resident for resident in list(self._residents) if resident.worker.alive]
        return sorted(residents, key=lambda r: (not r.leases, -r.used))

    @property
    def waiting(self) -> Counter[str]:
        """How many requests wait for which model, here or in its worker."""
        here = Counter(ticket.model.name for ticket in list(self._waiting))
        return here + Counter({r.model.name: r.n_queued for r in list(self._residents)})

    @property
    def pids(self) -> list[int]:
        """The worker processes."""
        return [resident.worker.pid for resident in self.loaded]

    # ---- what requests do ----------------------------------------------------------------------

    def check_room(self, owner: str = "") -> None:
        """Whether one more request may wait; `acquire` asks this too.

        Raises ShuttingDown, and what `policy.check_room` does.
        """
        if self._closing:
            raise ShuttingDown()
        n_owned = 0
        if owner:
            waiting = sum(ticket.owner == owner for ticket in self._waiting)
            n_owned = self._residents.held_by(owner) + waiting
        n_taken = self._residents.n_leases + len(self._waiting)
        check_room(n_taken, n_owned, self._parallel(), self._queue_size)

    async def acquire(
        self,
        model: str | None,
        overrides: Overrides | None = None,
        *,
        keep_alive_s: float | None = None,
        make_default: bool | None = None,
        owner: str = "",
    ) -> Lease:
        """A lease on a ready worker with that model (None: the default, else the first).

        A model that is named becomes the default one if it generates text, with `make_default` in
        any case, and not if that is False. Waits for loads, and for requests that are in their way.
        Raises ModelNotFound, what `check_room` raises, and whatever a load fails with.
        """
        file, wanted = await self._choice.of(model), await self._choice.named(overrides or {})
        await self._choice.reach(file)
        self.check_room(owner)
        granted: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        ticket = Ticket(
            file,
            wanted,
            granted,
            keep_alive_s,
            named=model is not None and make_default is None,
            make_default=bool(make_default),
            owner=owner,
        )
        self._waiting.append(ticket)
        self._advance()
        try:
            return await granted
        except asyncio.CancelledError:
            self._give_up(ticket)
            raise

    async def unload(self, model: str) -> Unloaded:
        """End the worker of a model after its requests, also if its file is gone.

        One that is being loaded comes first to what wanted it; one that made room for a load does
        not come back if that fails. Raises ModelNotFound.
        """
        file = await self._choice.to_unload(model)
        for ticket in [t for t in self._waiting if t.revives and t.model.name == file.name]:
            self._drop_revival(ticket)
        coming = self._brought_for.model if self._brought_for else None
        if self._bringing is not None and file in (coming, self._loader.loading):
            await asyncio.wait([self._bringing])
        resident = self._residents.get(file)
        if resident is None:
            for displaced in self._brought_for.displaced if self._brought_for else ():
                displaced.leaving += displaced.model.name == file.name
            return Unloaded(file.name, was_loaded=False)
        await self._residents.let_go([resident])
        self._advance()
        return Unloaded(file.name, was_loaded=True)

    def status(self) -> Status:
        """What there is to show."""
        loading = self._loader.loading
        usable = self.loaded
        shown = next((r for r in usable if r.model == self.default), usable[0] if usable else None)
        loaded = shown.worker.loaded if shown else None
        model = shown.model if shown else loading
        queued = self._residents.n_queued
        return Status(
            state=state_of(self._closing, bool(usable), loading, self._loader.last_error),
            model=model.name if model else None,
            n_ctx=loaded.n_ctx if loaded else 0,
            parallel=loaded.parallel if loaded else self._parallel(),
            running=self._residents.n_leases - queued,
            waiting=len(self._waiting) + queued,
            loading=loading.name if loading else None,
            fraction=self._loader.fraction,
            error=self._loader.last_error.message if self._loader.last_error else None,
            sandbox=loaded.sandbox if loaded else None,
        )

    # ---- the end -------------------------------------------------------------------------------

    def begin_close(self) -> None:
        """Take no more requests and refuse the waiting ones; running ones go on."""
        self._closing = True
        give_up()
        self._refuse_waiting(ShuttingDown())
        if self._bringing is not None:
            self._bringing.cancel()

    async def drained(self, grace_s: float) -> bool:
        """Wait until no request runs, at most `grace_s` seconds. Whether that was enough."""
        try:
            await asyncio.wait_for(self._residents.all_idle(), grace_s)
        except TimeoutError:
            return False
        return True

    def fail_running(self) -> None:
        """End the requests that still run with ShuttingDown."""
        self._residents.fail_running()

    async def close(self) -> None:
        """End all workers; what still runs is failed. Nothing of the pool remains."""
        self.begin_close()
        if self._bringing is not None:
            await asyncio.wait([self._bringing])
        await self._residents.close()
        await self._loader.close()

    def kill(self) -> None:
        """End the workers at once, without waiting for anything."""
        self._residents.kill()
        self._loader.kill()

    # ---- the queue -----------------------------------------------------------------------------

    def _advance(self) -> None:
        """Do whatever can be done now: grant leases, and bring in the model that is due.

        All that wait for a loaded model go in before the next one has its turn: alternating
        clients then cost one load for each batch of requests and not for each request.
        """
        if self._closing:
            return
        for ticket in list(self._waiting):
            resident = self._residents.get(ticket.model)
            if resident is not None and self._satisfies(resident, ticket):
                self._waiting.remove(ticket)
                self._grant(ticket, resident)
        if self._waiting and self._bringing is None:
            due = min(self._waiting, key=self._rank)
            self._last_turn[due.owner] = time.monotonic()
            self._brought_for = due
            self._bringing = asyncio.get_running_loop().create_task(self._bring(due))
            self._bringing.add_done_callback(self._brought)
        elif self._bringing is not None and self._loader.pausing:
            if not all(self._loader.pause_s(ticket.model) for ticket in self._waiting):
                self._bringing.cancel()

    def _rank(self, ticket: Ticket) -> tuple[bool, float]:
        """Who is due: models that need no pause first, then owners in turn."""
        return self._loader.pause_s(ticket.model) > 0, self._last_turn.get(ticket.owner, 0.0)

    def _satisfies(self, resident: Resident, ticket: Ticket) -> bool:
        return resident.takes(ticket) and self.planner.in_force(
            resident.plan, resident.worker.loaded, ticket.overrides
        )

    def _grant(self, ticket: Ticket, resident: Resident) -> None:
        generates = resident.worker.loaded.pooling is None
        if ticket.make_default or (generates and (ticket.named or self.default is None)):
            self._choice.default = resident.model
        self._residents.grant(ticket, resident)

    def _give_up(self, ticket: Ticket) -> None:
        """The request behind a ticket is gone; a lease it was just granted goes back."""
        if ticket in self._waiting:
            self._waiting.remove(ticket)
            unwanted = not any(other.wants_the_same(ticket) for other in self._waiting)
            due = self._brought_for
            if unwanted and self._bringing and due and due.wants_the_same(ticket):
                # Nobody is made to wait for a load that nobody wants; one that runs, or that others
                # are being ended for, comes to its end.
                early = self._loader.loading is None and not due.has_displaced
                if early or self._loader.pausing:
                    self._bringing.cancel()
            self._advance()
        elif ticket.granted.done() and not ticket.granted.cancelled():
            if ticket.granted.exception() is None:
                ticket.granted.result().release()

    def _refuse_waiting(
        self, error: ServerError, only: Callable[[Ticket], bool] = lambda ticket: True
    ) -> None:
        for ticket in [t for t in self._waiting if only(t)]:
            self._waiting.remove(ticket)
            if not ticket.granted.done():
                ticket.granted.set_exception(error)

    # ---- bringing models in --------------------------------------------------------------------

    async def _bring(self, ticket: Ticket) -> None:
        """Load what `ticket` asks for; on failure refuse those who wait for the same."""
        await self._loader.pause(ticket.model)
        old = self._residents.get(ticket.model)
        base = old.plan.asked if old is not None else None
        keep_alive_s = old.keep_alive_s if old and not old.leaving else self._keep_alive_s
        ticket.displaced = []
        try:
            plan = await self._planned(ticket, base)
            budget = self.planner.budget
            others = any(t.model != ticket.model for t in self._waiting)
            if ticket.revives and (others or self._residents.in_the_way(plan, budget)):
                self._drop_revival(ticket)
                return
            while gone := self._residents.in_the_way(plan, budget):
                ticket.displaced += gone
                await self._residents.let_go(gone)
                plan = await self._planned(ticket, base)  # The file may be another by now.
            await self._load_or_retry(plan, keep_alive_s, ticket)
        except ServerError as error:
            self._refuse_waiting(error, ticket.wants_the_same)
            await self._put_back(ticket.displaced)

    async def _planned(self, ticket: Ticket, base: LoadConfig | None) -> Plan:
        """The plan for what `ticket` asks for, by its file as it is now."""
        ticket.model = await self._choice.as_it_is(ticket.model)
        try:
            asked = self.planner.asked(ticket.model, ticket.overrides, base)
            return await in_thread(partial(self.planner.plan, ticket.model, asked))
        except ServerError as error:
            self._loader.refused(ticket.model, error, ticket.overrides)
            raise

    def _brought(self, task: asyncio.Task[None]) -> None:
        ticket, self._bringing, self._brought_for = self._brought_for, None, None
        if ticket is not None and not task.cancelled() and (error := task.exception()) is not None:
            logger.error("loading failed in an unexpected way", exc_info=error)
            error = ServerError("The model could not be loaded.")
            self._refuse_waiting(error, ticket.wants_the_same)
        self._advance()
        self._residents.expect_expiries()
        self._expect_load()

    def _expect_load(self) -> None:
        """Have a process wait for the next model, where not all are loaded."""
        if len(self._registry.models()) > len(self.loaded) and not self._closing:
            self._loader.make_ready(lambda: bool(self._bringing or self._residents.n_leases))

    async def _load_or_retry(self, plan: Plan, keep_alive_s: float, ticket: Ticket) -> None:
        """Load; if the memory falls short, once more without the idle models, displaced then too.

        They go before the context becomes smaller than planned, and stay where nobody asks.
        """
        first = replace(plan, smaller_n_ctx=()) if self._residents.unused else plan
        try:
            await self._load(first, keep_alive_s)
        except ServerError as error:
            # Of what a worker reports only the code says which kind it is.
            short = error.info.code == InsufficientMemory.code and not ticket.revives
            idle = self._residents.unused
            if not short or (first == plan and not idle):
                raise
            logger.info("trying again without the models that are idle")
            ticket.displaced += idle
            await self._residents.let_go(idle)
            await self._load(plan, keep_alive_s)

    async def _load(self, plan: Plan, keep_alive_s: float) -> None:
        worker = await self._loader.load(plan)
        plan = self.planner.as_loaded(plan, worker.loaded)
        self.planner.warn_of_unknown_tokens(plan)
        memory = self.planner.learn(plan, worker.loaded.memory_bytes)
        self._residents.settle_in(plan, worker, memory, keep_alive_s)

    async def _put_back(self, residents: Sequence[Resident]) -> None:
        """Load again what made room for a load that failed, the last used first."""
        for resident in sorted(residents, key=lambda r: -r.used):
            if resident.leaving > 1:
                continue  # Somebody else wanted it gone, too.
            logger.info("going back to %s", resident.model.name)
            with contextlib.suppress(ServerError):  # The loader has logged it.
                await self._load(resident.plan, resident.keep_alive_s)

    def _ended(self, resident: Resident) -> None:
        """A worker is gone. A crashed model comes back, unless it was to go or keeps crashing."""
        crashes = self._loader.note_crash(resident.model, resident.worker, resident.since)
        if self._closing:
            return
        if 0 < crashes <= MAX_REVIVALS and not resident.leaving:
            self._waiting.appendleft(revival(resident))
        self._advance()
        self._expect_load()

    def _drop_revival(self, ticket: Ticket) -> None:
        """The model need not come back after all, also if it is being loaded for that."""
        self._waiting.remove(ticket)
        ticket.granted.cancel()
        if ticket is self._brought_for and self._bringing is not None:
            self._bringing.cancel()

    # ---- small questions -----------------------------------------------------------------------

    def _parallel(self) -> int:
        """How many requests run at once, over all loaded models."""
        loaded = [resident.worker.loaded.parallel for resident in self._residents]
        return sum(loaded) or self.planner.defaults.parallel or DEFAULT_PARALLEL
