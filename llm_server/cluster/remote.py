"""One model's deployment as a worker: calls its replicas, and turns what comes into streams.

Whatever happens to a replica, every stream ends in exactly one `Finished` or `Failed`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator
from contextvars import ContextVar
from typing import cast

from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from llm_server.cluster import messages
from llm_server.cluster.affinity import marks_of
from llm_server.errors import (
    ErrorInfo,
    ModelLoading,
    QueueFull,
    RemoteError,
    ServerError,
    WorkerCrashed,
)
from llm_server.models.registry import ModelFile
from llm_server.worker import frames
from llm_server.worker.messages import (
    Asked,
    Failed,
    Finished,
    Loaded,
    Progress,
    RequestEvent,
)
from llm_server.worker.stream import EventStream
from llm_server.worker.totals import Totals

logger = logging.getLogger(__name__)

ATTEMPTS = 3
"""Times a call is made whose replica is gone before anything of the answer was seen."""

LOST = (
    "The replica that was answering is gone. The model has other replicas, or gets one on the "
    "next request."
)

session: ContextVar[str] = ContextVar("session", default="")
"""The session of the request that is being served, if its client named one."""


class RemoteWorker:
    """All replicas of one model."""

    def __init__(self, handle: DeploymentHandle, model: ModelFile, totals: Totals) -> None:
        self._answer = handle.options(stream=True, method_name="answer")
        self._describe = handle.options(method_name="describe")
        self._handle = handle
        self._model = model
        self._totals = totals
        self._loaded: Loaded | None = None
        self._last_id = 0
        self._pumps: dict[EventStream, asyncio.Task[None]] = {}
        self._waiting: set[EventStream] = set()
        self._owners: dict[EventStream, str] = {}
        self._asking: Counter[str] = Counter()

    @property
    def loaded(self) -> Loaded:
        """What the replica said that was heard last."""
        assert self._loaded is not None
        return self._loaded

    @property
    def described(self) -> bool:
        """Whether a replica has said what is loaded."""
        return self._loaded is not None

    @property
    def streams(self) -> list[EventStream]:
        """The answers that are under way."""
        return list(self._pumps)

    @property
    def n_running(self) -> int:
        """Answers that a replica has begun with."""
        return len(self._pumps) - len(self._waiting)

    @property
    def n_waiting(self) -> int:
        """Requests that no replica has begun with."""
        return len(self._waiting) + self._asking.total()

    def held_by(self, owner: str) -> int:
        """Requests of an owner, whether a replica has begun with them or not."""
        under_way = sum(of == owner for of in self._owners.values())
        return under_way + self._asking[owner]

    async def describe(self, owner: str = "") -> None:
        """Ask a replica what is loaded; the first one is started for it. Raises ServerError."""
        self._asking[owner] += 1
        try:
            body = await self._describe.remote(b"")
        except Exception as error:  # Ray passes on gRPC's own, too.
            raise RemoteError(self._failed(error)) from None
        finally:
            self._asking[owner] -= 1
        self._opened(messages.decode_opening(body))

    async def unload(self) -> bool:
        """Have the replicas that are there end their workers. Whether any had one."""
        try:
            answers = await self._handle.broadcast("unload").results_async(return_exceptions=True)
        except Exception as error:
            raise RemoteError(self._failed(error)) from None
        return any(answer is True for answer in answers)

    def submit(self, *requests: Asked, owner: str = "") -> EventStream:
        """Start requests that make one answer. The stream must be closed."""
        first = self._last_id + 1
        self._last_id += len(requests)
        stream = EventStream(range(first, first + len(requests)), self._closed)
        marks = marks_of(requests[0], session.get())
        body = messages.encode_call(requests, owner)
        self._waiting.add(stream)
        self._owners[stream] = owner
        pump = asyncio.get_running_loop().create_task(self._pump(stream, marks, body))
        self._pumps[stream] = pump
        pump.add_done_callback(lambda _: self._over(stream))
        return stream

    def fail(self, stream: EventStream, error: ErrorInfo) -> None:
        """End an open stream with `error`, cancelling its requests."""
        pump = self._pumps.get(stream)
        if pump is not None:
            pump.cancel()
            self._over(stream)
            stream.add(Failed(stream.ids[0], error))
            stream.wake()

    async def _pump(self, stream: EventStream, marks: bytes, body: bytes) -> None:
        """Feed a stream to its end."""
        for attempt in range(1, ATTEMPTS + 1):
            seen = over = False
            try:
                # Read to the end: what is left then is ended without being cancelled.
                async for events in self._call(stream, marks, body):
                    seen = seen or not all(isinstance(event, Progress) for event in events)
                    over = over or self._feed(stream, events)
                error: Exception = RemoteError(WorkerCrashed(LOST).info)
            except Exception as failed:  # Ray passes on gRPC's own, too.
                error = failed
            if over:
                return
            if seen or attempt == ATTEMPTS or not isinstance(error, RayError):
                break
            logger.warning("%s: %s; asking another replica", self._model.name, type(error).__name__)
        self._feed(stream, [Failed(stream.ids[0], self._failed(error))])

    async def _call(
        self, stream: EventStream, marks: bytes, body: bytes
    ) -> AsyncIterator[list[RequestEvent]]:
        """The events of one attempt. Raises ServerError for a refusal, and what Ray raises."""
        response: DeploymentResponseGenerator = self._answer.remote(marks, body)
        ended = False
        try:
            opening = self._opened(messages.decode_opening(await anext(response)))
            self._waiting.discard(stream)
            stream.ids = range(opening.first_id, opening.first_id + len(stream.ids))
            # A replica sends what its streams hold, and nothing else.
            yield cast("list[RequestEvent]", opening.events)
            async for step in response:
                yield cast("list[RequestEvent]", frames.decode_events(step))
            ended = True
        finally:
            if not ended:
                response.cancel()

    def _opened(self, opening: messages.Opening) -> messages.Opening:
        if opening.error is not None:
            raise RemoteError(opening.error)
        self._loaded = opening.loaded
        return opening

    def _feed(self, stream: EventStream, events: list[RequestEvent]) -> bool:
        """Hand events on. Whether the stream is over."""
        over = False
        for event in events:
            if not stream.add(event):
                # Cancels the pump where it waits next, and so what the replica computes.
                self.fail(stream, QueueFull("The client reads its answer too slowly.").info)
                return True
            if isinstance(event, Finished):
                self._totals.add(event)
            over = over or isinstance(event, Failed)
        stream.wake()
        return over or not stream.open

    def _failed(self, error: Exception) -> ErrorInfo:
        """What a client is told of a call that failed; the log has all of it."""
        if not isinstance(error, ServerError):
            logger.error("%s: a call failed: %s", self._model.name, error)
        return _told(error)

    def _closed(self, stream: EventStream) -> None:
        """Nobody reads on."""
        pump = self._pumps.get(stream)
        if pump is not None:
            pump.cancel()
            self._totals.requests["cancelled"] += 1

    def _over(self, stream: EventStream) -> None:
        self._pumps.pop(stream, None)
        self._owners.pop(stream, None)
        self._waiting.discard(stream)


def _told(error: Exception) -> ErrorInfo:
    """What a client is told of a call that failed."""
    if isinstance(error, ServerError):
        return error.info
    if isinstance(error, BackPressureError):
        return QueueFull().info
    if isinstance(error, DeploymentUnavailableError):
        return ModelLoading(
            "The model has no replica that works; the cluster's log says more.",
            code="model_not_loaded",
        ).info
    return WorkerCrashed(LOST).info
