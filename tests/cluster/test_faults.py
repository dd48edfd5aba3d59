"""What goes wrong in a cluster, and what its clients see of it."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.cluster.live import Nodes, deployed, replicas, serve_again
from tests.fake_live import Live, add_models, chat_body, events, until

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.slow]

TWO = {"min_replicas": 2, "max_replicas": 2}


@pytest.fixture(scope="module")
def live(nodes: Nodes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """One model with two replicas."""
    models = tmp_path_factory.mktemp("models")
    add_models(models, "a.gguf")
    with deployed(nodes, models, cluster=TWO) as server:
        until(lambda: len(replicas("a.gguf")) == 2)
        yield server


def test_a_replica_killed_in_mid_stream_costs_that_client_one_error(
    live: Live, tmp_path: Path
) -> None:
    before = {replica.pid for replica in replicas("a.gguf")}
    body = chat_body(f"gate:{tmp_path / 'never'}", stream=True)
    with live.client.stream("POST", "/v1/chat/completions", json=body) as response:
        lines = response.iter_lines()
        assert any("one " in line for line in lines)
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        rest = "\n".join(lines)
    told = events(rest)
    assert [event["error"]["code"] for event in told] == ["worker_crashed"]
    # Whoever asks now waits for the replicas that come, and is answered.
    assert live.chat("are you there").json()["choices"][0]["message"]["content"]
    until(lambda: len({replica.pid for replica in replicas("a.gguf")} - before) == 2)


def test_requests_that_have_seen_nothing_move_to_another_replica(
    live: Live, tmp_path: Path
) -> None:
    gate, before = tmp_path / "gate", replicas("a.gguf")
    answers: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: answers.append(live.chat(f"prefill:{gate}")))
    asking.start()
    until(lambda: live.client.get("/").json()["running"] == 1)
    for replica in before:
        os.kill(replica.pid, signal.SIGKILL)
    gate.touch()
    asking.join()
    assert answers[0].status_code == 200, answers[0].text
    until(lambda: len(replicas("a.gguf")) == 2)


def test_a_rolling_update_fails_no_request(live: Live) -> None:
    before = {replica.pid for replica in replicas("a.gguf")}
    over = threading.Event()

    def ask() -> set[int]:
        statuses = set()
        while not over.is_set():
            statuses.add(live.chat("count:20").status_code)
        return statuses

    with ThreadPoolExecutor(3) as threads:
        asking = [threads.submit(ask) for _ in range(3)]
        try:
            serve_again(live.models, cluster=TWO, n_ctx=1024)
            until(lambda: len({replica.pid for replica in replicas("a.gguf")} - before) == 2)
            until(lambda: not before & {replica.pid for replica in replicas("a.gguf")})
        finally:
            over.set()
    assert [thread.result() for thread in asking] == [{200}] * 3
    assert live.chat("hi", load_model_configs={"n_ctx": 1024}).status_code == 200


def test_a_lost_node_costs_its_running_answers_and_the_model_comes_back_elsewhere(
    nodes: Nodes, tmp_path: Path
) -> None:
    add_models(tmp_path, "b.gguf")
    cluster = {"min_replicas": 1, "resources": {"rack": 1}}
    first = nodes.cluster.add_node(num_cpus=1, resources={"rack": 1})
    with contextlib.ExitStack() as later:
        with deployed(nodes, tmp_path, cluster=cluster) as live:
            until(lambda: len(replicas("b.gguf")) == 1)
            assert live.chat("hello").status_code == 200
            second = nodes.cluster.add_node(num_cpus=1, resources={"rack": 1})
            later.callback(nodes.cluster.remove_node, second)
            nodes.cluster.remove_node(first)
            assert live.chat("hello again").status_code == 200
