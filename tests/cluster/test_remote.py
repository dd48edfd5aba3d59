"""Calls of replicas that end badly, and readers that are stuck: a fake handle stands for Ray's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from llm_server.errors import ServerError
from llm_server.models.registry import ModelFile
from llm_server.worker import frames
from llm_server.worker.messages import ChatRequest, Content, Failed, Message, RequestEvent
from llm_server.worker.stream import MAX_UNREAD, EventStream
from llm_server.worker.totals import Totals
from tests.cluster.fake_handle import Handle, opening
from tests.cluster.live import RemoteWorker

grpc = pytest.importorskip("grpc")  # It comes with Ray.

pytestmark = pytest.mark.filterwarnings("default")

REQUEST = ChatRequest([Message("user", "hi")])


def grpc_error() -> Exception:
    """What comes as it is from a message that is too long."""
    none = grpc.aio.Metadata()
    error: Exception = grpc.aio.AioRpcError(
        grpc.StatusCode.RESOURCE_EXHAUSTED, none, none, "too long"
    )
    return error


def worker_of(handle: Any) -> RemoteWorker:
    return RemoteWorker(handle, ModelFile("a.gguf", Path("a.gguf"), 1, 0, (), ()), Totals())


async def read(stream: EventStream) -> list[RequestEvent]:
    """All events up to the end."""
    return [event async for batch in stream for event in batch]


async def fails_at_once() -> AsyncIterator[bytes]:
    raise grpc_error()
    yield b""


async def fails_in_mid_stream() -> AsyncIterator[bytes]:
    yield opening(Content(1, "one "))
    raise grpc_error()


async def sends_what_is_none_of_ours() -> AsyncIterator[bytes]:
    yield b"\xc1"


@pytest.mark.parametrize("answer", [fails_at_once, fails_in_mid_stream, sends_what_is_none_of_ours])
def test_whatever_a_call_fails_with_its_stream_ends(
    answer: Callable[[], AsyncIterator[bytes]],
) -> None:
    async def ask() -> None:
        worker = worker_of(Handle(answer))
        events = await asyncio.wait_for(read(worker.submit(REQUEST)), 20)
        assert [e.error.code for e in events if isinstance(e, Failed)] == ["worker_crashed"]
        assert isinstance(events[-1], Failed)
        await asyncio.sleep(0)
        assert (worker.n_running, worker.n_waiting, worker.streams) == (0, 0, [])

    asyncio.run(ask())


def test_other_calls_fail_with_errors_of_ours() -> None:
    async def ask() -> None:
        worker = worker_of(Handle(fails_at_once, grpc_error()))
        for call in (worker.describe, worker.unload):
            with pytest.raises(ServerError) as raised:
                await call()
            assert raised.value.info.code == "worker_crashed"
        assert worker.n_waiting == 0

    asyncio.run(ask())


def test_a_reader_that_is_stuck_ends_the_call() -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield opening(Content(1, "x"))
        while True:
            await asyncio.sleep(0)
            yield frames.encode_events([Content(1, "y" * (MAX_UNREAD // 4))])

    async def ask() -> None:
        handle = Handle(endless)
        worker = worker_of(handle)
        stream = worker.submit(REQUEST)
        await anext(stream)
        # Nobody reads on.
        await asyncio.wait_for(handle.calls[0].cancelled.wait(), 20)
        end = (await read(stream))[-1]
        assert isinstance(end, Failed) and end.error.code == "queue_full"
        assert worker.streams == []

    asyncio.run(ask())
