"""Many models on one machine: what switching costs, how long a load takes, how long a list.

In every round all of it is measured in turn; figures are medians over the rounds, ratios medians
of each round's ratio. Nothing is asserted: read the table.
`python -m bench.models --llama-server PATH --json build/models.json`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table

from bench.client import ROOT, running
from bench.compare import find
from bench.peers import llama_server
from llm_server.gguf.header import read_header
from llm_server.worker.client import Worker
from llm_server.worker.config import CacheConfig, LoadConfig
from llm_server.worker.messages import Load
from llm_server.worker.standby import REST_S
from tests import tiny_models

N_CTX = 8192
N_STREAMS = 32
N_REQUESTS = 100
N_LISTED = 200
OTHER = "other.gguf"

Figures = dict[str, list[float]]


@dataclass(frozen=True, slots=True)
class Ratio:
    """A line of the table: one figure to another, and what it should be at most."""

    name: str
    figure: str
    to: str
    target: float | None = None


RATIOS = (
    Ratio("a request to the other loaded model, to one to the same", "other", "same", 1.05),
    Ratio(
        "a load by /setModel, to bare llama.cpp with its process", "setModel", "bare process", 1.15
    ),
    Ratio("... to bare llama.cpp without its process, timed inside", "setModel", "bare inside"),
    Ratio("a new worker, process start to ready, to the bare process", "worker", "bare process"),
    Ratio("server start to a loaded model, to llama-server's", "server start", "llama-server"),
)
FIGURES = {
    "same": "answer by the model of the request before",
    "other": "answer by the other loaded model",
    "bare inside": "llama_model_load + context, timed inside",
    "bare process": "the same from the start of its process",
    "worker": "worker from the start of its process",
    "setModel": "POST /setModel for a model not loaded",
    "server start": "llm-server to /health 200",
    "llama-server": "llama-server to /health 200",
    "list cold": f"GET /v1/models of {N_LISTED} files, first",
    "list warm": f"GET /v1/models of {N_LISTED} files, again",
}
MOST_MS = {"list warm": 100.0}


def switching(folder: Path) -> Iterator[tuple[str, float]]:
    """Medians of one-token answers, by the same model and by turns, with two that are loaded."""
    for name in ("one", "two"):
        tiny_models.build_attention(folder / f"{name}.gguf")
    with (
        running(folder / "one.gguf", "--threads", "1", "--log-level", "warning") as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 1}

        def ask(name: str) -> float:
            start = time.perf_counter()
            client.post("/v1/chat/completions", json={**body, "model": name}).raise_for_status()
            return time.perf_counter() - start

        stay = ["one"] * N_REQUESTS + ["two"] * N_REQUESTS
        alternate = ["one", "two"] * N_REQUESTS
        for name in alternate[:20]:
            ask(name)
        other = [ask(name) for name in alternate]
        same = [ask(name) for name in stay]
        yield "same", statistics.median(same)
        yield "other", statistics.median(other)


def bare(model: Path, threads: int) -> Iterator[tuple[str, float]]:
    """llama.cpp alone in a process of its own, with our settings."""
    numbers = map(str, (N_CTX, N_STREAMS + 1, threads))
    command = [sys.executable, "-m", "bench.bare", str(model), *numbers]
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    inside = float(process.stdout.readline())
    yield "bare process", time.perf_counter() - start
    process.communicate()
    yield "bare inside", inside


def worker(model: Path, threads: int, cache: Path) -> Iterator[tuple[str, float]]:
    """One of our workers, as the server starts it."""
    config = LoadConfig(n_ctx=N_CTX, parallel=N_STREAMS, n_threads=threads)
    load = Load(model, config, CacheConfig(cache, 1 << 30), log_level="warning")

    async def timed() -> float:
        start = time.perf_counter()
        started = await Worker.start(load)
        seconds = time.perf_counter() - start
        await started.stop(10)
        return seconds

    yield "worker", asyncio.run(timed())


def serving(
    model: Path, threads: int, cache: Path, binary: Path | None
) -> Iterator[tuple[str, float]]:
    """Whole servers: their start, and on ours a load on request."""
    options = ["--threads", str(threads), "--n-ctx", str(N_CTX), "--cache-dir", str(cache)]
    options += ["--log-level", "warning"]
    with (
        running(model, *options) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        yield "server start", server.ready_s
        client.post("/models/unload", json={"model": model.name}).raise_for_status()
        client.post("/setModel", json={"model_name": OTHER}).raise_for_status()
        time.sleep(2 * REST_S)  # until a process waits for the next model
        start = time.perf_counter()
        client.post("/setModel", json={"model_name": model.name}).raise_for_status()
        yield "setModel", time.perf_counter() - start
    if binary is not None:
        with llama_server(binary).running(model, cache, threads) as other:
            yield "llama-server", other.ready_s


def listing(folder: Path) -> Iterator[tuple[str, float]]:
    """The list of a folder, the first one and the median of later ones; another model serves."""
    with (
        running(folder / "served.gguf", "--threads", "1", "--log-level", "warning") as server,
        httpx.Client(base_url=server.url, timeout=600) as client,
    ):
        times = []
        for _ in range(11):
            start = time.perf_counter()
            listed = client.get("/v1/models").json()["data"]
            times.append(time.perf_counter() - start)
            if len(listed) != N_LISTED + 1:
                raise RuntimeError(f"{len(listed)} models are listed")
        yield "list cold", times[0]
        yield "list warm", statistics.median(times[1:])


@contextmanager
def many(model: Path) -> Iterator[Path]:
    """A folder of 200 files with the header of `model`, whose weights take no room on the disk."""
    n_bytes, size = read_header(model).n_bytes, model.stat().st_size
    with tempfile.TemporaryDirectory() as name, model.open("rb") as file:
        folder, header = Path(name), file.read(n_bytes)
        tiny_models.build_attention(folder / "served.gguf")
        for i in range(N_LISTED):
            path = folder / f"model-{i:03}.gguf"
            path.write_bytes(header)
            os.truncate(path, size)
        yield folder


@contextmanager
def beside_another(model: Path) -> Iterator[Path]:
    """A copy of `model`, in the page cache, in a folder with a second, tiny one."""
    with tempfile.TemporaryDirectory() as name:
        tiny_models.build_attention(Path(name, OTHER))
        yield Path(shutil.copyfile(model, Path(name, model.name)))


def measure(
    model: Path, threads: int, binary: Path | None, many_models: Path
) -> Iterator[tuple[str, float]]:
    """One round: figures by name, in seconds."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        yield from switching(folder)
        yield from bare(model, threads)
        yield from worker(model, threads, folder / "cache")
        yield from serving(model, threads, folder / "cache", binary)
        yield from listing(many_models)


def show(figures: Figures) -> None:
    """Medians of the figures, then the ratios."""
    table = Table("measured", "median", "spread", "target")
    for name, what in FIGURES.items():
        if values := [1000 * value for value in figures.get(name, ())]:
            most = MOST_MS.get(name)
            target = f"<= {most:.0f} ms" if most is not None else ""
            spread = f"{min(values):.1f} to {max(values):.1f}"
            table.add_row(what, f"{statistics.median(values):.1f} ms", spread, target)
    for ratio in RATIOS:
        if ratio.to in figures:
            pairs = zip(figures[ratio.figure], figures[ratio.to], strict=True)
            values = [ours / theirs for ours, theirs in pairs]
            target = f"<= {ratio.target}" if ratio.target is not None else ""
            spread = f"{min(values):.2f} to {max(values):.2f}"
            table.add_row(ratio.name, f"{statistics.median(values):.2f}", spread, target)
    Console(width=120).print(table)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure switching, loading and listing models.")
    parser.add_argument("--llama-server", type=Path, help="llama.cpp's server binary")
    parser.add_argument("--model", default="0.5b", help="a synthetic size, demo, or a GGUF file")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    args = parser.parse_args()
    model = find(args.model, args.threads)
    figures: Figures = defaultdict(list)
    with beside_another(model) as copy, many(model) as folder:
        for _ in range(args.rounds):
            for name, seconds in measure(copy, args.threads, args.llama_server, folder):
                figures[name].append(seconds)
    show(figures)
    if args.json:
        args.json.write_text(json.dumps({"model": model.name, "seconds": figures}, indent=1))


if __name__ == "__main__":
    main()
