"""Stands for Ray's handle of a deployment: its calls are answered in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from llm_server.cluster import messages
from llm_server.cluster.messages import Opening
from llm_server.worker.messages import Loaded, RequestEvent

LOADED = Loaded(4096, 1, "x")


def opening(*events: RequestEvent) -> bytes:
    """The first message of an answer."""
    return messages.encode_opening(Opening(1, LOADED, events=list(events)))


class Response:
    """What a call of a stream returns."""

    def __init__(self, steps: AsyncIterator[bytes]) -> None:
        self._steps = steps
        self.cancelled = asyncio.Event()

    def __aiter__(self) -> Response:
        return self

    async def __anext__(self) -> bytes:
        return await anext(self._steps)

    def cancel(self) -> None:
        self.cancelled.set()


class Handle:
    """A deployment whose replicas send what `answer` yields; other calls fail with `error`."""

    def __init__(
        self, answer: Callable[[], AsyncIterator[bytes]], error: Exception | None = None
    ) -> None:
        self._answer = answer
        self._error = error
        self.calls: list[Response] = []

    def options(self, *, stream: bool = False, method_name: str) -> Handle | Method:
        return self if stream else Method(self._error)

    def remote(self, *args: bytes) -> Response:
        self.calls.append(Response(self._answer()))
        return self.calls[-1]

    def broadcast(self, method: str) -> Method:
        return Method(self._error)


class Method:
    """A method that is not a stream."""

    def __init__(self, error: Exception | None) -> None:
        self._error = error

    async def remote(self, *args: bytes) -> bytes:
        await asyncio.sleep(0)  # It takes some time.
        if self._error is not None:
            raise self._error
        return opening()

    async def results_async(self, *, return_exceptions: bool) -> list[object]:
        if self._error is not None:
            raise self._error
        return [True]
