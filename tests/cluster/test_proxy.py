"""What goes with the head of a request from a proxy to an ingress; no Ray is needed for it."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Sequence
from typing import Any

import pytest
from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from llm_server.cluster.proxy import EARLY_BYTES, AtTheProxy, with_body

GONE: Message = {"type": "http.disconnect"}


def piece(body: bytes, more: bool = False) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


def through(
    messages: Sequence[Message], **headers: str
) -> tuple[Headers, list[Message], list[Message]]:
    """A request that sends these: its headers behind the proxy, what the ingress receives of it,
    and how much of that it had to ask the proxy for."""
    asked: list[Message] = []
    received: list[Message] = []
    seen: list[Headers] = []

    async def client() -> Message:
        return messages[min(next(turn), len(messages) - 1)]

    async def ingress(scope: Scope, receive: Receive, send: Send) -> None:
        scope = pickle.loads(pickle.dumps(scope))  # As Ray Serve sends it.
        seen.append(Headers(scope=scope))

        async def ask() -> Message:
            asked.append(await receive())
            return asked[-1]

        receive_one = with_body(scope, ask)
        while not received or received[-1] != GONE:
            received.append(await receive_one())

    turn = iter(range(100))
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope: dict[str, Any] = {"type": "http", "method": "POST", "path": "/", "headers": raw}

    async def send(message: Message) -> None:
        raise AssertionError(message)

    asyncio.run(AtTheProxy(ingress)(scope, client, send))
    return seen[0], received, asked


def test_an_id_is_the_servers_whatever_a_client_sends() -> None:
    headers, _, _ = through([GONE], x_request_id="chosen")
    (told,) = headers.getlist("x-request-id")
    assert told.startswith("req_")


@pytest.mark.parametrize("pieces", [[piece(b"body")], [piece(b"bo", True), piece(b"dy")]])
def test_a_short_body_goes_with_the_head(pieces: list[Message]) -> None:
    _, received, asked = through([*pieces, GONE], content_length="4")
    assert received == [*pieces, GONE]
    assert asked == [GONE]


@pytest.mark.parametrize("length", [{"content_length": str(EARLY_BYTES + 1)}, {}])
def test_a_long_body_or_one_of_unknown_length_is_asked_for(length: dict[str, str]) -> None:
    _, received, asked = through([piece(b"a", True), piece(b"b"), GONE], **length)
    assert received == asked == [piece(b"a", True), piece(b"b"), GONE]


def test_a_client_that_leaves_within_its_body_has_left() -> None:
    _, received, asked = through([piece(b"a", True), GONE], content_length="4")
    assert (received, asked) == ([piece(b"a", True), GONE], [])
