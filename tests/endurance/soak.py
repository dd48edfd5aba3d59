"""`python -m tests.endurance.soak [REQUESTS]`: mixed requests for hours, in minutes.

A fifth are aborted and a tenth are wrong; the rest have known answers. Some go to a second model,
which is unloaded now and then. Afterwards descriptors, threads, leases and memory must be where
they were once the server was warm.
"""

from __future__ import annotations

import contextlib
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from llm_server.worker.watchdog import own_memory
from tests.endurance.asking import MODELS, PROMPTS, ask, body, build_models
from tests.live import LiveServer

CLIENTS = 8
MODEL, OTHER = MODELS
WARM_SHARE = 4
"""The first part of the requests only warms up: caches fill, allocators find their size."""
MAX_SLOPE = 1024.0
"""Bytes of memory a request may cost for ever."""

WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("not JSON", {"content": b"{"}, "invalid_json"),
    ("no messages", {"json": {"messages": []}}, "invalid_value"),
    ("wrong type", {"json": {"messages": "hello"}}, "invalid_type"),
    (
        "too long",
        {"json": {"messages": [{"role": "user", "content": "water " * 20_000}]}},
        "context_length_exceeded",
    ),
    (
        "unknown model",
        {"json": {"model": "x", "messages": [{"role": "user", "content": "hello"}]}},
        "model_not_found",
    ),
]


@dataclass(frozen=True, slots=True)
class Sample:
    """What the two processes have, with nothing running: bytes, descriptors, threads."""

    requests: int
    memory: tuple[int, int]
    descriptors: tuple[int, int]
    threads: tuple[int, int]


@dataclass(slots=True)
class Report:
    """What came of a run. Slopes are in bytes a request, of the server and of the worker."""

    seconds: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)

    def slope(self, which: int) -> float:
        """The growth of memory after warming up."""
        warm = self.samples
        if len(warm) < 3:
            return 0.0
        xs = [float(sample.requests) for sample in warm]
        return statistics.linear_regression(xs, [float(s.memory[which]) for s in warm]).slope

    @property
    def leaks(self) -> list[str]:
        """What grew in number. The server may have a connection more or less to each client."""
        first, last = self.samples[0], self.samples[-1]
        pairs = {
            "descriptors of the server": (first.descriptors[0] + CLIENTS, last.descriptors[0]),
            "descriptors of the worker": (first.descriptors[1], last.descriptors[1]),
            "threads of the server": (first.threads[0] + 2, last.threads[0]),
            # Each of them begins with its first work.
            "threads of the worker": (first.threads[1] + 2, last.threads[1]),
        }
        return [f"{name} grew to {now}" for name, (most, now) in pairs.items() if now > most]

    def __str__(self) -> str:
        first, last = self.samples[0], self.samples[-1]
        n = sum(self.outcomes.values())
        return "\n".join(
            [
                f"{n} requests in {self.seconds:.0f} s: {dict(self.outcomes)}",
                f"memory after warming up: server {first.memory[0] >> 10} -> "
                f"{last.memory[0] >> 10} KiB ({self.slope(0):+.0f} B a request), worker "
                f"{first.memory[1] >> 10} -> {last.memory[1] >> 10} KiB ({self.slope(1):+.0f})",
                f"descriptors {first.descriptors} -> {last.descriptors}, "
                f"threads {first.threads} -> {last.threads}",
                *(self.faults or ["no faults"]),
            ]
        )


class Soak:
    """One run against one server."""

    def __init__(self, server: LiveServer, requests: int, batch: int) -> None:
        self._server = server
        self._n = requests
        self._batch = batch
        self._clients = [httpx.Client(base_url=server.url, timeout=60) for _ in range(CLIENTS)]
        self._free = list(self._clients)
        self._lock = threading.Lock()
        self._golden: dict[tuple[str, str], str] = {}
        self.report = Report()

    def run(self) -> Report:
        """Ask everything; the report says what was wrong."""
        choose = random.Random(1)
        for model, prompt in (*((MODEL, prompt) for prompt in PROMPTS), (OTHER, PROMPTS[0])):
            text = ask(self._clients[0], body(prompt, choose, model=model)).text
            assert text is not None
            self._golden[model, prompt] = text
        self._unload_other()
        # The cache's writing thread begins with the first write; it is no growth.
        warmed = self._clients[0].post("/restore_cache", json=body(PROMPTS[0], choose, model=MODEL))
        assert warmed.status_code == 200, warmed.text
        (worker,) = self._server.workers()
        started = time.monotonic()
        with ThreadPoolExecutor(CLIENTS) as pool:
            for done in range(0, self._n, self._batch):
                list(pool.map(self._one, range(done, done + self._batch)))
                if done >= self._n // WARM_SHARE:
                    self.report.samples.append(self._sample(worker, done + self._batch))
        self.report.seconds = time.monotonic() - started
        self._unload_other()
        if self._server.workers() != [worker]:
            self.report.faults.append("the worker is another one")
        for client in self._clients:
            client.close()
        return self.report

    def _one(self, number: int) -> None:
        choose = random.Random(number)
        with self._lock:
            client = self._free.pop()
        try:
            kind = choose.random()
            if kind < 0.2:
                outcome = self._abort(client, choose)
            elif kind < 0.3:
                outcome = self._wrong(client, choose)
            elif kind < 0.31:
                outcome = self._unload_other()
            elif kind < 0.33:
                keep_alive = choose.choice([0, "5m"])
                outcome = self._right(client, choose, OTHER, PROMPTS[0], keep_alive=keep_alive)
            else:
                outcome = self._right(client, choose, MODEL, choose.choice(PROMPTS))
        finally:
            with self._lock:
                self._free.append(client)
        with self._lock:
            self.report.outcomes[outcome] += 1

    def _abort(self, client: httpx.Client, choose: random.Random) -> str:
        request = body(choose.choice(PROMPTS), choose, model=MODEL, stream=True, max_tokens=500)
        n_lines = choose.randrange(8)
        with client.stream("POST", "/v1/chat/completions", json=request) as response:
            for _, _line in zip(range(n_lines), response.iter_lines(), strict=False):
                pass
        return "aborted"

    def _wrong(self, client: httpx.Client, choose: random.Random) -> str:
        name, request, code = choose.choice(WRONG)
        headers = {"content-type": "application/json"}
        response = client.post("/v1/chat/completions", headers=headers, **request)
        seen = response.json()["error"]["code"]
        if not 400 <= response.status_code < 500 or seen != code:
            self.report.faults.append(f"{name}: {response.status_code} {seen}")
        return "refused"

    def _right(
        self, client: httpx.Client, choose: random.Random, model: str, prompt: str, **fields: Any
    ) -> str:
        stream = choose.random() < 0.5
        outcome = ask(client, body(prompt, choose, model=model, stream=stream, **fields))
        if outcome.text != self._golden[model, prompt]:
            self.report.faults.append(f"{model}, {prompt[:20]!r}: {outcome}")
        return "answered"

    def _unload_other(self) -> str:
        answer = self._server.client.post("/models/unload", json={"model": OTHER})
        if answer.status_code != 200:
            self.report.faults.append(f"unloading: {answer.text}")
        return "unloaded"

    def _sample(self, worker: psutil.Process, requests: int) -> Sample:
        self._unload_other()
        deadline = time.monotonic() + 10
        while (status := self._clients[0].get("/").json())["running"] or status["waiting"]:
            if time.monotonic() > deadline:
                self.report.faults.append(f"after {requests} requests: {status}")
                break
        # The guard of the preparing threads is a thread that lives while something is prepared, and
        # a moment longer, as is a file of the cache that is being read: what has grown for good is
        # still there at the deadline.
        first = self.report.samples[0] if self.report.samples else None
        while (
            first is not None
            and (worker.num_threads() > first.threads[1] or worker.num_fds() > first.descriptors[1])
            and time.monotonic() < deadline
        ):
            self._clients[0].get("/")
        server = psutil.Process(self._server.process.pid)
        both = (server, worker)
        return Sample(
            requests,
            (own_memory(server.pid), own_memory(worker.pid)),
            tuple(p.num_fds() for p in both),  # type: ignore[arg-type]
            tuple(p.num_threads() for p in both),  # type: ignore[arg-type]
        )


def soak(folder: Path, requests: int, batch: int) -> Report:
    """Run against a server of its own, with its model and cache in `folder`."""
    models = folder / "models"
    build_models(models)
    server = LiveServer(models, ["--n-ctx", "4096", "--cache-size", "20MB"])
    with contextlib.closing(server):
        server.wait_ready()
        return Soak(server, requests, batch).run()


def main() -> None:
    """Report, and exit with 1 if anything was wrong."""
    requests = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        report = soak(Path(folder), requests, 250)
    for which, name in enumerate(("server", "worker")):
        if (slope := report.slope(which)) > MAX_SLOPE:
            report.faults.append(f"the {name} grows by {slope:.0f} bytes a request")
    report.faults += report.leaks
    print(report)
    sys.exit(bool(report.faults))


if __name__ == "__main__":
    main()
