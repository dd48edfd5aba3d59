"""What a cluster adds and what it brings, on this machine: the same server with and without Ray.

`latency`: one client, a short prompt, both servers in turn. `prefix`: agents with a common head and
conversations of their own, on three replicas, by prefix and by load, against all on one, and
with three ingresses.
`throughput`: many clients on one replica and on two. Nothing is asserted: read the tables.
`python -m bench.cluster latency|prefix|throughput`, with Ray installed (`.venv-cluster`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from bench.client import Stream, free_port, running_command
from tests.tiny_models import WORDS, build_attention

CLUSTER = [sys.executable, "-c", "from llm_server.cli import main; main()", "cluster", "serve"]
DIRECT = [sys.executable, "-m", "llm_server.server"]

N_AGENTS = 20
N_TURNS = 10
N_REPLICAS = 3
AT_ONCE = 6
"""Agents that wait for an answer at a time: two a replica."""


@contextmanager
def serving(command: list[str], folder: Path, **cluster: Any) -> Iterator[str]:
    """The address of a server with one thread a worker, and `[cluster]` as given."""
    port = free_port()
    config = folder / f"{port}.toml"
    told = "\n".join(f"{name} = {json.dumps(value)}" for name, value in cluster.items())
    config.write_text(
        f'models_dir = "{folder}"\nthreads = 1\nn_ctx = 32768\ncache_size = 0\n[cluster]\n{told}\n'
    )
    options = ["--config", str(config), "--port", str(port)]
    with running_command([*command, *options], port) as server:
        yield server.url


@contextmanager
def replicas(folder: Path, n: int, routing: str = "prefix", n_ingresses: int = 1) -> Iterator[str]:
    """A cluster with so many replicas of its one model."""
    told = {"min_replicas": n, "max_replicas": n, "num_cpus": 0.1, "routing": routing}
    told["ingress_replicas"] = n_ingresses
    with serving(CLUSTER, folder, **told) as url:
        deadline = time.monotonic() + 60
        # The default number of requests at once is told for all replicas together.
        while httpx.get(url).json()["parallel"] < 32 * n:
            if time.monotonic() > deadline:
                raise RuntimeError("the replicas did not come up")
            time.sleep(0.1)
        yield url


def latency(folder: Path, rounds: int, n_tokens: int) -> dict[str, float]:
    """Milliseconds that a request and a token take on both servers, medians."""

    async def measure(url: str) -> tuple[float, float]:
        async with httpx.AsyncClient(base_url=url) as client:
            answer = await Stream(client, "say hello " * 20, n_tokens).run()
        return answer.first_s * 1e3, (answer.times[-1] - answer.times[0]) * 1e3 / (
            answer.n_tokens - 1
        )

    found: dict[str, list[tuple[float, float]]] = {"direct": [], "cluster": []}
    with serving(DIRECT, folder) as direct, replicas(folder, 1) as cluster:
        for turn in range(rounds + 2):
            for name, url in (("direct", direct), ("cluster", cluster)):
                times = asyncio.run(measure(url))
                if turn >= 2:  # The first ones warm up.
                    found[name].append(times)
    result = {}
    for index, what in enumerate(("request", "token")):
        for name, times in found.items():
            result[f"{what}_{name}_ms"] = statistics.median(t[index] for t in times)
        result[f"{what}_added_ms"] = result[f"{what}_cluster_ms"] - result[f"{what}_direct_ms"]
    return result


def talk(url: str, agent: int, session: bool) -> tuple[int, int]:
    """One agent's conversation: its prompt tokens, and how many of them were found."""
    head = " ".join(WORDS[i % len(WORDS)] for i in range(300))
    messages = [{"role": "system", "content": head}]
    prompt_tokens = cached_tokens = 0
    headers = {"x-session-id": f"agent {agent}"} if session else {}
    with httpx.Client(base_url=url, timeout=60, headers=headers) as client:
        for turn in range(N_TURNS):
            said = " ".join(WORDS[(agent * 31 + turn * 7 + i) % len(WORDS)] for i in range(40))
            messages.append({"role": "user", "content": f"{agent} {turn} {said}"})
            body = {"messages": messages, "max_tokens": 16, "temperature": 0}
            answer = client.post("/v1/chat/completions", json=body).raise_for_status().json()
            messages.append(answer["choices"][0]["message"])
            prompt_tokens += answer["usage"]["prompt_tokens"]
            cached_tokens += answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    return prompt_tokens, cached_tokens


def prefix(folder: Path) -> dict[str, float]:
    """The part of all prompt tokens that was found: ideal, by prefix, and by load.

    Of three ingresses, each knows only what went through it; clients may name sessions.
    """

    def rate(url: str, session: bool = False) -> float:
        with ThreadPoolExecutor(AT_ONCE) as threads:
            sums = list(threads.map(lambda agent: talk(url, agent, session), range(N_AGENTS)))
        return sum(cached for _, cached in sums) / sum(prompt for prompt, _ in sums)

    result = {}
    with serving(DIRECT, folder) as url:
        result["ideal"] = rate(url)
    for name, routing, n_ingresses, session in (
        ("prefix", "prefix", 1, False),
        ("load", "load", 1, False),
        ("three_ingresses", "prefix", 3, False),
        ("three_with_sessions", "prefix", 3, True),
    ):
        with replicas(folder, N_REPLICAS, routing, n_ingresses) as url:
            result[name] = rate(url, session)
        result[f"{name}_of_ideal"] = result[name] / result["ideal"]
    return result


def throughput(folder: Path, n_clients: int, n_tokens: int) -> dict[str, float]:
    """Tokens a second of all clients together, by the number of replicas."""

    async def measure(url: str) -> float:
        async with httpx.AsyncClient(base_url=url) as client:
            streams = [Stream(client, f"{i} say hello", n_tokens) for i in range(n_clients)]
            start = time.perf_counter()
            answers = await asyncio.gather(*(stream.run() for stream in streams))
            return sum(answer.n_tokens for answer in answers) / (time.perf_counter() - start)

    result = {}
    for n in (1, 2):
        with replicas(folder, n) as url:
            asyncio.run(measure(url))
            result[f"{n}_replicas"] = statistics.median(asyncio.run(measure(url)) for _ in range(3))
    return result


def main() -> None:
    """Measure what is asked for and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["latency", "prefix", "throughput"])
    parser.add_argument("--model", type=Path, help="a GGUF file, default a tiny one")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--clients", type=int, default=8)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.model:
            (folder / args.model.name).symlink_to(args.model.resolve())
        else:
            build_attention(folder / "tiny.gguf")
        if args.what == "latency":
            result = latency(folder, args.rounds, args.tokens)
        elif args.what == "prefix":
            result = prefix(folder)
        else:
            result = throughput(folder, args.clients, args.tokens)
    for key, value in result.items():
        print(f"{key:24} {value:8.3f}")


if __name__ == "__main__":
    main()
