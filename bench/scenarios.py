"""What is compared between servers: one function a scenario, over HTTP, as a client sees it.

Each gets a site with a running server and returns figures by name; what a target is against, and
which way is better, stands in `FIGURES`. A scenario that a server cannot do raises.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from bench import tools
from bench.cache import (
    N_AGENTS,
    SHARED_TOKENS,
    SYSTEM_TOKENS,
    conversation,
    first_ms,
    second,
    words,
)
from bench.cache import ask as ask_all
from bench.client import Answer, Server, Stream, busy
from bench.engine import decode, prompt
from bench.peers import Peer

LATE_TOKENS = 1600


@dataclass(frozen=True, slots=True)
class Figure:
    """How to read a figure: its unit, which way is better, and the ratio to a peer to reach."""

    unit: str
    higher_is_better: bool = False
    target: float | None = None

    def met(self, ratio: float) -> bool:
        """Whether the ratio, ours to theirs, is what we want."""
        if self.target is None:
            return True
        return ratio >= self.target if self.higher_is_better else ratio <= self.target


FIGURES = {
    "start to a loaded model": Figure("s"),
    "memory, idle with model": Figure("MB", target=1.0),
    "solo decode": Figure("tok/s", higher_is_better=True, target=1.0),
    "solo decode beside a busy core": Figure("tok/s", higher_is_better=True),
    "8 streams": Figure("tok/s", higher_is_better=True, target=1.1),
    "32 streams": Figure("tok/s", higher_is_better=True),
    "8 agents, shared head, all first tokens": Figure("ms", target=0.28),
    "longest gap while a prompt arrives": Figure("ms", target=0.05),
    "that prompt's first token": Figure("ms", target=1.3),
    "same prompt again": Figure("ms"),
    "JSON schema": Figure("s", target=0.45),
    "required tool call": Figure("s", target=0.45),
    "restart, ask again": Figure("ms", target=0.016),
    "switch to another model and back": Figure("ms"),
    "memory after all this": Figure("MB"),
    "embeddings, 64 texts of 16 words": Figure("texts/s", higher_is_better=True),
    "embeddings, 64 texts of 100 words": Figure("texts/s", higher_is_better=True),
}


class Site:
    """A peer with its own folder, started, and started again when a scenario wants that."""

    def __init__(self, peer: Peer, model: Path, folder: Path, threads: int) -> None:
        self._peer = peer
        self.model = model
        self._folder = folder
        self._threads = threads
        self._running: AbstractContextManager[Server] | None = None
        self._server: Server | None = None

    @property
    def server(self) -> Server:
        """The running server."""
        assert self._server is not None, "start it first"
        return self._server

    def start(self) -> None:
        """Start the server; RuntimeError if it does not come up."""
        running = self._peer.running(self.model, self._folder, self._threads)
        self._server = running.__enter__()
        self._running = running

    def stop(self) -> None:
        """End the server, if it runs."""
        if self._running is not None:
            self._running.__exit__(None, None, None)
            self._running = self._server = None

    def other(self) -> Path:
        """A copy of the model under another name, in its folder.

        Raises:
            RuntimeError: the server cannot switch to it.
        """
        if not self._peer.switches:
            raise RuntimeError("it serves one model")
        return second(self.model)

    def memory_mb(self) -> float:
        """Proportional set size of the server and its children, in MB."""
        root = psutil.Process(self.server.process.pid)
        return float(
            sum(p.memory_full_info().pss for p in [root, *root.children(recursive=True)]) / 1e6
        )


def start(site: Site, seed: str) -> dict[str, float]:
    """Just started, and nothing asked but one word."""
    first_ms(site.server, conversation("hello", "who are you"))
    return {
        "start to a loaded model": site.server.ready_s,
        "memory, idle with model": site.memory_mb(),
    }


def overall(answers: Sequence[Answer]) -> float:
    """Tokens a second from the requests to the last token: fair to who serves in turn, too.

    Raises:
        RuntimeError: an answer has no text.
    """
    if not all(answer.times for answer in answers):
        raise RuntimeError("an answer has no text")
    sent = min(answer.sent for answer in answers)
    last = max(answer.times[-1] for answer in answers)
    return sum(answer.n_tokens for answer in answers) / (last - sent)


def streams(n_streams: int, n_tokens: int, name: str) -> Callable[[Site, str], dict[str, float]]:
    """Decode speed of streams that run at once."""

    def run(site: Site, seed: str) -> dict[str, float]:
        async def ask() -> float:
            async with httpx.AsyncClient(base_url=site.server.url, timeout=300) as client:
                prompts = [prompt(20, f"{name} {seed} {i}") for i in range(n_streams)]
                return overall(await decode(client, prompts, n_tokens))

        return {name: asyncio.run(ask())}

    return run


def beside_another_program(site: Site, seed: str) -> dict[str, float]:
    """Decode speed while another program keeps one of the cores busy."""
    with busy(1):
        (speed,) = streams(1, 24, "busy")(site, seed).values()
    return {"solo decode beside a busy core": speed}


def agents(site: Site, seed: str) -> dict[str, float]:
    """Requests that share a system prompt arrive in the same moment."""
    head = words(SHARED_TOKENS, f"{seed} head")
    bodies = [conversation(head, words(12, f"{seed} {i}")) for i in range(N_AGENTS)]
    answers = asyncio.run(ask_all(site.server, *bodies))
    began = min(answer.sent for answer in answers)
    last = max(answer.ended for answer in answers)
    return {"8 agents, shared head, all first tokens": 1000 * (last - began)}


def late(site: Site, seed: str) -> dict[str, float]:
    """A long prompt arrives while a stream decodes: both sides of the trade."""

    async def run() -> tuple[float, float]:
        async with httpx.AsyncClient(base_url=site.server.url, timeout=300) as client:
            stream = Stream(client, prompt(20, f"{seed} stream"), 2000)
            arriving, n = None, 0
            async for _ in stream.pieces():
                n += 1
                if n == 20:
                    late = Stream(client, prompt(LATE_TOKENS, f"{seed} late"), 1)
                    arriving = asyncio.create_task(late.run())
                if arriving and arriving.done():
                    break
            if arriving is None:
                raise RuntimeError("the stream ended before the long prompt was sent")
            answer = await arriving
            times = [at for at in stream.answer().times if at >= answer.sent]
            times = [answer.sent, *times]
            gaps = [b - a for a, b in zip(times, times[1:], strict=False)]
            return max(gaps), answer.ended - answer.sent

    gap, first = asyncio.run(run())
    return {
        "longest gap while a prompt arrives": 1000 * gap,
        "that prompt's first token": 1000 * first,
    }


def again(site: Site, seed: str) -> dict[str, float]:
    """The same prompt twice; the second time counts."""
    body = conversation(words(SYSTEM_TOKENS, f"{seed} again"), "what is oil")
    first_ms(site.server, body)
    return {"same prompt again": first_ms(site.server, body)}


def calls(name: str, body: dict[str, Any]) -> Callable[[Site, str], dict[str, float]]:
    """A whole answer under a constraint, checked; the grammar and the prompt are known by then."""

    def run(site: Site, seed: str) -> dict[str, float]:
        return {name: tools.times(site.server.url, body, 1)[0]}

    return run


def restart(site: Site, seed: str) -> dict[str, float]:
    """A long system prompt, the server stopped and started, another question."""
    system = words(SYSTEM_TOKENS, f"{seed} restart")
    first_ms(site.server, conversation(system, "what is oil"))
    site.stop()
    site.start()
    return {"restart, ask again": first_ms(site.server, conversation(system, "who are people"))}


def switch(site: Site, seed: str) -> dict[str, float]:
    """A conversation, another model, and back to it: the first token once it is loaded.

    Raises:
        RuntimeError: the server serves one model only, or there is no second file to switch to.
    """
    talk = conversation(words(SYSTEM_TOKENS, f"{seed} talk"), "what is water")
    first_ms(site.server, talk)
    for name in (site.other().name, site.model.name):
        body = {"model_name": name}
        httpx.post(f"{site.server.url}/setModel", json=body, timeout=120).raise_for_status()
    return {"switch to another model and back": first_ms(site.server, talk)}


def memory(site: Site, seed: str) -> dict[str, float]:
    """What all the scenarios before have left behind."""
    return {"memory after all this": site.memory_mb()}


SCENARIOS: list[Callable[[Site, str], dict[str, float]]] = [
    start,
    streams(1, 96, "solo decode"),
    beside_another_program,
    streams(8, 48, "8 streams"),
    streams(32, 24, "32 streams"),
    agents,
    late,
    again,
    calls("JSON schema", tools.SCHEMA),
    calls("required tool call", tools.CALL),
    restart,
    switch,
    memory,
]
