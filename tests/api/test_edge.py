"""What every response has, and what never gets as far as an endpoint."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from llm_server.api.edge import Edge
from tests.api.test_metrics import scrape
from tests.fake_live import Live, until
from tests.raw import connect, talk


def assert_error(response: httpx.Response, status: int, code: str) -> None:
    assert response.status_code == status
    assert set(response.json()) == {"error"}
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["code"]) == ("invalid_request_error", code)
    assert response.headers["x-request-id"].startswith("req_")


def test_every_response_has_an_id_of_its_own(live: Live) -> None:
    ids = {live.client.get(path).headers["x-request-id"] for path in ("/", "/health", "/nope")}
    assert len(ids) == 3


@pytest.mark.parametrize(
    "path", ["/nope", "/v1/", "/models/", "/v1/models/", "/v1/../x", "/docs", "/%2e%2e"]
)
def test_unknown_paths(live: Live, path: str) -> None:
    response = live.client.get(path)
    assert_error(response, 404, "unknown_url")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/health", "GET, HEAD"),
        ("PUT", "/ui", "GET, HEAD"),
        ("GET", "/setModel", "POST"),
    ],
)
def test_wrong_methods(live: Live, method: str, path: str, allowed: str) -> None:
    response = live.client.request(method, path)
    assert_error(response, 405, "method_not_allowed")
    assert response.headers["allow"] == allowed


@pytest.mark.parametrize(
    "path", ["/", "/health", "/v1/models", "/metrics", "/ui", "/openapi.json", "/nope", "/setModel"]
)
def test_head_is_what_get_answers_without_its_body(live: Live, path: str) -> None:
    head, got = live.client.head(path), live.client.get(path)
    assert (head.status_code, head.content) == (got.status_code, b"")
    assert head.headers["content-type"] == got.headers["content-type"]
    assert int(head.headers["content-length"]) > 0


def test_head_of_an_endless_stream_ends(live: Live) -> None:
    requests = [
        b"HEAD /api/status HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    ]
    assert talk(str(live.client.base_url), b"".join(requests)).statuses == [200, 200]


def test_a_client_that_leaves_is_no_mistake_of_the_servers(live: Live) -> None:
    begun = (
        b"POST /setModel HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: 100\r\n\r\n{"
    )
    streamed = b"HEAD /api/status HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n"

    def errors() -> int:
        return len(live.client.get("/api/status").json()["errors"])

    def gone() -> float:
        return scrape(live).get(("llm_http_responses_total", "/setModel", "499"), 0.0)

    before = errors(), gone()
    with connect(str(live.client.base_url)) as connection:
        connection.sendall(streamed)
        assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")
        connection.sendall(begun)
    until(lambda: gone() == before[1] + 1)
    assert errors() == before[0]


def test_what_is_streamed_behind_an_answered_head_is_given_up() -> None:
    async def endless(scope: Any, receive: Any, send: Any) -> None:
        assert scope["method"] == "GET"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": b"x", "more_body": True})

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", b"localhost")]
    scope = {"type": "http", "method": "HEAD", "path": "/", "headers": headers}
    asyncio.run(Edge(endless, 1000)(scope, None, send))  # type: ignore[arg-type]
    assert sent[1:] == [{"type": "http.response.body", "body": b""}]


def json_post(live: Live, content: bytes | Iterator[bytes]) -> httpx.Response:
    headers = {"content-type": "application/json"}
    return live.client.post("/chat/completions", content=content, headers=headers)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"[1]", "invalid_json"),
        (b'{"a": NaN}', "invalid_value"),
        (rb'{"messages": "\ud800"}', "invalid_unicode"),
        (rb'{"\ud800": 1}', "invalid_unicode"),
        (b'{"a": 1, "a": 2}', "duplicate_key"),
        (b'{"a":' * 5000, "json_too_deep"),
        (b'{"messages": "x"}', "invalid_type"),
    ],
)
def test_bad_bodies_are_400(live: Live, body: bytes, code: str) -> None:
    assert_error(json_post(live, body), 400, code)


def test_bodies_must_be_declared_as_json(live: Live) -> None:
    response = live.client.post("/chat/completions", content=b"{}")
    assert_error(response, 415, "unsupported_media_type")


def test_a_long_body_is_refused_declared_or_not(live: Live) -> None:
    limit = 8 * 1024 * 1024
    body = b'{"messages": "' + b"x" * (limit - 16) + b'"}'
    assert len(body) == limit
    assert_error(json_post(live, body), 400, "invalid_type")
    assert_error(json_post(live, body + b" "), 413, "request_too_large")
    assert_error(json_post(live, iter([body, b" "])), 413, "request_too_large")


def test_an_unexpected_error_is_an_envelope_with_an_id() -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("secret")

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app=Edge(broken, 1000))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get("/")

    response = asyncio.run(ask())
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal_error"
    assert "secret" not in response.text
