"""What Ray Serve does first with a request; no Ray is needed for it."""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from llm_server.cluster.proxy import Named


def test_an_id_is_the_servers_whatever_a_client_sends() -> None:
    seen: list[Headers] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(Headers(scope=scope))

    async def receive() -> Message:
        raise AssertionError

    async def send(message: Message) -> None:
        raise AssertionError(message)

    scope: Scope = {"type": "http", "headers": [(b"x-request-id", b"chosen"), (b"a", b"b")]}
    asyncio.run(Named(app)(scope, receive, send))
    (told,) = seen[0].getlist("x-request-id")
    assert told.startswith("req_")
    assert seen[0]["a"] == "b"
