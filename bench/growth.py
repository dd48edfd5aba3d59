"""How figures grow: with the length of a prompt, the number of streams, the prompts cached.

Look-ups in the cache must stay flat; the others show what the machine does. Nothing is asserted:
read the table. `python -m bench.growth --plot build/growth.png`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table

from bench import synthetic
from bench.cache import conversation, first_ms, words
from bench.client import Server, running
from bench.engine import decode, prompt
from bench.scenarios import overall
from llm_server.cache.keys import Chain, root_key, unpack
from llm_server.cache.store import ChunkStore

PROMPTS = (256, 1024, 4096, 16_000)
STREAMS = (1, 2, 4, 8, 16, 32, 64)
CACHED = (1, 10, 100, 1000, 10_000)
FINGERPRINT = bytes(32)
CHUNK = 256


@dataclass(frozen=True, slots=True)
class Point:
    """One figure of a curve: `x` as the curve's name says, and the value in its unit."""

    curve: str
    x: int
    value: float


def look_ups() -> list[Point]:
    """Microseconds to find the longest stored prefix of a prompt of four chunks."""
    rng = random.Random(1)
    points = []
    with tempfile.TemporaryDirectory() as folder:
        store = ChunkStore(Path(folder), FINGERPRINT, 1 << 34)
        chains: list[Chain] = []
        for n in CACHED:
            while len(chains) < n:
                tokens = [rng.randrange(150_000) for _ in range(CHUNK)]
                chains.append(Chain.of(root_key(FINGERPRINT, ""), tokens, CHUNK))
                store.put(chains[-1], 0, CHUNK, b"payload")
                if store.busy:
                    store.flush(60)
            store.flush(60)
            times = []
            for known in rng.choices(chains, k=200):
                tokens = [*unpack(known.slice(0, CHUNK)), *rng.choices(range(1000), k=3 * CHUNK)]
                start = time.perf_counter()
                hits = store.match(Chain.of(root_key(FINGERPRINT, ""), tokens, CHUNK))
                times.append(1e6 * (time.perf_counter() - start))
                if len(hits) != 1:
                    raise RuntimeError("a stored chunk was not found")
            points.append(Point("look-up among cached prompts, us", n, statistics.median(times)))
            times = []
            for _ in range(50):
                chain = Chain.of(root_key(FINGERPRINT, ""), rng.choices(range(1000), k=1024), CHUNK)
                start = time.perf_counter()
                store.match(chain)
                times.append(1e6 * (time.perf_counter() - start))
            points.append(Point("look-up of an unknown prompt, us", n, statistics.median(times)))
        store.close(60)
    return points


def prompts(server: Server, longest: int) -> list[Point]:
    """Milliseconds to the first token of prompts that nobody has seen, and of the same again."""
    points = []
    for n in (n for n in PROMPTS if n <= longest):
        body = conversation(words(n, f"growth {n}"), "what is oil")
        points.append(Point("first token, new prompt, ms", n, first_ms(server, body)))
        points.append(Point("first token, same prompt, ms", n, first_ms(server, body)))
    return points


def streams(server: Server) -> list[Point]:
    """Tokens a second of all streams together."""

    async def speed(n: int) -> float:
        async with httpx.AsyncClient(base_url=server.url, timeout=600) as client:
            texts = [prompt(20, f"growth {n} {i}") for i in range(n)]
            return overall(await decode(client, texts, 32))

    return [Point("streams together, tok/s", n, asyncio.run(speed(n))) for n in STREAMS]


def plot(points: list[Point], path: Path) -> None:
    """One picture a curve, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    curves = list(dict.fromkeys(point.curve for point in points))
    figure, axes = pyplot.subplots(1, len(curves), figsize=(4 * len(curves), 3.5), squeeze=False)
    for curve, axis in zip(curves, axes[0], strict=True):
        mine = [point for point in points if point.curve == curve]
        axis.loglog([p.x for p in mine], [p.value for p in mine], marker="o")
        axis.set_title(curve, fontsize=9)
        axis.set_ylim(bottom=min(p.value for p in mine) / 3)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure how figures grow.")
    parser.add_argument("--size", choices=sorted(synthetic.SHAPES), default="0.5b")
    parser.add_argument("--longest", type=int, default=PROMPTS[-1], help="tokens of a prompt")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--plot", type=Path, help="write the curves to this picture")
    args = parser.parse_args()
    points = look_ups()
    model = synthetic.build(args.size, n_threads=args.threads)
    options = ["--threads", str(args.threads), "--n-ctx", "32768", "--parallel", "64"]
    with running(model, *options, "--cache-size", "0", "--log-level", "warning") as server:
        points += [*streams(server), *prompts(server, args.longest)]
    table = Table("curve", "at", "value")
    for point in points:
        table.add_row(point.curve, str(point.x), f"{point.value:.4g}")
    Console().print(table)
    if args.json:
        args.json.write_text(json.dumps([asdict(point) for point in points], indent=1))
    if args.plot:
        plot(points, args.plot)


if __name__ == "__main__":
    main()
