"""anthropic-sdk-python: the Messages API, as Claude Code and agents on that SDK speak it."""

from __future__ import annotations

import asyncio
from typing import Any

TIMER: Any = {
    "name": "set_timer",
    "description": "Start a timer",
    "input_schema": {
        "type": "object",
        "properties": {"minutes": {"type": "integer"}},
        "required": ["minutes"],
    },
}


def root_of(base_url: str) -> str:
    """The SDK itself writes the /v1."""
    return base_url.removesuffix("/v1")


def test_a_conversation_with_a_tool(base_url: str) -> None:
    root_url = root_of(base_url)
    # docs: anthropic
    import json

    from anthropic import Anthropic

    client = Anthropic(base_url=root_url, api_key="none")
    tools = [
        {
            "name": "set_timer",
            "description": "Start a timer",
            "input_schema": {
                "type": "object",
                "properties": {"minutes": {"type": "integer"}},
                "required": ["minutes"],
            },
        }
    ]
    messages = [{"role": "user", "content": "please set a timer for 12 minutes"}]
    options = {"model": "demo.gguf", "max_tokens": 256, "tools": tools}
    options["extra_body"] = {"temperature": 0}
    first = client.messages.create(messages=messages, **options)
    messages.append({"role": "assistant", "content": first.content})
    results = [
        {
            "type": "tool_result",
            "tool_use_id": block.id,
            "content": json.dumps({"status": "started", **block.input}),
        }
        for block in first.content
        if block.type == "tool_use"
    ]
    messages.append({"role": "user", "content": results})
    second = client.messages.create(messages=messages, **options)
    print(second.content[0].text)
    # end
    assert first.stop_reason == "tool_use"
    assert [block.input for block in first.content if block.type == "tool_use"] == [{"minutes": 12}]
    assert second.stop_reason == "end_turn" and second.content[0].text
    assert second.usage.cache_read_input_tokens, "the first prompt is in cells"
    counted = client.messages.count_tokens(model="demo.gguf", messages=messages, tools=tools)
    usage = second.usage
    assert counted.input_tokens == usage.input_tokens + usage.cache_read_input_tokens
    client.close()


def test_a_stream(base_url: str) -> None:
    root_url = root_of(base_url)
    # docs: anthropic stream
    from anthropic import Anthropic

    client = Anthropic(base_url=root_url, api_key="none")
    with client.messages.stream(
        model="demo.gguf",
        max_tokens=256,
        messages=[{"role": "user", "content": "Where do I put my models?"}],
        extra_body={"temperature": 0},
    ) as stream:
        for text in stream.text_stream:
            print(text, end="", flush=True)
    # end
    assert "GGUF" in stream.get_final_text()
    assert stream.get_final_message().stop_reason == "end_turn"
    client.close()


def test_a_stream_is_what_a_whole_answer_is(base_url: str) -> None:
    from anthropic import AsyncAnthropic

    async def both() -> tuple[Any, Any]:
        async with AsyncAnthropic(base_url=root_of(base_url), api_key="none") as client:
            asked: Any = {
                "model": "demo.gguf",
                "max_tokens": 256,
                "messages": [{"role": "user", "content": "set a timer for 5 minutes please"}],
                "tools": [TIMER],
                "tool_choice": {"type": "any"},
                "extra_body": {"temperature": 0},
            }
            async with client.messages.stream(**asked) as stream:
                streamed = await stream.get_final_message()
            return streamed, await client.messages.create(**asked)

    streamed, whole = asyncio.run(both())
    assert streamed.stop_reason == whole.stop_reason == "tool_use"
    (call,), (same,) = streamed.content, whole.content
    assert call.name == same.name == "set_timer"
    assert call.input == same.input == {"minutes": 5}


def test_a_stop_sequence_and_a_schema(base_url: str) -> None:
    from anthropic import Anthropic

    client = Anthropic(base_url=root_of(base_url), api_key="none")
    question: Any = {
        "model": "demo.gguf",
        "max_tokens": 128,
        "messages": [{"role": "user", "content": "Where do I put my models?"}],
        "extra_body": {"temperature": 0},
    }
    message = client.messages.create(**question, stop_sequences=["models"])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "models")
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    format = {"type": "json_schema", "schema": schema}
    told = client.messages.create(**question, output_config={"format": format}).content[0].text
    assert told in ('{"ok":true}', '{"ok":false}')
    client.close()
