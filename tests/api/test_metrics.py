"""`GET /metrics`: what was done shows up, in a form that Prometheus's own parser reads."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from llm_server.errors import ErrorInfo
from llm_server.worker.messages import CacheStats, Failed, Finished, Timings, Usage
from llm_server.worker.totals import Totals
from tests.fake_live import Live, chat_body, until


def scrape(live: Live) -> dict[tuple[str, ...], float]:
    text = live.client.get("/metrics").text
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_requests_and_tokens_are_counted(live: Live) -> None:
    before = scrape(live)
    assert live.post("/chat/completions", chat_body("one two three")).status_code == 200
    after = scrape(live)

    def grown(*name: str) -> float:
        return after[name] - before.get(name, 0.0)

    assert grown("llm_requests_total", "stop") == 1
    assert grown("llm_prompt_tokens_total", "computed") == 1
    assert grown("llm_completion_tokens_total") == 3
    assert after["llm_ready",] == 1
    assert after["llm_requests_running",] == 0


def test_requests_that_clients_leave_are_counted(live: Live) -> None:
    before = scrape(live).get(("llm_requests_total", "cancelled"), 0)
    with live.client.stream("POST", "/chat/completions", json=chat_body("hang", stream=True)) as r:
        next(r.iter_raw())
    until(lambda: scrape(live).get(("llm_requests_total", "cancelled"), 0) == before + 1)


def test_totals_add_up_over_requests_and_workers() -> None:
    totals = Totals()
    usage = Usage(prompt_tokens=10, completion_tokens=2, cached_tokens=7, disk_tokens=4)
    totals.add(Finished(1, "length", usage, Timings(1.0, 2.0, 3.0, 0.5)))
    totals.add(Failed(2, ErrorInfo("x")))
    assert (totals.prompt_tokens, totals.cells_tokens, totals.disk_tokens) == (10, 3, 4)
    assert totals.requests == {"length": 1, "internal_error": 1}
    totals.add_cache(CacheStats(), CacheStats(hits=3, read_bytes=10))
    totals.add_cache(CacheStats(hits=3, read_bytes=10), CacheStats(hits=4, read_bytes=15))
    totals.add_cache(CacheStats(), CacheStats(hits=1))
    assert (totals.cache.hits, totals.cache.read_bytes) == (5, 15)
