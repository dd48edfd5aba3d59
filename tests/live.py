"""A real server process on real tiny models, for tests that use it as its users do."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
import psutil

from tests.forked import ForkedServer


class LiveServer:
    """A server on a free port, with its folder of models; `python` is what it runs with."""

    def __init__(
        self, models_dir: Path, options: Sequence[str] = (), python: str = sys.executable
    ) -> None:
        # A file, because a pipe that nobody reads stops the server once it is full.
        self._log = tempfile.NamedTemporaryFile(prefix="llm-server-", suffix=".log")
        arguments = ["--port", "0", "--models-dir", str(models_dir), "--threads", "1", *options]
        self.process: ForkedServer | subprocess.Popen[bytes]
        if python == sys.executable:
            self.process = ForkedServer(arguments, Path(self._log.name))
        else:
            command = [python, "-m", "llm_server.server", *arguments]
            self.process = subprocess.Popen(command, stderr=self._log)
        self.url = self._read_until(r"http://[\d.]+:\d+")
        self.client = httpx.Client(base_url=self.url, timeout=60)

    def _read_until(self, pattern: str) -> str:
        while not (match := re.search(pattern, self.log)):
            assert self.process.poll() is None, f"the server ended: {self.log}"
            time.sleep(0.01)
        return match.group()

    @property
    def log(self) -> str:
        """What the server has logged so far."""
        return Path(self._log.name).read_text()

    def wait_ready(self) -> None:
        """Until a model is loaded. The server answers at once, so this is a poll over HTTP."""
        deadline = time.monotonic() + 60
        while self.client.get("/health").status_code != 200:
            assert time.monotonic() < deadline, f"no model was loaded in time: {self.log}"
            time.sleep(0.01)

    def workers(self) -> list[psutil.Process]:
        """The worker processes it has now, without one that only waits for a model."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if _has_begun(child)]

    def close(self) -> None:
        """Kill it, if a test has not ended it already."""
        self.client.close()
        self.process.kill()
        self.process.wait()
        self._log.close()


def _has_begun(worker: psutil.Process) -> bool:
    """A process that waits has one thread until it is told to load, for it is not confined yet."""
    try:
        return worker.num_threads() > 1
    except psutil.NoSuchProcess:
        return False
