"""The native endpoints, row by row as their users know them."""

from __future__ import annotations

import threading
from pathlib import Path

import httpx
import pytest

from llm_server import __version__
from tests.fake_live import Live, add_models, chat_body, live_server, one_machine, until


def test_status(live: Live) -> None:
    # The start holds a lease itself, for a moment beyond the load.
    until(lambda: live.client.get("/").json()["running"] == 0)
    body = live.client.get("/").json()
    assert (body["name"], body["version"]) == ("llm-server", __version__)
    assert (body["status"], body["model"], body["n_ctx"]) == ("ready", "a.gguf", 4096)
    assert (body["parallel"], body["running"], body["waiting"]) == (4, 0, 0)
    assert body["uptime_seconds"] >= 0
    assert {"GET /health", "POST /setModel", "POST /v1/chat/completions"} <= set(body["endpoints"])


def test_health_with_a_model(live: Live) -> None:
    response = live.client.get("/health")
    assert response.status_code == 200
    assert response.json() == {
        "status": "ok",
        "message": "a.gguf is loaded.",
        "sandbox": "",
    }


@one_machine("a replica that starts does not tell how much it has read")
def test_health_while_loading(tmp_path: Path) -> None:
    add_models(tmp_path, "gate.gguf")
    with live_server(tmp_path, wait=False) as live:
        until(lambda: "50%" in live.client.get("/health").json()["message"])
        response = live.client.get("/health")
        assert response.status_code == 503
        assert response.json()["status"] == "loading"
        assert response.json()["error"]["code"] == "model_loading"
        (tmp_path / "gate.gguf.open").touch()
        until(lambda: live.client.get("/health").status_code == 200)


@one_machine("a new file is served after the next deployment")
def test_health_and_chat_without_any_model_and_a_model_that_comes_later(tmp_path: Path) -> None:
    with live_server(tmp_path, wait=False) as live:
        response = live.client.get("/health")
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "model_not_loaded"
        assert live.chat("hi").status_code == 503
        assert live.client.get("/models").json()["models"] == []
        add_models(tmp_path, "a.gguf")
        assert live.chat("hi").status_code == 200


@one_machine("a new file is served after the next deployment")
def test_a_stand_in_serves_until_a_model_comes(tmp_path: Path) -> None:
    add_models(tmp_path, "package/demo.gguf")
    folder = tmp_path / "models"
    with live_server(folder, stand_in=tmp_path / "package" / "demo.gguf") as live:
        assert live.client.get("/models").json()["models"] == ["demo.gguf"]
        assert live.chat("hi").json()["model"] == "demo.gguf"
        add_models(folder, "a.gguf")
        assert live.client.get("/models").json()["models"] == ["a.gguf"]
        assert live.chat("hi").json()["model"] == "a.gguf"
        assert live.chat("hi", model="demo.gguf").status_code == 404


def test_models(live: Live) -> None:
    body = live.client.get("/models").json()
    assert body["models"] == ["a.gguf", "b.gguf", "sub/c.gguf"]
    assert body["object"] == "list"
    assert [model["id"] for model in body["data"]] == body["models"]
    assert {model["object"] for model in body["data"]} == {"model"}


@one_machine("the deployment decides how models are loaded: tests/cluster/test_serving.py")
def test_set_model_loads_and_switches(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf", "b.gguf")
    with live_server(tmp_path) as live:
        wanted = {"model_name": "b.gguf", "load_model_configs": {"n_ctx": 2048}}
        response = live.post("/setModel", wanted)
        assert response.status_code == 200
        assert response.json() == {"status": "ok", "model": "b.gguf", "n_ctx": 2048, "parallel": 4}
        assert live.chat("hi").json()["model"] == "b.gguf"
        # The same again is no load, whether the fields are named or left out, or by another name.
        assert live.post("/setModel", wanted).status_code == 200
        assert live.post("/setModel", {"model_name": "b"}).json()["n_ctx"] == 2048
        assert live.chat("hi", load_model_configs={"n_ctx": 2048}).status_code == 200
        assert live.loads() == ["a.gguf n_ctx=4096", "b.gguf n_ctx=2048"]
        # A change is one; 0 is what the model was trained for.
        assert live.chat("hi", load_model_configs={"n_ctx": 1024}).status_code == 200
        assert live.chat("hi", load_model_configs={"n_ctx": 0}).status_code == 200
        assert live.chat("hi", load_model_configs={"n_ctx": 4096}).status_code == 200
        assert live.loads()[2:] == ["b.gguf n_ctx=1024", "b.gguf n_ctx=4096"]


@one_machine("the deployment decides how models are loaded: tests/cluster/test_serving.py")
def test_chat_switches_to_the_model_it_names(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf", "b.gguf")
    with live_server(tmp_path) as live:
        response = live.chat("hi", model="b.gguf", load_model_configs={"n_ctx": 512})
        assert response.json()["model"] == "b.gguf"
        assert live.loads()[-1] == "b.gguf n_ctx=512"


@pytest.mark.parametrize("name", ["broken.gguf", "crash.gguf"])
def test_a_failing_load_leaves_the_old_model_serving(tmp_path: Path, name: str) -> None:
    add_models(tmp_path, "a.gguf", name)
    with live_server(tmp_path) as live:
        response = live.post("/setModel", {"model_name": name})
        assert response.status_code == 400
        assert response.json()["error"]["code"] == "model_load_failed"
        assert live.client.get("/health").status_code == 200
        assert live.chat("hi").json()["model"] == "a.gguf"
        assert live.loads() == ["a.gguf n_ctx=4096"]


def test_running_requests_finish_on_the_old_model(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf", "b.gguf")
    gate = tmp_path / "gate"
    with live_server(tmp_path) as live:
        switched: list[httpx.Response] = []
        with live.client.stream(
            "POST", "/chat/completions", json=chat_body(f"gate:{gate}", stream=True)
        ) as response:
            lines = response.iter_lines()
            assert any("one " in line for line in lines)
            switching = threading.Thread(
                target=lambda: switched.append(live.post("/setModel", {"model_name": "b"}))
            )
            switching.start()
            until(lambda: live.client.get("/").json()["waiting"] == 1)
            assert live.client.get("/").json()["model"] == "a.gguf"
            gate.touch()
            assert [line for line in lines if line][-1] == "data: [DONE]"
        switching.join()
        assert switched[0].json()["model"] == "b.gguf"


def test_set_model_refuses_bad_bodies(live: Live) -> None:
    for body, status, code in (
        ({"model_name": "nope"}, 404, "model_not_found"),
        ({"model_name": "../a.gguf"}, 404, "model_not_found"),
        ({"model_name": 3}, 400, "invalid_type"),
        ({}, 400, "missing_required_parameter"),
        ({"model_name": "a", "load_model_configs": {"gpu": 1}}, 400, "unsupported_parameter"),
    ):
        response = live.post("/setModel", body)
        assert (response.status_code, response.json()["error"]["code"]) == (status, code)


def test_restore_cache(live: Live) -> None:
    response = live.post("/restore_cache", chat_body("warm me", inference_configs={"top_k": 3}))
    assert response.status_code == 200
    body = response.json()
    assert body.pop("milliseconds") == body.pop("ms") > 0
    assert body == {
        "status": "ok",
        "model": "a.gguf",
        "prompt_tokens": 1,
        "cached_tokens": 0,
        "source": "computed",
        "bytes": 0,
    }
    assert live.post("/restore_cache", {}).status_code == 400
