"""What guessing by prompt lookup wins where answers copy, and costs where they do not.

Two servers take turns, one with `--draft-max 0`, on a model of real shape that says one known word
after another, so that a prompt can hold its answer or not. `python -m bench.draft --rounds 3`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
from gguf import GGUFReader
from rich.console import Console
from rich.table import Table

from bench import synthetic
from bench.client import Answer, Server, running
from bench.engine import decode, throughput

RUN = 25
"""Words copied before one is different: an edit, or a sentence of a summary."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """Prompts of one kind, the streams that run at once, and what guessing should win."""

    name: str
    prompt: str
    n_streams: int
    target: float


@dataclass(frozen=True, slots=True)
class Result:
    """Tokens a second in one round, and the share of guesses that were right."""

    scenario: str
    plain: float
    drafting: float
    n_draft: int
    n_right: int


def chain_words(model: Path) -> list[str]:
    """The words that the model says, in their order, from its vocabulary."""
    tokens = GGUFReader(model).fields["tokenizer.ggml.tokens"].contents()
    return [str(tokens[id]).replace("Ġ", " ") for id in synthetic.chain_ids(tokens)[1:]]


def scenarios(words: Sequence[str], n_tokens: int) -> list[Scenario]:
    """The answer in the prompt with an edit every `RUN` words, not at all, and as a false trail."""
    rng = random.Random(1)
    answer, others = list(words[:n_tokens]), list(words[2000:])
    edited = [rng.choice(others) if i % RUN == RUN - 1 else w for i, w in enumerate(answer)]
    unrelated = rng.choices(others, k=n_tokens)
    misleading = [
        "".join([*answer[i : i + 3], rng.choice(others)]) for i in range(0, n_tokens - 3, 3)
    ]
    return [
        Scenario("copies, 1 stream", "".join(edited), 1, 1.8),
        Scenario("copies, 8 streams", "".join(edited), 8, 1.0),
        Scenario("copies nothing, 1 stream", "".join(unrelated), 1, 0.97),
        Scenario("is misled, 1 stream", "".join(misleading), 1, 0.97),
        Scenario("copies nothing, 8 streams", "".join(unrelated), 8, 0.97),
    ]


async def speed(server: Server, scenario: Scenario, n_tokens: int) -> tuple[float, list[Answer]]:
    """Tokens a second of the scenario's streams together."""
    async with httpx.AsyncClient(base_url=server.url, timeout=300) as client:
        prompts = [f"{i}{scenario.prompt}" for i in range(scenario.n_streams)]
        await decode(client, prompts, 1)  # the prompts are in the cells now
        answers = await decode(client, prompts, n_tokens)
    return throughput(answers), answers


def measure(plain: Server, drafting: Server, found: list[Scenario], n_tokens: int) -> list[Result]:
    """One round of all scenarios, each on both servers in turn."""
    results = []
    for scenario in found:
        without, _ = asyncio.run(speed(plain, scenario, n_tokens))
        with_drafts, answers = asyncio.run(speed(drafting, scenario, n_tokens))
        n_draft = sum(answer.timings["draft_n"] for answer in answers)
        n_right = sum(answer.timings["draft_n_accepted"] for answer in answers)
        results.append(Result(scenario.name, without, with_drafts, n_draft, n_right))
    return results


def show(results: list[Result], found: list[Scenario]) -> None:
    """Print medians over the rounds."""
    table = Table("an answer that", "plain", "guessing", "ratio", "target", "guesses right", "")
    for scenario in found:
        rounds = [r for r in results if r.scenario == scenario.name]
        ratio = statistics.median(r.drafting / r.plain for r in rounds)
        table.add_row(
            scenario.name,
            f"{statistics.median(r.plain for r in rounds):.1f} tok/s",
            f"{statistics.median(r.drafting for r in rounds):.1f} tok/s",
            f"{ratio:.2f}",
            f">= {scenario.target}",
            f"{sum(r.n_right for r in rounds)} of {sum(r.n_draft for r in rounds)}",
            "" if ratio >= scenario.target else "MISSED",
        )
    Console(width=110).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure guessing by prompt lookup.")
    parser.add_argument("--size", choices=sorted(synthetic.SHAPES), default="0.5b")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    args = parser.parse_args()
    model = synthetic.build(args.size, n_threads=args.threads, chain=True)
    found = scenarios(chain_words(model), args.tokens)
    options = ("--n-ctx", "8192", "--threads", str(args.threads), "--log-level", "warning")
    with (
        running(model, *options, "--draft-max", "0", "--cache-size", "0") as plain,
        running(model, *options, "--cache-size", "0") as drafting,
    ):
        results = [
            result
            for _ in range(args.rounds)
            for result in measure(plain, drafting, found, args.tokens)
        ]
    show(results, found)
    if args.json:
        args.json.write_text(json.dumps([asdict(result) for result in results], indent=1))


if __name__ == "__main__":
    main()
