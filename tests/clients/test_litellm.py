"""litellm: the whole answer, a stream, tools."""

from __future__ import annotations

import asyncio
import json


def test_completion_and_stream(base_url: str) -> None:
    # docs: litellm
    import litellm

    answer = litellm.completion(
        model="openai/demo.gguf",
        api_base=base_url,
        api_key="none",
        messages=[{"role": "user", "content": "who are you?"}],
        temperature=0,
    )
    print(answer.choices[0].message.content)
    # end
    assert "demo model" in answer.choices[0].message.content
    stream = litellm.completion(
        model="openai/demo.gguf",
        api_base=base_url,
        api_key="none",
        messages=[{"role": "user", "content": "Where do I put my models?"}],
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert "GGUF" in "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert chunks[-1].usage.completion_tokens > 0


def test_tools(base_url: str) -> None:
    import litellm

    tool = {
        "type": "function",
        "function": {
            "name": "set_timer",
            "description": "Start a timer",
            "parameters": {"type": "object", "properties": {"minutes": {"type": "integer"}}},
        },
    }
    answer = asyncio.run(
        litellm.acompletion(
            model="openai/demo.gguf",
            api_base=base_url,
            api_key="none",
            messages=[{"role": "user", "content": "please set a timer for 12 minutes"}],
            tools=[tool],
            temperature=0,
        )
    )
    (call,) = answer.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == (
        "set_timer",
        {"minutes": 12},
    )


def test_an_error_keeps_its_kind(base_url: str) -> None:
    import litellm
    import pytest

    with pytest.raises(litellm.NotFoundError):
        litellm.completion(
            model="openai/nope",
            api_base=base_url,
            api_key="none",
            messages=[{"role": "user", "content": "hello"}],
        )
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(
            model="openai/demo.gguf",
            api_base=base_url,
            api_key="none",
            messages=[{"role": "user", "content": "water " * 200_000}],
        )


def test_the_responses_api(base_url: str) -> None:
    import litellm

    answer = litellm.responses(
        model="openai/demo.gguf",
        api_base=base_url,
        api_key="none",
        input="who are you?",
        temperature=0,
    )
    assert "demo model" in answer.output[0].content[0].text


def test_embeddings(base_url: str) -> None:
    # docs: litellm embeddings
    import litellm

    answer = litellm.embedding(
        model="openai/bert.gguf",
        api_base=base_url,
        api_key="none",
        input=["the time", "a long day", "the time"],
    )
    one, other, again = (item["embedding"] for item in answer.data)
    # end
    assert sum(a * b for a, b in zip(one, again, strict=True)) > 0.9999
    assert sum(a * b for a, b in zip(one, other, strict=True)) < 0.9999
    assert answer.usage.prompt_tokens > 0
