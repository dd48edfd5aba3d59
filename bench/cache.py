"""What the prompt cache saves: time to the first token, with everything else equal.

Each case starts servers as users do and asks over HTTP. Figures are medians over the rounds;
nothing is asserted: read the table. `python -m bench.cache --json build/cache.json`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import statistics
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec
from rich.console import Console
from rich.table import Table

from bench import synthetic
from bench.client import Answer, Server, Stream, running
from llm_server.llama import log
from llm_server.llama.context import Context
from llm_server.llama.model import Model
from llm_server.worker.config import LoadConfig
from tests.tiny_models import WORDS

SYSTEM_TOKENS = 1400
SHARED_TOKENS = 560
N_AGENTS = 8
COLD_TOKENS = 500


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: a figure per round, in the unit of the name."""

    name: str
    rounds: list[float]
    target: str

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)


def words(n: int, seed: str) -> str:
    """Words in random order, about a token each."""
    return " ".join(random.Random(seed).choices(WORDS, k=n))


def conversation(system: str, question: str) -> dict[str, Any]:
    """The messages and tools of an assistant."""
    tool = {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
    messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    return {"messages": messages, "tools": [tool]}


async def ask(server: Server, *bodies: dict[str, Any]) -> list[Answer]:
    """All of `bodies` at the same moment; their answers of one token.

    The text of a single token of a random model may be half a character, so the end of the
    answer, which follows it at once, is what counts.
    """
    async with httpx.AsyncClient(base_url=server.url, timeout=300) as client:
        streams = [Stream(client, "", 1, **body) for body in bodies]
        return list(await asyncio.gather(*(stream.run() for stream in streams)))


def first_ms(server: Server, body: dict[str, Any]) -> float:
    """Milliseconds to the first token of one request."""
    (answer,) = asyncio.run(ask(server, body))
    return 1000 * (answer.ended - answer.sent)


def second(model: Path) -> Path:
    """A copy of the model under another name, beside it; made if it is not there."""
    other = model.with_name("other-" + model.name)
    if not other.exists():
        shutil.copy(model, other)
    return other


class Cases:
    """All measurements of one round, on folders of its own."""

    def __init__(self, model: Path, other: Path, options: list[str], seed: str) -> None:
        self._model = model
        self._other = other
        self._options = options
        self._seed = seed
        self.figures: dict[str, float] = {}

    def run(self) -> None:
        """Measure everything once."""
        with tempfile.TemporaryDirectory() as folder:
            self._restart(folder)
            self._switch(folder)
        with tempfile.TemporaryDirectory() as folder:
            self._agents(folder)
        with tempfile.TemporaryDirectory() as folder:
            self._cold(folder)

    def _serve(self, folder: str, *more: str) -> Any:
        return running(self._model, *self._options, "--cache-dir", folder, *more)

    def _restart(self, folder: str) -> None:
        system = words(SYSTEM_TOKENS, f"{self._seed} system")
        with self._serve(folder) as server:
            self.figures["cold"] = first_ms(server, conversation(system, "what is oil"))
            self.figures["again"] = first_ms(server, conversation(system, "what is oil"))
        with self._serve(folder) as server:
            self.figures["restart"] = first_ms(server, conversation(system, "who are people"))

    def _switch(self, folder: str) -> None:
        talk = conversation(words(SYSTEM_TOKENS, f"{self._seed} talk"), "what is water")
        with self._serve(folder) as server:
            first_ms(server, talk)
            for name in (self._other.name, self._model.name):
                switched = httpx.post(
                    f"{server.url}/setModel", json={"model_name": name}, timeout=120
                )
                switched.raise_for_status()
            self.figures["switch"] = first_ms(server, talk)

    def _agents(self, folder: str) -> None:
        head = words(SHARED_TOKENS, f"{self._seed} head")
        bodies = [conversation(head, words(12, f"{self._seed} {i}")) for i in range(N_AGENTS)]
        with self._serve(folder) as server:
            answers = asyncio.run(ask(server, *bodies))
        began = min(answer.sent for answer in answers)
        self.figures["agents"] = 1000 * (max(answer.ended for answer in answers) - began)

    def _cold(self, folder: str) -> None:
        """Two servers at once, one with and one without a disk cache, in turns."""
        with self._serve(folder) as on, self._serve(folder, "--cache-size", "0") as off:
            ratios = []
            for i in range(4):
                body = conversation(words(COLD_TOKENS, f"{self._seed} cold {i}"), "what is it")
                servers = [on, off] if i % 2 else [off, on]
                times = {id(server): first_ms(server, body) for server in servers}
                ratios.append(times[id(on)] / times[id(off)])
        self.figures["cold_ratio"] = statistics.median(ratios)


def bytes_per_token(model: Path, kv_type: str) -> float:
    """Bytes a token's KV memory takes when saved, for a KV type."""
    loaded = Model(model)
    config = LoadConfig(n_threads=2)
    context = Context(
        loaded, msgspec.structs.replace(config, type_k=kv_type, type_v=kv_type), 512, 1
    )
    n = 256
    context.batch.add(0, 0, list(range(1000, 1000 + n)), logits=False)
    context.decode()
    size = context.size(0)
    context.close()
    loaded.close()
    return size / n


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure what the prompt cache saves.")
    parser.add_argument("--size", choices=["0.5b", "1.5b"], default="0.5b")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    args = parser.parse_args()
    log.install()
    model = synthetic.build(args.size)
    other = second(model)
    options = ["--threads", str(args.threads), "--n-ctx", "8192"]
    rounds = []
    for i in range(args.rounds):
        cases = Cases(model, other, options, f"round {i}")
        cases.run()
        rounds.append(cases.figures)
    rows = table_rows(rounds, model)
    show(rows)
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))


def table_rows(rounds: list[dict[str, float]], model: Path) -> list[Row]:
    """The figures of all rounds, by case."""

    def pick(name: str) -> list[float]:
        return [figures[name] for figures in rounds]

    return [
        Row(f"{SYSTEM_TOKENS} tokens of system and tools, cold, ms", pick("cold"), ""),
        Row("the same prompt again, ms", pick("again"), "<= 40"),
        Row("server restarted, another question, ms", pick("restart"), "<= 100"),
        Row("switched to another model and back, ms", pick("switch"), "<= 100"),
        Row(
            f"{N_AGENTS} agents at once, {SHARED_TOKENS} shared tokens, all first tokens, ms",
            pick("agents"),
            "<= 4000",
        ),
        Row("first token of a cold prompt, cache on / off", pick("cold_ratio"), "0.97 to 1.03"),
        Row("bytes per token on disk, KV f16", [bytes_per_token(model, "f16")], ""),
        Row("bytes per token on disk, KV q8_0", [bytes_per_token(model, "q8_0")], ""),
    ]


def show(rows: list[Row]) -> None:
    """Print the table."""
    table = Table("case", "median", "rounds", "target")
    for row in rows:
        shown = " ".join(f"{value:.4g}" for value in row.rounds)
        table.add_row(row.name, f"{row.median:.4g}", shown, row.target)
    Console().print(table)


if __name__ == "__main__":
    main()
