"""More of everything than there is room for: what is taken, what is refused, and what stays."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import httpx
import psutil
import pytest

from tests.api.test_chat import raw_post
from tests.fake_live import Live, add_models, chat_body, live_server, until
from tests.raw import connect

ONE = "64MiB"
"""Memory for one of the fake models, so that switching ends the other."""


@pytest.fixture
def workers(tmp_path: Path) -> Callable[[], list[psutil.Process]]:
    """The workers of this test that were told to load, and that are still there."""

    def found() -> list[psutil.Process]:
        spans = (tmp_path / "spans.log").read_text().split()
        return [child for child in psutil.Process().children() if str(child.pid) in spans]

    return found


def test_ten_times_the_queue_is_taken_up_to_its_bound_and_nothing_is_lost(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf")
    gate = tmp_path / "gate"
    parallel, queue = 2, 4
    with (
        live_server(tmp_path, parallel=parallel, queue_size=queue) as live,
        ThreadPoolExecutor(10 * queue) as clients,
    ):
        body = chat_body(f"gate:{gate}")
        asked = [clients.submit(live.post, "/chat/completions", body) for _ in range(10 * queue)]

        def refused() -> list[httpx.Response]:
            return [future.result() for future in asked if future.done()]

        until(lambda: len(refused()) == 10 * queue - parallel - queue)
        for response in refused():
            assert response.status_code == 503
            error = response.json()["error"]
            assert (error["code"], error["type"]) == ("queue_full", "server_error")
            assert int(response.headers["retry-after"]) >= 1
        for path in ("/health", "/v1/models", "/metrics"):
            assert live.client.get(path).status_code == 200
        status = live.client.get("/").json()
        assert status["running"] + status["waiting"] == parallel + queue
        gate.touch()
        answers = [future.result() for future in asked if future.result().status_code == 200]
        assert len(answers) == parallel + queue
        assert {a.json()["choices"][0]["message"]["content"] for a in answers} == {"one two"}
        until(live.is_quiet)


def test_a_key_that_fills_the_queue_leaves_room_for_others(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf")
    gate = tmp_path / "gate"
    many, one = {"x-api-key": "many"}, {"x-api-key": "one"}
    with (
        live_server(tmp_path, parallel=2, queue_size=6, api_key=("many", "one")) as live,
        ThreadPoolExecutor(40) as clients,
    ):

        def ask(text: str, headers: dict[str, str]) -> httpx.Response:
            return live.client.post("/chat/completions", json=chat_body(text), headers=headers)

        asked = [clients.submit(ask, f"gate:{gate}", many) for _ in range(40)]
        until(lambda: sum(future.done() for future in asked) == 36)
        for refused in (future.result() for future in asked if future.done()):
            assert refused.status_code == 429
            error = refused.json()["error"]
            assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
            assert int(refused.headers["retry-after"]) >= 1
        assert ask("hello", one).json()["choices"][0]["message"]["content"] == "hello "
        assert ask("hello", many).status_code == 429
        gate.touch()
        assert sum(future.result().status_code == 200 for future in asked) == 4


def test_who_has_the_only_key_has_the_whole_queue(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf")
    gate = tmp_path / "gate"
    with (
        live_server(tmp_path, parallel=2, queue_size=6, api_key=("only",)) as live,
        ThreadPoolExecutor(20) as clients,
    ):
        live.client.headers["x-api-key"] = "only"
        asked = [clients.submit(live.chat, f"gate:{gate}") for _ in range(20)]
        until(lambda: sum(future.done() for future in asked) == 12)
        assert {future.result().status_code for future in asked if future.done()} == {503}
        gate.touch()
        assert sum(future.result().status_code == 200 for future in asked) == 8


def test_idle_connections_and_readers_that_do_not_read_are_nobody_elses_business(
    tmp_path: Path,
) -> None:
    add_models(tmp_path, "a.gguf")
    with live_server(tmp_path, parallel=64) as live:
        url = str(live.client.base_url).rstrip("/")
        idle = [connect(url) for _ in range(200)]
        for connection in idle:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert connection.recv(12) == b"HTTP/1.1 200"
        flood = chat_body("flood", stream=True)
        slow = [raw_post(live, "/chat/completions", flood) for _ in range(20)]
        until(lambda: live.client.get("/").json()["running"] == len(slow))
        assert live.chat("golden").json()["choices"][0]["message"]["content"] == "golden "
        for connection in (*slow, *idle):
            connection.close()
        until(live.is_quiet)


def test_switches_at_once_are_one_load_at_a_time_and_all_are_answered(
    tmp_path: Path, workers: Callable[[], list[psutil.Process]]
) -> None:
    add_models(tmp_path, "a.gguf", "b.gguf")
    n = 200
    with (
        live_server(tmp_path, memory=ONE) as live,
        ThreadPoolExecutor(n) as clients,
        httpx.Client(
            base_url=live.client.base_url, timeout=120, limits=httpx.Limits(max_connections=n)
        ) as client,
    ):

        def switch(model: str) -> httpx.Response:
            return client.post("/setModel", json={"model_name": model})

        asked = [clients.submit(switch, "ab"[i % 2] + ".gguf") for i in range(n)]
        wait(asked)
        answers = [future.result() for future in asked]
        outcomes = Counter(answer.status_code for answer in answers)
        assert set(outcomes) <= {200, 503} and outcomes[200] >= 64
        for i, answer in enumerate(answers):
            if answer.status_code == 200:
                assert answer.json()["model"] == "ab"[i % 2] + ".gguf"
            else:
                assert answer.json()["error"]["code"] == "queue_full"
                assert answer.headers["retry-after"]
        spans = [line.split() for line in live.notes("spans.log")]
        for begun, ended in zip(spans[::2], spans[1::2], strict=True):
            assert (begun[0], ended[0], begun[1]) == ("begin", "end", ended[1])
        assert live.client.get("/").json()["model"] == live.loads()[-1].split()[0]
        until(lambda: len(workers()) == 1)


def test_a_client_that_goes_during_a_load_leaves_one_worker(
    tmp_path: Path, workers: Callable[[], list[psutil.Process]]
) -> None:
    add_models(tmp_path, "a.gguf", "gate.gguf")
    with live_server(tmp_path, memory=ONE) as live:
        connection = raw_post(live, "/setModel", {"model_name": "gate.gguf"})
        until(lambda: live.client.get("/").json()["loading"] is not None)
        connection.close()
        (tmp_path / "gate.gguf.open").touch()
        until(lambda: live.client.get("/").json()["loading"] is None)
        until(lambda: len(workers()) == 1)
        until(live.is_quiet)
        assert live.chat("hi").status_code == 200


def test_switching_to_and_fro_leaves_nothing_behind(
    tmp_path: Path, workers: Callable[[], list[psutil.Process]]
) -> None:
    add_models(tmp_path, "a.gguf", "b.gguf")
    with live_server(tmp_path, memory=ONE) as live:

        def cycle(times: int) -> int:
            for _ in range(times):
                for name in ("b.gguf", "a.gguf"):
                    assert live.post("/setModel", {"model_name": name}).status_code == 200
            until(lambda: len(workers()) == 1)
            return len(os.listdir("/proc/self/fd"))

        before = cycle(1)
        assert cycle(4) <= before
        assert not [p for p in workers() if p.status() == psutil.STATUS_ZOMBIE]
        assert len(live.loads()) == 11


def test_fifty_chats_without_a_model_are_one_load(tmp_path: Path) -> None:
    add_models(tmp_path, "gate.gguf")
    with live_server(tmp_path, wait=False) as live, ThreadPoolExecutor(50) as clients:
        asked = [clients.submit(_ask, live) for _ in range(50)]
        until(lambda: live.client.get("/").json()["waiting"] >= 50)
        (tmp_path / "gate.gguf.open").touch()
        assert {future.result() for future in asked} == {(200, "hi ")}
        assert len(live.loads()) == 1


def _ask(live: Live) -> tuple[int, str]:
    response = live.chat("hi")
    return response.status_code, response.json()["choices"][0]["message"]["content"]
