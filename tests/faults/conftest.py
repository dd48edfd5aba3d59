"""A real server with a model of its own that a test may spoil."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.live import LiveServer

Serve = Callable[..., LiveServer]


@pytest.fixture
def models(tmp_path: Path, attention_gguf: Path) -> Path:
    """A models folder with one model, `a.gguf`."""
    folder = tmp_path / "models"
    folder.mkdir()
    shutil.copy(attention_gguf, folder / "a.gguf")
    return folder


@pytest.fixture
def serve(models: Path) -> Iterator[Serve]:
    """Starts servers of that folder, ready to answer."""
    servers = []

    def start(*options: str) -> LiveServer:
        server = LiveServer(models, ["--n-ctx", "2048", *options])
        servers.append(server)
        server.wait_ready()
        return server

    yield start
    for server in servers:
        server.close()


def body(text: str = "hello world", **fields: Any) -> dict[str, Any]:
    """A chat request with a repeatable answer."""
    messages = [{"role": "user", "content": text}]
    return {"messages": messages, "temperature": 0, "max_tokens": 8} | fields


def long_body(text: str = "hello world", **fields: Any) -> dict[str, Any]:
    """One that streams until the context is full."""
    endless = {"max_tokens": 1500, "stream": True, "logit_bias": {"1": -100, "2": -100}}
    return body(text, **(endless | fields))


def answer(server: LiveServer, text: str = "hello world", **fields: Any) -> str:
    """The text of an answer, which must be one."""
    response = server.client.post("/chat/completions", json=body(text, **fields))
    assert response.status_code == 200, response.text
    content: str = response.json()["choices"][0]["message"]["content"]
    return content


def invariants(server: LiveServer, golden: str) -> None:
    """What must hold after any fault: the same process answers, soon and rightly."""
    assert server.process.poll() is None
    assert answer(server) == golden, "cold"
    assert answer(server) == golden, "from the cache"
    health = server.client.get("/health", timeout=1)
    assert health.status_code == 200
    status = server.client.get("/").json()
    assert (status["running"], status["waiting"]) == (0, 0)
    assert len(server.workers()) == 1
    assert "Traceback" not in server.log
