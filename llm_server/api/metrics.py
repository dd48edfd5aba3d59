"""`GET /metrics` for Prometheus: what the server has done and what it is doing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

import psutil
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from llm_server.api.context import context_of
from llm_server.api.traffic import Traffic
from llm_server.models.pool import Pool

router = APIRouter()

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


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """Counters and gauges in Prometheus's text format."""
    context = context_of(request)
    body = await asyncio.to_thread(_text, context.pool, context.traffic)
    return Response(body, media_type="text/plain; version=0.0.4; charset=utf-8")


def _text(pool: Pool, traffic: Traffic) -> bytes:
    # Imported at the first scrape: a start should not wait for it.
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        Metric,
    )

    class Collector:
        """The pool's numbers, in Prometheus's families."""

        def collect(self) -> Iterator[Metric]:
            totals, status = pool.totals, pool.status()
            ended = CounterMetricFamily(
                "llm_requests", "Requests by how they ended", labels=["outcome"]
            )
            for outcome, count in sorted((totals.requests + traffic.refused).items()):
                ended.add_metric([outcome], count)
            yield ended
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
            seconds = CounterMetricFamily(
                "llm_stage_seconds", "Time requests spent, by stage", labels=["stage"]
            )
            for stage in ("queue", "cache", "prompt", "predicted"):
                seconds.add_metric([stage], getattr(totals, f"{stage}_ms") / 1000)
            yield seconds
            for name, text in _CACHE_HELP.items():
                value = getattr(totals.cache, name)
                yield CounterMetricFamily(f"llm_cache_{name}", text, value=value)
            yield GaugeMetricFamily("llm_requests_running", "Requests computed", status.running)
            yield GaugeMetricFamily("llm_requests_waiting", "Requests queued", status.waiting)
            ready = float(status.state == "ready")
            yield GaugeMetricFamily("llm_ready", "Whether a model is loaded", ready)
            yield from _of_traffic(traffic)
            yield from _of_processes()

    def _of_traffic(traffic: Traffic) -> Iterator[Metric]:
        answers = CounterMetricFamily(
            "llm_http_responses",
            "HTTP responses by route and status, 499 where the client left first",
            labels=["route", "status"],
        )
        for (route, status), count in sorted(traffic.requests.items()):
            answers.add_metric([route, str(status)], count)
        yield answers
        for name, text, histogram in (
            ("llm_first_token_seconds", "From a request to the first of its answer", "first_token"),
            ("llm_inter_token_seconds", "Between two pieces of an answer", "between_tokens"),
        ):
            seen = getattr(traffic, histogram)
            yield HistogramMetricFamily(name, text, buckets=seen.buckets(), sum_value=seen.sum)

    def _of_processes() -> Iterator[Metric]:
        memory = GaugeMetricFamily(
            "llm_memory_bytes", "Resident memory by process", labels=["process"]
        )
        server = psutil.Process()
        workers = []
        for child in server.children():
            with contextlib.suppress(psutil.Error):
                workers.append(child.memory_info().rss)
        memory.add_metric(["server"], server.memory_info().rss)
        memory.add_metric(["workers"], sum(workers))
        yield memory
        yield GaugeMetricFamily("llm_workers", "Worker processes", len(workers))

    registry = CollectorRegistry()
    registry.register(Collector())
    return bytes(generate_latest(registry))
