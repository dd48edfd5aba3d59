"""Chat answers over real HTTP from fake workers: streamed, folded, failing, abandoned."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from llm_server.api.sse import Patience
from tests.fake_live import Live, add_models, chat_body, events, live_server, one_machine, until

PATHS = ["/chat/completions", "/v1/chat/completions"]


def error_of(response: httpx.Response) -> dict[str, Any]:
    body = response.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert {"message", "type", "param", "code"} <= set(error)
    assert response.headers["x-request-id"].startswith("req_")
    return error


def deltas(chunks: list[Any]) -> list[dict[str, Any]]:
    return [c["choices"][0]["delta"] for c in chunks if c != "[DONE]" and c.get("choices")]


@pytest.mark.parametrize("path", PATHS)
def test_a_whole_answer(live: Live, path: str) -> None:
    response = live.post(path, chat_body("hello big world"))
    assert response.status_code == 200
    body = response.json()
    assert body["object"] == "chat.completion"
    assert body["model"] == "a.gguf"
    assert body["id"].startswith("chatcmpl-")
    (choice,) = body["choices"]
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"] == "hello big world "
    assert (choice["index"], choice["finish_reason"]) == (0, "stop")
    assert body["usage"] == {
        "prompt_tokens": 1,
        "completion_tokens": 3,
        "total_tokens": 4,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }
    assert body["timings"]["predicted_n"] == 3
    assert body["timings"]["predicted_per_second"] == 1500.0


@pytest.mark.parametrize("path", PATHS)
def test_a_streamed_answer(live: Live, path: str) -> None:
    response = live.post(path, chat_body("hello big world", stream=True))
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    chunks = events(response.text)
    assert chunks[-1] == "[DONE]"
    assert deltas(chunks) == [
        {"role": "assistant", "content": ""},
        {"content": "hello "},
        {"content": "big "},
        {"content": "world "},
        {},
    ]
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]]
    assert reasons == [None, None, None, None, "stop"]
    assert {chunk["object"] for chunk in chunks[:-1]} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks[:-1]}) == 1
    assert not any("usage" in chunk for chunk in chunks[:-1])
    assert chunks[-2]["timings"]["predicted_n"] == 3


def test_usage_comes_once_before_the_end_when_asked_for(live: Live) -> None:
    chunks = events(live.chat("hi", stream=True, stream_options={"include_usage": True}).text)
    assert chunks[-1] == "[DONE]"
    assert chunks[-2]["choices"] == []
    assert chunks[-2]["usage"]["completion_tokens"] == 1
    assert all(chunk["usage"] is None for chunk in chunks[:-2])


def test_tool_calls_streamed_and_folded_are_the_same(live: Live) -> None:
    body = live.chat("tool").json()
    (choice,) = body["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    calls = choice["message"]["tool_calls"]
    assert calls == [
        {
            "id": "call_1",
            "type": "function",
            "function": {"name": "weather", "arguments": '{"city":"Oslo"}'},
        },
        {"id": "call_2", "type": "function", "function": {"name": "time", "arguments": "{}"}},
    ]
    chunks = events(live.chat("tool", stream=True).text)
    fragments = [f for delta in deltas(chunks) for f in delta.get("tool_calls", [])]
    assert [fragment["index"] for fragment in fragments] == [0, 0, 0, 1]
    assert [fragment.get("id") for fragment in fragments] == ["call_1", None, None, "call_2"]
    for index, call in enumerate(calls):
        parts = [f["function"]["arguments"] for f in fragments if f["index"] == index]
        assert "".join(parts) == call["function"]["arguments"]
    assert chunks[-2]["choices"][0]["finish_reason"] == "tool_calls"


def test_reasoning_streamed_and_folded(live: Live) -> None:
    message = live.chat("think").json()["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("Let me see.", "Yes.")
    got = deltas(events(live.chat("think", stream=True).text))
    assert "".join(delta.get("reasoning_content", "") for delta in got) == "Let me see."
    assert "".join(delta.get("content", "") for delta in got) == "Yes."


def test_the_worker_gets_what_the_client_asked_for(live: Live) -> None:
    fields = {"temperature": 0.25, "inference_configs": {"top_k": 3, "stop": ["user:"]}}
    response = live.chat("report", **fields, foo=1)
    request = json.loads(response.json()["choices"][0]["message"]["content"])
    assert request["messages"] == [{"role": "user", "content": "report"}]
    del request["sampling"]["dry_sequence_breakers"]  # A list is sent even as the default.
    assert request["sampling"] == {"temperature": 0.25, "top_k": 3, "stop": ["user:"]}
    assert response.headers["x-ignored-parameters"] == "foo"


def test_the_length_reason(live: Live) -> None:
    choice = live.chat("count:2").json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("0 1 ", "length")


# ---- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("code", ["context_length_exceeded", "template_error"])
def test_what_the_worker_refuses_is_a_plain_error_also_for_streams(
    live: Live, stream: bool, code: str
) -> None:
    response = live.chat(f"fail:{code}", stream=stream)
    assert response.status_code == 400
    assert response.headers["content-type"] == "application/json"
    assert error_of(response)["code"] == code


@pytest.mark.parametrize("stream", [False, True])
def test_an_unknown_model_is_404(live: Live, stream: bool) -> None:
    for name in ("nope.gguf", "../a.gguf", "/etc/passwd", "a\0b", "..%2fa", "∕", "x" * 300):
        response = live.chat("hi", model=name, stream=stream)
        assert response.status_code == 404
        error = error_of(response)
        assert (error["code"], error["param"]) == ("model_not_found", "model")


def test_an_error_behind_the_first_token_ends_the_stream_without_done(live: Live) -> None:
    response = live.chat("late-fail", stream=True)
    assert response.status_code == 200
    chunks = events(response.text)
    assert "[DONE]" not in chunks
    assert chunks[-1]["error"]["code"] == "internal_error"
    assert set(chunks[-1]["error"]) == {"message", "type", "param", "code"}
    assert {"content": "one "} in deltas(chunks[:-1])
    assert live.chat("late-fail").status_code == 500


@pytest.fixture
def unshaken(tmp_path: Path) -> Iterator[Live]:
    """A server of its own: each crash in a row makes the next start wait longer."""
    add_models(tmp_path, "a.gguf")
    with live_server(tmp_path) as running:
        yield running


@pytest.mark.parametrize("behaviour", ["crash", "garbage", "foreign", "huge"])
def test_a_worker_that_dies_costs_its_requests_and_nothing_else(
    unshaken: Live, behaviour: str
) -> None:
    response = unshaken.chat(behaviour)
    assert response.status_code == 500
    assert error_of(response)["code"] == "worker_crashed"
    assert "is being started again" in error_of(response)["message"]
    assert response.headers["x-should-retry"] == "false"
    until(lambda: len(unshaken.loads()) == 2)  # Nobody has asked for it.
    assert unshaken.chat("still there").status_code == 200
    assert len(unshaken.loads()) == 2


def test_a_crash_in_mid_stream(unshaken: Live) -> None:
    """The other request on the worker fails too, once, and in the stream."""
    body = chat_body("hang", stream=True)
    with unshaken.client.stream("POST", "/chat/completions", json=body) as response:
        lines = response.iter_lines()
        assert any("one " in line for line in lines)
        unshaken.chat("crash")
        rest = [line for line in lines if line]
    assert len(rest) == 1
    assert json.loads(rest[0].removeprefix("data: "))["error"]["code"] == "worker_crashed"
    assert unshaken.chat("again").status_code == 200


# ---- waiting -----------------------------------------------------------------------------------

HASTY = Patience(headers_s=0.05, keep_alive_s=0.05)


def comments_until(response: httpx.Response, wanted: str) -> None:
    """Read comments, and nothing but comments, up to one that holds `wanted`."""
    for line in response.iter_lines():
        assert not line or line.startswith(": "), line
        if wanted in line:
            return
    raise AssertionError(f"no comment with {wanted!r}")


def test_comments_tell_how_far_loading_is_and_the_answer_follows(tmp_path: Path) -> None:
    add_models(tmp_path, "gate.gguf")
    with live_server(tmp_path, wait=False, patience=HASTY) as live:
        body = chat_body("hello", stream=True)
        with live.client.stream("POST", "/chat/completions", json=body) as response:
            lines = response.iter_lines()
            assert any("loading gate.gguf, 50%" in line for line in lines)
            (tmp_path / "gate.gguf.open").touch()
            rest = [line for line in lines if line.startswith("data: ")]
        assert "hello" in rest[1] and rest[-1] == "data: [DONE]"


def test_comments_tell_how_far_the_prompt_is(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf")
    gate = tmp_path / "gate"
    with live_server(tmp_path, patience=HASTY) as live:
        body = chat_body(f"prefill:{gate}", stream=True)
        with live.client.stream("POST", "/chat/completions", json=body) as response:
            lines = response.iter_lines()
            assert any("42 of 100 tokens" in line for line in lines)
            gate.touch()
            assert [line for line in lines if line][-1] == "data: [DONE]"


def test_a_long_silence_between_tokens_is_filled(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf")
    gate = tmp_path / "gate"
    with live_server(tmp_path, patience=HASTY) as live:
        body = chat_body(f"gate:{gate}", stream=True)
        with live.client.stream("POST", "/chat/completions", json=body) as response:
            lines = response.iter_lines()
            assert any("one " in line for line in lines)
            assert any(line.startswith(": ") for line in lines)
            gate.touch()
            assert [line for line in lines if line.startswith("data: ")][-1] == "data: [DONE]"


def test_an_error_after_the_headers_of_a_slow_start_is_in_the_stream(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf")
    with live_server(tmp_path, patience=HASTY) as live:
        body = chat_body(f"prefill:{tmp_path / 'never'}", stream=True)
        with live.client.stream("POST", "/chat/completions", json=body) as response:
            lines = response.iter_lines()
            assert any(line.startswith(": ") for line in lines)
            live.chat("crash")
            (last,) = [line for line in lines if line.startswith("data: ")]
        assert json.loads(last[6:])["error"]["code"] == "worker_crashed"


# ---- going away --------------------------------------------------------------------------------


def raw_post(live: Live, path: str, body: object) -> socket.socket:
    """Send a request by hand, so that the connection can be dropped at will."""
    url = live.client.base_url
    data = json.dumps(body).encode()
    connection = socket.create_connection((url.host, url.port or 80))
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\n\r\n"
    )
    connection.sendall(head.encode() + data)
    return connection


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_cancels_its_request(live: Live, stream: bool) -> None:
    cancels = len(live.notes("cancels.log"))
    connection = raw_post(live, "/chat/completions", chat_body("hang", stream=stream))
    until(lambda: live.client.get("/").json()["running"] == 1)
    connection.close()
    until(lambda: len(live.notes("cancels.log")) == cancels + 1)
    until(live.is_quiet)


def test_a_client_that_goes_while_it_waits_leaves_the_queue(tmp_path: Path) -> None:
    add_models(tmp_path, "gate.gguf")
    with live_server(tmp_path, wait=False) as live:
        connections = [raw_post(live, "/chat/completions", chat_body("x")) for _ in range(3)]
        # The load at the start waits for its own model as well.
        until(lambda: live.client.get("/").json()["waiting"] == 4)
        for connection in connections:
            connection.close()
        until(lambda: live.client.get("/").json()["waiting"] == 1)
        (tmp_path / "gate.gguf.open").touch()
        until(lambda: live.client.get("/health").status_code == 200)
        assert live.loads() == ["gate.gguf n_ctx=4096"]


def test_the_queue_is_bounded(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf")
    with live_server(tmp_path, parallel=2, queue_size=1) as live:
        connections = [raw_post(live, "/chat/completions", chat_body("hang")) for _ in range(3)]
        until(lambda: live.client.get("/").json()["running"] == 3)
        for stream in (False, True):
            response = live.chat("one too many", stream=stream)
            assert response.status_code == 503
            assert error_of(response)["code"] == "queue_full"
            assert response.headers["retry-after"] == "1"
        for connection in connections:
            connection.close()
        until(live.is_quiet)
        assert live.chat("now").status_code == 200


@one_machine("HAProxy waits for clients by its own clock")
def test_a_client_that_never_reads_is_cut_off(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf")
    with live_server(tmp_path) as live:
        connection = raw_post(live, "/chat/completions", chat_body("flood", stream=True))
        until(lambda: len(live.notes("cancels.log")) == 1)
        connection.close()
        until(live.is_quiet)


def test_a_write_that_hangs_is_given_up(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf")
    patience = Patience(keep_alive_s=0.05, stall_s=0.1)
    with live_server(tmp_path, patience=patience) as live:
        connection = raw_post(live, "/chat/completions", chat_body("count:200000", stream=True))
        until(lambda: not live.is_quiet())
        until(live.is_quiet)  # Though the connection is open and nothing was read from it.
        connection.close()


def test_many_streams_at_once_do_not_mix(live: Live) -> None:
    answers: dict[int, str] = {}

    def ask(i: int) -> None:
        chunks = events(live.chat(f"answer {i} is here", stream=True).text)
        answers[i] = "".join(delta.get("content", "") for delta in deltas(chunks))

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {i: f"answer {i} is here " for i in range(32)}
    assert live.is_quiet()


# ---- several choices, and their probabilities ---------------------------------------------------


def test_choices_have_their_own_indexes_and_one_usage(live: Live) -> None:
    body = live.chat("hello", n=3, seed=1).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    texts = [choice["message"]["content"] for choice in body["choices"]]
    assert texts == ["hello #1", "hello #2", "hello #3"]
    assert (body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"]) == (1, 6)
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = events(live.chat("hello", n=3, seed=1, **options).text)[:-1]
    assert chunks[-1]["usage"] == body["usage"] and chunks[-1]["choices"] == []
    told = [chunk["choices"][0] for chunk in chunks[:-1]]
    for i in range(3):
        choices = [choice for choice in told if choice["index"] == i]
        assert choices[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(c["delta"].get("content", "") for c in choices) == texts[i]
        assert [c["finish_reason"] for c in choices][-1:] == ["stop"]


def test_a_client_that_leaves_cancels_all_choices(live: Live) -> None:
    before = len(live.notes("cancels.log"))
    with live.client.stream("POST", PATHS[0], json=chat_body("hang", n=3, stream=True)) as response:
        next(response.iter_lines())
    until(lambda: len(live.notes("cancels.log")) == before + 3)
    until(live.is_quiet)


def test_a_failure_of_one_choice_ends_the_stream_once(live: Live) -> None:
    chunks = events(live.chat("late-fail", n=2, stream=True).text)
    assert [("error" in chunk) for chunk in chunks].count(True) == 1
    assert "error" in chunks[-1]


def test_logprobs_in_openais_shape(live: Live) -> None:
    body = live.chat("scores", logprobs=True, top_logprobs=2).json()
    yes = {"token": "yes", "logprob": -0.25, "bytes": [121, 101, 115]}
    no = {"token": "\ufffd", "logprob": -1.5, "bytes": [255]}
    expected = [{**yes, "top_logprobs": [yes, no]}, {**no, "top_logprobs": [yes, no]}]
    assert body["choices"][0]["logprobs"] == {"content": expected, "refusal": None}
    chunks = events(live.chat("scores", logprobs=True, top_logprobs=2, stream=True).text)[:-1]
    choices = [chunk["choices"][0] for chunk in chunks]
    assert [c.get("logprobs") for c in choices] == [
        None,
        {"content": expected[:1], "refusal": None},
        {"content": expected[1:], "refusal": None},
    ]
    assert choices[1]["delta"] == {"content": "yes"}
    bare = live.chat("scores", logprobs=True).json()["choices"][0]["logprobs"]["content"]
    assert [entry["top_logprobs"] for entry in bare] == [[], []]
    assert live.chat("hello").json()["choices"][0]["logprobs"] is None


def test_answers_name_the_configuration_that_made_them(live: Live) -> None:
    assert live.chat("hi").json()["system_fingerprint"] == "fp_fake"
    chunks = events(live.chat("hi", stream=True).text)[:-1]
    assert {chunk["system_fingerprint"] for chunk in chunks} == {"fp_fake"}


def test_what_counts_as_the_end_of_a_line_elsewhere_breaks_no_event(live: Live) -> None:
    text = "a\u2028b\u2029c\x85d"
    answer = live.chat(text, stream=True).text
    lines = answer.splitlines()
    assert all(line == "" or line.startswith(("data: ", ": ")) for line in lines)
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    said = "".join(c["delta"].get("content", "") for chunk in chunks for c in chunk["choices"])
    assert said.strip() == text
