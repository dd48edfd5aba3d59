"""`python -m tests.endurance.chaos [SECONDS]`: a server under load while disasters happen.

Two models are loaded. Workers are killed and stopped, chunk files damaged and deleted, the cache's
disk filled and freed, models unloaded and kept for no time. Whoever asks must get the right answer
or one clear error, and answers must come again soon.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from tests.endurance.asking import MODELS, PROMPTS, Outcome, ask, body, build_models
from tests.live import LiveServer

CLIENTS = 6
CLEAR_ERRORS = {"worker_crashed", "queue_full", "model_loading"}
KILLED_LOADING = {"model_load_failed", "insufficient_memory"}
"""What is said where a worker was killed before it had read its model."""
DISK_BYTES = 8 << 20


@dataclass(slots=True)
class Report:
    """What came of a run. `recoveries` are seconds from a kill to the next right answer."""

    seconds: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    disasters: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    recoveries: list[float] = field(default_factory=list)
    corrupt: int = 0

    def __str__(self) -> str:
        times = sorted(self.recoveries) or [0.0]
        return "\n".join(
            [
                f"{sum(self.outcomes.values())} requests in {self.seconds:.0f} s: "
                f"{dict(self.outcomes)}",
                f"disasters: {dict(self.disasters)}; {self.corrupt} damaged chunks were refused",
                f"recovery after a kill: median {statistics.median(times):.2f} s, "
                f"longest {times[-1]:.2f} s",
                *(self.wrong or ["no wrong answer, no lost request"]),
            ]
        )


class Chaos:
    """One run: clients that ask, and one thread that breaks things."""

    def __init__(self, server: LiveServer, cache: Path, seconds: float, pause_s: float) -> None:
        self._server = server
        self._cache = cache
        self._seconds = seconds
        self._pause_s = pause_s
        self._golden: dict[tuple[str, str], str] = {}
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._killed_at: float | None = None
        self._last_kill = 0.0
        self._choose = random.Random(2)
        self.report = Report()

    def run(self) -> Report:
        """Load and disasters side by side, then a quiet end in which all must be well."""
        for model, prompt in itertools.product(MODELS, PROMPTS):
            text = ask(self._server.client, body(prompt, self._choose, model=model)).text
            assert text is not None
            self._golden[model, prompt] = text
        started = time.monotonic()
        clients = [threading.Thread(target=self._ask_on, args=(i,)) for i in range(CLIENTS)]
        for client in clients:
            client.start()
        while time.monotonic() - started < self._seconds:
            disaster = self._choose.choice(self._disasters())
            disaster()
            self.report.disasters[disaster.__name__.strip("_")] += 1
            self._stop.wait(self._pause_s * self._choose.uniform(0.5, 1.5))
        self._free_the_disk()
        self._stop.set()
        for client in clients:
            client.join()
        self._all_is_well()
        self.report.seconds = time.monotonic() - started
        return self.report

    def _ask_on(self, number: int) -> None:
        choose = random.Random(number)
        with httpx.Client(base_url=self._server.url, timeout=120) as client:
            while not self._stop.is_set():
                model, prompt = choose.choice(MODELS), choose.choice(PROMPTS)
                fields = {"model": model, "stream": choose.random() < 0.5}
                if choose.random() < 0.02:
                    fields["keep_alive"] = choose.choice([0, "5m"])
                asked = time.monotonic()
                outcome = ask(client, body(prompt, choose, **fields))
                with self._lock:
                    self._note((model, prompt), asked, outcome)

    def _note(self, which: tuple[str, str], asked: float, outcome: Outcome) -> None:
        text, code, lost = outcome.text, outcome.code, outcome.lost
        self.report.outcomes[code or lost or "answered"] += 1
        if text is not None and text != self._golden[which]:
            self.report.wrong.append(f"wrong answer to {which}: {text!r}")
        elif lost is not None or (code is not None and code not in self._clear_since(asked)):
            self.report.wrong.append(f"{which}: {code or lost}")
        elif text is not None and self._killed_at is not None and asked > self._killed_at:
            self.report.recoveries.append(time.monotonic() - self._killed_at)
            self._killed_at = None

    def _clear_since(self, asked: float) -> set[str]:
        """The errors that are in order for who asked then, or joined a load a moment before."""
        return CLEAR_ERRORS | KILLED_LOADING if self._last_kill > asked - 1 else CLEAR_ERRORS

    def _all_is_well(self) -> None:
        for model, prompt in itertools.product(MODELS, PROMPTS):
            outcome = ask(self._server.client, body(prompt, self._choose, model=model))
            if outcome.text != self._golden[model, prompt]:
                self.report.wrong.append(f"afterwards, {model}, {prompt[:20]!r}: {outcome}")
        for model in MODELS:
            self._server.client.post("/models/unload", json={"model": model})
        if self._server.workers():
            self.report.wrong.append("workers are left of models that were unloaded")
        status = self._server.client.get("/").json()
        if status["running"] or status["waiting"]:
            self.report.wrong.append(f"afterwards: {status}")
        self.report.corrupt = self._server.log.count("The prompt cache drops")
        if "Traceback" in self._server.log:
            self.report.wrong.append("a traceback in the log")

    # ---- disasters -----------------------------------------------------------------------------

    def _disasters(self) -> list[Callable[[], None]]:
        return [
            self._kill,
            self._crash,
            self._stop_for_a_while,
            self._damage,
            self._damage,
            self._delete,
            self._fill_the_disk,
            self._free_the_disk,
            self._unload,
        ]

    def _kill(self, signum: int = signal.SIGKILL) -> None:
        for worker in self._server.workers():
            with self._lock:
                self._last_kill = time.monotonic()
                if self._killed_at is None:
                    self._killed_at = self._last_kill
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.send_signal(signum)

    def _crash(self) -> None:
        self._kill(self._choose.choice([signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS]))

    def _stop_for_a_while(self) -> None:
        for worker in self._server.workers():
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.suspend()
                self._stop.wait(self._choose.uniform(0.05, 1.0))
                worker.resume()

    def _unload(self) -> None:
        body = {"model": self._choose.choice(MODELS)}
        answer = self._server.client.post("/models/unload", json=body)
        if answer.status_code != 200:
            self.report.wrong.append(f"unloading: {answer.text}")

    def _damage(self) -> None:
        for path in self._chunks(5):
            with contextlib.suppress(OSError), path.open("r+b") as file:
                at = self._choose.randrange(path.stat().st_size)
                file.seek(at)
                byte = file.read(1)
                file.seek(at)
                file.write(bytes([byte[0] ^ (1 << self._choose.randrange(8))]))

    def _delete(self) -> None:
        for path in self._chunks(5):
            path.unlink(missing_ok=True)

    def _fill_the_disk(self) -> None:
        with contextlib.suppress(OSError), (self._cache.parent / "filler").open("wb") as file:
            for _ in range(DISK_BYTES >> 16):
                file.write(bytes(1 << 16))

    def _free_the_disk(self) -> None:
        (self._cache.parent / "filler").unlink(missing_ok=True)

    def _chunks(self, n: int) -> list[Path]:
        paths = list(self._cache.rglob("*.kv"))
        return self._choose.sample(paths, min(n, len(paths)))


@contextlib.contextmanager
def small_disk(path: Path) -> Iterator[Path]:
    """A file system of `DISK_BYTES` where one may be mounted, else a mere folder."""
    path.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    mounted = libc.mount(b"tmpfs", str(path).encode(), b"tmpfs", 0, b"size=%d" % DISK_BYTES) == 0
    try:
        yield path
    finally:
        if mounted:
            libc.umount2(str(path).encode(), 2)


def chaos(folder: Path, seconds: float, pause_s: float) -> Report:
    """Run against a server of its own, with its model and cache in `folder`."""
    models = folder / "models"
    build_models(models)
    with small_disk(folder / "disk") as disk:
        cache = disk / "cache"
        options = ["--n-ctx", "4096", "--cache-dir", str(cache), "--cache-size", "6MB"]
        server = LiveServer(models, [*options, "--cache-write", "all"])
        with contextlib.closing(server):
            server.wait_ready()
            return Chaos(server, cache, seconds, pause_s).run()


def main() -> None:
    """Report, and exit with 1 if anything was wrong."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 300.0
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        report = chaos(Path(folder), seconds, 4.0)
    print(report)
    sys.exit(bool(report.wrong))


if __name__ == "__main__":
    main()
