"""What is going on and what went on lately: running answers, and figures of the last minutes.

The API process writes it as events pass through. For display only; it decides nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import msgspec
import psutil
from starlette.types import Scope

from llm_server.api.traffic import Passage, passage_of
from llm_server.models.backend import Backend
from llm_server.worker.messages import (
    Content,
    Finished,
    Progress,
    Reasoning,
    RequestEvent,
    ToolCall,
)

INTERVAL_S = 5.0
KEPT = 180
"""Samples: 15 minutes of them."""


class Sample(msgspec.Struct, frozen=True):
    """One interval. `time` is its end, in seconds since the epoch.

    `running` and `waiting` are of that moment, as are the resident bytes of the server and of its
    workers. Everything else is of the interval: `first_token_ms` a mean, None without a first
    token; prompt tokens by where they came from.
    """

    time: float
    running: int
    waiting: int
    tokens_per_second: float
    first_token_ms: float | None
    cells_tokens: int
    disk_tokens: int
    computed_tokens: int
    server_bytes: int
    worker_bytes: int


class Stoppable(Protocol):
    """What answers a request: it can say how far it is, and be told to stop."""

    def describe(self) -> str: ...

    def cancel(self) -> None: ...


@dataclass(slots=True)
class Entry:
    """One request that is being answered. Times are of the monotonic clock."""

    passage: Passage
    path: str
    answer: Stoppable
    journal: Journal
    first: float | None = None
    """When the first of the answer came."""
    pieces: int = 0
    """Pieces of answer so far: about one for each token."""
    prompt_tokens: int = 0
    cached_tokens: int = 0

    @property
    def id(self) -> str:
        """That of its `x-request-id`."""
        return self.passage.request_id

    def note(self, events: Iterable[RequestEvent]) -> None:
        """Events of this request have passed."""
        for event in events:
            if isinstance(event, Content | Reasoning | ToolCall):
                if self.first is None:
                    self.first = time.monotonic()
                    self.journal.first_tokens.append(self.first - self.passage.started)
                self.pieces += 1
                self.journal.n_generated += 1
            elif isinstance(event, Progress):
                self.prompt_tokens, self.cached_tokens = event.n_prompt, event.n_cached
            elif isinstance(event, Finished):
                # Characters and markers that were held back made fewer pieces than tokens.
                self.journal.n_generated += max(0, event.usage.completion_tokens - self.pieces)


class Journal:
    """One per app. All methods belong to the event loop's thread."""

    def __init__(self) -> None:
        self.running: dict[str, Entry] = {}
        self.samples: deque[Sample] = deque(maxlen=KEPT)
        self.first_tokens: list[float] = []
        """Seconds to the first token, of those that came since the last sample."""
        self.n_generated = 0
        self._last = _Sums(time.monotonic())

    @contextlib.contextmanager
    def entered(self, entry: Entry) -> Iterator[None]:
        """The request is being answered inside the block."""
        self.running[entry.id] = entry
        try:
            yield
        finally:
            del self.running[entry.id]

    async def watch(self, pool: Backend) -> None:
        """Take samples until cancelled."""
        while True:
            self.samples.append(self.sample(pool))
            await asyncio.sleep(INTERVAL_S)

    def sample(self, pool: Backend) -> Sample:
        """The interval that ends now; another begins."""
        server, workers = resident_bytes(pool.pids)
        now, before = _Sums.of(self, pool), self._last
        self._last = now
        first, self.first_tokens = self.first_tokens, []
        status = pool.status()
        reused = now.cells + now.disk - before.cells - before.disk
        return Sample(
            time=round(time.time(), 1),
            running=status.running,
            waiting=status.waiting,
            tokens_per_second=round(
                (now.generated - before.generated) / max(now.time - before.time, 0.001), 2
            ),
            first_token_ms=round(sum(first) / len(first) * 1000, 1) if first else None,
            cells_tokens=now.cells - before.cells,
            disk_tokens=now.disk - before.disk,
            computed_tokens=now.prompt - before.prompt - reused,
            server_bytes=server,
            worker_bytes=workers,
        )


def entry_of(scope: Scope, answer: Stoppable) -> Entry:
    """What the journal of the app will say of a request."""
    journal = scope["app"].state.context.journal
    assert isinstance(journal, Journal)
    return Entry(passage_of(scope), scope["path"], answer, journal)


@dataclass(frozen=True, slots=True)
class _Sums:
    """The sums that samples are differences of."""

    time: float
    generated: int = 0
    prompt: int = 0
    cells: int = 0
    disk: int = 0

    @classmethod
    def of(cls, journal: Journal, pool: Backend) -> _Sums:
        totals = pool.totals
        return cls(
            time.monotonic(),
            journal.n_generated,
            totals.prompt_tokens,
            totals.cells_tokens,
            totals.disk_tokens,
        )


def resident_bytes(workers: Iterable[int]) -> tuple[int, int]:
    """Memory of this process, and of the workers with these process ids, as far as it can be
    read."""
    return _resident(os.getpid()), sum(map(_resident, workers))


def _resident(pid: int) -> int:
    """Memory of a process; 0 if it is gone, or if no more files can be opened just now."""
    try:
        size: int = psutil.Process(pid).memory_info().rss
    except (psutil.Error, OSError):
        return 0
    return size
