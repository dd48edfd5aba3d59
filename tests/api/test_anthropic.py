"""`POST /messages`: turns become messages, deltas become events of Anthropic's own types."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anthropic
import msgspec
import pydantic
import pytest
from anthropic.types import Message as AnthropicMessage
from anthropic.types import RawMessageStreamEvent

from llm_server.api.anthropic import messages_call
from llm_server.api.anthropic_events import MessageEvents
from llm_server.api.sse import Patience
from llm_server.api.usage import Origin
from llm_server.errors import ErrorInfo, InvalidRequest
from llm_server.worker.messages import (
    ChatRequest,
    Content,
    Finished,
    FinishReason,
    FunctionCall,
    Message,
    Reasoning,
    ResponseFormat,
    Timings,
    ToolCall,
    Usage,
)
from tests.fake_live import Live, add_models, live_server

EVENT: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(RawMessageStreamEvent)
TOOL = {"name": "get_time", "description": "The time", "input_schema": {"type": "object"}}


def body(text: Any, **fields: Any) -> dict[str, Any]:
    turns = text if isinstance(text, list) else [{"role": "user", "content": text}]
    return {"model": "a.gguf", "max_tokens": 64, "messages": turns} | fields


def ask(live: Live, text: Any, **fields: Any) -> dict[str, Any]:
    """A message that Anthropic's types accept."""
    answer = live.post("/v1/messages", body(text, **fields))
    assert answer.status_code == 200, answer.text
    message: dict[str, Any] = answer.json()
    AnthropicMessage.model_validate(message)
    return message


def stream(live: Live, text: Any, **fields: Any) -> list[dict[str, Any]]:
    """The events of a stream: named as they are typed, and of Anthropic's types."""
    answer = live.post("/v1/messages", body(text, stream=True, **fields))
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = []
    for block in answer.text.strip().split("\n\n"):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        if event["type"] != "error":
            EVENT.validate_python(event)
        events.append(event)
    return events


# ---- answers -----------------------------------------------------------------------------------


def test_an_answer(live: Live) -> None:
    message = ask(live, "hello there", system="Be brief.")
    assert message["id"].startswith("msg_") and message["model"] == "a.gguf"
    assert message["content"] == [{"type": "text", "text": "hello there "}]
    assert (message["stop_reason"], message["stop_sequence"]) == ("end_turn", None)
    usage = message["usage"]
    assert (usage["input_tokens"], usage["output_tokens"]) == (2, 2)
    assert usage["cache_read_input_tokens"] == 0


def test_a_streamed_answer(live: Live) -> None:
    events = stream(live, "hello there")
    assert [event["type"] for event in events] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert events[0]["message"]["content"] == []
    assert [event["delta"]["text"] for event in events[2:4]] == ["hello ", "there "]
    assert events[5]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert events[5]["usage"]["output_tokens"] == 2


def test_the_sdk_puts_a_stream_of_calls_together(live: Live) -> None:
    with anthropic.Anthropic(base_url=str(live.client.base_url), api_key="none") as client:
        with client.messages.stream(**body("tool", tools=[TOOL])) as events:
            for _ in events:
                pass
            message = events.get_final_message()
        whole = client.messages.create(**body("tool", tools=[TOOL]))
    calls = [block for block in message.content if block.type == "tool_use"]
    assert message.stop_reason == whole.stop_reason == "tool_use"
    assert [call.name for call in calls] == ["weather", "time"]
    assert all(isinstance(call.input, dict) for call in calls)
    assert [block.model_dump() for block in whole.content] == [
        block.model_dump() for block in message.content
    ]


def test_a_thought_is_a_signed_block_before_the_text(live: Live) -> None:
    with anthropic.Anthropic(base_url=str(live.client.base_url), api_key="none") as client:
        with client.messages.stream(**body("think")) as events:
            message = events.get_final_message()
    thought, text = message.content
    assert thought.type == "thinking" and thought.thinking and thought.signature
    assert text.type == "text" and text.text


def folded(*events: Any, reason: FinishReason = "stop", stop: str | None = None) -> dict[str, Any]:
    fold = MessageEvents(Origin("m", "fp", range(1)))
    for event in events:
        fold.add(event)
    fold.add(Finished(0, reason, Usage(10, 2, 8), Timings(0, 1, 2), stop))
    message: dict[str, Any] = json.loads(msgspec.json.encode(fold.whole()))
    AnthropicMessage.model_validate(message)
    return message


def test_the_stop_string_that_ended_it_is_told() -> None:
    message = folded(Content(0, "a"), stop="END")
    assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", "END")
    assert message["usage"]["input_tokens"] == 2
    assert message["usage"]["cache_read_input_tokens"] == 8


def test_a_call_that_was_cut_off_is_none() -> None:
    message = folded(
        Content(0, "so"),
        ToolCall(0, 0, '{"a": 1', call_id="c", name="f"),
        reason="length",
    )
    assert message["content"] == [{"type": "text", "text": "so"}]
    assert message["stop_reason"] == "max_tokens"


def test_a_call_without_arguments_has_an_empty_object() -> None:
    message = folded(ToolCall(0, 0, "", call_id="c", name="f"), reason="tool_calls")
    assert message["content"] == [{"type": "tool_use", "id": "c", "name": "f", "input": {}}]


def test_no_tokens_at_all_is_a_prompt_in_the_cache(live: Live) -> None:
    message = ask(live, "hello", max_tokens=0)
    assert message["content"] == [] and message["usage"]["output_tokens"] == 0


def test_a_prompt_is_counted(live: Live) -> None:
    answer = live.post("/v1/messages/count_tokens", body("hello there"))
    assert answer.status_code == 200 and answer.json()["input_tokens"] > 0


# ---- failures ----------------------------------------------------------------------------------


def test_an_early_failure_is_plain_http_in_their_shape(live: Live) -> None:
    for fields in ({}, {"stream": True}):
        answer = live.post("/v1/messages", body("fail:some_code", **fields))
        assert answer.status_code == 400
        told = answer.json()
        assert told["type"] == "error"
        assert told["error"]["type"] == "invalid_request_error"
        assert told["error"]["code"] == "some_code" and told["error"]["message"]


def test_a_late_failure_is_the_last_event(live: Live) -> None:
    events = stream(live, "late-fail")
    assert events[-1]["type"] == "error"
    assert events[-1]["error"]["message"] == "As asked."
    assert events[-1]["error"]["type"] == "api_error"
    with anthropic.Anthropic(
        base_url=str(live.client.base_url), api_key="none", max_retries=0
    ) as client:
        with pytest.raises(anthropic.APIStatusError, match="As asked"):
            with client.messages.stream(**body("late-fail")) as told:
                told.get_final_message()


def test_an_error_after_the_headers_of_a_slow_start_is_an_event(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf")
    hasty = Patience(headers_s=0.05, keep_alive_s=0.05)
    with live_server(tmp_path, patience=hasty) as live:
        asked = body(f"prefill:{tmp_path / 'never'}", stream=True)
        with live.client.stream("POST", "/v1/messages", json=asked) as response:
            lines = response.iter_lines()
            assert any(line.startswith(": ") for line in lines)
            live.chat("crash")
            name, data = [line for line in lines if line and not line.startswith(": ")]
    assert name == "event: error"
    assert json.loads(data[6:])["error"]["code"] == "worker_crashed"


def test_an_unknown_model_is_not_found(live: Live) -> None:
    answer = live.post("/v1/messages", body("hi", model="nobody"))
    assert answer.status_code == 404
    assert answer.json()["error"]["type"] == "not_found_error"


@pytest.mark.parametrize(
    ("method", "path", "sent", "status", "kind"),
    [
        ("POST", "", {"headers": {"host": "evil.example"}}, 403, "permission_error"),
        ("POST", "", {"headers": {"origin": "http://evil.example"}}, 403, "permission_error"),
        ("POST", "/nope", {}, 404, "not_found_error"),
        ("POST", "/batches", {}, 404, "not_found_error"),
        ("GET", "/count_tokens", {}, 405, "invalid_request_error"),
        ("POST", "", {"content": b" " * (8 * 1024 * 1024 + 1)}, 413, "request_too_large"),
        ("POST", "/count_tokens", {"content": b"{}"}, 415, "invalid_request_error"),
    ],
)
def test_what_comes_to_no_endpoint_is_refused_in_their_shape(
    live: Live, method: str, path: str, sent: dict[str, Any], status: int, kind: str
) -> None:
    answer = live.client.request(method, "/v1/messages" + path, **sent)
    assert answer.status_code == status
    told = answer.json()
    assert told["type"] == "error"
    assert told["error"]["type"] == kind and told["error"]["message"]
    assert told["request_id"] == answer.headers["request-id"] == answer.headers["x-request-id"]


def test_the_sdk_raises_what_a_wrong_key_is(tmp_path: Path) -> None:
    with live_server(tmp_path, wait=False, api_key=("key",)) as live:
        url = str(live.client.base_url)
        with anthropic.Anthropic(base_url=url, api_key="wrong", max_retries=0) as client:
            with pytest.raises(anthropic.AuthenticationError, match="valid API key") as raised:
                client.messages.create(**body("hi"))
    error = raised.value
    assert error.type == "authentication_error"
    assert error.request_id is not None and error.request_id.startswith("req_")


def test_a_failure_is_named_as_theirs_by_its_status() -> None:
    events = MessageEvents(Origin("m", "fp", range(1)))
    told = msgspec.to_builtins(events.failed(ErrorInfo("No.", status=503)))
    assert told["error"]["type"] == "overloaded_error"


# ---- requests ----------------------------------------------------------------------------------


def understood(text: Any, **fields: Any) -> ChatRequest:
    request = messages_call(body(text, **fields)).requests[0]
    assert isinstance(request, ChatRequest)
    return request


def test_turns_become_messages() -> None:
    cached = {"cache_control": {"type": "ephemeral"}}
    use = {"type": "tool_use", "name": "get_time"}
    request = understood(
        [
            {"role": "user", "content": [{"type": "text", "text": "a"} | cached]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hmm", "signature": "x"},
                    {"type": "redacted_thinking", "data": "x"},
                    {"type": "text", "text": "well"},
                    use | {"id": "t1", "input": {"zone": "ü"}},
                    use | {"id": "t2"},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t2", "content": "noon"},
                    {"type": "tool_result", "tool_use_id": "t2"},
                    {
                        "type": "tool_result",
                        "tool_use_id": "t1",
                        "is_error": True,
                        "content": [{"type": "text", "text": "one"}],
                    },
                    {"type": "text", "text": "and"},
                    {"type": "text", "text": "now?"},
                ],
            },
        ],
        system=[{"type": "text", "text": "First."}, {"type": "text", "text": "Second."} | cached],
    )
    calls = [
        FunctionCall("t1", "get_time", '{"zone":"ü"}'),
        FunctionCall("t2", "get_time", "{}"),
    ]
    assert request.messages == [
        Message("system", "First.\nSecond."),
        Message("user", "a"),
        Message("assistant", "well", tool_calls=calls, reasoning_content="hmm"),
        Message("tool", "noon", tool_call_id="t2"),
        Message("tool", "", tool_call_id="t2"),
        Message("tool", "one", tool_call_id="t1"),
        Message("user", "and\nnow?"),
    ]


def test_an_answer_comes_back_as_what_it_was() -> None:
    answer = folded(
        Reasoning(0, "hmm"),
        Content(0, "one "),
        ToolCall(0, 0, '{"a":1}', call_id="c", name="f"),
        Content(0, "two"),
        reason="tool_calls",
    )
    result = {"type": "tool_result", "tool_use_id": "c", "content": "ok"}
    request = understood(
        [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": answer["content"]},
            {"role": "user", "content": [result]},
        ]
    )
    call = FunctionCall("c", "f", '{"a":1}')
    assert request.messages[1:] == [
        Message("assistant", "one two", tool_calls=[call], reasoning_content="hmm"),
        Message("tool", "ok", tool_call_id="c"),
    ]


def test_a_line_for_accounts_is_no_part_of_the_prompt() -> None:
    """It is another one each time: no prompt would be found in the cache."""
    line = {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1; cch=12345;"}
    plain = {"type": "text", "text": "You are helpful."}
    assert understood("hi", system=[line, plain]).messages[0] == Message(
        "system", "You are helpful."
    )
    assert understood("hi", system=[line]).messages == [Message("user", "hi")]
    joined = line["text"] + "\nYou are helpful.\nBe brief."
    assert understood("hi", system=joined).messages[0] == Message(
        "system", "You are helpful.\nBe brief."
    )


def test_neighbours_are_one_turn_and_system_texts_between_are_the_users() -> None:
    request = understood(
        [
            {"role": "user", "content": "hi"},
            {"role": "system", "content": "Be kind."},
            {"role": "assistant", "content": "one "},
            {"role": "assistant", "content": [{"type": "text", "text": "two"}]},
            {"role": "system", "content": [{"type": "text", "text": "Now."}]},
            {"role": "user", "content": "and?"},
        ],
        system="You are.",
    )
    assert request.messages == [
        Message("system", "You are."),
        Message("user", "hi\n<system-reminder>\nBe kind.\n</system-reminder>"),
        Message("assistant", "one two"),
        Message("user", "<system-reminder>\nNow.\n</system-reminder>\nand?"),
    ]


def test_settings_by_their_names() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    request = understood(
        "hi",
        temperature=0.5,
        top_k=7,
        stop_sequences=["END"],
        tools=[TOOL | {"name": "n" * 128, "cache_control": {"type": "ephemeral"}}],
        tool_choice={"type": "tool", "name": "n" * 128, "disable_parallel_tool_use": True},
        thinking={"type": "enabled", "budget_tokens": 2048},
        output_config={"effort": "high", "format": {"type": "json_schema", "schema": schema}},
        context_management={"edits": []},
        metadata={"user_id": "me"},
    )
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_k, sampling.max_tokens) == (0.5, 7, 64)
    assert sampling.stop == ["END"]
    assert (request.tool_choice, request.tool_name) == ("required", "n" * 128)
    assert not request.parallel_tool_calls
    (tool,) = request.tools
    assert tool["function"]["parameters"] == {"type": "object"}
    assert request.reasoning_budget == 2048
    assert request.template_kwargs == {"reasoning_effort": "high"}
    assert request.response_format == ResponseFormat(
        "json_schema", schema, "output_config.format.schema"
    )


@pytest.mark.parametrize(
    ("choice", "wanted"), [("auto", "auto"), ("any", "required"), ("none", "none")]
)
def test_which_tools_are_called(choice: str, wanted: str) -> None:
    request = understood("hi", tools=[TOOL], tool_choice={"type": choice})
    assert (request.tool_choice, request.tool_name) == (wanted, None)
    assert request.parallel_tool_calls


def test_no_thinking_is_none() -> None:
    assert understood("hi").reasoning_budget is None
    assert understood("hi", thinking={"type": "adaptive"}).reasoning_budget is None
    assert understood("hi", thinking={"type": "disabled"}).reasoning_budget == 0


RESULT = {"type": "tool_result", "tool_use_id": "t", "content": "x"}
IMAGE = {"type": "image", "source": {"type": "url", "url": "http://x/y.png"}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages[0].content[0].type"),
        (
            {"messages": [{"role": "user", "content": [RESULT]}]},
            "messages[0].content[0].tool_use_id",
        ),
        (
            {"messages": [{"role": "user", "content": [RESULT | {"content": [IMAGE]}]}]},
            "messages[0].content[0].content[0].type",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "thinking", "thinking": "x"}]}]},
            "messages[0].content[0].type",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": "x"},
                    {"role": "assistant", "content": [RESULT]},
                    {"role": "user", "content": "x"},
                ]
            },
            "messages[1].content[0].type",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": "x"},
                    {"role": "assistant", "content": "The answer is"},
                ]
            },
            "messages[1].role",
        ),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0].type"),
        ({"tools": [TOOL, TOOL]}, "tools[1].name"),
        ({"tools": [TOOL | {"input_schema": {"type": "array"}}]}, "tools[0].input_schema"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"stop_sequences": ["ü" * 200]}, "stop_sequences"),
        ({"n": 2}, "n"),
        ({"mcp_servers": [{"name": "x"}]}, "mcp_servers"),
        ({"output_format": {"type": "json_schema"}}, "output_format"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
    ],
)
def test_what_is_wrong_is_refused_by_its_place(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        messages_call(body("hi") | fields)
    assert refused.value.info.param == param


def test_a_workers_objection_names_the_place_in_the_body() -> None:
    place = messages_call(body("hi")).place
    assert place("tools[3].function.parameters") == "tools[3].input_schema"
    assert place("output_config.format.schema") == "output_config.format.schema"
