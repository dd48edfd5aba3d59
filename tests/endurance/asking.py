"""What the long runs ask: prompts with known answers, in plain and in streamed form."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests import tiny_models

STORY = "the way of water is long and all people call it by her name then "
PROMPTS = [f"{word} {STORY * n}" for n in (1, 6, 20) for word in ("hello", "look", "write", "many")]
"""Short ones and long ones; the long ones are worth keeping on disk."""
SEEDS = {"a": 1, "b": 7}
"""Two models and the seeds of their weights: by these, no token of the answers has a close second,
which rounding in a batch of another shape would put before it."""
MODELS = tuple(SEEDS)


def build_models(folder: Path) -> None:
    """Both of them, in a new folder."""
    folder.mkdir()
    for name, seed in SEEDS.items():
        tiny_models.build_attention(folder / f"{name}.gguf", seed)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a request ended: its text, or the code of its error, or what broke the connection."""

    text: str | None = None
    code: str | None = None
    lost: str | None = None


def body(prompt: str, choose: random.Random, **fields: Any) -> dict[str, Any]:
    """A request with one right answer. The seed changes nothing but makes it another request."""
    return {
        "messages": [
            {"role": "system", "content": STORY * 10},
            {"role": "user", "content": prompt},
        ],
        "temperature": 0,
        "max_tokens": 12,
        "seed": choose.randrange(1 << 31),
    } | fields


def ask(client: httpx.Client, request: dict[str, Any]) -> Outcome:
    """Send a chat request, streamed if it says so, and read it to its end."""
    try:
        if not request.get("stream"):
            response = client.post("/v1/chat/completions", json=request)
            if response.status_code != 200:
                return Outcome(code=response.json()["error"]["code"])
            return Outcome(text=response.json()["choices"][0]["message"]["content"])
        with client.stream("POST", "/v1/chat/completions", json=request) as response:
            if response.status_code != 200:
                return Outcome(code=json.loads(response.read())["error"]["code"])
            return _read_stream(response)
    except httpx.HTTPError as error:
        return Outcome(lost=type(error).__name__)


def _read_stream(response: httpx.Response) -> Outcome:
    text = ""
    for line in response.iter_lines():
        if line == "data: [DONE]":
            return Outcome(text=text)
        if line.startswith("data: "):
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                return Outcome(code=event["error"]["code"])
            for choice in event["choices"]:
                text += choice["delta"].get("content") or ""
    return Outcome(lost="a stream without an end")
