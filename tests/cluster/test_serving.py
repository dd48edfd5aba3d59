"""The API before models that live in replicas: the short version that runs wherever Ray is."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from llm_server.api.access import Access
from llm_server.api.edge import Edge
from llm_server.api.keys import Keyring
from tests.cluster.live import Nodes, deployed, from_proxy, replicas
from tests.fake_live import Live, add_models, chat_body, events, until
from tests.gguf_bytes import TINY, gguf

pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(scope="module")
def live(nodes: Nodes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Models from zero with two replicas at most, the first one for embeddings; two ingresses."""
    models = tmp_path_factory.mktemp("models")
    add_models(models, "a.gguf", "broken.gguf", "sub/c.gguf")
    (models / "0-bge.gguf").write_bytes(gguf(TINY | {"llama.attention.causal": False}))
    cluster = {"ingress_replicas": 2, "max_replicas": 2, "upscale_delay_s": 0.1}
    with deployed(nodes, models, cluster=cluster) as server:
        yield server


def test_a_chat_is_answered_and_streamed(live: Live) -> None:
    answer = live.chat("one two")
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"] == "one two "
    assert len(ids := answer.headers.get_list("x-request-id")) == 1
    assert ids[0].startswith("req_")
    theirs = live.client.get("/", headers={"x-request-id": "req_chosen"})
    assert "chosen" not in theirs.headers["x-request-id"]
    streamed = events(live.chat("one two", stream=True).text)
    assert streamed[-1] == "[DONE]"
    pieces = [event["choices"][0]["delta"].get("content", "") for event in streamed[:-1]]
    assert "".join(pieces) == "one two "


def test_only_what_is_asked_for_has_a_replica(live: Live) -> None:
    assert len(replicas("a.gguf")) >= 1

    def states() -> dict[str, str]:
        return {m["id"]: m["state"] for m in live.client.get("/v1/models").json()["data"]}

    until(lambda: states()["a.gguf"] == "loaded")  # Each ingress counts for itself.
    for unasked in ("0-bge.gguf", "broken.gguf"):
        assert states()[unasked] == "available"
        assert replicas(unasked) == []


def test_a_model_from_zero_and_the_default_of_all_ingresses(live: Live) -> None:
    named = live.chat("hi", model="sub/c.gguf")
    assert (named.status_code, named.json()["model"]) == (200, "sub/c.gguf")
    # A request that names a model is one client's wish; setModel is everybody's.
    assert live.chat("hi").json()["model"] == "a.gguf"
    assert live.post("/setModel", {"model_name": "c"}).json()["model"] == "sub/c.gguf"
    until(lambda: {live.chat("hi").json()["model"] for _ in range(12)} == {"sub/c.gguf"})
    assert live.post("/setModel", {"model_name": "a"}).status_code == 200
    until(lambda: {live.chat("hi").json()["model"] for _ in range(12)} == {"a.gguf"})


def test_a_model_that_cannot_be_loaded_says_so_as_on_one_machine(live: Live) -> None:
    answer = live.chat("hi", model="broken.gguf")
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "model_load_failed"
    assert answer.json()["error"]["message"] == "It is broken."


def test_what_the_deployment_decides_is_refused_and_not_ignored(live: Live) -> None:
    for path, body, param, has in (
        (
            "/setModel",
            {"model_name": "a", "load_model_configs": {"n_ctx": 1 << 20}},
            "load_model_configs.n_ctx",
            "n_ctx of a.gguf is 4096",
        ),
        (
            "/chat/completions",
            chat_body("hi", load_model_configs={"n_ctx": 512, "n_batch": 64}),
            "load_model_configs.n_batch",
            "n_batch of a.gguf is 2048",
        ),
        ("/chat/completions", chat_body("hi", keep_alive=-1), "keep_alive", "for 600 s"),
        ("/chat/completions", chat_body("hi", keep_alive="20m"), "keep_alive", "for 600 s"),
    ):
        answer = live.post(path, body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text
        assert has in answer.json()["error"]["message"]


def test_what_the_deployment_gives_anyway_may_be_asked_for(live: Live) -> None:
    for load in (
        {"parallel": 4},
        {"n_ctx": 4096, "n_gpu_layers": 0},
        {"n_ctx": 512, "parallel": 1, "n_threads": 0, "n_ubatch": 512},
    ):
        asked = {"model_name": "a", "load_model_configs": load}
        assert live.post("/setModel", asked).status_code == 200, load
        answer = live.chat("hi", load_model_configs=load, keep_alive="10m")
        assert answer.status_code == 200, answer.text


def test_an_unloaded_model_gives_its_memory_back_and_comes_again(live: Live) -> None:
    def states() -> set[str]:
        found = [live.client.get("/v1/models").json()["data"] for _ in range(8)]
        return {model["state"] for models in found for model in models if model["id"] == "a.gguf"}

    def workers() -> int:
        return sum(len(replica.children()) for replica in replicas("a.gguf"))

    assert live.chat("hi", model="a.gguf").status_code == 200
    until(lambda: states() == {"loaded"})
    assert workers() >= 1
    answer = live.post("/models/unload", {"model": "a.gguf"})
    assert answer.json()["unloaded"] is True, answer.text
    assert workers() == 0
    until(lambda: states() == {"available"})
    assert live.chat("hi", model="a.gguf").status_code == 200
    until(lambda: states() == {"loaded"})
    assert live.post("/models/unload", {"model": "broken.gguf"}).json()["unloaded"] is False
    assert live.post("/models/unload", {"model": "nothing"}).status_code == 404


@pytest.mark.parametrize(
    ("listens_on", "keys", "status"),
    [
        ("127.0.0.1", (), 200),
        ("0.0.0.0", (), 403),
        ("::", (), 403),
        ("0.0.0.0", ("first-key",), 401),
    ],
)
def test_haproxy_does_not_hide_that_others_reach_the_server(
    listens_on: str, keys: Sequence[str], status: int
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse("answered")(scope, receive, send)

    edge = Edge(app, 1, Access(keyring=Keyring(keys)))
    # HAProxy comes from the same machine, whoever came to it.
    transport = httpx.ASGITransport(from_proxy(edge, listens_on), client=("127.0.0.1", 1))

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.get("/")

    assert asyncio.run(ask()).status_code == status


def test_too_much_is_refused_with_an_advice_when_to_come_again(
    nodes: Nodes, tmp_path: Path
) -> None:
    add_models(tmp_path, "a.gguf")
    gate = tmp_path / "gate"
    with deployed(nodes, tmp_path, parallel=1, queue_size=1) as live:
        with ThreadPoolExecutor(2) as threads:
            running = [threads.submit(live.chat, f"gate:{gate}") for _ in range(2)]
            until(lambda: live.client.get("/").json()["running"] == 2)
            refused = live.chat("one too many")
            gate.touch()
            assert [answer.result().status_code for answer in running] == [200] * 2
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "queue_full"
        assert refused.headers["retry-after"] == "1"
