"""openai-python: the Responses API in all its forms."""

from __future__ import annotations

import asyncio
from typing import Any

TIMER: Any = {
    "type": "function",
    "name": "set_timer",
    "description": "Start a timer",
    "parameters": {
        "type": "object",
        "properties": {"minutes": {"type": "integer"}},
        "required": ["minutes"],
        "additionalProperties": False,
    },
    "strict": True,
}


def test_a_conversation_with_a_function(base_url: str) -> None:
    # docs: openai responses
    import json

    from openai import OpenAI

    client = OpenAI(base_url=base_url, api_key="none")
    tools = [
        {
            "type": "function",
            "name": "set_timer",
            "description": "Start a timer",
            "parameters": {
                "type": "object",
                "properties": {"minutes": {"type": "integer"}},
                "required": ["minutes"],
            },
        }
    ]
    conversation = [{"role": "user", "content": "please set a timer for 12 minutes"}]
    first = client.responses.create(
        model="demo.gguf", input=conversation, tools=tools, temperature=0
    )
    conversation += first.output
    for item in first.output:
        if item.type == "function_call":
            minutes = json.loads(item.arguments)["minutes"]
            conversation.append(
                {
                    "type": "function_call_output",
                    "call_id": item.call_id,
                    "output": json.dumps({"status": "started", "minutes": minutes}),
                }
            )
    second = client.responses.create(
        model="demo.gguf", input=conversation, tools=tools, temperature=0
    )
    print(second.output_text)
    # end
    assert [item.type for item in first.output] == ["function_call"]
    assert minutes == 12
    assert second.output_text and second.status == "completed"
    assert second.usage is not None and second.usage.input_tokens_details.cached_tokens > 0
    client.close()


def test_a_stream(base_url: str) -> None:
    # docs: openai responses stream
    from openai import OpenAI

    client = OpenAI(base_url=base_url, api_key="none")
    with client.responses.stream(
        model="demo.gguf", input="Where do I put my models?", temperature=0
    ) as stream:
        for event in stream:
            if event.type == "response.output_text.delta":
                print(event.delta, end="", flush=True)
    # end
    assert "GGUF" in stream.get_final_response().output_text
    client.close()


def test_an_async_stream_with_a_call(base_url: str) -> None:
    from openai import AsyncOpenAI

    async def calls() -> list[tuple[str, Any]]:
        async with AsyncOpenAI(base_url=base_url, api_key="none") as client:
            async with client.responses.stream(
                model="demo.gguf",
                input="please set a timer for 12 minutes",
                tools=[TIMER],
                temperature=0,
            ) as stream:
                async for _ in stream:
                    pass
                final = await stream.get_final_response()
        return [
            (item.name, item.parsed_arguments)
            for item in final.output
            if item.type == "function_call"
        ]

    assert asyncio.run(calls()) == [("set_timer", {"minutes": 12})]


def test_parse(base_url: str) -> None:
    from typing import Literal

    from openai import OpenAI
    from pydantic import BaseModel

    class Appointment(BaseModel):
        day: Literal["today", "tomorrow"]
        confirmed: bool

    with OpenAI(base_url=base_url, api_key="none") as client:
        answer = client.responses.parse(
            model="demo.gguf", input="who are you?", text_format=Appointment, temperature=0
        )
    assert isinstance(answer.output_parsed, Appointment)


def test_the_sdks_own_tool_loop(base_url: str) -> None:
    from openai import OpenAI
    from openai.lib.responses_tool_runner import RegisteredFunction, ResponsesToolRunner

    minutes_set: list[Any] = []

    def set_timer(arguments: dict[str, object]) -> str:
        minutes_set.append(arguments["minutes"])
        return '{"status": "started"}'

    for stream in (False, True):
        runner = ResponsesToolRunner(functions=[RegisteredFunction(TIMER, set_timer)])
        with OpenAI(base_url=base_url, api_key="none") as client:
            answer = runner.run(
                client,
                {
                    "model": "demo.gguf",
                    "input": "please set a timer for 12 minutes",
                    "temperature": 0,
                },
                max_steps=4,
                stream=stream,
            )
        assert answer.output_text
        runner.close()
    assert minutes_set == [12, 12]


def test_what_is_wrong_is_named_where_it_stands(base_url: str) -> None:
    import openai
    import pytest

    with openai.OpenAI(base_url=base_url, api_key="none") as client:
        with pytest.raises(openai.BadRequestError) as too_long:
            client.responses.create(model="demo.gguf", input="water " * 100_000)
        bad: Any = {**TIMER, "parameters": {"$ref": "http://example.com/schema.json"}}
        with pytest.raises(openai.BadRequestError) as not_a_schema:
            client.responses.create(
                model="demo.gguf", input="hi", tools=[bad], tool_choice="required"
            )
    assert (too_long.value.code, too_long.value.param) == ("context_length_exceeded", "input")
    assert not_a_schema.value.param == "tools[0].parameters"


def test_a_prompt_is_warmed(base_url: str) -> None:
    from openai import OpenAI

    with OpenAI(base_url=base_url, api_key="none") as client:
        body: Any = {"prompt_cache_options": {"prewarm": True}}
        instructions = "You are a helpful assistant. " * 10
        warmed = client.responses.create(
            model="demo.gguf", instructions=instructions, input="hi there!", extra_body=body
        )
        assert warmed.output == [] and warmed.status == "completed"
        answer = client.responses.create(
            model="demo.gguf", instructions=instructions, input="who are you?", temperature=0
        )
    assert warmed.usage is not None and answer.usage is not None
    assert answer.usage.input_tokens_details.cached_tokens > 30


def test_tokens_are_counted_before_they_are_paid_for(base_url: str) -> None:
    from openai import OpenAI

    with OpenAI(base_url=base_url, api_key="none") as client:
        asked: Any = {"model": "demo.gguf", "instructions": "Be short.", "input": "who are you?"}
        counted = client.responses.input_tokens.count(**asked)
        answer = client.responses.create(**asked, temperature=0)
    assert answer.usage is not None
    assert counted.object == "response.input_tokens"
    assert counted.input_tokens == answer.usage.input_tokens
