"""Models over HTTP: what is listed of them, what fits, unloading, keeping, and what is in force."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llm_server.config_file import ModelTable
from tests.fake_live import Live, add_models, chat_body, live_server, one_machine, until
from tests.gguf_bytes import Metadata, gguf


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


@one_machine("the deployment decides how models are loaded: tests/cluster/test_serving.py")
def test_the_list_says_which_models_make_vectors(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf", "vectors-b.gguf")
    add_models(tmp_path, "c.gguf", metadata={"llama.pooling_type": 2})
    with live_server(tmp_path) as live:
        load = {"model_name": "vectors-b.gguf", "load_model_configs": {"pooling": "last"}}
        assert live.post("/setModel", load).status_code == 200
        pooling = [model["pooling"] for model in listed(live).values()]
        assert pooling == [None, "cls", "last"]


@one_machine("naming a model is one client's wish, and makes it nobody else's default")
def test_two_models_answer_side_by_side(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf", "b.gguf")
    with live_server(tmp_path) as live:
        for _ in range(2):
            for name in ("a.gguf", "b.gguf"):
                assert live.chat("hi", model=name).json()["model"] == name
        assert len(live.loads()) == 2
        # It was named last, and is the one for requests that name none.
        assert live.chat("hi").json()["model"] == live.client.get("/").json()["model"] == "b.gguf"


def without_breakers(report: dict[str, dict[str, object]]) -> dict[str, object]:
    """The sampling of a request where it is not the usual; that list is always written out."""
    return {k: v for k, v in report["sampling"].items() if k != "dry_sequence_breakers"}


def test_a_models_own_defaults_are_what_a_request_leaves_out(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf", "b.gguf")
    own = ModelTable.model_validate(
        {"alias": "gpt", "load": {"n_ctx": 512}, "sampling": {"temperature": 0, "max_tokens": 7}}
    )
    with live_server(tmp_path, models={"b": own}, n_ctx=1024) as live:

        def sampling(**fields: object) -> dict[str, object]:
            answer = live.chat("report", **fields).json()
            report = json.loads(answer["choices"][0]["message"]["content"])
            return without_breakers(report)

        assert sampling(model="gpt") == {"temperature": 0, "max_tokens": 7}
        assert sampling(model="b", temperature=1, top_k=3) == {
            "temperature": 1,
            "top_k": 3,
            "max_tokens": 7,
        }
        assert sampling(model="b", inference_configs={"max_completion_tokens": 9}) == {
            "temperature": 0,
            "max_tokens": 9,
        }
        assert sampling(model="a") == {}
        assert live.loads() == ["a.gguf n_ctx=1024", "b.gguf n_ctx=512"]
        completion = {"prompt": "report", "model": "b"}
        text = live.post("/v1/completions", completion).json()["choices"][0]["text"]
        # The usual 16 tokens of that endpoint are a default as well.
        assert without_breakers(json.loads(text)) == {"temperature": 0, "max_tokens": 7}
        response = live.post("/v1/responses", {"input": "count:1", "model": "gpt"}).json()
        assert (response["temperature"], response["max_output_tokens"]) == (0, 7)
        assert listed(live)["b.gguf"]["aliases"] == ["gpt"]

        def in_force() -> dict[str, dict[str, Any]]:
            return {m["model"]: m for m in live.client.get("/props").json()["models"]}

        until(lambda: "b.gguf" in in_force())  # A cluster counts its replicas once a second.
        assert in_force()["b.gguf"]["settings"]["n_ctx"] == {"value": 512, "source": "file"}
        assert in_force()["b.gguf"]["sampling"] == {"temperature": 0, "max_tokens": 7}
        # A prompt that is only to be computed generates nothing, whatever the defaults say.
        assert live.post("/restore_cache", chat_body("hi", model="b")).status_code == 200


def test_a_models_file_recommends_and_the_configuration_decides(tmp_path: Path) -> None:
    said = {"general.sampling.temp": 0.25, "general.sampling.top_k": 20}
    add_models(tmp_path, "a.gguf", metadata=said)
    own = ModelTable.model_validate({"sampling": {"top_k": 30}})
    with live_server(tmp_path, models={"a": own}) as live:
        answer = live.chat("report", top_p=0.5).json()["choices"][0]["message"]["content"]
        wanted = {"temperature": 0.25, "top_k": 30}
        assert without_breakers(json.loads(answer)) == wanted | {"top_p": 0.5}
        assert listed(live)["a.gguf"]["sampling"] == wanted
        (in_force,) = live.client.get("/props").json()["models"]
        assert in_force["sampling"] == wanted


def test_unloading(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf", "b.gguf")
    with live_server(tmp_path) as live:
        answer = {"status": "ok", "model": "a.gguf", "unloaded": True}
        assert live.post("/models/unload", {"model": "a"}).json() == answer
        assert live.post("/models/unload", {"model": "a"}).json() == answer | {"unloaded": False}
        assert live.post("/models/unload", {"model": "x"}).status_code == 404
        assert live.client.get("/health").status_code == 503
        assert live.chat("hi").status_code == 200
        assert listed(live)["a.gguf"]["state"] == "loaded"


@one_machine("replicas go when Ray Serve finds them idle: tests/cluster/test_serving.py")
def test_keep_alive(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf", "b.gguf")
    with live_server(tmp_path) as live:
        assert live.chat("hi", keep_alive=0).status_code == 200
        until(lambda: listed(live)["a.gguf"]["state"] == "available")
        assert live.chat("hi", keep_alive="5m").status_code == 200
        assert live.client.get("/props").json()["models"][0]["keep_alive"] == 300
        assert live.post("/v1/responses", {"input": "hi", "keep_alive": "7m"}).status_code == 200
        assert live.client.get("/props").json()["models"][0]["keep_alive"] == 420


@one_machine("how long a model stays is the deployment's business")
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/embeddings", {"input": "x"}),
        ("/rerank", {"query": "x", "documents": ["y"]}),
        ("/tokenize", {"content": "x"}),
        ("/detokenize", {"tokens": [1]}),
        ("/apply-template", {"messages": [{"role": "user", "content": "x"}]}),
    ],
)
def test_every_endpoint_that_picks_a_model_keeps_it(
    live: Live, path: str, body: dict[str, Any]
) -> None:
    response = live.post(path, body | {"keep_alive": "never"})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "keep_alive"
    for seconds in (60, -1):
        assert live.post(path, body | {"keep_alive": seconds}).status_code == 200
        assert live.client.get("/props").json()["models"][0]["keep_alive"] == seconds


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
        assert len(live.loads()) == 1
        assert live.post("/models/fit", {"model": "x"}).status_code == 404


@one_machine("the deployment decides how models are loaded: tests/cluster/test_serving.py")
def test_what_does_not_fit_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf", "b.gguf")
    with live_server(tmp_path, memory="64MiB") as live:
        wide = {"n_ubatch": 65_536, "n_batch": 65_536}
        body = {"model": "b", "load_model_configs": wide | {"n_ctx": 65_536}}
        assert not live.post("/models/fit", body).json()["fits"]
        refused = live.chat("hi", **body)
        assert refused.status_code == 400
        error = refused.json()["error"]
        assert (error["code"], error["param"]) == ("invalid_value", "load_model_configs.n_ctx")
        assert "The longest context that fits is 4096." in error["message"]
        assert "retry-after" not in refused.headers
        assert len(live.loads()) == 1


@one_machine("the deployment decides how models are loaded: tests/cluster/test_serving.py")
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
        assert settings["flash_attn"] == ("on", "default")
        assert settings["n_gpu_layers"] == (0, "default")


@one_machine("the deployment decides how models are loaded: tests/cluster/test_serving.py")
def test_what_is_shown_is_what_llama_cpp_has(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf")
    adapter: Metadata = {"general.type": "adapter", "general.architecture": "llama"}
    (tmp_path / "style.gguf").write_bytes(gguf(adapter))
    (tmp_path / "short.jinja").write_text("{{ messages }}")
    own = ModelTable.model_validate(
        {"load": {"n_ctx": 1000, "lora": [{"name": "style"}], "chat_template": "short"}}
    )
    with live_server(tmp_path, models={"a": own}) as live:

        def settings() -> dict[str, Any]:
            (model,) = live.client.get("/props").json()["models"]
            return dict(model["settings"])

        live.chat("hi")
        assert listed(live)["a.gguf"]["n_ctx"] == 1024
        assert settings()["n_ctx"] == {"value": 1024, "source": "file"}
        assert settings()["n_batch"] == {"value": 1024, "source": "default"}
        assert settings()["lora"]["source"] == settings()["chat_template"]["source"] == "file"
        (tmp_path / "short.jinja").unlink()
        listed(live)  # looks at the folder
        assert settings()["n_ctx"]["source"] == "file"
