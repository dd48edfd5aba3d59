"""Servers forked from a process that has made the imports already: half a second less for each.

What is forked is a process of its own, with the main function of `python -m llm_server.server`. How
that command itself starts, `tests/test_server.py` tests.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["llm_server.server", "llm_server.opening", "llm_server.running"])


class ForkedServer:
    """A server process: as much of `subprocess.Popen` as tests use."""

    def __init__(self, options: Sequence[str], stderr: Path) -> None:
        self._process = _CONTEXT.Process(
            target=_serve,
            args=(list(options), str(stderr), os.getcwd(), dict(os.environ)),
            daemon=True,  # one that a test forgot is ended with the tests
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def poll(self) -> int | None:
        """The exit status, if it has ended."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """The exit status, once it has ended. Raises TimeoutExpired."""
        self._process.join(timeout)
        status = self._process.exitcode
        if status is None:
            raise subprocess.TimeoutExpired("llm-server", timeout or 0)
        return status

    def send_signal(self, signum: int) -> None:
        """Send it a signal, if it is still there."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signum)

    def terminate(self) -> None:
        """Ask it to stop."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)


def children() -> list[psutil.Process]:
    """The processes that this one has started, without those that fork servers."""
    return [child for child in psutil.Process().children() if not _forks(child)]


def _forks(child: psutil.Process) -> bool:
    try:
        return "multiprocessing" in " ".join(child.cmdline())
    except psutil.Error:  # It has just ended, which those do not.
        return False


def _serve(options: list[str], stderr: str, folder: str, environment: Mapping[str, str]) -> None:
    """What the forked process does, in the place and the environment of the test."""
    from llm_server.server import main

    log = os.open(stderr, os.O_WRONLY | os.O_APPEND)
    os.dup2(log, sys.stderr.fileno())
    os.close(log)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.exit(main(options))
