"""What is refused before it is read: requests for whom there is no room."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest

from tests.fake_live import Live, add_models, chat_body, live_server, one_machine, until
from tests.raw import post, talk

KEY = "a-key-of-this-test"
PATHS = [
    *("chat/completions", "completions", "embeddings", "rerank", "responses"),
    *("tokenize", "detokenize"),
]

pytestmark = one_machine("an ingress has room for each model, and so reads which is meant")


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server that asks for a key, and whose only place is taken."""
    models = tmp_path_factory.mktemp("models")
    add_models(models, "a.gguf")
    with live_server(models, parallel=1, queue_size=0, api_key=(KEY,), wait=False) as live:
        live.client.headers["authorization"] = f"Bearer {KEY}"
        until(lambda: live.client.get("/health").json()["status"] == "ok")
        url = live.client.base_url
        hanging = socket.create_connection((url.host, url.port or 80))
        hanging.sendall(with_key(post("/v1/chat/completions", chat_body("hang"))))
        until(lambda: live.client.get("/").json()["running"] == 1)
        yield live
        hanging.close()


def with_key(request: bytes) -> bytes:
    return request.replace(b"\r\n", b"\r\nAuthorization: Bearer " + KEY.encode() + b"\r\n", 1)


@pytest.mark.parametrize("body", [b"{", b'{"model": 5}', b'{"model": "nobody"}', b"[" * 100_000])
@pytest.mark.parametrize("path", [*(f"/v1/{path}" for path in PATHS), "/setModel"])
def test_without_room_a_body_is_not_looked_at(full: Live, path: str, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    response = full.client.post(path, content=body, headers=headers)
    assert response.status_code == 503
    assert response.json()["error"] == {
        "message": "Too many requests are waiting. Try again in a moment.",
        "type": "server_error",
        "param": None,
        "code": "queue_full",
    }
    assert response.headers["retry-after"] == "1"
    assert response.headers["x-request-id"].startswith("req_")


def test_a_refused_request_is_counted_at_its_route(full: Live) -> None:
    line = 'llm_http_responses_total{route="/v1/chat/completions",status="503"}'

    def count() -> float:
        text = full.client.get("/metrics").text
        return sum(float(row.rpartition(" ")[2]) for row in text.splitlines() if line in row)

    before = count()
    assert full.client.post("/v1/chat/completions", json={}).status_code == 503
    assert count() == before + 1


def test_a_refused_client_goes_on_with_its_connection(full: Live) -> None:
    """The refused body is no part of what comes behind it."""
    refused = with_key(post("/v1/chat/completions", {"messages": "x" * 300_000}))
    then = with_key(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n")
    answer = talk(str(full.client.base_url).rstrip("/"), refused + refused + then, responses=3)
    assert answer.statuses == [503, 503, 200] and not answer.closed
    assert json.loads(answer.received.rpartition(b"\r\n\r\n")[2])["data"][0]["id"] == "a.gguf"


def test_a_stranger_is_not_told_that_there_is_no_room(full: Live) -> None:
    answer = talk(str(full.client.base_url).rstrip("/"), post("/v1/chat/completions", {}), 1)
    assert answer.statuses == [401]
