"""The server's own process: signals, its log, its descriptors, and its end without warning."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.faults.conftest import Serve, answer, body, invariants, long_body


def test_signals_that_mean_nothing_to_it(serve: Serve) -> None:
    """A pipe that breaks, a terminal that changes."""
    server = serve("--cache-size", "0")
    golden = answer(server)
    with server.client.stream("POST", "/chat/completions", json=long_body()) as response:
        lines = response.iter_lines()
        next(lines)
        for signum in (signal.SIGPIPE, signal.SIGWINCH):
            server.process.send_signal(signum)
        assert [line for line in lines if line][-1] == "data: [DONE]"
    invariants(server, golden)


def test_after_a_kill_the_port_is_free_and_no_worker_is_left(serve: Serve) -> None:
    server = serve("--cache-size", "0")
    golden = answer(server)
    workers = server.workers()
    port = server.url.rpartition(":")[2]
    with server.client.stream("POST", "/chat/completions", json=long_body()) as response:
        next(response.iter_lines())
        server.process.kill()
        server.process.wait()
        _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive
    invariants(serve("--cache-size", "0", "--port", port), golden)


def test_a_restart_finds_its_prompts_again(serve: Serve, tmp_path: Path) -> None:
    options = ("--cache-dir", str(tmp_path / "cache"))
    prompt = "the way of water is long and all people call it by her name then " * 20
    first = serve(*options)
    golden = answer(first, prompt)
    first.process.terminate()
    assert first.process.wait(30) == 0
    second = serve(*options)
    response = second.client.post("/chat/completions", json=body(prompt)).json()
    assert response["choices"][0]["message"]["content"] == golden
    usage = response["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] > 0.8 * usage["prompt_tokens"]


# ---- the log (F19) -----------------------------------------------------------------------------


@contextlib.contextmanager
def serving(models: Path, stderr: int) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A server with that stderr, on a port chosen here."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "llm_server.server", "--port", str(port), "--threads", "1"]
    command += ["--models-dir", str(models), "--n-ctx", "512", "--cache-size", "0"]
    with subprocess.Popen(command, stderr=stderr) as process:
        url = f"http://127.0.0.1:{port}"
        try:
            deadline = time.monotonic() + 60
            while process.poll() is None and time.monotonic() < deadline:
                with contextlib.suppress(httpx.TransportError):
                    if httpx.get(url + "/health", timeout=5).status_code == 200:
                        break
                time.sleep(0.05)
            yield process, url
        finally:
            process.kill()


def test_a_log_that_nobody_reads_stops_nothing(models: Path) -> None:
    reading, writing = os.pipe()
    with serving(models, writing) as (process, url), httpx.Client(base_url=url) as client:
        for _ in range(1500):  # Some 150 KB of lines into a pipe of 64 KB.
            assert client.get("/health", timeout=10).status_code == 200
        assert client.post("/chat/completions", json=body(), timeout=10).status_code == 200
        process.terminate()
        assert process.wait(20) == 0
    os.close(reading)
    os.close(writing)


def test_a_log_that_was_full_before_the_start_stops_nothing(models: Path) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, b"x" * 4096)
    os.set_blocking(writing, True)
    with serving(models, writing) as (process, url):
        response = httpx.post(url + "/chat/completions", json=body(), timeout=10)
        assert response.status_code == 200
        process.terminate()
        assert process.wait(20) == 0
    os.close(reading)
    os.close(writing)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_log_on_a_full_disk_stops_nothing(models: Path) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    with serving(models, full) as (process, url):
        response = httpx.post(url + "/chat/completions", json=body(), timeout=10)
        assert response.status_code == 200
        process.terminate()
        assert process.wait(20) == 0
    os.close(full)


# ---- descriptors (F20) -------------------------------------------------------------------------


def test_running_out_of_descriptors_passes(serve: Serve) -> None:
    server = serve("--cache-size", "0")
    golden = answer(server)
    used = psutil.Process(server.process.pid).num_fds()
    before = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (used + 8, before[1]))
    host, port = re.findall(r"[\d.]+", server.url)
    crowd = [socket.create_connection((host, int(port))) for _ in range(40)]
    # One that is in already is served all the same.
    assert answer(server) == golden
    for connection in crowd:
        connection.close()
    resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, before)
    with httpx.Client(base_url=server.url, timeout=30) as fresh:
        assert fresh.get("/health").status_code == 200
    invariants(server, golden)
