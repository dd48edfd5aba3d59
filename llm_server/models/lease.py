"""What the pool keeps books on: who waits for which model, and who holds which worker.

Plain records without behaviour in time; the pool owns and changes them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from llm_server.models.registry import ModelFile
from llm_server.worker.client import Worker
from llm_server.worker.messages import LoadConfig

Overrides: TypeAlias = Mapping[str, int | str]
"""Fields of LoadConfig that a request sets; those it leaves out stay as they are."""


class Lease:
    """The right to use a worker. While it is held, the worker's model stays loaded."""

    def __init__(self, model: ModelFile, worker: Worker, release: Callable[[Lease], None]) -> None:
        self.model = model
        self.worker = worker
        self._release = release

    def release(self) -> None:
        """Give the worker back. Safe to repeat."""
        self._release(self)


@dataclass(frozen=True, slots=True)
class Target:
    """A model and the configuration it is, or shall be, loaded with."""

    model: ModelFile
    config: LoadConfig


@dataclass(slots=True)
class Current:
    target: Target
    worker: Worker
    since: float = field(default_factory=time.monotonic)
    leases: set[Lease] = field(default_factory=set)

    def satisfies(self, ticket: Ticket) -> bool:
        """Whether this worker, as it is loaded, is what the ticket asks for."""
        if not self.worker.alive or self.target.model.path != ticket.model.path:
            return False
        if self.worker.outdated:
            return False  # Another file has the name by now: that is the one that was asked for.
        return all(self._in_force(name, value) for name, value in ticket.overrides.items())

    def _in_force(self, name: str, value: int | str) -> bool:
        if value == getattr(self.target.config, name):
            return True
        # 0 asks for what was fitted, and the fitted value itself may be asked for.
        if name == "pooling":
            return value == self.worker.loaded.pooling
        return name in ("n_ctx", "parallel") and value in (0, getattr(self.worker.loaded, name))


@dataclass(slots=True, eq=False)
class Ticket:
    """A request that waits for a lease."""

    model: ModelFile
    overrides: Overrides
    granted: asyncio.Future[Lease]

    def wants_the_same(self, other: Ticket) -> bool:
        """Whether one load would serve, or fail, both."""
        return self.model == other.model and self.overrides == other.overrides
