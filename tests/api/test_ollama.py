"""Ollama's API: its bodies become chat's requests, deltas lines of the types of its own client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import ollama
import pytest

from llm_server.api.ollama_calls import chat_call, embed_call, generate_call
from llm_server.api.ollama_events import OllamaLines, chat_line, generate_line
from llm_server.api.sse import Patience
from llm_server.api.usage import Origin
from llm_server.errors import InvalidRequest
from llm_server.worker.messages import (
    ChatRequest,
    CompletionRequest,
    Content,
    Embed,
    Finished,
    FinishReason,
    FunctionCall,
    Message,
    Reasoning,
    ResponseFormat,
    Sampling,
    Timings,
    ToolCall,
    Usage,
)
from tests.fake_live import Live, add_models, live_server, one_machine, until
from tests.gguf_bytes import Metadata

TOOL = {"type": "function", "function": {"name": "time", "parameters": {"type": "object"}}}


def body(text: Any, **fields: Any) -> dict[str, Any]:
    turns = text if isinstance(text, list) else [{"role": "user", "content": text}]
    return {"model": "a.gguf", "messages": turns} | fields


def client_of(live: Live) -> ollama.Client:
    return ollama.Client(host=str(live.client.base_url))


@pytest.fixture
def client(live: Live) -> Iterator[ollama.Client]:
    with client_of(live) as made:
        yield made


def lines(live: Live, path: str, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines of a stream, of Ollama's types but for errors."""
    answer = live.post(path, asked)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/x-ndjson"
    told = [json.loads(line) for line in answer.text.splitlines()]
    for line in told:
        if "error" not in line:
            kind = ollama.ChatResponse if path == "/api/chat" else ollama.GenerateResponse
            kind.model_validate(line)
    return told


# ---- answers -----------------------------------------------------------------------------------


def test_an_answer_is_a_stream_of_lines_unless_told(live: Live) -> None:
    told = lines(live, "/api/chat", body("hello there"))
    assert [line["message"]["content"] for line in told] == ["hello ", "there ", ""]
    assert [line["done"] for line in told] == [False, False, True]
    assert {line["model"] for line in told} == {"a.gguf"}
    assert all(line["created_at"].endswith("Z") for line in told)
    last = told[-1]
    assert (last["done_reason"], last["prompt_eval_count"], last["eval_count"]) == ("stop", 1, 2)
    assert "timings" in last and "done_reason" not in told[0]


def test_an_answer_in_one(client: ollama.Client) -> None:
    answer = client.chat("a.gguf", [{"role": "user", "content": "hello there"}])
    assert answer.message.content == "hello there " and answer.done_reason == "stop"
    assert answer.prompt_eval_count == 1 and isinstance(answer.total_duration, int)


def test_calls_come_whole_in_lines_of_their_own(client: ollama.Client) -> None:
    asked = [{"role": "user", "content": "tool"}]
    whole = client.chat("a.gguf", asked, tools=[TOOL])
    streamed = list(client.chat("a.gguf", asked, tools=[TOOL], stream=True))
    calls = [call for part in streamed for call in part.message.tool_calls or []]
    assert whole.message.tool_calls == calls
    assert [call.function.name for call in calls] == ["weather", "time"]
    assert all(isinstance(call.function.arguments, dict) for call in calls)
    assert whole.done_reason == streamed[-1].done_reason == "stop"


def test_thoughts_are_beside_the_answer(client: ollama.Client) -> None:
    message = client.chat("a.gguf", [{"role": "user", "content": "think"}]).message
    assert message.thinking and message.content and message.thinking not in message.content
    generated = client.generate("a.gguf", "think")
    assert (generated.thinking, generated.response) == (message.thinking, message.content)


def test_logprobs(live: Live) -> None:
    asked = body("scores", logprobs=True, top_logprobs=2, stream=False)
    told = ollama.ChatResponse.model_validate(live.post("/api/chat", asked).json())
    assert told.logprobs is not None and len(told.logprobs) == 2
    assert told.logprobs[0].top_logprobs


def test_one_prompt(live: Live) -> None:
    told = lines(live, "/api/generate", {"model": "a", "prompt": "hello there"})
    assert [line["response"] for line in told] == ["hello ", "there ", ""]
    assert told[-1]["done"] and "message" not in told[-1]


def folded(*events: Any, reason: FinishReason = "stop") -> dict[str, Any]:
    fold = OllamaLines(chat_line, Origin("m", "fp", range(1)))
    for event in events:
        fold.add(event)
    fold.add(Finished(0, reason, Usage(10, 2, 8), Timings(1.5, 1, 2)))
    whole: dict[str, Any] = json.loads(msgspec.json.encode(fold.whole()))
    ollama.ChatResponse.model_validate(whole)
    return whole


def test_times_are_in_nanoseconds_and_all_of_the_prompt_counts() -> None:
    whole = folded(Content(0, "a"))
    assert whole["prompt_eval_count"] == 10 and whole["timings"]["cache_n"] == 8
    assert whole["load_duration"] == 1_500_000
    assert (whole["prompt_eval_duration"], whole["eval_duration"]) == (1_000_000, 2_000_000)
    assert whole["total_duration"] == 4_500_000


def test_a_call_that_was_cut_off_is_none() -> None:
    cut = ToolCall(0, 0, '{"a": 1', call_id="c", name="f")
    whole = folded(Content(0, "so"), cut, reason="length")
    assert whole["message"] == {"role": "assistant", "content": "so"}
    assert whole["done_reason"] == "length"


def test_a_call_has_its_place_among_all() -> None:
    whole = folded(
        Reasoning(0, "hmm"),
        ToolCall(0, 0, "", call_id="c", name="f"),
        ToolCall(0, 1, '{"a":', call_id="d", name="g"),
        ToolCall(0, 1, "1}"),
        Content(0, "so"),
        reason="tool_calls",
    )
    assert whole["message"]["tool_calls"] == [
        {"id": "c", "function": {"index": 0, "name": "f", "arguments": {}}},
        {"id": "d", "function": {"index": 1, "name": "g", "arguments": {"a": 1}}},
    ]
    assert (whole["message"]["thinking"], whole["message"]["content"]) == ("hmm", "so")


# ---- failures ----------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
def test_an_early_failure_is_plain_http_in_their_shape(live: Live, stream: bool) -> None:
    answer = live.post("/api/chat", body("fail:some_code", stream=stream))
    assert answer.status_code == 400
    assert isinstance(answer.json()["error"], str) and answer.json()["code"] == "some_code"


def test_a_late_failure_is_the_last_line(live: Live, client: ollama.Client) -> None:
    assert (
        lines(live, "/api/generate", {"model": "a", "prompt": "late-fail"})[-1]["error"]
        == "As asked."
    )
    asked = [{"role": "user", "content": "late-fail"}]
    with pytest.raises(ollama.ResponseError, match="As asked"):
        list(client.chat("a.gguf", asked, stream=True))


def test_an_error_after_the_headers_of_a_slow_start_is_a_line(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf")
    hasty = Patience(headers_s=0.05, keep_alive_s=0.05)
    with live_server(tmp_path, patience=hasty) as live:
        asked = body(f"prefill:{tmp_path / 'never'}")
        with live.client.stream("POST", "/api/chat", json=asked) as response:
            assert response.headers["content-type"] == "application/x-ndjson"
            live.chat("crash")
            (line,) = response.iter_lines()
    assert json.loads(line)["code"] == "worker_crashed"


def test_what_is_not_there_is_not_found(client: ollama.Client) -> None:
    for ask in (
        lambda: client.chat("nobody", [{"role": "user", "content": "hi"}]),
        lambda: client.show("nobody"),
        lambda: client.generate("nobody", "", keep_alive=0),
    ):
        with pytest.raises(ollama.ResponseError, match="`nobody`") as caught:
            ask()
        assert caught.value.status_code == 404


def test_what_comes_to_no_endpoint_is_refused_in_their_shape(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf")
    with live_server(tmp_path, wait=False, api_key=("a-key-of-this-test",)) as live:
        locked = live.client.get("/api/tags")
        live.client.headers["authorization"] = "Bearer a-key-of-this-test"
        answers = [
            locked,
            live.client.get("/api/tags", headers={"origin": "http://elsewhere.example"}),
            live.client.request("DELETE", "/api/delete", json={"model": "a"}),
            live.client.get("/api/chat"),
            live.client.post("/api/chat", content=b"{}"),
        ]
    assert [answer.status_code for answer in answers] == [401, 403, 404, 405, 415]
    assert all(isinstance(answer.json()["error"], str) for answer in answers)


# ---- requests ----------------------------------------------------------------------------------


def understood(text: Any, **fields: Any) -> ChatRequest:
    request = chat_call(body(text, **fields)).requests[0]
    assert isinstance(request, ChatRequest)
    return request


def use(name: str, **fields: Any) -> dict[str, Any]:
    return {"function": {"name": name, "arguments": {"a": 1}}} | fields


def result(content: str, **fields: Any) -> dict[str, Any]:
    return {"role": "tool", "content": content} | fields


def test_turns_become_messages() -> None:
    request = understood(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "hi", "images": []},
            {"role": "assistant", "content": "", "thinking": "hmm", "tool_calls": [use("f")]},
            result("one"),
            {"role": "assistant", "content": "so"},
        ]
    )
    assert request.messages == [
        Message("system", "Be brief."),
        Message("user", "hi"),
        Message(
            "assistant",
            None,
            tool_calls=[FunctionCall("call_0", "f", '{"a": 1}')],
            reasoning_content="hmm",
        ),
        Message("tool", "one", tool_call_id="call_0"),
        Message("assistant", "so"),
    ]


@pytest.mark.parametrize(
    ("told", "ids"),
    [
        ([{}, {}, {}], ["x", "call_1", "call_2"]),
        ([{"tool_name": "g"}, {"tool_name": "f"}, {"tool_name": "f"}], ["call_1", "x", "call_2"]),
        ([{"tool_call_id": "x"}, {"tool_name": "?"}, {}], ["x", "call_1", "call_2"]),
        ([{}, {"tool_call_id": "x"}, {}], ["x", "call_1", "call_2"]),
        ([{"tool_name": "f", "tool_call_id": "call_2"}, {}, {}], ["call_2", "x", "call_1"]),
    ],
)
def test_a_result_belongs_to_a_call_that_has_none(
    told: list[dict[str, str]], ids: list[str]
) -> None:
    calls = [use("f", id="x"), use("g"), use("f")]
    turns = [{"role": "assistant", "tool_calls": calls}, *(result("r", **t) for t in told)]
    request = understood([{"role": "user", "content": "hi"}, *turns])
    assert [message.tool_call_id for message in request.messages[2:]] == ids


def test_what_older_clients_leave_out_is_nothing() -> None:
    bare: dict[str, Any] = {"id": "", "function": {"name": "turn_on", "arguments": None}}
    turns = [{"role": "assistant", "content": None, "tool_calls": [bare]}, result("one")]
    tools = [{"function": {"name": "turn_on"}}]
    request = understood([{"role": "user", "content": None}, *turns], tools=tools)
    assert request.messages == [
        Message("user", ""),
        Message("assistant", None, tool_calls=[FunctionCall("call_0", "turn_on", "{}")]),
        Message("tool", "one", tool_call_id="call_0"),
    ]
    assert request.tools == [{"type": "function", "function": {"name": "turn_on"}}]


def test_options_are_sampling_and_what_loads_a_model_has_no_effect() -> None:
    options = {"temperature": 0.5, "num_predict": 7, "stop": ["a"], "seed": -1, "num_ctx": 9}
    call = chat_call(body("hi", options=options, truncate=True))
    assert call.requests[0].sampling == Sampling(temperature=0.5, max_tokens=7, stop=["a"])  # type: ignore[union-attr]
    assert {"temperature", "max_tokens"} <= {*call.chosen}
    assert call.ignored == ["truncate", "options.num_ctx"] and call.overrides == {}
    for without_limit in (-1, -2):
        told = understood("hi", options={"num_predict": without_limit})
        assert told.sampling.max_tokens is None
    assert chat_call(body("hi", options={"num_predict": 0})).requests[0].persist  # type: ignore[union-attr]


def test_what_an_answer_is_to_be_like() -> None:
    schema = {"type": "object"}
    assert understood("hi", format="json").response_format == ResponseFormat("json_object")
    told = understood("hi", format=schema).response_format
    assert (told.type, told.schema) == ("json_schema", schema)
    assert understood("hi", format="").response_format == ResponseFormat()
    assert understood("hi", think=False).reasoning_budget == 0
    assert understood("hi", think=True).template_kwargs["enable_thinking"] is True
    assert understood("hi", think="low").template_kwargs == {"reasoning_effort": "low"}
    assert understood("hi").template_kwargs == {} and understood("hi").reasoning_budget is None


@pytest.mark.parametrize(
    ("told", "seconds"),
    [
        ("5m", 300.0),
        ("1.5h", 5400.0),
        (30, 30.0),
        ("-1m", -1.0),
        (-1, -1.0),
        ("-1", -1.0),
        (0, 0.0),
        (None, None),
    ],
)
def test_times_that_a_model_stays(told: Any, seconds: float | None) -> None:
    assert chat_call(body("hi", keep_alive=told)).keep_alive_s == seconds


def test_a_prompt_is_a_turn_or_a_text_that_goes_on() -> None:
    told = generate_call(
        {"model": "a", "prompt": "hi", "system": "Be brief.", "context": [], "suffix": ""}
    )
    assert told.stream and told.requests == [
        ChatRequest([Message("system", "Be brief."), Message("user", "hi")])
    ]
    raw = generate_call({"model": "a", "prompt": "hi", "raw": True, "stream": False})
    assert not raw.stream and raw.requests == [CompletionRequest("hi")]
    assert generate_call({"model": "a", "prompt": "a", "suffix": "b"}).requests == [
        CompletionRequest("a", "b")
    ]


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        (body([{"role": "user", "content": "hi", "images": ["aGk="]}]), "messages[0].images"),
        (body([{"role": "user", "tool_calls": [use("f")]}]), "messages[0].tool_calls"),
        (body([result("one")]), "messages[0].role"),
        (body("hi", options={"temperature": 9}), "options.temperature"),
        (body("hi", options={"tfs_z": 0.5}), "options.tfs_z"),
        (body("hi", format="xml"), "format"),
        (body("hi", think="always"), "think"),
        (body("hi", keep_alive="soon"), "keep_alive"),
        (body("hi", tools=[TOOL, TOOL]), "tools[1].function.name"),
    ],
)
def test_what_is_wrong_is_told(asked: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        chat_call(asked)
    assert caught.value.info.param == param


def test_what_a_text_that_goes_on_cannot_have_is_told() -> None:
    asked = {"model": "a", "prompt": "hi", "raw": True}
    assert generate_call(asked | {"system": "Be brief.", "think": True}).ignored == [
        "system",
        "think",
    ]
    with pytest.raises(InvalidRequest) as caught:
        generate_call(asked | {"format": "json"})
    assert caught.value.info.param == "format"


@pytest.mark.parametrize("name", ["images", "template", "context"])
def test_what_would_change_the_answer_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        generate_call({"model": "a", "prompt": "hi", name: "x" if name == "template" else [1]})
    assert caught.value.info.param == name


# ---- vectors -----------------------------------------------------------------------------------


def test_vectors(client: ollama.Client) -> None:
    told = client.embed("a.gguf", ["a", "bcd"])
    assert told.embeddings == [[1.0, 0.0, 0.0, 0.0], [3.0, 0.0, 0.0, 0.0]]
    assert (told.model, told.prompt_eval_count) == ("a.gguf", 4)
    assert client.embed("a.gguf", "ab", dimensions=2).embeddings == [[2.0, 0.0]]
    assert client.embeddings("a.gguf", "abc").embedding == [3.0, 0.0, 0.0, 0.0]
    call = embed_call({"model": "a", "input": "a", "truncate": True, "options": {}})
    assert call.requests == [Embed(["a"])] and call.ignored == ["truncate", "options"]


# ---- models ------------------------------------------------------------------------------------


def test_the_models_of_the_folder(live: Live, client: ollama.Client) -> None:
    listed = client.list().models
    assert [model.model for model in listed] == ["a.gguf", "b.gguf", "sub/c.gguf"]
    assert all(m.size and m.digest and m.modified_at and m.details for m in listed)
    assert listed[0].details is not None and listed[0].details.family == "llama"
    running = client.ps().models
    assert [(model.model, model.context_length) for model in running] == [("a.gguf", 4096)]
    assert running[0].size and running[0].size_vram == 0
    assert live.client.get("/api/version").json()["version"]


def test_a_name_may_have_the_tag_that_clients_write(live: Live, client: ollama.Client) -> None:
    for name in ("a", "a:latest", "a.gguf:latest"):
        asked = [{"role": "user", "content": "hi"}]
        assert client.chat(name, asked).model == "a.gguf"
    assert live.post("/api/show", {"name": "a:latest"}).status_code == 200


def test_what_a_file_says(tmp_path: Path) -> None:
    template = "{{ messages }}<think>"
    said: Metadata = {"tokenizer.chat_template": template, "general.license": "mit"}
    add_models(tmp_path, "a.gguf", metadata=said | {"general.sampling.temp": 0.5})
    add_models(tmp_path, "b.gguf")
    add_models(tmp_path, "e.gguf", metadata={"llama.attention.causal": False})
    with live_server(tmp_path, wait=False) as live, client_of(live) as client:
        shown = client.show("a")
        assert (shown.template, shown.license) == (template, "mit")
        assert shown.modelinfo and shown.modelinfo["general.architecture"] == "llama"
        assert shown.modelinfo["llama.context_length"] == 4096
        assert shown.capabilities == ["completion", "tools", "thinking"]
        assert shown.parameters and shown.parameters.split() == ["temperature", "0.5"]
        assert client.show("b").capabilities == ["completion"]
        assert client.show("e").capabilities == ["embedding"]


@one_machine("replicas come and go by the deployment's rules")
def test_a_model_is_loaded_and_unloaded_without_a_question(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf", "b.gguf")
    with live_server(tmp_path) as live, client_of(live) as client:
        assert client.generate("b", "").done_reason == "load"
        assert {model.model for model in client.ps().models} == {"a.gguf", "b.gguf"}
        assert client.chat("b", [], keep_alive=0).done_reason == "unload"
        until(lambda: [model.model for model in client.ps().models] == ["a.gguf"])
        assert client.chat("a", [], keep_alive="-1m").done
        (model,) = client.ps().models
        assert model.expires_at and model.expires_at.year == 9999


def test_a_model_that_is_there_need_not_be_pulled_and_others_cannot_be(
    live: Live, client: ollama.Client
) -> None:
    assert client.pull("b").status == "success"
    with pytest.raises(ollama.ResponseError, match="llm-server pull") as caught:
        client.pull("qwen3:8b")
    assert caught.value.status_code == 400
    assert live.post("/api/show", {}).json()["param"] == "model"


def test_a_line_of_generate_has_what_its_piece_has() -> None:
    fold = OllamaLines(generate_line, Origin("m", "fp", range(1)))
    assert fold.opening() == []
    (line,) = fold.of(Reasoning(0, "hmm"))
    told = json.loads(msgspec.json.encode(line))
    assert (told["response"], told["thinking"], told["done"]) == ("", "hmm", False)
