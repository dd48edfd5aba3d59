"""The whole server against a bare `llama_decode` loop: decode speed, smoothness, start-up time.

Both take turns in every round, on the same machine in the same minute, so that what else goes on
there hits both alike; figures are medians over the rounds. Nothing is asserted: read the table.
`python -m bench.engine --json build/engine.json`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
from rich.console import Console
from rich.table import Table

from bench import synthetic
from bench.bare import BareLoop
from bench.client import Answer, Server, Stream, running
from tests.tiny_models import WORDS

N_STREAMS = 8
LONG_PROMPT = 2000
"""Tokens of the prompt that arrives while another stream decodes; about one a word."""


@dataclass(frozen=True, slots=True)
class Round:
    """Decode speeds of both sides, in tokens a second, measured in turn.

    `other_load` is the share of the machine, in percent, that was busy while both sides idled.
    """

    other_load: float
    bare_1: float
    server_1: float
    bare_8: float
    server_8: float
    first_token_ms: float


@dataclass(frozen=True, slots=True)
class Intrusion:
    """A long prompt arriving while another stream decodes: that stream's longest gap between
    pieces of text, and the time to the long prompt's own first token."""

    gap_ms: float
    n_prompt: int
    first_token_ms: float


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; `met` says whether the target was."""

    name: str
    value: str
    target: str = ""
    met: bool = True


def prompt(n_words: int, seed: str) -> str:
    """Words in random order: about one token each, and no prefix that a cache could know."""
    return " ".join(random.Random(seed).choices(WORDS, k=n_words))


def chatml(content: str) -> str:
    """The text that the model's template makes of one user message."""
    return f"<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n"


def throughput(answers: list[Answer]) -> float:
    """Tokens a second while all of the streams were decoding.

    Pieces of text are counted between the last stream's first and the first stream's last one,
    and scaled by tokens per piece, which is 1 unless characters were split over tokens.
    """
    start = max(answer.times[0] for answer in answers)
    end = min(answer.times[-1] for answer in answers)
    pieces = sum(start < at <= end for answer in answers for at in answer.times)
    scale = sum(a.n_tokens for a in answers) / sum(len(a.times) for a in answers)
    return pieces * scale / (end - start)


async def decode(client: httpx.AsyncClient, prompts: list[str], n_tokens: int) -> list[Answer]:
    """The answers to prompts that are sent together."""
    streams = [Stream(client, text, n_tokens) for text in prompts]
    return list(await asyncio.gather(*(stream.run() for stream in streams)))


async def intrude(client: httpx.AsyncClient, seed: str) -> Intrusion:
    """Start a stream, send a long prompt after its 20th piece, and watch until that answers.

    Raises:
        RuntimeError: the stream ended before the long prompt was sent.
    """
    stream = Stream(client, prompt(20, seed), 4000)
    intruder: asyncio.Task[Answer] | None = None
    n = 0
    async for _ in stream.pieces():
        n += 1
        if n == 20:
            long = Stream(client, prompt(LONG_PROMPT, f"long {seed}"), 2)
            intruder = asyncio.create_task(long.run())
        if intruder and intruder.done():
            break
    if intruder is None:
        raise RuntimeError("the stream ended before the long prompt was sent")
    answer = await intruder
    times = [at for at in stream.answer().times if answer.sent <= at <= answer.times[-1]]
    gaps = (b - a for a, b in zip(times, times[1:], strict=False))
    return Intrusion(1000 * max(gaps), answer.usage["prompt_tokens"], 1000 * answer.first_s)


async def compare(client: httpx.AsyncClient, bare: BareLoop, n_tokens: int, seed: int) -> Round:
    """One round of decoding: the yardstick and the server in turn."""
    other_load = psutil.cpu_percent(interval=1.0)
    prompts = [prompt(20, f"{seed} {i}") for i in range(N_STREAMS)]
    texts = [chatml(content) for content in prompts]
    bare_1 = bare.decode(texts[:1], n_tokens)
    (alone,) = await decode(client, prompts[:1], n_tokens)
    bare_8 = bare.decode(texts, n_tokens)
    together = await decode(client, prompts, n_tokens)
    return Round(
        other_load=other_load,
        bare_1=bare_1,
        server_1=throughput([alone]),
        bare_8=bare_8,
        server_8=throughput(together),
        first_token_ms=1000 * alone.first_s,
    )


async def measure(
    server: Server, bare: BareLoop, args: argparse.Namespace
) -> tuple[list[Round], list[Intrusion]]:
    """All rounds against one running server, after one that only warms it up."""
    async with httpx.AsyncClient(base_url=server.url, timeout=300) as client:
        await decode(client, ["hello"], 4)
        rounds = [await compare(client, bare, args.tokens, seed) for seed in range(args.rounds)]
        return rounds, [await intrude(client, str(seed)) for seed in range(args.intrusions)]


def report(
    rounds: list[Round], intrusions: list[Intrusion], starts: list[tuple[float, float]]
) -> list[Row]:
    """The table's rows: medians, and ratios as medians of each round's ratio.

    The best rounds stand beside them: on a machine that is not idle they are what to compare.
    """

    def median(value: Callable[[Round], float]) -> float:
        return statistics.median(map(value, rounds))

    def speed(name: str, bare: Callable[[Round], float], server: Callable[[Round], float]) -> Row:
        ratio = median(lambda r: server(r) / bare(r))
        text = f"{median(server):.1f} of {median(bare):.1f} tok/s = {ratio:.3f}"
        best = max(map(server, rounds)), max(map(bare, rounds))
        text += f" (best {best[0]:.1f} of {best[1]:.1f} = {best[0] / best[1]:.3f})"
        return Row(name, text, ">= 0.950", ratio >= 0.95)

    load = max(r.other_load for r in rounds)
    gap = max(i.gap_ms for i in intrusions)
    first_s = statistics.median(i.first_token_ms for i in intrusions) / 1000
    answered, ready = (statistics.median(times) for times in zip(*starts, strict=True))
    n_prompt = intrusions[0].n_prompt
    return [
        Row("other load on the machine", f"{load:.0f} %", "<= 10 %", load <= 10),
        speed("decode, 1 stream", lambda r: r.bare_1, lambda r: r.server_1),
        speed("decode, 8 streams", lambda r: r.bare_8, lambda r: r.server_8),
        Row("first token, 20 words", f"{median(lambda r: r.first_token_ms):.0f} ms"),
        Row(f"longest gap beside {n_prompt} tokens", f"{gap:.0f} ms", "<= 300 ms", gap <= 300),
        Row(f"first token of those {n_prompt}", f"{first_s:.1f} s"),
        Row("process start to /health", f"{answered:.2f} s", "<= 1.50 s", answered <= 1.5),
        Row("process start to a loaded model", f"{ready:.2f} s"),
    ]


def show(rows: list[Row]) -> None:
    """Print the table."""
    table = Table("measured", "value", "target", "")
    for row in rows:
        table.add_row(row.name, row.value, row.target, "" if row.met else "MISSED")
    Console(width=110).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the server with a bare decode loop.")
    parser.add_argument("--size", choices=sorted(synthetic.SHAPES), default="0.5b")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--intrusions", type=int, default=3, help="long prompts beside a stream")
    parser.add_argument("--tokens", type=int, default=128, help="tokens each stream decodes")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--n-ctx", type=int, default=8192)
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    args = parser.parse_args()
    if min(args.rounds, args.intrusions) < 1:
        parser.error("rounds and intrusions are at least 1")
    model = synthetic.build(args.size, n_threads=args.threads)
    options = ["--n-ctx", str(args.n_ctx), "--parallel", str(N_STREAMS)]
    # No guesses: random weights repeat themselves, and a bare loop cannot gain by that.
    options += ["--threads", str(args.threads), "--log-level", "warning", "--draft-max", "0"]
    starts = []
    with tempfile.TemporaryDirectory() as folder:
        # A folder of its own: prompts that an earlier run has stored would cost nothing.
        options += ["--cache-dir", folder]
        for _ in range(2):
            with running(model, *options) as server:
                starts.append((server.answered_s, server.ready_s))
        bare = BareLoop(model, n_ctx=args.n_ctx, n_streams=N_STREAMS, n_threads=args.threads)
        with running(model, *options) as server:
            starts.append((server.answered_s, server.ready_s))
            rounds, intrusions = asyncio.run(measure(server, bare, args))
        bare.close()
    rows = report(rounds, intrusions, starts)
    show(rows)
    if args.json:
        figures: dict[str, list[Any]] = {"rounds": rounds, "intrusions": intrusions, "rows": rows}
        plain = {name: [asdict(item) for item in items] for name, items in figures.items()}
        args.json.write_text(json.dumps({**plain, "starts_s": starts}, indent=1))


if __name__ == "__main__":
    main()
