"""How programs of ours end, and begin, as processes."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

WAITING = """
from llm_server.programs import exit_on_signals
exit_on_signals()
try:
    print("waits", flush=True)
    input()
finally:
    print("in order", flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="about signals as Unix has them")
def test_a_hangup_before_a_server_is_ready_ends_nothing() -> None:
    script = """
import atexit, os, signal
from llm_server import server
atexit.register(os.kill, os.getpid(), signal.SIGHUP)
server.main(["--port", "x"])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert done.returncode == 2 and b"--port" in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="about signals as Unix has them")
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGHUP])
def test_signals_end_a_program_in_order(sent: signal.Signals) -> None:
    command = [sys.executable, "-c", WAITING]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waits\n"
        process.send_signal(sent)
        assert process.stdout.read() == "in order\n"
        assert process.wait() == 1
