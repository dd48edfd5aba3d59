"""The worker dies, by whatever hand: its requests get one clear error, everybody else an answer."""

from __future__ import annotations

import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.fake_live import add_models, chat_body, live_server, until
from tests.faults.conftest import Serve, answer, body, invariants, long_body
from tests.live import LiveServer
from tests.sampling import EXHAUSTIVE

CGROUP = Path("/sys/fs/cgroup/memory")


def killed_mid_stream(server: LiveServer, signum: int) -> list[str]:
    """The data lines of a stream whose worker is sent a signal after its first word."""
    (worker,) = server.workers()
    with server.client.stream("POST", "/v1/chat/completions", json=long_body()) as response:
        lines = (line for line in response.iter_lines() if line.startswith("data: "))
        seen = [next(lines), next(lines)]
        worker.send_signal(signum)
        return [*seen, *lines]


@pytest.mark.parametrize(
    ("signum", "when"),
    [
        (signal.SIGKILL, "idle"),
        (signal.SIGKILL, "while it computes a prompt"),
        (signal.SIGKILL, "mid-stream"),
        (signal.SIGSEGV, "mid-stream"),
        (signal.SIGABRT, "mid-stream"),
    ],
)
def test_a_signal_costs_the_running_request_alone(
    serve: Serve, signum: signal.Signals, when: str
) -> None:
    server = serve("--cache-size", "0")
    golden = answer(server)
    (worker,) = server.workers()
    if when == "mid-stream":
        lines = killed_mid_stream(server, signum)
        error = json.loads(lines[-1].removeprefix("data: "))["error"]
        assert (error["type"], error["code"]) == ("server_error", "worker_crashed")
        assert "data: [DONE]" not in lines
    elif when == "idle":
        worker.send_signal(signum)
        worker.wait(10)
    else:
        worker.suspend()
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(
                server.client.post, "/v1/chat/completions", json=body("water " * 200)
            )
            until(lambda: server.client.get("/").json()["waiting"] == 1)  # it begins with nothing
            worker.send_signal(signum)
            with suppress(psutil.NoSuchProcess):  # SIGKILL ends it though it is stopped.
                worker.resume()
            response = asked.result()
        assert (response.status_code, response.headers["x-should-retry"]) == (500, "false")
        assert response.json()["error"]["code"] == "worker_crashed"
    invariants(server, golden)
    assert f"was ended by {signum.name}" in server.log
    assert "gdb" not in server.log, "ggml forks a debugger to say more"
    assert server.workers()[0].pid != worker.pid


def test_a_request_that_crashes_every_worker_is_refused(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf")
    with live_server(tmp_path) as live:
        for _ in range(3):
            response = live.chat("crash")
            assert (response.status_code, response.headers["x-should-retry"]) == (500, "false")
        refused = live.chat("crash")
        assert (refused.status_code, refused.json()["error"]["code"]) == (
            400,
            "request_crashes_worker",
        )
        assert live.chat("anything else").status_code == 200
        assert len(live.loads()) == 4, "the refused one cost no worker"
        stream = live.post("/chat/completions", chat_body("crash", stream=True))
        assert stream.status_code == 400


@pytest.fixture
def cgroup() -> Path:
    """A memory cgroup of the first version, which this test may fill."""
    group = CGROUP / f"llm-server-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        pytest.skip("no memory cgroup may be made here")
    return group


@pytest.mark.skipif(
    not EXHAUSTIVE, reason="servers of tests beside it would put their deaths down to memory, too"
)
def test_the_kernel_ends_a_worker_that_takes_too_much(serve: Serve, cgroup: Path) -> None:
    server = serve("--cache-size", "0")
    golden = answer(server)
    (worker,) = server.workers()
    (cgroup / "memory.limit_in_bytes").write_text(str(1 << 20))
    (cgroup / "cgroup.procs").write_text(str(worker.pid))
    # What it has already is counted elsewhere; a few hundred KB more are too much.
    response = server.client.post("/chat/completions", json=body("water " * 1500))
    assert (response.status_code, response.json()["error"]["code"]) == (503, "out_of_memory")
    assert response.headers["retry-after"] == "10"
    invariants(server, golden)
    deadline = time.monotonic() + 10
    while (cgroup / "cgroup.procs").read_text():
        assert time.monotonic() < deadline
    cgroup.rmdir()
