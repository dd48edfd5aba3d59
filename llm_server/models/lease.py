"""What the pool keeps books on: who waits for which model, and who holds which worker.

Plain records without behaviour in time; the pool owns and changes them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import msgspec

from llm_server.models.plan import Plan
from llm_server.models.registry import ModelFile
from llm_server.models.status import ModelState
from llm_server.worker.client import Worker
from llm_server.worker.messages import Cells

Overrides: TypeAlias = Mapping[str, object]
"""Fields of LoadConfig that a request sets; those it leaves out stay as they are."""


class Lease:
    """The right to use a worker. While it is held, the worker's model stays loaded."""

    def __init__(
        self,
        plan: Plan,
        worker: Worker,
        release: Callable[[Lease], None],
        owner: str = "",
    ) -> None:
        self.plan = plan
        self.worker = worker
        self.owner = owner
        self._release = release

    @property
    def model(self) -> ModelFile:
        """The worker's model."""
        return self.plan.model

    def release(self) -> None:
        """Give the worker back. Safe to repeat."""
        self._release(self)


@dataclass(slots=True, eq=False)
class Resident:
    """A model that is loaded."""

    plan: Plan
    worker: Worker
    memory: int
    """Bytes it holds of the budget."""
    keep_alive_s: float
    """How long it stays without requests; less than 0 for ever."""
    since: float = field(default_factory=time.monotonic)
    used: float = field(default_factory=time.monotonic)
    """When its last request ended."""
    leases: set[Lease] = field(default_factory=set)
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    leaving: int = 0
    """How many want it gone: it takes no more requests, and those it has go on to their end."""
    expiry: asyncio.TimerHandle | None = None
    stopping: asyncio.Task[None] | None = None

    @property
    def model(self) -> ModelFile:
        """The model."""
        return self.plan.model

    @property
    def n_queued(self) -> int:
        """Requests that its worker has not begun with. Those for vectors take turns: none waits."""
        return self.worker.n_queued if self.worker.loaded.pooling is None else 0

    @property
    def n_running(self) -> int:
        """Requests that it has, less those."""
        return len(self.leases) - self.n_queued

    @property
    def cells(self) -> Cells | None:
        """The cells in use; None of an embedding model, which has none."""
        return self.worker.cells if self.worker.loaded.pooling is None else None

    @property
    def state(self) -> ModelState:
        """Whether it takes requests, or is on its way out."""
        return "unloading" if self.leaving or self.stopping is not None else "ready"

    @property
    def expires_in_s(self) -> float | None:
        """Seconds until it goes if nobody asks for it; None while it is used, or to stay."""
        if self.expiry is None or self.expiry.cancelled() or self.state != "ready":
            return None
        return max(0.0, self.used + self.keep_alive_s - time.monotonic())

    def takes(self, ticket: Ticket) -> bool:
        """Whether this worker, as it was seen last, is there for the ticket, if it is loaded as
        that asks for."""
        if not self.worker.alive or self.leaving or self.model.path != ticket.model.path:
            return False
        if self.worker.on_disk.outdated:
            return False  # Another file has the name by now: that is the one that was asked for.
        # The next worker makes a lost folder again; nobody has to wait for others.
        return bool(self.leases) or not self.worker.on_disk.cache_lost


@dataclass(slots=True, eq=False)
class Ticket:
    """A request that waits for a lease."""

    model: ModelFile
    overrides: Overrides
    granted: asyncio.Future[Lease]
    keep_alive_s: float | None = None
    """How long the model shall stay afterwards; None leaves that as it is."""
    named: bool = False
    """Whether the request named its model: the default one from now on, if it makes text."""
    make_default: bool = False
    """Whether requests that name no model shall get this one from now on."""
    revives: bool = False
    """Nobody asks: a model whose worker died is to be there again, if it is in nobody's way."""
    owner: str = ""
    """Whose request it is: owners take turns. Empty where nobody is told apart."""
    displaced: list[Resident] = field(default_factory=list)
    """Who made room for it: they come back if it cannot be loaded."""

    @property
    def has_displaced(self) -> bool:
        """Whether somebody is gone, or is being ended, for its sake alone."""
        return any(r.stopping is not None and r.leaving == 1 for r in self.displaced)

    def wants_the_same(self, other: Ticket) -> bool:
        """Whether one load would serve, or fail, both."""
        return self.model.path == other.model.path and self.overrides == other.overrides


def revival(resident: Resident) -> Ticket:
    """Brings a model back as it was, and gives the lease back at once."""
    granted: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
    granted.add_done_callback(_give_back)
    asked = msgspec.structs.asdict(resident.plan.asked)
    return Ticket(resident.model, asked, granted, resident.keep_alive_s, revives=True)


def _give_back(granted: asyncio.Future[Lease]) -> None:
    if not granted.cancelled() and granted.exception() is None:
        granted.result().release()
