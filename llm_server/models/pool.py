"""Who is loaded: the one owner of every worker's life.

Requests ask for a lease on a ready worker and wait in one queue, first come first served. Between
two models the pool waits until the running requests are done. It knows no HTTP and no wire format.

A machine that holds one model may not hold two. The next model is loaded beside the old one if it
plausibly fits (`fits_beside`): then a failing load costs nothing. Otherwise the old one is ended
first, and loaded again should the new one fail.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import msgspec
import psutil

from llm_server.errors import (
    ErrorInfo,
    ModelLoading,
    QueueFull,
    RemoteError,
    ServerError,
    ShuttingDown,
)
from llm_server.models.lease import Current, Lease, Overrides, Target, Ticket
from llm_server.models.policy import Crashes, fits_beside
from llm_server.models.registry import ModelFile, Registry
from llm_server.worker.client import Worker
from llm_server.worker.messages import CacheConfig, Load, LoadConfig
from llm_server.worker.totals import Totals

logger = logging.getLogger(__name__)

State: TypeAlias = Literal["empty", "loading", "ready", "failed", "stopping"]

STOP_DEADLINE_S = 10.0
"""Seconds a worker gets to end itself when its model is unloaded."""

DEFAULT_PARALLEL = 4
"""Requests assumed to run at once before a worker has said how many do."""


class StartWorker(Protocol):
    """`Worker.start`, as far as the pool needs it."""

    def __call__(
        self,
        load: Load,
        *,
        on_progress: Callable[[float], None] | None = None,
        totals: Totals | None = None,
    ) -> Awaitable[Worker]: ...


@dataclass(frozen=True, slots=True)
class Status:
    """The pool at one moment, for display only: decisions are the pool's own."""

    state: State
    model: str | None
    """The model in use, or the one that is being loaded when there is none."""
    n_ctx: int
    parallel: int
    running: int
    waiting: int
    loading: str | None
    fraction: float
    """How much of `loading` has been read, 0 to 1."""
    error: str | None
    """Why the last load failed, if it is the last thing that happened."""
    sandbox: str | None = None
    """What the worker gave up: `full`, `partial (...)` or `off`; None while there is none."""


class Pool:
    """One current model, and the queue before it. All methods belong to the event loop's thread."""

    def __init__(
        self,
        registry: Registry,
        *,
        defaults: LoadConfig,
        queue_size: int,
        first_model: str | None = None,
        cache: CacheConfig | None = None,
        log_level: str = "info",
        log_format: str = "text",
        sandbox: bool = True,
        start_worker: StartWorker = Worker.start,
        available_memory: Callable[[], int] = lambda: int(psutil.virtual_memory().available),
    ) -> None:
        self.totals = Totals()
        """What all workers have done."""
        self._registry = registry
        self._defaults = defaults
        self._queue_size = queue_size
        self._first_model = first_model
        self._cache = cache
        self._log_level = log_level
        self._log_format = log_format
        self._sandbox = sandbox
        self._start_worker = start_worker
        self._available_memory = available_memory
        self._current: Current | None = None
        self._waiting: deque[Ticket] = deque()
        self._switching: asyncio.Task[None] | None = None
        self._loading: ModelFile | None = None
        self._fraction = 0.0
        self._last_error: ErrorInfo | None = None
        self._crashes: dict[str, Crashes] = {}
        self._closing = False
        self._idle = asyncio.Event()

    # ---- what requests do ----------------------------------------------------------------------

    async def acquire(self, model: str | None, overrides: Overrides | None = None) -> Lease:
        """A lease on a ready worker with that model (None: the current one, else the first one).

        Waits for running requests of another model, and for loads. Raises ModelNotFound,
        QueueFull, ShuttingDown, and whatever a load fails with.
        """
        file = await self._resolve(model)
        if self._closing:
            raise ShuttingDown("The server is shutting down.")
        current = self._current
        running = len(current.leases) if current else 0
        if running + len(self._waiting) >= self._parallel() + self._queue_size:
            raise QueueFull("Too many requests are waiting. Try again in a moment.")
        ticket = Ticket(file, overrides or {}, asyncio.get_running_loop().create_future())
        self._waiting.append(ticket)
        self._advance()
        try:
            return await ticket.granted
        except asyncio.CancelledError:
            self._give_up(ticket)
            raise

    def status(self) -> Status:
        """What there is to show."""
        current, loading = self._current, self._loading
        usable = current is not None and current.worker.alive
        model = current.target.model if current else loading
        loaded = current.worker.loaded if current else None
        return Status(
            state=self._state(usable),
            model=model.name if model else None,
            n_ctx=loaded.n_ctx if loaded else 0,
            parallel=self._parallel(),
            running=len(current.leases) if current else 0,
            waiting=len(self._waiting),
            loading=loading.name if loading else None,
            fraction=self._fraction,
            error=self._last_error.message if self._last_error else None,
            sandbox=loaded.sandbox if loaded else None,
        )

    # ---- the end -------------------------------------------------------------------------------

    def begin_close(self) -> None:
        """Take no more requests and refuse the waiting ones; running ones go on."""
        self._closing = True
        self._refuse_waiting(ShuttingDown("The server is shutting down."))
        if self._switching is not None:
            self._switching.cancel()
        self._note_idle()

    async def drained(self, grace_s: float) -> bool:
        """Wait until no request runs, at most `grace_s` seconds. Whether that was enough."""
        try:
            await asyncio.wait_for(self._idle.wait(), grace_s)
        except TimeoutError:
            return False
        return True

    def fail_running(self) -> None:
        """End the requests that still run with ShuttingDown."""
        if self._current is not None:
            self._current.worker.fail_running(ShuttingDown("The server is shutting down.").info)

    async def close(self) -> None:
        """End the worker; what still runs is failed. Nothing of the pool remains."""
        self.begin_close()
        if self._switching is not None:
            await asyncio.wait([self._switching])
        if self._current is not None:
            await self._unload(self._current)
            self._current = None

    def kill(self) -> None:
        """End the worker at once, without waiting for anything."""
        if self._current is not None:
            self._current.worker.kill()

    # ---- deciding ------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Do whatever can be done now: grant leases, or start the switch that is due."""
        if self._switching is not None or self._closing:
            return
        current = self._current
        while self._waiting and current is not None and current.satisfies(self._waiting[0]):
            self._grant(self._waiting.popleft(), current)
        if not self._waiting or (current is not None and current.leases and current.worker.alive):
            return
        ticket = self._waiting[0]
        self._switching = asyncio.get_running_loop().create_task(
            self._switch(ticket), name=f"load {ticket.model.name}"
        )
        self._switching.add_done_callback(self._switched)

    def _switched(self, task: asyncio.Task[None]) -> None:
        self._switching = None
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("loading failed in an unexpected way", exc_info=error)
            self._refuse_waiting(ServerError("The model could not be loaded."))
        # All that wait for this model go in, before the next model has its turn: alternating
        # clients then cost one load for each batch of requests and not for each request.
        current = self._current
        if current is not None and not self._closing:
            for ticket in [t for t in self._waiting if current.satisfies(t)]:
                self._waiting.remove(ticket)
                self._grant(ticket, current)
        self._note_idle()
        self._advance()

    def _grant(self, ticket: Ticket, current: Current) -> None:
        if ticket.granted.done():
            return
        lease = Lease(current.target.model, current.worker, self._released)
        current.leases.add(lease)
        self._idle.clear()
        ticket.granted.set_result(lease)

    def _released(self, lease: Lease) -> None:
        current = self._current
        if current is not None and lease in current.leases:
            current.leases.remove(lease)
            self._note_idle()
            self._advance()

    def _give_up(self, ticket: Ticket) -> None:
        """The request behind a ticket is gone; a lease it was just granted goes back."""
        if ticket in self._waiting:
            self._waiting.remove(ticket)
            self._advance()
        elif ticket.granted.done() and not ticket.granted.cancelled():
            if ticket.granted.exception() is None:
                ticket.granted.result().release()

    def _note_idle(self) -> None:
        if self._current is None or not self._current.leases:
            self._idle.set()

    def _refuse_waiting(
        self, error: ServerError, only: Callable[[Ticket], bool] = lambda ticket: True
    ) -> None:
        for ticket in [t for t in self._waiting if only(t)]:
            self._waiting.remove(ticket)
            if not ticket.granted.done():
                ticket.granted.set_exception(error)

    # ---- switching -----------------------------------------------------------------------------

    async def _switch(self, ticket: Ticket) -> None:
        """Load what `ticket` asks for; on failure refuse those who wait for the same."""
        target, old = self._target_of(ticket), self._current
        self._loading, self._fraction = target.model, 0.0
        if old is not None and not old.worker.alive:
            await old.worker.wait()
            self._note_crash(old)
            old = self._current = None
        if old is not None and not fits_beside(target.model.size, self._available_memory()):
            self._current = None
            await self._unload(old)
        try:
            worker = await self._load(target)
        except ServerError as error:
            self._last_error = error.info
            logger.error("cannot load %s: %s", target.model.name, error)
            self._refuse_waiting(error, ticket.wants_the_same)
            if old is not None and self._current is None:
                await self._load_again(old.target)
            return
        beside, self._current = self._current, Current(target, worker)
        if beside is not None:
            await self._unload(beside)

    async def _load_again(self, target: Target) -> None:
        logger.info("going back to %s", target.model.name)
        try:
            self._current = Current(target, await self._load(target))
        except ServerError as error:
            logger.error("cannot load %s again: %s", target.model.name, error)

    async def _load(self, target: Target) -> Worker:
        """A new worker with the model loaded, after the pause that earlier crashes earned it."""
        crashes = self._crashes.setdefault(target.model.name, Crashes())
        self._loading, self._fraction = target.model, 0.0
        await asyncio.sleep(max(0.0, crashes.not_before - time.monotonic()))
        started = time.monotonic()
        try:
            worker = await self._start_worker(
                Load(
                    model_path=str(target.model.path),
                    config=target.config,
                    cache=self._cache,
                    log_level=self._log_level,
                    log_format=self._log_format,
                    sandbox=self._sandbox,
                ),
                on_progress=self._note_progress,
                totals=self.totals,
            )
        except RemoteError:
            raise  # The worker refused the model in good order: trying again costs little.
        except ServerError:
            crashes.note(time.monotonic(), 0.0)
            raise
        except OSError as error:
            logger.error("cannot start a worker: %s", error)
            raise ServerError("A worker process could not be started.") from error
        finally:
            self._loading = None
        self._last_error = None
        logger.info(
            "loaded %s in %.1f s: %s, n_ctx %d, parallel %d",
            target.model.name,
            time.monotonic() - started,
            worker.loaded.description,
            worker.loaded.n_ctx,
            worker.loaded.parallel,
        )
        return worker

    async def _unload(self, current: Current) -> None:
        try:
            await current.worker.stop(STOP_DEADLINE_S)
        except BaseException:
            current.worker.kill()
            raise
        logger.info("unloaded %s", current.target.model.name)

    # ---- small questions -----------------------------------------------------------------------

    async def _resolve(self, name: str | None) -> ModelFile:
        current = self._current
        if name is None:
            if current is not None and not self._registry.is_stand_in(current.target.model):
                return current.target.model
            if self._loading is not None:
                return self._loading
            name = self._first_model
        elif current is not None and self._registry.means(name, current.target.model):
            return current.target.model
        await asyncio.to_thread(self._registry.scan)
        if name is not None:
            return self._registry.find(name)
        models = self._registry.models()
        if not models:
            raise ModelLoading("No model is loaded, and the models folder is empty.")
        return models[0]

    def _target_of(self, ticket: Ticket) -> Target:
        """What to load for a ticket: what is in force for the model, changed as asked."""
        current = self._current
        same = current is not None and current.target.model.path == ticket.model.path
        base = current.target.config if current is not None and same else self._defaults
        return Target(ticket.model, msgspec.structs.replace(base, **ticket.overrides))

    def _parallel(self) -> int:
        if self._current is not None:
            return self._current.worker.loaded.parallel
        return self._defaults.parallel or DEFAULT_PARALLEL

    def _note_crash(self, current: Current) -> None:
        at = current.worker.crashed_at
        if at is not None:
            crashes = self._crashes.setdefault(current.target.model.name, Crashes())
            crashes.note(at, at - current.since)

    def _note_progress(self, fraction: float) -> None:
        self._fraction = fraction

    def _state(self, usable: bool) -> State:
        if self._closing:
            return "stopping"
        if usable:
            return "ready"
        if self._loading is not None:
            return "loading"
        return "failed" if self._last_error is not None else "empty"
