"""A real server process on real tiny models, for tests that use it as its users do."""

from __future__ import annotations

import re
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
import psutil


class LiveServer:
    """`python -m llm_server.server` on a free port, with its folder of models."""

    def __init__(self, models_dir: Path, options: Sequence[str] = ()) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "llm_server.server", "--port", "0"]
            + ["--models-dir", str(models_dir), "--threads", "1", *options],
            stderr=subprocess.PIPE,
            text=True,
        )
        self.log = ""
        self.url = self._read_until(r"http://[\d.]+:\d+")
        self.client = httpx.Client(base_url=self.url, timeout=60)

    def _read_until(self, pattern: str) -> str:
        assert self.process.stderr is not None
        while not (match := re.search(pattern, self.log)):
            line = self.process.stderr.readline()
            assert line, f"the server ended: {self.log}"
            self.log += line
        return match.group()

    def wait_ready(self) -> None:
        """Until a model is loaded. The server answers at once, so this is a poll over HTTP."""
        deadline = time.monotonic() + 60
        while self.client.get("/health").status_code != 200:
            assert time.monotonic() < deadline, "no model was loaded in time"
            self.drain_log()  # A full pipe would stop the server.

    def drain_log(self) -> str:
        """What the server has logged so far."""
        assert self.process.stderr is not None
        while select.select([self.process.stderr], [], [], 0)[0]:
            line = self.process.stderr.readline()
            if not line:
                break
            self.log += line
        return self.log

    def workers(self) -> list[psutil.Process]:
        """The worker processes it has now."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def close(self) -> None:
        """Kill it, if a test has not ended it already."""
        self.client.close()
        self.process.kill()
        self.process.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()
