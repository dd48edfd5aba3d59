"""What has passed the edge of the server: counts and times for `/metrics`, per process.

Plain numbers, changed by the event loop's thread alone; reading them needs no lock.
"""

from __future__ import annotations

import secrets
import time
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field

from starlette.types import Scope

from llm_server.errors import ErrorInfo

TTFT_BOUNDS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
GAP_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Upper bounds of the buckets, in seconds; a Raspberry Pi is as much at home in them as a GPU."""


def new_request_id() -> str:
    """An id that no other request has."""
    return "req_" + secrets.token_hex(12)


class Histogram:
    """Counts of observed seconds by bucket, the last one without a bound, and their sum."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.sum += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts by upper bound, as Prometheus has them."""
        total, result = 0, []
        for bound, count in zip([*map(str, self.bounds), "+Inf"], self.counts, strict=True):
            total += count
            result.append((bound, float(total)))
        return result


@dataclass(slots=True)
class Traffic:
    """All requests of one server."""

    requests: Counter[tuple[str, int]] = field(default_factory=Counter)
    """By route (its template, never a path) and status; 499 for a client that left first."""
    refused: Counter[str] = field(default_factory=Counter)
    """Requests that came to no endpoint, by the code of the error they were answered with."""
    first_token: Histogram = field(default_factory=lambda: Histogram(TTFT_BOUNDS_S))
    between_tokens: Histogram = field(default_factory=lambda: Histogram(GAP_BOUNDS_S))

    def count(self, route: str, status: int) -> None:
        """A request has ended."""
        self.requests[route, status] += 1

    def refuse(self, info: ErrorInfo) -> None:
        """A request was answered with an error before it came to an endpoint."""
        self.refused[info.code or "error"] += 1


@dataclass(slots=True)
class Passage:
    """One request on its way through the server: what its log line and the histograms need."""

    traffic: Traffic
    request_id: str
    cache_salt: str = ""
    """Separates the prompt cache of one API key from those of others."""
    owner: str = ""
    """Tells API keys apart where there are several: they take turns."""
    stranger: bool = False
    """Keys are asked for, and this request, of a public path, has none."""
    started: float = field(default_factory=time.monotonic)
    model: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    _last: float | None = None

    def saw_tokens(self) -> None:
        """A piece of the answer has come from the model."""
        now = time.monotonic()
        if self._last is None:
            self.traffic.first_token.observe(now - self.started)
        else:
            self.traffic.between_tokens.observe(now - self._last)
        self._last = now


def passage_of(scope: Scope) -> Passage:
    """The passage of the request with this scope."""
    passage = scope["state"]["passage"]
    assert isinstance(passage, Passage)
    return passage
