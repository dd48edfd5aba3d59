"""Tool calls and schemas against llama.cpp's own server, in one run on the same model.

Give its binary with `--llama-server PATH` (built from the sources inside llama-cpp-python's source
distribution, target `llama-server`). Without it only our own figures are shown. Nothing is
asserted: read the table. `python -m bench.tools --llama-server PATH --json build/tools.json`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from bench import synthetic
from bench.client import free_port, running, running_command

TARGET_CALL = 0.45
TARGET_PLAIN = 0.98

PARAMETERS = {
    "type": "object",
    "properties": {
        "measurement_unit_preference": {"enum": ["metric_units_celsius", "imperial_fahrenheit"]},
        "forecast_duration_category": {"enum": ["current_conditions_only", "next_seven_days"]},
        "notification_delivery_channel": {"enum": ["push_notification", "electronic_mail"]},
    },
    "required": [
        "measurement_unit_preference",
        "forecast_duration_category",
        "notification_delivery_channel",
    ],
    "additionalProperties": False,
}
"""Long fixed keys and enums in three fields: most of the answer leaves no choice."""

TOOL = {
    "type": "function",
    "function": {
        "name": "configure_weather_notifications",
        "description": "Configure weather notifications",
        "parameters": PARAMETERS,
    },
}
MESSAGES = [{"role": "user", "content": "what is the weather like"}]
CALL: dict[str, Any] = {
    "messages": MESSAGES,
    "tools": [TOOL],
    "tool_choice": "required",
    "parallel_tool_calls": False,
    "max_tokens": 300,
    "temperature": 0.8,
}
SCHEMA: dict[str, Any] = {
    "messages": MESSAGES,
    "response_format": {
        "type": "json_schema",
        "json_schema": {"name": "settings", "schema": PARAMETERS, "strict": True},
    },
    "max_tokens": 300,
    "temperature": 0.8,
}
MARKER = "<tool_call>"
"""What begins a call. llama-server lets any text come before a required call, and random weights
would write it for ever: a bias makes both servers' answers begin with the marker."""
PLAIN: dict[str, Any] = {"messages": MESSAGES, "max_tokens": 64, "temperature": 0}


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: the figures of each round, ours and theirs."""

    name: str
    ours: list[float]
    others: list[float]
    target: str

    @property
    def ratio(self) -> float | None:
        """The median over the rounds, so that what slows a machine for a while hits both sides."""
        if not self.others:
            return None
        return statistics.median(a / b for a, b in zip(self.ours, self.others, strict=True))


@contextmanager
def llama_server(binary: Path, model: Path, threads: int) -> Iterator[str]:
    """llama.cpp's server on a free port, with its defaults; its address."""
    port = free_port()
    command = [str(binary), "-m", str(model), "--port", str(port), "-t", str(threads)]
    with running_command([*command, "-c", "8192", "--jinja"], port) as server:
        yield server.url


def seconds(url: str, body: dict[str, Any], seed: int) -> float:
    """Time of one whole answer; it must be valid.

    Raises:
        RuntimeError: the answer is not what was demanded.
    """
    start = time.perf_counter()
    response = httpx.post(f"{url}/v1/chat/completions", json={**body, "seed": seed}, timeout=300)
    elapsed = time.perf_counter() - start
    message = response.raise_for_status().json()["choices"][0]["message"]
    if "tool_choice" in body:
        if not message.get("tool_calls"):
            raise RuntimeError(f"no call: {message}")
        arguments = message["tool_calls"][0]["function"]["arguments"]
    elif "response_format" in body:
        arguments = message["content"]
    else:
        return elapsed
    if json.loads(arguments).keys() != PARAMETERS["properties"].keys():  # type: ignore[attr-defined]
        raise RuntimeError(f"not by the schema: {arguments}")
    return elapsed


def answer(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """One whole answer."""
    response = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=300)
    value: dict[str, Any] = response.raise_for_status().json()
    return value


def tokens_per_second(url: str, body: dict[str, Any]) -> float:
    """Decode speed of one answer, by the server's own timings."""
    return float(answer(url, body)["timings"]["predicted_per_second"])


def without_tools(url: str) -> dict[str, Any]:
    """Plain content behind a prompt as long as the one with tools: attention costs the same."""
    longer = answer(url, {**PLAIN, "tools": [TOOL], "max_tokens": 1})["usage"]["prompt_tokens"]
    plain = answer(url, {**PLAIN, "max_tokens": 1})["usage"]["prompt_tokens"]
    system = {"role": "system", "content": " ".join(["word"] * (longer - plain - 5))}
    return {**PLAIN, "messages": [system, *MESSAGES]}


def with_bias(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """A request whose answer begins with a call wherever the model is free to begin one."""
    tokens = httpx.post(f"{url}/tokenize", json={"content": MARKER}).raise_for_status().json()
    (marker,) = tokens["tokens"]
    return {**body, "logit_bias": {str(marker): 100}}


def times(url: str, body: dict[str, Any], rounds: int) -> list[float]:
    """Seconds of each round, after one that compiles the grammar and caches the prompt."""
    return [seconds(url, body, seed) for seed in range(rounds + 1)][1:]


def measure(ours: str, others: str | None, rounds: int) -> list[Row]:
    """All cases. A peer that cannot do one has no figures there, and its answer is shown."""
    rows = []
    for name, body in (("required call", with_bias(ours, CALL)), ("JSON schema", SCHEMA)):
        mine = times(ours, body, rounds)
        theirs: list[float] = []
        if others is not None:
            try:
                theirs = times(others, body, rounds)
            except (RuntimeError, httpx.HTTPError, ValueError) as error:
                name += f" (llama-server: {str(error)[:80]})"
        rows.append(Row(f"{name}, s: ours, llama-server", mine, theirs, f"<= {TARGET_CALL}"))
    bodies = [{**PLAIN, "tools": [TOOL]}, without_tools(ours)]
    speeds: list[list[float]] = [[], []]
    for i in range(4 * rounds):
        for side in (0, 1) if i % 2 else (1, 0):
            speeds[side].append(tokens_per_second(ours, bodies[side]))
    name = "plain content, tok/s: ours with tools, without"
    return [*rows, Row(name, speeds[0], speeds[1], f">= {TARGET_PLAIN}")]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Compare tool calls with llama-server.")
    parser.add_argument("--llama-server", type=Path, help="llama.cpp's server binary")
    parser.add_argument("--size", choices=["0.5b", "1.5b"], default="0.5b")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    args = parser.parse_args()
    model = synthetic.build(args.size)
    # No guesses: random weights repeat themselves, in one of two plain answers more than the other.
    options = ("--threads", str(args.threads), "--n-ctx", "8192", "--draft-max", "0")
    with running(model, *options) as server:
        if args.llama_server is None:
            rows = measure(server.url, None, args.rounds)
        else:
            with llama_server(args.llama_server, model, args.threads) as other:
                rows = measure(server.url, other, args.rounds)
    table = Table("case", "medians", "ratio", "target")
    for row in rows:
        medians = [statistics.median(side) for side in (row.ours, row.others) if side]
        shown = ", ".join(f"{median:.3g}" for median in medians)
        table.add_row(row.name, shown, "" if row.ratio is None else f"{row.ratio:.3f}", row.target)
    Console().print(table)
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))


if __name__ == "__main__":
    main()
