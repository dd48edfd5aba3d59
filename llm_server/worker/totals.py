"""What all workers have done since the server began: numbers that only grow, for `/metrics`."""

from __future__ import annotations

import time
from collections import Counter, deque
from dataclasses import dataclass, field

import msgspec

from llm_server.errors import ErrorInfo
from llm_server.worker.messages import CacheStats, Cancelled, Finished
from llm_server.worker.suspects import Suspects


@dataclass(slots=True)
class Totals:
    """Sums over all requests and all workers. Milliseconds and tokens, as `Finished` has them."""

    requests: Counter[str] = field(default_factory=Counter)
    """By how they ended: a finish reason, `cancelled`, or the code of the error that was answered,
    also where it never came to a worker. Each of several choices counts."""
    prompt_tokens: int = 0
    cells_tokens: int = 0
    disk_tokens: int = 0
    completion_tokens: int = 0
    queue_ms: float = 0.0
    cache_ms: float = 0.0
    prompt_ms: float = 0.0
    predicted_ms: float = 0.0
    cache: CacheStats = field(default_factory=CacheStats)
    suspects: Suspects = field(default_factory=Suspects)
    """The requests they died of."""
    worker_crashes: int = 0
    """Workers that ended though nobody had told them to."""
    errors: deque[tuple[float, ErrorInfo]] = field(default_factory=lambda: deque(maxlen=50))
    """The last errors that were answered, with the time of each in seconds since the epoch."""

    def add_error(self, info: ErrorInfo) -> None:
        """A request was answered with an error."""
        self.requests[info.code or "error"] += 1
        self.errors.append((time.time(), info))

    def add(self, event: Finished) -> None:
        """A request has ended well."""
        self.requests[event.reason] += 1
        self.add_work(event)

    def add_work(self, event: Finished | Cancelled) -> None:
        """What a request took, whether anybody has seen its end or not."""
        usage, timings = event.usage, event.timings
        self.prompt_tokens += usage.prompt_tokens
        self.cells_tokens += usage.cached_tokens - usage.disk_tokens
        self.disk_tokens += usage.disk_tokens
        self.completion_tokens += usage.completion_tokens
        self.queue_ms += timings.queue_ms
        self.cache_ms += timings.cache_ms
        self.prompt_ms += timings.prompt_ms
        self.predicted_ms += timings.predicted_ms

    def add_cache(self, before: CacheStats, now: CacheStats) -> None:
        """A worker's cache counters have grown from `before` to `now`."""
        grown = {
            name: getattr(self.cache, name) + getattr(now, name) - getattr(before, name)
            for name in CacheStats.__struct_fields__
        }
        self.cache = msgspec.structs.replace(self.cache, **grown)
