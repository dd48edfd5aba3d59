"""The servers that are compared: how each is started on the same model with the same threads.

A peer that is not there, or does not start, says so with its own words; nothing is measured then.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.client import Server, free_port, running_command
from llm_server.llama.model import may_reorder

N_CTX = 16_384
N_STREAMS = 32


@dataclass(frozen=True, slots=True)
class Place:
    """What a server is given: the model, a folder for what it keeps, a port, and threads."""

    model: Path
    folder: Path
    port: int
    threads: int


@dataclass(frozen=True, slots=True)
class Peer:
    """A server by name: its command line, and the address that answers 200 once it can serve."""

    name: str
    command: Callable[[Place], list[str]]
    probe: str = "/health"
    switches: bool = False
    """Whether another model of the folder can be asked for (`POST /setModel`)."""

    @contextmanager
    def running(self, model: Path, folder: Path, threads: int) -> Iterator[Server]:
        """Start it and wait until it serves.

        Raises:
            RuntimeError: it exited, or was not ready in two minutes.
        """
        place = Place(model, folder, free_port(), threads)
        with running_command(self.command(place), place.port, probe=self.probe) as server:
            yield server


def ours() -> Peer:
    """This server."""

    def command(place: Place) -> list[str]:
        return [
            *[sys.executable, "-m", "llm_server.server", "--port", str(place.port)],
            *["--models-dir", str(place.model.parent), "--model-name", place.model.name],
            *["--n-ctx", str(N_CTX), "--threads", str(place.threads)],
            *["--cache-dir", str(place.folder), "--log-level", "warning"],
        ]

    return Peer("llm-server", command, switches=True)


def llama_server_on(binary: Path, model: Path, port: int) -> list[str]:
    """llama-server's command line as far as it is always the same."""
    crashing = [] if may_reorder() else ["--no-repack"]
    return [str(binary), "-m", str(model), "--port", str(port), *crashing]


def llama_server(binary: Path) -> Peer:
    """llama.cpp's own server: as many slots as streams, sharing one KV memory."""

    def command(place: Place) -> list[str]:
        return [
            *llama_server_on(binary, place.model, place.port),
            *["-t", str(place.threads), "-c", str(N_CTX), "-np", str(N_STREAMS), "-kvu"],
            *["--jinja", "--no-webui"],
        ]

    return Peer("llama-server", command)


def llama_cpp_python() -> Peer:
    """`llama_cpp.server`, the extra of llama-cpp-python; it answers one request at a time.

    Raises:
        RuntimeError: the extra is not installed.
    """
    missing = [m for m in ("sse_starlette", "starlette_context") if not _installed(m)]
    if missing:
        raise RuntimeError(f"llama-cpp-python[server] is not installed: no {', '.join(missing)}")

    def command(place: Place) -> list[str]:
        return [
            *[sys.executable, "-m", "llama_cpp.server", "--model", str(place.model)],
            *["--port", str(place.port), "--n_ctx", str(N_CTX)],
            *["--n_threads", str(place.threads), "--n_threads_batch", str(place.threads)],
        ]

    return Peer("llama_cpp.server", command, probe="/v1/models")


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
