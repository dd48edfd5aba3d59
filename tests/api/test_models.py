"""Models over HTTP: what is listed of them, what fits, unloading, keeping, and what is in force."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fake_live import Live, add_models, live_server, until
from tests.gguf_bytes import gguf


def listed(live: Live) -> dict[str, dict[str, object]]:
    return {model["id"]: model for model in live.client.get("/v1/models").json()["data"]}


def test_the_list_says_what_is_loaded_and_what_it_takes(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf", "b.gguf", "gate.gguf")
    (tmp_path / "torn.gguf").write_bytes(gguf()[:80])
    with live_server(tmp_path) as live:
        models = listed(live)
        assert [model["state"] for model in models.values()] == ["loaded"] + ["available"] * 3
        a, torn = models["a.gguf"], models["torn.gguf"]
        assert (a["architecture"], a["n_ctx"], a["n_ctx_train"]) == ("llama", 4096, 4096)
        assert a["size"] == len(gguf()) and a["chat_template"] is False
        assert a["memory"] == models["b.gguf"]["memory"]
        assert "ends inside its header" in str(torn["problem"])
        assert torn["n_ctx"] is torn["memory"] is None
        assert live.client.get("/v1/models/a").json() == a
        assert live.client.get("/models").json()["data"] == list(models.values())
        response = live.chat("hi", model="torn.gguf")
        assert response.status_code == 400
        assert response.json()["error"]["code"] == "model_load_failed"


def test_a_model_that_is_loading_is_listed_so(tmp_path: Path) -> None:
    add_models(tmp_path, "gate.gguf")
    with live_server(tmp_path, wait=False) as live:
        until(lambda: listed(live)["gate.gguf"]["state"] == "loading")
        (tmp_path / "gate.gguf.open").touch()
        until(lambda: listed(live)["gate.gguf"]["state"] == "loaded")


def test_two_models_answer_side_by_side(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf", "b.gguf")
    with live_server(tmp_path) as live:
        for _ in range(2):
            for name in ("a.gguf", "b.gguf"):
                assert live.chat("hi", model=name).json()["model"] == name
        assert len(live.loads()) == 2
        # It was named last, and is the one for requests that name none.
        assert live.chat("hi").json()["model"] == live.client.get("/").json()["model"] == "b.gguf"


def test_unloading_and_keep_alive(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf", "b.gguf")
    with live_server(tmp_path) as live:
        answer = {"status": "ok", "model": "a.gguf", "unloaded": True}
        assert live.post("/models/unload", {"model": "a"}).json() == answer
        assert live.post("/models/unload", {"model": "a"}).json() == answer | {"unloaded": False}
        assert live.post("/models/unload", {"model": "x"}).status_code == 404
        assert live.client.get("/health").status_code == 503
        assert live.chat("hi", keep_alive=0).status_code == 200
        until(lambda: listed(live)["a.gguf"]["state"] == "available")
        assert live.chat("hi", keep_alive="5m").status_code == 200
        assert live.client.get("/props").json()["models"][0]["keep_alive"] == 300


@pytest.mark.parametrize("told", ["soon", True, [], -2, "5 minutes"])
def test_a_keep_alive_that_is_none(live: Live, told: object) -> None:
    response = live.chat("hi", keep_alive=told)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "keep_alive"


def test_fit_answers_before_anything_is_loaded(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf", "b.gguf")
    with live_server(tmp_path, memory="64MiB") as live:
        fits = live.post("/models/fit", {"model": "b"}).json()
        assert fits["fits"] and fits["budget"] == 64 << 20
        assert (fits["n_ctx"], fits["largest_n_ctx"], fits["n_ctx_train"]) == (4096,) * 3
        parts = fits["memory"]
        assert parts.pop("total") == sum(parts.values())
        wide = {"n_ubatch": 65_536, "n_batch": 65_536}
        body = {"model": "b", "load_model_configs": wide | {"n_ctx": 65_536}}
        assert not live.post("/models/fit", body).json()["fits"]
        refused = live.chat("hi", **body)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "insufficient_memory"
        assert refused.headers["x-should-retry"] == "false"
        assert len(live.loads()) == 1
        assert live.post("/models/fit", {"model": "x"}).status_code == 404


def test_props_say_what_is_in_force_and_why(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf")
    with live_server(tmp_path, threads=3) as live:
        live.chat("hi", load_model_configs={"n_batch": 512})
        props = live.client.get("/props").json()
        assert props["default"] == "a.gguf"
        (model,) = props["models"]
        settings = {name: (s["value"], s["source"]) for name, s in model["settings"].items()}
        assert settings["n_ctx"] == (4096, "fitted")
        assert settings["n_batch"] == (512, "request")
        assert settings["n_threads"] == (3, "option")
        assert settings["type_k"] == ("f16", "default")
