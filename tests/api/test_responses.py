"""`POST /responses`: items become messages, deltas become events of OpenAI's own types."""

from __future__ import annotations

import json
from typing import Any, get_args

import msgspec
import openai
import pydantic
import pytest
from openai.types.responses import (
    Response,
    ResponseFunctionToolCall,
    ResponseOutputMessage,
    ResponseReasoningItem,
    ResponseStreamEvent,
)

from llm_server.api.completion import Fold
from llm_server.api.requests import chat_call
from llm_server.api.response_events import ResponseEvents
from llm_server.api.responses import responses_call
from llm_server.api.usage import Origin
from llm_server.errors import InvalidRequest
from llm_server.worker.messages import (
    ChatRequest,
    Content,
    Finished,
    FunctionCall,
    Message,
    Reasoning,
    Timings,
    ToolCall,
    Usage,
)
from tests.fake_live import Live

ITEMS: dict[str, type[pydantic.BaseModel]] = {
    "message": ResponseOutputMessage,
    "reasoning": ResponseReasoningItem,
    "function_call": ResponseFunctionToolCall,
}
EVENTS: dict[str, type[pydantic.BaseModel]] = {
    get_args(kind.model_fields["type"].annotation)[0]: kind
    for kind in get_args(get_args(ResponseStreamEvent)[0])
}
TOOL = {"type": "function", "name": "get_time", "parameters": {"type": "object"}, "strict": True}


def checked(response: dict[str, Any]) -> dict[str, Any]:
    """A response that OpenAI's types accept, with each of its items."""
    Response.model_validate(response)
    for item in response["output"]:
        ITEMS[item["type"]].model_validate(item)
    return response


def ask(live: Live, input: Any, **fields: Any) -> dict[str, Any]:
    answer = live.post("/v1/responses", {"input": input} | fields)
    assert answer.status_code == 200, answer.text
    return checked(answer.json())


def stream(live: Live, input: Any, **fields: Any) -> list[dict[str, Any]]:
    """The events of a stream: named as they are typed, numbered, and of OpenAI's types."""
    body = {"input": input, "stream": True} | fields
    answer = live.post("/responses", body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = []
    for block in answer.text.strip().split("\n\n"):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        EVENTS[event["type"]].model_validate(event)
        if "item" in event:
            ITEMS[event["item"]["type"]].model_validate(event["item"])
        if "response" in event:
            checked(event["response"])
        events.append(event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def short(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


# ---- answers -----------------------------------------------------------------------------------


def test_an_answer(live: Live) -> None:
    response = ask(live, "hello there", instructions="Be brief.", metadata={"k": "v"})
    assert response["id"].startswith("resp_") and response["status"] == "completed"
    (message,) = response["output"]
    assert [part["text"] for part in message["content"]] == ["hello there "]
    assert response["instructions"] == "Be brief." and response["metadata"] == {"k": "v"}
    assert response["usage"]["input_tokens"] == 2
    assert response["usage"]["output_tokens"] == 2
    assert response["usage"]["input_tokens_details"]["cached_tokens"] == 0
    assert response["store"] is False, "nothing is stored, whatever was asked"


def test_a_streamed_answer(live: Live) -> None:
    events = stream(live, "hello there")
    assert short(events) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert events[0]["response"]["status"] == "in_progress"
    assert events[0]["response"]["output"] == [] and events[0]["response"]["usage"] is None
    assert events[2]["item"]["status"] == "in_progress" and events[2]["item"]["content"] == []
    assert [e["delta"] for e in events[4:6]] == ["hello ", "there "]
    assert events[6]["text"] == events[7]["part"]["text"] == "hello there "
    last = events[-1]["response"]
    assert last["output"] == [events[8]["item"]]
    assert last["id"] == events[0]["response"]["id"]
    assert last["usage"]["total_tokens"] == last["timings"]["predicted_n"] + 1


def test_a_thought_is_an_item_before_the_message(live: Live) -> None:
    events = stream(live, "think")
    kinds = short(events)
    assert kinds.index("reasoning_text.done") < kinds.index("output_text.delta")
    assert kinds[2:5] == ["output_item.added", "content_part.added", "reasoning_text.delta"]
    thought, message = events[-1]["response"]["output"]
    assert (thought["type"], message["type"]) == ("reasoning", "message")
    assert thought["content"][0]["text"] and thought["summary"] == []
    assert [e["output_index"] for e in events if e["type"].endswith("item.added")] == [0, 1]


def test_each_call_is_an_item(live: Live) -> None:
    events = stream(live, "tool", tools=[TOOL])
    calls = [item for item in events[-1]["response"]["output"] if item["type"] == "function_call"]
    assert len(calls) == 2
    for call in calls:
        mine = [e for e in events if e.get("item_id") == call["id"]]
        deltas = [e["delta"] for e in mine if e["type"].endswith("arguments.delta")]
        assert short(mine)[-1] == "function_call_arguments.done"
        assert "".join(deltas) == call["arguments"] == mine[-1]["arguments"]
        assert call["name"] == mine[-1]["name"] and call["call_id"] != call["id"]
    whole = ask(live, "tool", tools=[TOOL])["output"]
    assert [(item.get("name"), item.get("arguments")) for item in whole] == [
        (item.get("name"), item.get("arguments")) for item in events[-1]["response"]["output"]
    ]


def test_an_answer_that_runs_out_of_tokens_is_incomplete() -> None:
    asked = responses_call({"input": "hi", "max_output_tokens": 2})
    (request,) = asked.call.requests
    assert isinstance(request, ChatRequest)
    origin = Origin("a.gguf", "fp", range(1), sampling=request.sampling)
    fold = ResponseEvents(origin, asked.start)
    fold.add(Content(0, "a b"))
    fold.add(Finished(0, "length", Usage(1, 2, 0, reasoning_tokens=1), Timings(0, 1, 2)))
    response = checked(json.loads(msgspec.json.encode(fold.whole())))
    assert response["status"] == response["output"][0]["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert response["max_output_tokens"] == 2
    assert response["usage"]["output_tokens_details"]["reasoning_tokens"] == 1


def test_warming_a_prompt_is_complete_without_output(live: Live) -> None:
    response = ask(live, "hello", prompt_cache_options={"prewarm": True})
    assert response["status"] == "completed" and response["output"] == []
    assert response["incomplete_details"] is None


def test_an_early_failure_is_plain_http(live: Live) -> None:
    for fields in ({}, {"stream": True}):
        answer = live.post("/v1/responses", {"input": "fail:some_code"} | fields)
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "some_code"


def test_a_workers_objection_names_the_place_in_the_items() -> None:
    place = responses_call({"input": "hi"}).call.place
    assert place("messages") == "input"
    assert place("tools[3].function.parameters") == "tools[3].parameters"
    assert place("text.format.schema") == "text.format.schema"


def test_a_late_failure_is_the_last_event(live: Live) -> None:
    events = stream(live, "late-fail")
    assert short(events)[-1] == "failed"
    response = events[-1]["response"]
    assert response["status"] == "failed"
    assert response["error"]["code"] == "server_error"
    assert response["error"]["message"] == "As asked."
    (item,) = response["output"]
    told = "".join(e["delta"] for e in events if e["type"] == "response.output_text.delta")
    assert item["status"] == "incomplete"
    assert told and item["content"][0]["text"] == told
    assert [e["sequence_number"] for e in events] == list(range(len(events)))
    assert "output_item.done" not in short(events)


def test_the_sdk_puts_a_stream_together(live: Live) -> None:
    with openai.OpenAI(base_url=f"{live.client.base_url}/v1", api_key="none") as client:
        with client.responses.stream(model="a.gguf", input="hello there") as events:
            kinds = [event.type for event in events]
        final = events.get_final_response()
    assert kinds[-1] == "response.completed"
    assert final.output_text == "hello there "


# ---- requests ----------------------------------------------------------------------------------


def understood(input: Any, **fields: Any) -> ChatRequest:
    request = responses_call({"input": input} | fields).call.requests[0]
    assert isinstance(request, ChatRequest)
    return request


def test_items_become_messages() -> None:
    request = understood(
        [
            {"role": "developer", "content": "Be kind."},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"text": "hmm"}]},
            {
                "type": "message",
                "id": "msg_1",
                "status": "completed",
                "role": "assistant",
                "content": [{"type": "output_text", "text": "well", "annotations": []}],
            },
            {"type": "function_call", "call_id": "c1", "name": "get_time", "arguments": "{}"},
            {"type": "function_call", "call_id": "c2", "name": "get_time", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c2", "output": "noon"},
            {
                "type": "function_call_output",
                "call_id": "c1",
                "output": [{"type": "input_text", "text": "one"}],
            },
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
        ],
        instructions="First.",
    )
    calls = [FunctionCall("c1", "get_time", "{}"), FunctionCall("c2", "get_time", "{}")]
    assert request.messages == [
        Message("system", "First."),
        Message("system", "Be kind."),
        Message("user", "hi"),
        Message("assistant", "well", tool_calls=calls, reasoning_content="hmm"),
        Message("tool", "noon", tool_call_id="c2"),
        Message("tool", "one", tool_call_id="c1"),
        Message("assistant", "No."),
    ]


def test_what_does_not_belong_together_stays_apart() -> None:
    request = understood(
        [
            {"role": "assistant", "content": "one"},
            {"role": "assistant", "content": "two"},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "done"},
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "so"}]},
            {"role": "assistant", "content": "three"},
        ]
    )
    assert [(m.content, m.reasoning_content, len(m.tool_calls)) for m in request.messages] == [
        ("one", None, 0),
        ("two", None, 1),
        ("done", None, 0),
        ("three", "so", 0),
    ]


def test_an_answer_of_calls_and_texts_is_one_message_again() -> None:
    """The one that chat would have made of it."""
    events = [
        Reasoning(0, "hmm"),
        ToolCall(0, 0, "{}", call_id="c", name="f"),
        Content(0, "one "),
        ToolCall(0, 1, "{}", call_id="d", name="f"),
        Content(0, "two"),
        Finished(0, "tool_calls", Usage(1, 1, 0), Timings(0, 1, 2)),
    ]
    fold = ResponseEvents(Origin("m", "fp", range(1)), responses_call({"input": "hi"}).start)
    chat = Fold(Origin("m", "fp", range(1)))
    for event in events:
        fold.add(event)
        chat.add(event)
    output = msgspec.to_builtins(fold.whole())["output"]
    assert [item["type"] for item in output] == [
        "reasoning",
        "function_call",
        "message",
        "function_call",
        "message",
    ]
    results = [
        {"type": "function_call_output", "call_id": call_id, "output": "ok"} for call_id in "cd"
    ]
    user = {"role": "user", "content": "hi"}
    answer = msgspec.to_builtins(chat.whole())["choices"][0]["message"]
    tools = [{"role": "tool", "tool_call_id": call_id, "content": "ok"} for call_id in "cd"]
    (same,) = chat_call({"messages": [user, answer, *tools]}).requests
    assert isinstance(same, ChatRequest)
    assert understood([user, *output, *results]).messages == same.messages


def test_thoughts_without_text_leave_no_trace_and_neighbours_are_one() -> None:
    def thought(*texts: str) -> dict[str, Any]:
        return {
            "type": "reasoning",
            "summary": [{"type": "summary_text", "text": t} for t in texts],
        }

    user = {"role": "user", "content": "hi"}
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "c", "output": "ok"}
    request = understood(
        [user, thought(), call, thought(), output, thought("a"), thought("b", "c")]
    )
    assert request.messages == [
        Message("user", "hi"),
        Message("assistant", tool_calls=[FunctionCall("c", "f", "{}")]),
        Message("tool", "ok", tool_call_id="c"),
        Message("assistant", reasoning_content="a\n\nb\n\nc"),
    ]


def test_fields_mean_what_they_mean_in_chat() -> None:
    schema = {"type": "object"}
    request = understood(
        "hi",
        tools=[TOOL],
        tool_choice={"type": "function", "name": "get_time"},
        parallel_tool_calls=False,
        text={"format": {"type": "json_schema", "name": "x", "schema": schema, "strict": True}},
        reasoning={"effort": "none", "summary": "auto"},
        max_output_tokens=7,
        temperature=0.5,
        top_p=0.25,
        top_k=3,
    )
    assert request.tools == [
        {
            "type": "function",
            "function": {"name": "get_time", "parameters": {"type": "object"}, "strict": True},
        }
    ]
    assert (request.tool_choice, request.tool_name) == ("required", "get_time")
    assert request.parallel_tool_calls is False
    assert request.response_format.schema == schema
    assert request.template_kwargs == {"reasoning_effort": "none"}
    assert request.reasoning_budget == 0
    sampling = request.sampling
    assert (sampling.max_tokens, sampling.temperature) == (7, 0.5)
    assert (sampling.top_p, sampling.top_k) == (0.25, 3)
    assert understood("hi", max_output_tokens=-1).sampling.max_tokens is None


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "unsupported_parameter"),
        ({"conversation": "conv_1"}, "conversation", "unsupported_parameter"),
        ({"background": True}, "background", "unsupported_parameter"),
        ({"truncation": "auto"}, "truncation", "unsupported_parameter"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt", "unsupported_parameter"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "unsupported_parameter"),
        ({"tool_choice": {"type": "mcp"}}, "tool_choice.type", "unsupported_parameter"),
        ({"include": ["message.output_text.logprobs"]}, "include", "unsupported_parameter"),
        ({"text": {"verbosity": "low"}}, "text.verbosity", "unsupported_parameter"),
        ({"n": 2}, "n", "unsupported_parameter"),
        ({"tools": [TOOL, TOOL]}, "tools[1].name", "invalid_value"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema", None),
        ({"max_output_tokens": 0}, "max_output_tokens", "invalid_value"),
        ({"max_output_tokens": -2}, "max_output_tokens", "invalid_value"),
        ({"input": []}, "input", "invalid_value"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input", "invalid_value"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type", "invalid_value"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input[0].content[0].type",
            "invalid_value",
        ),
        (
            {"input": [{"type": "function_call_output", "call_id": "c", "output": ""}]},
            "input[0].call_id",
            "invalid_value",
        ),
    ],
)
def test_what_is_refused(fields: dict[str, Any], param: str, code: str | None) -> None:
    with pytest.raises(InvalidRequest) as refused:
        responses_call({"input": "hi"} | fields)
    assert refused.value.info.param == param
    assert refused.value.info.code == (code or "missing_required_parameter")


def test_what_clients_send_by_themselves_is_harmless() -> None:
    call = responses_call(
        {
            "input": "hi",
            "store": True,
            "user": "me",
            "background": False,
            "truncation": "disabled",
            "previous_response_id": None,
            "include": ["reasoning.encrypted_content"],
            "service_tier": "auto",
            "text": {"format": {"type": "text"}, "verbosity": "medium"},
            "surprise": 1,
        }
    ).call
    assert call.ignored == ["surprise"]
