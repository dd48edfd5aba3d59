"""Embeddings of a batch of texts over HTTP, against llama.cpp's own server in the same run.

A random encoder of bge-small's shape (F16), 64 texts a request, few tokens or many. Nothing is
asserted: read the table. `python -m bench.embeddings --llama-server PATH`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
import numpy as np
from gguf import PoolingType
from rich.console import Console
from rich.table import Table

from bench.client import free_port, running, running_command
from bench.peers import llama_server_on
from tests import tiny_encoders
from tests.tiny_models import WORDS

BGE_SMALL = tiny_encoders.Shape(
    n_embd=384,
    n_ff=1536,
    n_head=12,
    n_layer=12,
    n_ctx_train=512,
    n_vocab=30_522,
    matrices=np.float16,
)
N_TEXTS = 64
N_WORDS = (16, 100)


@dataclass(frozen=True, slots=True)
class Round:
    """Texts a second of one request, by the words of each text."""

    n_words: int
    ours: float
    theirs: float | None
    closest: float | None
    """The smallest cosine between our vector of a text and theirs."""


def texts(n_words: int, seed: int) -> list[str]:
    """Texts of known words, different in each round."""
    pick = random.Random(seed)
    return [" ".join(pick.choices(WORDS, k=n_words)) for _ in range(N_TEXTS)]


def ask(client: httpx.Client, inputs: list[str]) -> tuple[float, np.ndarray]:
    """Texts a second, and their vectors."""
    start = time.perf_counter()
    response = client.post("/v1/embeddings", json={"input": inputs})
    seconds = time.perf_counter() - start
    response.raise_for_status()
    vectors = np.array([item["embedding"] for item in response.json()["data"]])
    return len(inputs) / seconds, vectors


def measure(ours: httpx.Client, theirs: httpx.Client | None, n_words: int, seed: int) -> Round:
    """Both servers in turn."""
    inputs = texts(n_words, seed)
    speed, vectors = ask(ours, inputs)
    if theirs is None:
        return Round(n_words, speed, None, None)
    their_speed, their_vectors = ask(theirs, inputs)
    closest = float(np.min(np.sum(vectors * their_vectors, axis=1)))
    return Round(n_words, speed, their_speed, closest)


def rounds_of(n_rounds: int, n_threads: int, llama_server: Path | None) -> Iterator[Round]:
    """All rounds, after one of each kind that only warms everything up."""
    with ExitStack() as stack:
        path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "bge-small-shape.gguf"
        model = tiny_encoders.build_bert(path, PoolingType.CLS, shape=BGE_SMALL)
        threads = str(n_threads)
        server = stack.enter_context(running(model, "--threads", threads, "--log-level", "warning"))
        ours = stack.enter_context(httpx.Client(base_url=server.url, timeout=300))
        theirs = None
        if llama_server:
            port = free_port()
            command = llama_server_on(llama_server, model, port)
            command += ["--embeddings", "-t", threads, "-np", "8"]
            other = stack.enter_context(running_command(command, port))
            theirs = stack.enter_context(httpx.Client(base_url=other.url, timeout=300))
        for n_words in N_WORDS:
            measure(ours, theirs, n_words, -1)
        for i in range(n_rounds):
            for n_words in N_WORDS:
                yield measure(ours, theirs, n_words, i)


def show(rounds: list[Round]) -> None:
    """Print medians over the rounds."""
    table = Table(f"{N_TEXTS} texts of", "texts/s", "llama-server", "ratio", "smallest cosine")
    for n_words in N_WORDS:
        of = [r for r in rounds if r.n_words == n_words]
        row = [f"{n_words} words", f"{statistics.median(r.ours for r in of):.0f}"]
        theirs = [r.theirs for r in of if r.theirs is not None]
        if theirs:
            ratio = statistics.median(r.ours / r.theirs for r in of if r.theirs)
            closest = min(r.closest for r in of if r.closest is not None)
            row += [f"{statistics.median(theirs):.0f}", f"{ratio:.2f}", f"{closest:.5f}"]
        table.add_row(*row)
    Console(width=100).print(table)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure embeddings over HTTP.")
    parser.add_argument("--llama-server", type=Path, help="llama.cpp's server binary")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    args = parser.parse_args()
    rounds = list(rounds_of(args.rounds, args.threads, args.llama_server))
    show(rounds)
    if args.json:
        args.json.write_text(json.dumps([asdict(r) for r in rounds], indent=1))


if __name__ == "__main__":
    main()
