"""pydantic-ai: an agent with a tool, a typed answer, a stream."""

from __future__ import annotations

import asyncio


def test_an_agent_calls_its_tool(base_url: str) -> None:
    # docs: pydantic-ai
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    provider = OpenAIProvider(base_url=base_url, api_key="none")
    model = OpenAIChatModel("demo.gguf", provider=provider, settings={"temperature": 0})
    agent = Agent(model)
    minutes_set = []

    @agent.tool_plain
    def set_timer(minutes: int) -> str:
        """Start a timer"""
        minutes_set.append(minutes)
        return '{"status": "started"}'

    result = agent.run_sync("please set a timer for 12 minutes")
    print(result.output)
    # end
    assert minutes_set == [12]
    assert result.output
    assert result.usage.input_tokens > 0


def test_a_typed_answer(base_url: str) -> None:
    # docs: pydantic-ai types
    from pydantic import BaseModel
    from pydantic_ai import Agent, NativeOutput
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    class City(BaseModel):
        name: str
        country: str

    provider = OpenAIProvider(base_url=base_url, api_key="none")
    model = OpenAIChatModel("demo.gguf", provider=provider, settings={"temperature": 0})
    agent = Agent(model, output_type=NativeOutput(City))
    city = agent.run_sync("who are you?").output
    print(city)
    # end
    assert isinstance(city, City)
    assert isinstance(Agent(model, output_type=City).run_sync("who are you?").output, City)


def test_a_stream(base_url: str) -> None:
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    provider = OpenAIProvider(base_url=base_url, api_key="none")
    model = OpenAIChatModel("demo.gguf", provider=provider, settings={"temperature": 0})
    agent = Agent(model)

    async def text() -> str:
        async with agent.run_stream("Where do I put my models?") as result:
            return "".join([piece async for piece in result.stream_text(delta=True)])

    assert "GGUF" in asyncio.run(text())


def test_the_responses_api(base_url: str) -> None:
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIResponsesModel
    from pydantic_ai.providers.openai import OpenAIProvider

    provider = OpenAIProvider(base_url=base_url, api_key="none")
    agent = Agent(OpenAIResponsesModel("demo.gguf", provider=provider, settings={"temperature": 0}))
    minutes_set = []

    @agent.tool_plain
    def set_timer(minutes: int) -> str:
        """Start a timer"""
        minutes_set.append(minutes)
        return '{"status": "started"}'

    async def run() -> list[str]:
        whole = await agent.run("please set a timer for 12 minutes")
        async with agent.run_stream("Where do I put my models?") as streamed:
            return [whole.output, await streamed.get_output()]

    said, streamed = asyncio.run(run())
    assert said and "GGUF" in streamed
    assert minutes_set == [12]
