"""`python -m tests.endurance.load [IDLE]`: more of everything than a server expects, with figures.

Chats while no model is loaded, more requests than the queue takes, idle connections, streams that
nobody reads, and models switched to and fro. Answers must be right and refusals clear all along.
"""

from __future__ import annotations

import contextlib
import json
import random
import resource
import socket
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from tests import tiny_models
from tests.endurance.asking import PROMPTS, Outcome, ask, body
from tests.live import LiveServer
from tests.raw import Answer, connect, post, talk_at_once

QUEUE = 8
PARALLEL = 2
MEMORY = "70MB"
"""Room for one of the models: switching ends the other."""


@dataclass(slots=True)
class Report:
    """What was wrong, and how long the golden request took in which company, in seconds."""

    faults: list[str] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    refused_s: list[float] = field(default_factory=list)
    golden_s: dict[str, list[float]] = field(default_factory=dict)
    descriptors: tuple[int, int] = (0, 0)

    def __str__(self) -> str:
        lines = [f"{10 * QUEUE} requests at once: {dict(self.outcomes)}"]
        lines += [
            f"{name}: median {statistics.median(times) * 1000:.0f} ms, "
            f"longest {max(times) * 1000:.0f} ms of {len(times)}"
            for name, times in {"refusals": self.refused_s, **self.golden_s}.items()
            if times
        ]
        lines.append(f"descriptors of the server over the switches: {self.descriptors}")
        return "\n".join([*lines, *(self.faults or ["no faults"])])


class Load:
    """One run against one server that has just been started."""

    def __init__(self, server: LiveServer) -> None:
        self._server = server
        self._golden = ""
        self.report = Report()

    def run(self, idle: int, slow: int, switches: int) -> Report:
        """All of it; the report says what was wrong."""
        self._storm()
        self._overflow()
        self._ask_golden("golden alone", 20)
        with contextlib.ExitStack() as open_ones:
            for _ in range(idle):
                open_ones.enter_context(self._idle())
            self._ask_golden(f"golden beside {idle} idle connections", 20)
            for _ in range(slow):
                open_ones.enter_context(self._slow())
            self._ask_golden(f"golden beside {slow} streams that nobody reads too", 20)
        self._switch(switches)
        return self.report

    def _all_at_once(self, n: int, **fields: int) -> list[tuple[Outcome, float]]:
        choose = random.Random(n)
        bodies = [body(PROMPTS[0], choose, **fields) for _ in range(n)]
        requests = [post("/v1/chat/completions", one) for one in bodies]
        return [(_outcome(a), seconds) for a, seconds in talk_at_once(self._server.url, requests)]

    def _storm(self) -> None:
        # Nothing runs yet, so the queue is all the room there is; the start itself is in it.
        outcomes = [outcome for outcome, _ in self._all_at_once(QUEUE - 1)]
        if len(set(outcomes)) != 1 or outcomes[0].text is None:
            self.report.faults.append(f"while nothing was loaded: {Counter(outcomes)}")
        self._golden = outcomes[0].text or ""
        if len(self._server.workers()) != 1:
            self.report.faults.append(f"workers: {self._server.workers()}")

    def _overflow(self) -> None:
        # Long enough to be there still when the last of them arrives.
        for outcome, seconds in self._all_at_once(10 * QUEUE, max_tokens=100):
            self.report.outcomes[outcome.code or outcome.lost or "answered"] += 1
            if outcome.code == "queue_full":
                self.report.refused_s.append(seconds)
            elif not (outcome.text or "").startswith(self._golden):
                self.report.faults.append(f"of many: {outcome}")
        if self.report.outcomes["answered"] < PARALLEL + QUEUE:
            self.report.faults.append("fewer were answered than there is room for")

    def _ask_golden(self, name: str, times: int) -> None:
        choose = random.Random(0)
        for _ in range(times):
            outcome, seconds = _timed(self._server.client, body(PROMPTS[0], choose))
            self.report.golden_s.setdefault(name, []).append(seconds)
            if outcome.text != self._golden:
                self.report.faults.append(f"{name}: {outcome}")

    def _idle(self) -> socket.socket:
        connection = connect(self._server.url)
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        if not connection.recv(12).endswith(b" 200"):
            self.report.faults.append("an idle connection was refused")
        return connection

    def _slow(self) -> socket.socket:
        """A stream of which the head is read and then nothing more."""
        connection = connect(self._server.url)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        asked = body(PROMPTS[1], random.Random(), stream=True, max_tokens=99)
        connection.sendall(post("/v1/chat/completions", asked))
        if not connection.recv(12).endswith(b" 200"):
            self.report.faults.append("a stream was refused")
        return connection

    def _switch(self, times: int) -> None:
        server = psutil.Process(self._server.process.pid)
        held = []
        for _ in range(max(2, times)):
            for name in ("b", "a"):
                answer = self._server.client.post("/setModel", json={"model_name": name})
                if answer.status_code != 200:
                    self.report.faults.append(f"switching to {name}: {answer.text}")
            held.append(server.num_fds())
        self.report.descriptors = (held[1], held[-1])
        # A file may just be open for somebody: what leaks, leaks with every switch.
        if held[-1] > held[1] + 4 or len(self._server.workers()) != 1:
            self.report.faults.append(f"switching leaves {held} and {self._server.workers()}")
        self._ask_golden("golden after the switches", 1)


def _outcome(answer: Answer) -> Outcome:
    if answer.statuses == [200]:
        content = json.loads(answer.received.rpartition(b"\r\n\r\n")[2])
        return Outcome(text=content["choices"][0]["message"]["content"])
    if answer.statuses:
        return Outcome(code=answer.error["code"])
    return Outcome(lost="no answer")


def _timed(client: httpx.Client, request: dict[str, object]) -> tuple[Outcome, float]:
    started = time.monotonic()
    outcome = ask(client, request)
    return outcome, time.monotonic() - started


def load(folder: Path, idle: int, slow: int, switches: int) -> Report:
    """Run against a server of its own, with its models and cache in `folder`."""
    models = folder / "models"
    models.mkdir()
    for name in ("a.gguf", "b.gguf"):
        tiny_models.build_attention(models / name)
    options = ["--n-ctx", "4096", "--cache-size", "20MB", "--parallel", str(PARALLEL)]
    options += ["--queue-size", str(QUEUE), "--memory", MEMORY]
    server = LiveServer(models, options)
    with contextlib.closing(server):
        return Load(server).run(idle, slow, switches)


def main() -> None:
    """Report, and exit with 1 if anything was wrong."""
    idle = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 2 * idle + 500), hard), hard))
    with tempfile.TemporaryDirectory(prefix="load-") as folder:
        report = load(Path(folder), idle, slow=200, switches=50)
    print(report)
    sys.exit(bool(report.faults))


if __name__ == "__main__":
    main()
