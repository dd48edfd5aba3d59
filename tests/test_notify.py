"""What a service manager hears of the server: ready, alive, stopping."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fake_live import add_models, until
from tests.test_server import running


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The socket that systemd would listen on."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.settimeout(20)
        channel.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "100000")
        monkeypatch.delenv("WATCHDOG_PID", raising=False)
        yield channel


def test_it_tells_its_manager_how_it_is(tmp_path: Path, manager: socket.socket) -> None:
    add_models(tmp_path, "a.gguf")
    with running(tmp_path) as server:
        first = {manager.recv(100) for _ in range(4)}
        assert first == {b"READY=1", b"WATCHDOG=1"}
        server.process.send_signal(signal.SIGTERM)
        while manager.recv(100) != b"STOPPING=1":
            pass
        assert server.wait() == 0


def test_a_manager_that_is_gone_is_no_error(
    tmp_path: Path, manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "@nobody-listens-here")
    add_models(tmp_path, "a.gguf")
    with running(tmp_path) as server:
        until(server.healthy)
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 0
