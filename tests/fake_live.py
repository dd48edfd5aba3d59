"""The real application behind a real socket, on fake workers, in a thread of the test's process."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from llm_server.api.app import create_app
from llm_server.api.sse import Patience
from llm_server.api.transport import Limits
from llm_server.config import Settings
from llm_server.running import Server
from tests.gguf_bytes import TINY, Metadata, gguf

TLS = ssl.create_default_context()
"""One for all clients: each would take some 20 ms to make."""

FAKE_WORKER = (sys.executable, str(Path(__file__).with_name("fake_worker.py")))


def one_machine(why: str) -> pytest.MarkDecorator:
    """For a test that cannot hold on a cluster, `why`: what Ray Serve does in its own way."""
    return pytest.mark.skipif("TEST_ON_CLUSTER" in os.environ, reason=why)


class Live:
    """A running server and a client of it."""

    def __init__(self, client: httpx.Client, models: Path) -> None:
        self.client = client
        self.models = models

    def post(self, path: str, body: object) -> httpx.Response:
        return self.client.post(path, json=body)

    def chat(self, text: str, **fields: Any) -> httpx.Response:
        return self.post("/chat/completions", chat_body(text, **fields))

    def loads(self) -> list[str]:
        """The loads the fake workers wrote down: name and n_ctx."""
        return [" ".join(line.split()[:2]) for line in self.notes("loads.log")]

    def notes(self, name: str) -> list[str]:
        path = self.models / name
        return path.read_text().splitlines() if path.exists() else []

    def is_quiet(self) -> bool:
        """Whether no request holds or waits for anything."""
        status = self.client.get("/").json()
        return bool(status["running"] == status["waiting"] == 0)


def chat_body(text: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]} | fields


def add_models(folder: Path, *names: str, metadata: Metadata | None = None) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gguf(TINY | (metadata or {})))


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait for another process or thread to make `condition` true; it must, within `seconds`.

    They are many because the machine may have other things to do.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def events(text: str) -> list[Any]:
    """The data of a stream, decoded; `[DONE]` as a string. Comments are left out."""
    lines = [line for line in text.splitlines() if line.startswith("data: ")]
    return [line[6:] if line == "data: [DONE]" else json.loads(line[6:]) for line in lines]


@contextlib.contextmanager
def live_server(
    models: Path,
    /,
    *,
    wait: bool = True,
    listen_port: int = 0,
    patience: Patience | None = None,
    stand_in: Path | None = None,
    limits: Limits | None = None,
    **settings: Any,
) -> Iterator[Live]:
    """Serve `models`; with `wait` the first model is loaded when the block is entered.

    With TEST_ON_CLUSTER in the environment, replicas of a Ray cluster do.
    """
    if os.environ.get("TEST_ON_CLUSTER"):
        if listen_port or patience or limits:
            pytest.skip("about the server's own HTTP connections, which are Ray Serve's here")
        from tests.cluster.live import deployed, shared_nodes

        with deployed(shared_nodes(), models, wait=wait, stand_in=stand_in, **settings) as live:
            yield live
        return
    app = create_app(
        Settings(models_dir=models, **({"parallel": 4} | settings)),
        worker_argv=FAKE_WORKER,
        patience=patience,
        stand_in=stand_in,
    )
    listener = socket.create_server(("127.0.0.1", listen_port))
    server = Server(app, limits or Limits(), grace_s=5)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    base_url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        with httpx.Client(base_url=base_url, timeout=60, verify=TLS) as client:
            live = Live(client, models)
            if wait:
                until(lambda: client.get("/health").status_code == 200)
            yield live
    finally:
        server.should_exit = True
        thread.join()
