"""What the API needs of whoever holds the models: the pool of this machine, or a cluster's.

Contracts alone. Whoever implements them ends every stream of events in exactly one `Finished`
or `Failed`, whatever happens behind it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from llm_server.errors import ErrorInfo
from llm_server.models.lease import Overrides
from llm_server.models.plan import Plan, Planner
from llm_server.models.registry import ModelFile
from llm_server.models.status import ModelState, Status, Unloaded
from llm_server.worker.messages import Asked, Cells, Loaded
from llm_server.worker.stream import EventStream
from llm_server.worker.totals import Totals


class AnsweringWorker(Protocol):
    """Where requests go."""

    @property
    def loaded(self) -> Loaded:
        """What is in force. Known for certain once an answer has begun."""

    def submit(self, *requests: Asked, owner: str = "") -> EventStream:
        """Start requests that make one answer. The stream must be closed. Raises ServerError."""

    def fail(self, stream: EventStream, error: ErrorInfo) -> None:
        """End an open stream with `error`."""


class WorkerLease(Protocol):
    """The right to use a worker until it is released."""

    @property
    def plan(self) -> Plan:
        """How its model is loaded."""

    @property
    def model(self) -> ModelFile:
        """Its model."""

    @property
    def worker(self) -> AnsweringWorker:
        """The worker."""

    def release(self) -> None:
        """Give it back. Safe to repeat."""


class LoadedModel(Protocol):
    """A model that can answer at once."""

    @property
    def model(self) -> ModelFile:
        """The model."""

    @property
    def plan(self) -> Plan:
        """How it is loaded."""

    @property
    def worker(self) -> AnsweringWorker:
        """Its worker, or any of them."""

    @property
    def n_running(self) -> int:
        """The requests that it answers."""

    @property
    def memory(self) -> int:
        """Bytes it holds."""

    @property
    def state(self) -> ModelState:
        """Whether it takes requests."""

    @property
    def cells(self) -> Cells | None:
        """The cells of its context in use; None where that is not known, or there are none."""

    @property
    def keep_alive_s(self) -> float:
        """How long it stays without requests; less than 0 for ever."""

    @property
    def expires_in_s(self) -> float | None:
        """Seconds until it goes if nobody asks for it; None while it is used, or to stay."""


class Backend(Protocol):
    """All models. The methods belong to the event loop's thread; none but the async ones wait."""

    @property
    def planner(self) -> Planner:
        """How models are loaded, and what the configuration says of each."""

    @property
    def totals(self) -> Totals:
        """What was done for this process's clients."""

    @property
    def default(self) -> ModelFile | None:
        """The model that requests get which name none."""

    @property
    def loaded(self) -> Sequence[LoadedModel]:
        """The models that are loaded, the most important first."""

    @property
    def waiting(self) -> Mapping[str, int]:
        """How many requests wait, by the model they wait for."""

    @property
    def pids(self) -> Sequence[int]:
        """The worker processes on this machine."""

    def check_room(self, owner: str = "") -> None:
        """Raises what `acquire` would, whatever the model, if that is known without its name."""

    async def acquire(
        self,
        model: str | None,
        overrides: Overrides | None = None,
        *,
        keep_alive_s: float | None = None,
        make_default: bool | None = None,
        owner: str = "",
    ) -> WorkerLease:
        """A lease on a worker with that model, None for the default one. Raises ServerError.

        With `make_default` it becomes the default one; without, that is left to the backend.
        """

    async def unload(self, model: str) -> Unloaded:
        """End a model after its requests. Raises ServerError."""

    def status(self) -> Status:
        """What there is to show."""

    async def close(self) -> None:
        """End all that it has started."""
