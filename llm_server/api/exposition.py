"""The server's numbers in Prometheus's families: what `/metrics` says, apart from when it is asked.

Imported at the first scrape, for a start should not wait for Prometheus's library.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import psutil
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from llm_server.api.traffic import Traffic
from llm_server.models.backend import Backend
from llm_server.models.status import Status
from llm_server.worker.totals import Totals

_CACHE_HELP = {
    "hits": "Chunks read from disk and verified",
    "misses": "Chunks that were to be read and could not be used",
    "read_bytes": "Bytes of chunks read",
    "written": "Chunks written",
    "written_bytes": "Bytes of chunks written",
    "dropped": "Chunks not written: queue full, no room, or a fault",
    "evicted": "Chunks deleted to keep the budget",
    "corrupt": "Chunks that failed their verification",
    "errors": "Failed operations on the cache folder",
}


def text(pool: Backend, traffic: Traffic) -> bytes:
    """All families in Prometheus's text format."""
    registry = CollectorRegistry()
    registry.register(_Numbers(pool, traffic))
    return bytes(generate_latest(registry))


class _Numbers(Collector):
    """What the pool, the workers and the edge have counted."""

    def __init__(self, pool: Backend, traffic: Traffic) -> None:
        self._pool = pool
        self._traffic = traffic

    def collect(self) -> Iterator[Metric]:
        """Every family, as it is now."""
        yield from _of_requests(self._pool.totals, self._traffic)
        yield from _of_tokens(self._pool.totals)
        for name, help_text in _CACHE_HELP.items():
            value = getattr(self._pool.totals.cache, name)
            yield CounterMetricFamily(f"llm_cache_{name}", help_text, value=value)
        yield from _of_state(self._pool.status())
        yield from _of_models(self._pool)
        yield from _of_traffic(self._traffic)
        yield from _of_processes()


def _of_requests(totals: Totals, traffic: Traffic) -> Iterator[Metric]:
    ended = CounterMetricFamily("llm_requests", "Requests by how they ended", labels=["outcome"])
    for outcome, count in sorted((totals.requests + traffic.refused).items()):
        ended.add_metric([outcome], count)
    yield ended
    seconds = CounterMetricFamily(
        "llm_stage_seconds", "Time requests spent, by stage", labels=["stage"]
    )
    for stage in ("queue", "cache", "prompt", "predicted"):
        seconds.add_metric([stage], getattr(totals, f"{stage}_ms") / 1000)
    yield seconds


def _of_tokens(totals: Totals) -> Iterator[Metric]:
    prompt = CounterMetricFamily(
        "llm_prompt_tokens", "Prompt tokens by where they came from", labels=["source"]
    )
    reused = totals.cells_tokens + totals.disk_tokens
    prompt.add_metric(["cells"], totals.cells_tokens)
    prompt.add_metric(["disk"], totals.disk_tokens)
    prompt.add_metric(["computed"], totals.prompt_tokens - reused)
    yield prompt
    yield CounterMetricFamily(
        "llm_completion_tokens", "Tokens generated", value=totals.completion_tokens
    )


def _of_state(status: Status) -> Iterator[Metric]:
    yield GaugeMetricFamily("llm_requests_running", "Requests computed", status.running)
    yield GaugeMetricFamily("llm_requests_waiting", "Requests queued", status.waiting)
    ready = float(status.state == "ready")
    yield GaugeMetricFamily("llm_ready", "Whether a model is loaded", ready)


def _of_models(pool: Backend) -> Iterator[Metric]:
    running, waiting, memory = (
        GaugeMetricFamily(f"llm_model_{name}", help_text, labels=["model"])
        for name, help_text in (
            ("requests_running", "Requests computed, by loaded model"),
            ("requests_waiting", "Requests queued, by the model they wait for"),
            ("memory_bytes", "What a loaded model takes of the budget for models"),
        )
    )
    cells = GaugeMetricFamily(
        "llm_model_cells",
        "Cells of the context: of running requests, of cached prompts alone, and free",
        labels=["model", "use"],
    )
    for loaded in pool.loaded:
        name, used = loaded.model.name, loaded.cells
        running.add_metric([name], loaded.n_running)
        memory.add_metric([name], loaded.memory)
        if used is not None:
            cells.add_metric([name, "running"], used.running)
            cells.add_metric([name, "idle"], used.idle)
            free = loaded.worker.loaded.n_ctx - used.running - used.idle
            cells.add_metric([name, "free"], free)
    for name, count in sorted(pool.waiting.items()):
        waiting.add_metric([name], count)
    yield from (running, waiting, cells, memory)


def _of_traffic(traffic: Traffic) -> Iterator[Metric]:
    answers = CounterMetricFamily(
        "llm_http_responses",
        "HTTP responses by route and status, 499 where the client left first",
        labels=["route", "status"],
    )
    for (route, status), count in sorted(traffic.requests.items()):
        answers.add_metric([route, str(status)], count)
    yield answers
    for name, help_text, seen in (
        ("llm_first_token", "From a request to the first of its answer", traffic.first_token),
        ("llm_inter_token", "Between two pieces of an answer", traffic.between_tokens),
    ):
        yield HistogramMetricFamily(
            f"{name}_seconds", help_text, buckets=seen.buckets(), sum_value=seen.sum
        )


def _of_processes() -> Iterator[Metric]:
    memory = GaugeMetricFamily("llm_memory_bytes", "Resident memory by process", labels=["process"])
    server = psutil.Process()
    workers = []
    for child in server.children():
        with contextlib.suppress(psutil.Error):  # it has just ended
            workers.append(child.memory_info().rss)
    memory.add_metric(["server"], server.memory_info().rss)
    memory.add_metric(["workers"], sum(workers))
    yield memory
    yield GaugeMetricFamily("llm_workers", "Worker processes", len(workers))
