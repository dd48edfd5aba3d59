"""The demo model over HTTP: turns, tools and JSON with a model that reads its prompt."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest
from openai.types.chat import ChatCompletionMessage
from openai.types.chat.chat_completion import Choice
from openai.types.chat.chat_completion_message_function_tool_call import (
    ChatCompletionMessageFunctionToolCall as Call,
)
from openai.types.chat.chat_completion_message_function_tool_call import Function

from llm_server.demo import demo_model_path
from tests.live import LiveServer

TIMER = {
    "type": "function",
    "function": {
        "name": "set_timer",
        "description": "Start a timer",
        "parameters": {
            "type": "object",
            "properties": {"minutes": {"type": "integer"}},
            "required": ["minutes"],
        },
    },
}
LIGHT = {
    "type": "function",
    "function": {
        "name": "set_light",
        "description": "Switch a light on or off",
        "parameters": {
            "type": "object",
            "properties": {
                "room": {"type": "string"},
                "state": {"type": "string", "enum": ["on", "off"]},
            },
            "required": ["room", "state"],
        },
    },
}
TOOLS: Any = [TIMER, LIGHT]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    assert demo_model_path().is_file()
    folder: Path = tmp_path_factory.mktemp("empty") / "models"
    folder.mkdir()
    server = LiveServer(folder)
    server.wait_ready()
    yield server
    server.close()


@pytest.fixture(scope="module")
def client(server: LiveServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def ask(client: openai.OpenAI, *messages: Any, **more: Any) -> Any:
    """One answer at temperature 0; strings are user messages."""
    history: Any = [{"role": "user", "content": m} if isinstance(m, str) else m for m in messages]
    options = {"temperature": 0, "max_tokens": 200, "model": "demo.gguf", **more}
    answer = client.chat.completions.create(messages=history, **options)
    return folded(answer) if more.get("stream") else answer.choices[0]


def _empty_call(id: str) -> Call:
    return Call(id=id, type="function", function=Function(name="", arguments=""))


def folded(chunks: Any) -> Choice:
    """What the deltas of a stream add up to, as an answer that was not streamed."""
    text, reasons = "", []
    calls: dict[int, Call] = {}
    for chunk in chunks:
        (choice,) = chunk.choices
        text += choice.delta.content or ""
        reasons += [choice.finish_reason] if choice.finish_reason else []
        for part in choice.delta.tool_calls or []:
            call = calls.setdefault(part.index, _empty_call(part.id or ""))
            call.function.name += part.function.name or ""
            call.function.arguments += part.function.arguments or ""
            assert call.id and call.function.name, "id and name come in the first delta"
    assert len(reasons) == 1
    assert list(calls) == list(range(len(calls)))
    message = ChatCompletionMessage(
        role="assistant", content=text or None, tool_calls=[*calls.values()] or None
    )
    return Choice(finish_reason=reasons[0], index=0, message=message)


def calls_of(choice: Any) -> list[tuple[str, Any]]:
    calls = choice.message.tool_calls or []
    return [(call.function.name, json.loads(call.function.arguments)) for call in calls]


def test_an_empty_models_folder_is_served_by_the_demo_model(server: LiveServer) -> None:
    assert server.client.get("/models").json()["models"] == ["demo.gguf"]
    assert "demo model" in server.log


def test_it_ends_its_turn_and_knows_the_server(client: openai.OpenAI) -> None:
    choice = ask(client, "Where do I put my models?")
    assert choice.finish_reason == "stop"
    assert "GGUF" in choice.message.content
    assert "<|" not in choice.message.content


def test_a_conversation_of_several_turns(client: openai.OpenAI) -> None:
    first = ask(client, "hi there!")
    assert first.finish_reason == "stop"
    second = ask(client, "hi there!", first.message.model_dump(), "who are you?")
    assert "demo model" in second.message.content
    assert second.finish_reason == "stop"


def test_answers_change_with_the_system_prompt(client: openai.OpenAI) -> None:
    plain = ask(client, "Where do I put my models?").message.content
    loud: Any = {"role": "system", "content": "Answer in upper case."}
    shouted = ask(client, loud, "Where do I put my models?").message.content
    assert shouted == shouted.upper() != plain


@pytest.mark.parametrize("stream", [False, True])
def test_a_whole_tool_loop(client: openai.OpenAI, stream: bool) -> None:
    question = "please set a timer for 12 minutes"
    choice = ask(client, question, tools=TOOLS, stream=stream)
    assert choice.finish_reason == "tool_calls"
    assert calls_of(choice) == [("set_timer", {"minutes": 12})]
    (call,) = choice.message.tool_calls
    result = {"role": "tool", "tool_call_id": call.id, "content": '{"status": "started"}'}
    history = [question, choice.message.model_dump(exclude_none=True), result]
    answer = ask(client, *history, tools=TOOLS, stream=stream)
    assert answer.finish_reason == "stop"
    assert answer.message.content and not answer.message.tool_calls


@pytest.mark.parametrize("stream", [False, True])
def test_two_calls_in_one_message(client: openai.OpenAI, stream: bool) -> None:
    choice = ask(
        client,
        "please set a timer for 12 minutes and switch off the bedroom light",
        tools=TOOLS,
        stream=stream,
    )
    assert choice.finish_reason == "tool_calls"
    assert calls_of(choice) == [
        ("set_timer", {"minutes": 12}),
        ("set_light", {"room": "bedroom", "state": "off"}),
    ]
    assert len({call.id for call in choice.message.tool_calls}) == 2


@pytest.mark.parametrize("stream", [False, True])
def test_no_call_when_none_fits(client: openai.OpenAI, stream: bool) -> None:
    choice = ask(client, "What is the capital of France?", tools=TOOLS, stream=stream)
    assert choice.finish_reason == "stop"
    assert choice.message.content and not choice.message.tool_calls


QUESTIONS = ["please set a timer for 12 minutes and switch off the bedroom light", "who are you?"]


@pytest.mark.parametrize("question", QUESTIONS)
def test_streamed_deltas_add_up_to_the_whole_answer(client: openai.OpenAI, question: str) -> None:
    whole = ask(client, question, tools=TOOLS)
    streamed = ask(client, question, tools=TOOLS, stream=True)
    assert (streamed.message.content or "") == (whole.message.content or "")
    assert streamed.finish_reason == whole.finish_reason

    def texts(choice: Any) -> list[tuple[str, str]]:
        calls = choice.message.tool_calls or []
        return [(call.function.name, call.function.arguments) for call in calls]

    assert texts(streamed) == texts(whole)


def test_tool_choice_is_obeyed(client: openai.OpenAI) -> None:
    question = "please set a timer for 12 minutes"
    assert not ask(client, question, tools=TOOLS, tool_choice="none").message.tool_calls
    named = {"type": "function", "function": {"name": "set_light"}}
    ((name, arguments),) = calls_of(ask(client, question, tools=TOOLS, tool_choice=named))
    assert name == "set_light"
    jsonschema.validate(arguments, LIGHT["function"]["parameters"])  # type: ignore[index]
    forced = ask(client, "who are you?", tools=TOOLS, tool_choice="required")
    assert len(calls_of(forced)) >= 1 and forced.finish_reason == "tool_calls"


def test_one_call_at_most_when_parallel_calls_are_off(client: openai.OpenAI) -> None:
    choice = ask(
        client,
        "please set a timer for 12 minutes and switch off the bedroom light",
        tools=TOOLS,
        parallel_tool_calls=False,
    )
    assert calls_of(choice) == [("set_timer", {"minutes": 12})]


def test_a_schema_is_kept(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 20}, "tiny": {"type": "boolean"}},
        "required": ["name", "tiny"],
        "additionalProperties": False,
    }
    choice = ask(
        client,
        "who are you?",
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
    )
    jsonschema.validate(json.loads(choice.message.content), schema)
    assert choice.finish_reason == "stop"
    anything = ask(client, "who are you?", response_format={"type": "json_object"}, max_tokens=400)
    assert isinstance(json.loads(anything.message.content), dict)


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}}, None),
        ({"tool_choice": "required"}, None),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {
                        "name": "x",
                        "schema": {"$ref": "http://example.com/schema.json"},
                    },
                }
            },
            "response_format.json_schema.schema",
        ),
    ],
)
def test_what_cannot_be_forced_is_refused(
    client: openai.OpenAI, options: dict[str, Any], param: str | None
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, "hello", **options)
    assert refused.value.param == (param or "tool_choice")
