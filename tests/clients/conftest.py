"""One live server for all clients, and no other address for any of them.

Frameworks bound their dependencies more tightly than the server does, and each other, so `make
clients` gives them environments of their own and names the server's interpreter in
SERVER_PYTHON. Without it, clients that are not installed here are left out.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.live import LiveServer

FRAMEWORKS = {
    "test_instructor.py": "instructor",
    "test_langchain.py": "langchain_openai",
    "test_litellm.py": "litellm",
    "test_llama_index.py": "llama_index",
    "test_openai_agents.py": "agents",
    "test_pydantic_ai.py": "pydantic_ai",
    "test_smolagents.py": "smolagents",
}

PYTHON = os.environ.get("SERVER_PYTHON")
if PYTHON is None:
    collect_ignore = [file for file, module in FRAMEWORKS.items() if find_spec(module) is None]
else:
    os.environ |= {
        # What reports home, and what is fetched as a package is imported.
        "HF_HUB_OFFLINE": "1",
        "LANGSMITH_TRACING": "false",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "OPENAI_AGENTS_DISABLE_TRACING": "1",
        "DO_NOT_TRACK": "1",
    }


@pytest.fixture(scope="package", autouse=True)
def only_loopback() -> Iterator[None]:
    """No client may look up another host than this one, in whatever thread."""
    asked: list[str] = []
    look_up = socket.getaddrinfo

    def checked(host: Any, *arguments: Any, **options: Any) -> Any:
        if host in ("127.0.0.1", "localhost", "::1", None):
            return look_up(host, *arguments, **options)
        asked.append(str(host))
        raise socket.gaierror(socket.EAI_FAIL, "tests have no network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", checked)
        yield
    assert asked == []


@pytest.fixture(scope="package")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """The server all clients talk to."""
    folder: Path = tmp_path_factory.mktemp("models")
    python = PYTHON or sys.executable
    subprocess.run([python, "-m", "tests.clients.models", str(folder)], check=True)
    server = LiveServer(folder, ["--model-name", "demo.gguf"], python=python)
    try:
        server.wait_ready()
        yield server
    finally:
        server.close()


@pytest.fixture
def base_url(live: LiveServer) -> str:
    """Where OpenAI's API is."""
    return f"{live.url}/v1"
