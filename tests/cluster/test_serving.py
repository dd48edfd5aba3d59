"""The API before models that live in replicas: the short version that runs wherever Ray is."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cluster.live import Nodes, deployed, replicas
from tests.fake_live import Live, add_models, chat_body, events, until

pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(scope="module")
def live(nodes: Nodes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Two models from zero, the first one with two replicas at most; two ingresses."""
    models = tmp_path_factory.mktemp("models")
    add_models(models, "a.gguf", "broken.gguf", "sub/c.gguf")
    cluster = {"ingress_replicas": 2, "max_replicas": 2, "upscale_delay_s": 0.1}
    with deployed(nodes, models, cluster=cluster) as server:
        yield server


def test_a_chat_is_answered_and_streamed(live: Live) -> None:
    answer = live.chat("one two")
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"] == "one two "
    assert answer.headers.get_list("x-request-id")[0].startswith("req_")
    streamed = events(live.chat("one two", stream=True).text)
    assert streamed[-1] == "[DONE]"
    pieces = [event["choices"][0]["delta"].get("content", "") for event in streamed[:-1]]
    assert "".join(pieces) == "one two "


def test_only_what_is_asked_for_has_a_replica(live: Live) -> None:
    assert len(replicas("a.gguf")) >= 1

    def states() -> dict[str, str]:
        return {m["id"]: m["state"] for m in live.client.get("/v1/models").json()["data"]}

    until(lambda: states()["a.gguf"] == "loaded")  # Each ingress counts for itself.
    assert states()["broken.gguf"] == "available"


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
    for path, body, param in (
        (
            "/setModel",
            {"model_name": "a", "load_model_configs": {"n_ctx": 99}},
            "load_model_configs.n_ctx",
        ),
        ("/chat/completions", chat_body("hi", keep_alive=5), "keep_alive"),
        ("/models/unload", {"model": "a.gguf"}, "model"),
    ):
        answer = live.post(path, body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text
    as_it_is = {"model_name": "a", "load_model_configs": {"parallel": 4}}
    assert live.post("/setModel", as_it_is).status_code == 200


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
