"""Starts the server as users do and measures its answers from outside, over HTTP.

Knows the command line and the chat endpoint; nothing of what happens inside. Bytes are stamped as
they arrive and parsed afterwards, so that the client takes little from the cores it measures.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import httpx

ROOT = Path(__file__).parent.parent


@contextmanager
def busy(n_cores: int) -> Iterator[None]:
    """Programs that keep so many cores busy."""
    command = [sys.executable, "-c", "while True: pass"]
    programs = [subprocess.Popen(command) for _ in range(n_cores)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(frozen=True, slots=True)
class Server:
    """A running server. Times are seconds from its process's start."""

    url: str
    process: subprocess.Popen[bytes]
    answered_s: float
    ready_s: float


@contextmanager
def running(model: Path, *options: str, timeout_s: float = 120) -> Iterator[Server]:
    """Start our server on a free port and wait for the model; SIGTERM it at the end.

    Raises:
        RuntimeError: it exited, or was not ready within `timeout_s` seconds.
    """
    port = free_port()
    command = [sys.executable, "-m", "llm_server.server", "--port", str(port)]
    command += ["--models-dir", str(model.parent), "--model-name", model.name, *options]
    with running_command(command, port, timeout_s=timeout_s) as server:
        yield server


@contextmanager
def running_command(
    command: list[str],
    port: int,
    *,
    probe: str = "/health",
    timeout_s: float = 120,
) -> Iterator[Server]:
    """Start any server that listens on `port`, and wait until `probe` answers 200.

    The end of its log is shown if it fails: in the error, or on stderr if it dies later.

    Raises:
        RuntimeError: it exited, or was not ready within `timeout_s` seconds.
    """
    start = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output)
        try:
            url = f"http://127.0.0.1:{port}"
            answered_s, ready_s = _wait(process, url + probe, start, timeout_s)
            if not ready_s:
                raise RuntimeError(f"{command[:3]} does not serve: {_last_words(output)}")
            yield Server(url, process, answered_s, ready_s)
        finally:
            if process.poll():
                print(f"{command[:3]} ended by itself: {_last_words(output)}", file=sys.stderr)
            process.terminate()
            process.wait(timeout=30)


def _wait(
    process: subprocess.Popen[bytes], url: str, start: float, timeout_s: float
) -> tuple[float, float]:
    """Seconds from `start` to the first answer of `url`, and to the first 200; 0 for never."""
    answered = 0.0
    while process.poll() is None and time.perf_counter() - start < timeout_s:
        status = _status(url)
        now = time.perf_counter() - start
        answered = answered or (now if status else 0.0)
        if status == 200:
            return answered, now
        time.sleep(0.005)
    return answered, 0.0


def _last_words(output: IO[bytes], n_bytes: int = 2000) -> str:
    """The end of what a server has written."""
    size = output.seek(0, os.SEEK_END)
    output.seek(max(0, size - n_bytes))
    return output.read().decode(errors="replace").strip()


def _status(url: str) -> int:
    """The status of a GET, 0 if nobody listens."""
    try:
        return httpx.get(url, timeout=5).status_code
    except httpx.TransportError:
        return 0


@dataclass(frozen=True, slots=True)
class Answer:
    """A streamed answer. `times` are the arrivals of its pieces of text, in seconds
    (`time.perf_counter`), `sent` is when the request went out and `ended` when its end came."""

    sent: float
    ended: float
    times: list[float]
    usage: dict[str, Any]
    timings: dict[str, Any]

    @property
    def n_tokens(self) -> int:
        """Tokens of the answer, as the server counts them; pieces if it was cut off."""
        return int(self.usage.get("completion_tokens", len(self.times)))

    @property
    def first_s(self) -> float:
        """Seconds from sending to the first text."""
        return self.times[0] - self.sent


class Stream:
    """One streamed request under way; iterate over `pieces`, then ask for the `answer`."""

    def __init__(self, client: httpx.AsyncClient, prompt: str, max_tokens: int, **extra: Any):
        self._client = client
        self._body = {
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            **extra,
        }
        self._sent = 0.0
        self._received: list[tuple[float, bytes]] = []

    async def pieces(self) -> AsyncIterator[None]:
        """Send it, and yield whenever bytes have come; leaving early hangs up.

        Raises:
            RuntimeError: the server refused the request.
        """
        url, body = self._client.base_url, json.dumps(self._body).encode()
        # A bare socket: an HTTP library takes as much from the two cores as the server does.
        reader, writer = await asyncio.open_connection(url.host, url.port)
        self._sent = time.perf_counter()
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            if b" 200 " not in head[:16]:
                raise RuntimeError((await reader.read()).decode())
            while data := await reader.read(65536):
                self._received.append((time.perf_counter(), data))
                yield
        finally:
            writer.close()

    async def run(self) -> Answer:
        """Send it and read the whole answer."""
        async for _ in self.pieces():
            pass
        return self.answer()

    def answer(self) -> Answer:
        """What has come so far.

        Raises:
            RuntimeError: the server reported an error in the stream.
        """
        times: list[float] = []
        usage: dict[str, Any] = {}
        timings: dict[str, Any] = {}
        rest = b""
        for at, data in self._received:
            *events, rest = (rest + data).split(b"\n\n")
            for event in events:
                chunk = _chunk(event)
                if any(choice["delta"].get("content") for choice in chunk.get("choices", [])):
                    times.append(at)
                usage = chunk.get("usage") or usage
                timings = chunk.get("timings") or timings
        return Answer(self._sent, self._received[-1][0], times, usage, timings)


def _chunk(event: bytes) -> dict[str, Any]:
    """An SSE event's JSON; empty for comments and the end marker.

    Every write of the server is a chunk of the transfer, whose size may stand before the event.
    """
    _, found, data = event.partition(b"data: {")
    if not found:
        return {}
    chunk: dict[str, Any] = json.loads(b"{" + data)
    if "error" in chunk:
        raise RuntimeError(chunk["error"]["message"])
    return chunk
