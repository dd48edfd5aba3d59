from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from llm_server.errors import ErrorInfo
from llm_server.worker.messages import CacheStats, Finished, Timings, Usage
from llm_server.worker.totals import Totals
from tests.fake_live import Live, add_models, chat_body, one_machine, until
from tests.raw import talk


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
    until(lambda: scrape(live)["llm_requests_running",] == 0)


@pytest.mark.parametrize(
    ("path", "body", "outcome", "status"),
    [
        ("/chat/completions", {"messages": "x"}, "invalid_type", 400),
        ("/v1/completions", {"prompt": "x", "grammar": "x"}, "unsupported_parameter", 400),
        ("/chat/completions", chat_body("x", model="no-such"), "model_not_found", 404),
        ("/chat/completions", chat_body("fail:as_asked"), "as_asked", 400),
        ("/chat/completions", chat_body("fail:as_asked", stream=True), "as_asked", 400),
        ("/chat/completions", chat_body("late-fail", stream=True), "internal_error", 200),
        ("/nope", {}, None, 404),
    ],
)
def test_refused_and_failed_requests_are_counted_once(
    live: Live, path: str, body: Any, outcome: str | None, status: int
) -> None:
    before = scrape(live)
    assert live.post(path, body).status_code == status
    # A response counts when it is over, which may be after its client has it.
    responses = ("llm_http_responses_total", "(none)" if path == "/nope" else path, str(status))
    until(lambda: scrape(live).get(responses) == before.get(responses, 0) + 1)
    grown = {name: value - before.get(name, 0) for name, value in scrape(live).items()}
    outcomes = {name[1]: n for name, n in grown.items() if name[0] == "llm_requests_total" and n}
    assert outcomes == ({outcome: 1} if outcome else {})


@one_machine("HAProxy reads HTTP, and refuses what is none")
def test_what_the_edge_refuses_is_counted_once(live: Live) -> None:
    before = scrape(live)
    assert live.client.get("/", headers={"host": "evil.com"}).status_code == 403
    url = str(live.client.base_url).rstrip("/")
    declared = b"POST /setModel HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
    assert talk(url, declared % (1 << 30)).statuses == [413]
    assert talk(url, b"GET / HTTP/1.1\n\n").statuses == [400]
    grown = {name: value - before.get(name, 0) for name, value in scrape(live).items()}
    outcomes = {name[1]: n for name, n in grown.items() if name[0] == "llm_requests_total" and n}
    assert outcomes == {"host_not_allowed": 1, "request_too_large": 1, "invalid_http": 1}


def test_requests_that_clients_leave_are_counted(live: Live) -> None:
    before = scrape(live).get(("llm_requests_total", "cancelled"), 0)
    with live.client.stream("POST", "/chat/completions", json=chat_body("hang", stream=True)) as r:
        next(r.iter_raw())
    until(lambda: scrape(live).get(("llm_requests_total", "cancelled"), 0) == before + 1)


@one_machine("a new file is served after the next deployment")
def test_every_loaded_model_has_its_gauges(live: Live, tmp_path: Path) -> None:
    add_models(live.models, "gate-x.gguf")
    live.post("/setModel", {"model_name": "b.gguf"})
    live.chat("one two three", model="a.gguf")
    waiting = threading.Thread(target=live.chat, args=("hello",), kwargs={"model": "gate-x.gguf"})
    waiting.start()
    until(lambda: ("llm_model_requests_waiting", "gate-x.gguf") in scrape(live))
    with live.client.stream(
        "POST",
        "/chat/completions",
        json=chat_body(f"gate:{tmp_path / 'x'}", model="a.gguf", stream=True),
    ) as answer:
        pieces = answer.iter_raw()
        next(pieces)
        seen = scrape(live)
    (live.models / "gate-x.gguf.open").touch()
    waiting.join()
    for model in ("b.gguf", "gate-x.gguf"):
        live.post("/models/unload", {"model": model})
    assert seen["llm_model_requests_running", "a.gguf"] == 1
    assert seen["llm_model_requests_running", "b.gguf"] == 0
    assert seen["llm_model_memory_bytes", "a.gguf"] > 0
    assert seen["llm_model_cells", "a.gguf", "idle"] == 3
    assert seen["llm_model_cells", "a.gguf", "free"] == 4096 - 3
    assert not any("b.gguf" in name for name in scrape(live))
    until(live.is_quiet)


def test_totals_add_up_over_requests_and_workers() -> None:
    totals = Totals()
    usage = Usage(prompt_tokens=10, completion_tokens=2, cached_tokens=7, disk_tokens=4)
    totals.add(Finished(1, "length", usage, Timings(1.0, 2.0, 3.0, 0.5)))
    totals.add_error(ErrorInfo("x"))
    assert (totals.prompt_tokens, totals.cells_tokens, totals.disk_tokens) == (10, 3, 4)
    assert totals.requests == {"length": 1, "internal_error": 1}
    totals.add_cache(CacheStats(), CacheStats(hits=3, read_bytes=10))
    totals.add_cache(CacheStats(hits=3, read_bytes=10), CacheStats(hits=4, read_bytes=15))
    totals.add_cache(CacheStats(), CacheStats(hits=1))
    assert (totals.cache.hits, totals.cache.read_bytes) == (5, 15)


def test_answers_are_counted_by_route_and_timed(live: Live) -> None:
    before = scrape(live)
    assert live.client.get("/v1/models/nope-" + "x" * 50).status_code == 404
    assert live.client.get("/nope").status_code == 404
    assert live.client.post("/setModel", content=b"{}").status_code == 415
    assert live.post("/v1/chat/completions", chat_body("count:5", stream=True)).status_code == 200
    after = scrape(live)

    def grown(*name: str) -> float:
        return after[name] - before.get(name, 0.0)

    assert grown("llm_http_responses_total", "/v1/models/{name:path}", "404") == 1
    assert grown("llm_http_responses_total", "(none)", "404") == 1
    assert grown("llm_http_responses_total", "/setModel", "415") == 1
    assert grown("llm_http_responses_total", "/v1/chat/completions", "200") == 1
    assert grown("llm_first_token_seconds_count") == 1
    assert grown("llm_first_token_seconds_bucket", "+Inf") == 1
    assert after["llm_memory_bytes", "server"] > 0
    assert not any("xxx" in label for name in after for label in name)
