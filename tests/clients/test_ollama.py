"""ollama-python: Ollama's own API, as Home Assistant and other programs of its users speak it."""

from __future__ import annotations

import asyncio
from typing import Any

TIMER: Any = {
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


def root_of(base_url: str) -> str:
    """Ollama's API is not below /v1."""
    return base_url.removesuffix("/v1")


def test_a_conversation_with_a_tool(base_url: str) -> None:
    root_url = root_of(base_url)
    # docs: ollama
    from ollama import Client

    def set_timer(minutes: int) -> str:
        """Start a timer.

        Args:
            minutes: how long it runs
        """
        return f"A timer of {minutes} minutes is running."

    client = Client(host=root_url)
    options = {"temperature": 0}
    messages = [{"role": "user", "content": "please set a timer for 12 minutes"}]
    first = client.chat("demo.gguf", messages, tools=[set_timer], options=options)
    messages.append(first.message)
    for call in first.message.tool_calls or []:
        result = set_timer(**call.function.arguments)
        messages.append({"role": "tool", "tool_name": call.function.name, "content": result})
    second = client.chat("demo.gguf", messages, tools=[set_timer], options=options)
    print(second.message.content)
    # end
    (call,) = first.message.tool_calls or []
    assert (call.function.name, call.function.arguments) == ("set_timer", {"minutes": 12})
    assert second.message.content and second.done_reason == "stop"
    client.close()


def test_a_stream(base_url: str) -> None:
    root_url = root_of(base_url)
    # docs: ollama stream
    from ollama import Client

    client = Client(host=root_url)
    stream = client.chat(
        "demo.gguf",
        [{"role": "user", "content": "Where do I put my models?"}],
        options={"temperature": 0},
        stream=True,
    )
    text = ""
    for part in stream:
        text += part.message.content
        print(part.message.content, end="", flush=True)
    # end
    assert "GGUF" in text
    client.close()


def test_a_stream_is_what_a_whole_answer_is(base_url: str) -> None:
    from ollama import AsyncClient

    async def both() -> tuple[list[Any], Any]:
        client = AsyncClient(host=root_of(base_url))
        asked: Any = {
            "model": "demo.gguf",
            "messages": [{"role": "user", "content": "set a timer for 5 minutes please"}],
            "tools": [TIMER],
            "options": {"temperature": 0, "num_ctx": 8192},
            "keep_alive": "-1m",
            "think": False,
        }
        streamed = [part async for part in await client.chat(**asked, stream=True)]
        whole = await client.chat(**asked)
        await client.close()
        return streamed, whole

    streamed, whole = asyncio.run(both())
    calls = [call for part in streamed for call in part.message.tool_calls or []]
    assert calls == whole.message.tool_calls and len(calls) == 1
    assert calls[0].function.arguments == {"minutes": 5}
    assert streamed[-1].eval_count == whole.eval_count


def test_a_schema_and_a_prompt(base_url: str) -> None:
    from ollama import Client

    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    with Client(host=root_of(base_url)) as client:
        asked: Any = {"options": {"temperature": 0, "num_predict": 64}}
        answer = client.generate("demo", "Where do I put my models?", **asked)
        assert "GGUF" in answer.response
        told = client.generate("demo", "Is it on?", format=schema, **asked).response
        assert told in ('{"ok":true}', '{"ok":false}')
        assert "tools" in (client.show("demo").capabilities or [])
