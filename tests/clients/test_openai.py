"""openai-python: chat in all its forms. `/v1/responses` has tests of its own."""

from __future__ import annotations

import asyncio
import json
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
ASKED: Any = {"role": "user", "content": "please set a timer for 12 minutes"}


def test_chat(base_url: str) -> None:
    # docs: openai chat
    from openai import OpenAI

    client = OpenAI(base_url=base_url, api_key="none")
    answer = client.chat.completions.create(
        model="demo.gguf",
        messages=[{"role": "user", "content": "Where do I put my models?"}],
        temperature=0,
    )
    print(answer.choices[0].message.content)
    # end
    assert "GGUF" in (answer.choices[0].message.content or "")
    assert answer.usage is not None and answer.usage.total_tokens > 0
    assert answer._request_id is not None
    client.close()


def test_stream(base_url: str) -> None:
    # docs: openai stream
    from openai import OpenAI

    client = OpenAI(base_url=base_url, api_key="none")
    with client.chat.completions.stream(
        model="demo.gguf",
        messages=[{"role": "user", "content": "Where do I put my models?"}],
        temperature=0,
    ) as stream:
        for event in stream:
            if event.type == "content.delta":
                print(event.delta, end="", flush=True)
    # end
    final = stream.get_final_completion()
    assert "GGUF" in (final.choices[0].message.content or "")
    assert final.choices[0].finish_reason == "stop"
    client.close()


def test_a_streamed_tool_call_is_put_together(base_url: str) -> None:
    from openai import OpenAI

    with OpenAI(base_url=base_url, api_key="none") as client:
        with client.chat.completions.stream(
            model="demo.gguf", messages=[ASKED], tools=[TIMER], temperature=0
        ) as stream:
            events = list(stream)
        done = [e for e in events if e.type == "tool_calls.function.arguments.done"]
    assert [(e.name, json.loads(e.arguments)) for e in done] == [("set_timer", {"minutes": 12})]


def test_parse_returns_the_callers_own_type(base_url: str) -> None:
    # docs: openai parse
    from typing import Literal

    from openai import OpenAI
    from pydantic import BaseModel

    class Appointment(BaseModel):
        day: Literal["today", "tomorrow"]
        with_whom: Literal["Ada", "Grace"]
        confirmed: bool

    client = OpenAI(base_url=base_url, api_key="none")
    answer = client.chat.completions.parse(
        model="demo.gguf",
        messages=[{"role": "user", "content": "who are you?"}],
        response_format=Appointment,
        temperature=0,
    )
    print(answer.choices[0].message.parsed)
    # end
    assert isinstance(answer.choices[0].message.parsed, Appointment)
    client.close()


def test_parsed_tool_calls(base_url: str) -> None:
    import openai
    from pydantic import BaseModel

    class set_timer(BaseModel):
        """Start a timer"""

        minutes: int

    with openai.OpenAI(base_url=base_url, api_key="none") as client:
        answer = client.chat.completions.parse(
            model="demo.gguf",
            messages=[ASKED],
            tools=[openai.pydantic_function_tool(set_timer)],
            temperature=0,
        )
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.function.parsed_arguments == set_timer(minutes=12)


def test_async_requests_at_once(base_url: str) -> None:
    # docs: openai async
    import asyncio

    from openai import AsyncOpenAI

    async def ask(client: AsyncOpenAI, question: str) -> str | None:
        answer = await client.chat.completions.create(
            model="demo.gguf",
            messages=[{"role": "user", "content": question}],
            temperature=0,
        )
        return answer.choices[0].message.content

    async def main() -> list[str | None]:
        async with AsyncOpenAI(base_url=base_url, api_key="none") as client:
            questions = ["who are you?", "Where do I put my models?"]
            return await asyncio.gather(*(ask(client, question) for question in questions))

    answers = asyncio.run(main())
    # end
    assert "demo model" in (answers[0] or "") and "GGUF" in (answers[1] or "")


def test_an_async_stream_may_be_left_early(base_url: str) -> None:
    from openai import AsyncOpenAI

    async def first_words() -> str:
        async with AsyncOpenAI(base_url=base_url, api_key="none") as client:
            stream = await client.chat.completions.create(
                model="demo.gguf", messages=[ASKED], temperature=0, stream=True
            )
            async for chunk in stream:
                if chunk.choices[0].delta.content:
                    await stream.close()
                    return chunk.choices[0].delta.content
        return ""

    assert asyncio.run(first_words())


def test_models(base_url: str) -> None:
    from openai import OpenAI

    with OpenAI(base_url=base_url, api_key="none") as client:
        assert client.models.retrieve("demo").id == "demo.gguf"
        assert "demo.gguf" in [model.id for model in client.models.list()]


def test_embeddings(base_url: str) -> None:
    # docs: openai embeddings
    from openai import OpenAI

    client = OpenAI(base_url=base_url, api_key="none")
    answer = client.embeddings.create(
        model="bert.gguf", input=["the time", "a long day"], dimensions=16
    )
    one, other = (item.embedding for item in answer.data)
    print(sum(a * b for a, b in zip(one, other, strict=True)))
    # end
    assert len(one) == len(other) == 16
    assert abs(sum(a * a for a in one) - 1) < 1e-5
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 0
    client.close()


def test_rerank(base_url: str) -> None:
    # docs: openai rerank
    from typing import Any

    from openai import OpenAI

    client = OpenAI(base_url=base_url, api_key="none")
    documents = ["the time", "a long day"]
    answer = client.post(
        "/rerank",
        cast_to=dict[str, Any],
        body={"model": "reranker.gguf", "query": "what time is it", "documents": documents},
    )
    for result in answer["results"]:
        print(f"{result['relevance_score']:.2f} {documents[result['index']]}")
    # end
    scores = [result["relevance_score"] for result in answer["results"]]
    assert scores == sorted(scores, reverse=True) and len(scores) == 2
    client.close()
