"""What the server adds to a token: a tiny model, many streams, next to nothing to compute.

Tokens a second of 64 streams against llama.cpp's own server in the same run, processor time per
token of each of our processes, and how much longer a step takes than in a bare loop. Nothing is
asserted: read the table. `python -m bench.http --llama-server PATH`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
import psutil
from rich.console import Console
from rich.table import Table

from bench.bare import BareLoop
from bench.client import Answer, Server, free_port, running, running_command
from bench.engine import chatml, decode, prompt, throughput
from bench.peers import llama_server_on
from tests import tiny_models

N_STREAMS = 64
N_FEW = 8


@dataclass(frozen=True, slots=True)
class Round:
    """One round: tokens a second, milliseconds of processor time per token, and latencies."""

    ours: float
    theirs: float | None
    api_ms: float
    worker_ms: float
    added_ms: float
    p99_ms: float


def cpu_s(process: psutil.Process) -> float:
    """Processor time a process has used."""
    times = process.cpu_times()
    return float(times.user + times.system)


def gaps_ms(answers: list[Answer]) -> list[float]:
    """Times between the pieces of each answer."""
    return [
        1000 * (b - a)
        for answer in answers
        for a, b in zip(answer.times, answer.times[1:], strict=False)
    ]


async def ask(url: str, n_streams: int, n_tokens: int, seed: str) -> list[Answer]:
    """Answers to short prompts sent together."""
    async with httpx.AsyncClient(base_url=url, timeout=300) as client:
        return await decode(client, [prompt(5, f"{seed} {i}") for i in range(n_streams)], n_tokens)


def measure(server: Server, other: Server | None, bare: BareLoop, n: int, seed: str) -> Round:
    """Both servers in turn, and the bare loop."""
    api = psutil.Process(server.process.pid)
    (worker,) = api.children()
    before = cpu_s(api), cpu_s(worker)
    many = asyncio.run(ask(server.url, N_STREAMS, n, f"{seed} many"))
    n_tokens = sum(answer.n_tokens for answer in many)
    api_ms, worker_ms = (
        1000 * (cpu_s(process) - start) / n_tokens
        for process, start in zip((api, worker), before, strict=True)
    )
    theirs = None
    if other is not None:
        theirs = throughput(asyncio.run(ask(other.url, N_STREAMS, n, f"{seed} many")))
    few = gaps_ms(asyncio.run(ask(server.url, N_FEW, n, f"{seed} few")))
    step_ms = 1000 * N_FEW / bare.decode([chatml(prompt(5, f"{i}")) for i in range(N_FEW)], n)
    return Round(
        ours=throughput(many),
        theirs=theirs,
        api_ms=api_ms,
        worker_ms=worker_ms,
        added_ms=statistics.median(few) - step_ms,
        p99_ms=statistics.quantiles(few, n=100)[98] - step_ms,
    )


def show(rounds: list[Round]) -> None:
    """Print medians over the rounds."""
    table = Table("measured", "value", "target")

    def median(name: str) -> float:
        return statistics.median(getattr(r, name) for r in rounds)

    table.add_row(f"{N_STREAMS} streams", f"{median('ours'):.0f} tok/s", "")
    if all(r.theirs for r in rounds):
        ratio = statistics.median(r.ours / r.theirs for r in rounds if r.theirs)
        theirs = statistics.median(r.theirs for r in rounds if r.theirs)
        table.add_row("llama-server", f"{theirs:.0f} tok/s, ratio {ratio:.2f}", ">= 0.5")
    table.add_row("API process, per token", f"{median('api_ms'):.3f} ms of CPU", "")
    table.add_row("worker, per token", f"{median('worker_ms'):.3f} ms of CPU", "")
    name = f"added to a step, {N_FEW} streams"
    table.add_row(f"{name}, median", f"{median('added_ms'):.2f} ms", "< 1 ms")
    table.add_row(f"{name}, 99th percentile", f"{median('p99_ms'):.2f} ms", "")
    Console(width=100).print(table)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure what the server adds to a token.")
    parser.add_argument("--llama-server", type=Path, help="llama.cpp's server binary")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = tiny_models.build_attention(Path(folder) / "tiny.gguf")
        bare = BareLoop(model, n_ctx=32_768, n_streams=N_FEW, n_threads=args.threads)
        threads, n_ctx = str(args.threads), "32768"
        ours = ["--threads", threads, "--n-ctx", n_ctx, "--parallel", str(N_STREAMS)]
        # With a cache on disk, as by default: without one idle prefixes stay in the cells that
        # attention goes over, which is the price of keeping them and none of the transport.
        ours += ["--cache-dir", str(Path(folder) / "cache"), "--log-level", "warning"]
        with running(model, *ours) as server:
            rounds = list(_rounds(args, server, model, bare))
        bare.close()
    show(rounds)
    if args.json:
        args.json.write_text(json.dumps([asdict(r) for r in rounds], indent=1))


def _rounds(
    args: argparse.Namespace, server: Server, model: Path, bare: BareLoop
) -> Iterator[Round]:
    """All rounds, after one that only warms everything up."""
    with ExitStack() as stack:
        other = None
        if args.llama_server:
            port = free_port()
            command = llama_server_on(args.llama_server, model, port)
            command += ["--jinja", "-t", str(args.threads), "-c", "32768"]
            command += ["-np", str(N_STREAMS), "-kvu"]
            other = stack.enter_context(running_command(command, port))
        measure(server, other, bare, 20, "warm")
        for i in range(args.rounds):
            yield measure(server, other, bare, args.tokens, f"round {i}")


if __name__ == "__main__":
    main()
