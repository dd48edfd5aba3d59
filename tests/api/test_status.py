"""What `/api/status` says, once and as a stream, and cancelling requests by the ids it lists."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import httpx

from tests.fake_live import Live, add_models, chat_body, live_server, one_machine, until


def status(live: Live) -> dict[str, Any]:
    answer: dict[str, Any] = live.client.get("/api/status").json()
    return answer


def in_background(live: Live, **fields: Any) -> tuple[threading.Thread, list[httpx.Response]]:
    """A chat whose answer is put into the list when it has come."""
    answers: list[httpx.Response] = []

    def ask() -> None:
        answers.append(httpx.post(f"{live.client.base_url}/chat/completions", **fields))

    thread = threading.Thread(target=ask)
    thread.start()
    return thread, answers


def test_the_moment_with_history_and_defaults(live: Live) -> None:
    live.chat("one two")
    now = status(live)
    assert (now["state"], now["running"], now["requests"]) == ("ready", 0, [])
    assert now["sampling"]["temperature"] == 0.8
    assert now["totals"]["requests"] == {"stop": 1}
    assert now["memory"]["total"] > now["memory"]["available"] > 0
    assert now["history"] and now["history"][-1] == now["sample"]


@one_machine("each replica has its own cells, and Ray Serve decides when it goes")
def test_each_model_is_told_with_its_state_cells_and_end(live: Live) -> None:
    live.post("/setModel", {"model_name": "b.gguf", "keep_alive": "5m"})
    live.chat("one two", model="a.gguf")
    until(lambda: status(live)["models"][0]["cells_idle"] == 2)
    a, b = status(live)["models"]
    assert (a["model"], a["state"], a["expires_in"]) == ("a.gguf", "ready", None)
    assert (a["running"], a["waiting"], a["cells_running"], a["n_ctx"]) == (0, 0, 0, 4096)
    assert b["keep_alive"] == 300
    assert 200 < b["expires_in"] <= 300
    live.post("/models/unload", {"model": "b.gguf"})
    assert [model["model"] for model in status(live)["models"]] == ["a.gguf"]


def test_each_model_is_told_with_its_layers_on_graphics_cards(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf", "cards.gguf")
    with live_server(tmp_path) as live:
        for name in ("a.gguf", "cards.gguf"):
            live.chat("one", model=name)
        models = status(live)["models"]
    layers = {model["model"]: (model["n_gpu_layers"], model["max_gpu_layers"]) for model in models}
    assert layers == {"a.gguf": (0, 0), "cards.gguf": (20, 33)}


def test_what_a_worker_has_not_begun_with_is_waiting(live: Live, tmp_path: Path) -> None:
    texts = (f"gate:{tmp_path / 'open'}", *[f"queue:{tmp_path / 'open'}"] * 2)
    threads = [in_background(live, json=chat_body(text, model="a.gguf"))[0] for text in texts]
    until(lambda: sum(request["pieces"] for request in status(live)["requests"]) == 1)
    until(lambda: status(live)["waiting"] == 2)
    now = status(live)
    scraped = set(live.client.get("/metrics").text.splitlines())
    (tmp_path / "open").touch()
    for thread in threads:
        thread.join()
    until(live.is_quiet)
    a = next(model for model in now["models"] if model["model"] == "a.gguf")
    assert (now["running"], a["running"], a["waiting"]) == (1, 1, 2)
    assert {"llm_requests_running 1.0", "llm_requests_waiting 2.0"} <= scraped
    assert 'llm_model_requests_waiting{model="a.gguf"} 2.0' in scraped
    assert 'llm_model_requests_running{model="a.gguf"} 1.0' in scraped


def test_the_stream_tells_history_once(live: Live) -> None:
    with live.client.stream(
        "GET", "/api/status", headers={"accept": "text/event-stream"}
    ) as answer:
        lines = (line for line in answer.iter_lines() if line.startswith("data: "))
        first, second = json.loads(next(lines)[6:]), json.loads(next(lines)[6:])
    assert "history" in first and "sampling" in first
    assert "history" not in second and second["uptime_seconds"] > first["uptime_seconds"]


def test_errors_are_listed_the_newest_first(live: Live) -> None:
    live.chat("fail:bad_thing")
    live.post("/chat/completions", {"messages": []})
    newest, older = status(live)["errors"]
    assert (newest["status"], older["code"]) == (400, "bad_thing")


def test_a_running_request_is_listed_and_cancelled(live: Live, tmp_path: Path) -> None:
    body = chat_body(f"gate:{tmp_path / 'never'}")
    thread, answers = in_background(live, json=body)
    until(lambda: bool(status(live)["requests"] and status(live)["requests"][0]["pieces"]))
    (running,) = status(live)["requests"]
    assert (running["state"], running["path"]) == ("answering", "/chat/completions")
    told = live.client.post(f"/api/requests/{running['id']}/cancel")
    assert told.json() == {"id": running["id"], "status": "cancelled"}
    thread.join()
    assert answers[0].status_code == 400
    assert answers[0].json()["error"]["code"] == "request_cancelled"
    assert answers[0].headers["x-request-id"] == running["id"]
    until(live.is_quiet)
    assert status(live)["requests"] == []


def test_a_stream_that_is_cancelled_ends_with_the_error(live: Live, tmp_path: Path) -> None:
    body = chat_body(f"gate:{tmp_path / 'never'}", stream=True)
    with live.client.stream("POST", "/chat/completions", json=body) as answer:
        lines = answer.iter_lines()
        next(lines)
        with httpx.Client(base_url=live.client.base_url) as other:
            other.post(f"/api/requests/{answer.headers['x-request-id']}/cancel", json={})
        rest = [line for line in lines if line]
    assert json.loads(rest[-1][6:])["error"]["code"] == "request_cancelled"


@one_machine("a new file is served after the next deployment")
def test_a_request_that_waits_for_a_model_is_cancelled(live: Live) -> None:
    add_models(live.models, "gate-b.gguf")
    thread, answers = in_background(live, json=chat_body("hello", model="gate-b.gguf"))
    until(lambda: bool(status(live)["requests"]))
    (waiting,) = status(live)["requests"]
    assert waiting["model"] is None
    live.post(f"/api/requests/{waiting['id']}/cancel", {})
    thread.join()
    assert answers[0].json()["error"]["code"] == "request_cancelled"
    (live.models / "gate-b.gguf.open").touch()
    until(live.is_quiet)


def test_nothing_to_cancel(live: Live) -> None:
    answer = live.post("/api/requests/req_0/cancel", {})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "request_not_found")
