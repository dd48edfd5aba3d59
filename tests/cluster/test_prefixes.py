"""Real models: what is computed in one replica, and what is found again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.cluster.live import Nodes, deployed, replicas
from tests.fake_live import Live, until

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.slow]

HEAD = "the people who call the first number of the day find more water than all other people " * 4


def ask(live: Live, system: str, *turns: str, **headers: str) -> httpx.Response:
    roles = ["user", "assistant"]
    messages = [{"role": "system", "content": system}]
    messages += [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]
    body: dict[str, Any] = {"messages": messages, "max_tokens": 4, "temperature": 0}
    return live.client.post("/v1/chat/completions", json=body, headers=headers)


def cached(answer: httpx.Response) -> float:
    """The part of the prompt that was not computed."""
    usage = answer.json()["usage"]
    return float(usage["prompt_tokens_details"]["cached_tokens"] / usage["prompt_tokens"])


def test_a_warmed_head_is_found_by_who_begins_like_it(
    nodes: Nodes, attention_gguf: Path, tmp_path: Path
) -> None:
    folder = _alone(attention_gguf, tmp_path)
    settings = {"n_ctx": 2048, "parallel": 2, "cache_size": 0}
    two = {"min_replicas": 2, "max_replicas": 2}
    with deployed(nodes, folder, fake=False, cluster=two, **settings) as live:
        until(lambda: len(replicas("attention.gguf")) == 2)
        heads = [f"agent {i} " + HEAD for i in range(6)]
        for head in heads:
            warmed = live.post(
                "/restore_cache", {"messages": [{"role": "system", "content": head}]}
            )
            assert warmed.json()["source"] == "computed", warmed.text
        for head in heads:
            assert cached(ask(live, head, "hello")) > 0.7
        # And so on, turn by turn, from where the last one was computed.
        for head in heads:
            assert cached(ask(live, head, "hello", "what", "and then")) > 0.7


def test_replicas_share_a_cache_folder(nodes: Nodes, attention_gguf: Path, tmp_path: Path) -> None:
    folder, cache = _alone(attention_gguf, tmp_path), tmp_path / "cache"
    settings = {"n_ctx": 2048, "parallel": 2, "cache_dir": cache}
    # By load, so that both are asked, whoever has computed what.
    two = {"min_replicas": 2, "max_replicas": 2, "routing": "load"}
    with deployed(nodes, folder, fake=False, cluster=two, **settings) as live:
        until(lambda: live.client.get("/").json()["parallel"] == 4)
        first = ask(live, HEAD, "hello")
        assert cached(first) == 0
        until(lambda: len(list(cache.rglob("*.kv"))) == 1)

        def found_on_disk() -> bool:
            answer = ask(live, HEAD, "hello")
            assert answer.json()["choices"] == first.json()["choices"]
            assert cached(answer) > 0.7
            return bool(answer.json()["timings"]["cache_disk_n"])

        # The other one was there before, and has it without being started again.
        until(found_on_disk)
    with deployed(nodes, folder, fake=False, cluster=two, **settings) as live:
        assert cached(ask(live, HEAD, "what")) > 0.7


def _alone(model: Path, folder: Path) -> Path:
    """A models folder with nothing but that model."""
    (folder / "models").mkdir()
    (folder / "models" / model.name).hardlink_to(model)
    return folder / "models"
