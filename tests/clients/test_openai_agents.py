"""openai-agents: an agent with a tool, over either API."""

from __future__ import annotations

import asyncio


def test_an_agent_calls_its_tool(base_url: str) -> None:
    # docs: openai-agents
    import asyncio

    from agents import (
        Agent,
        ModelSettings,
        OpenAIChatCompletionsModel,
        Runner,
        function_tool,
        set_tracing_disabled,
    )
    from openai import AsyncOpenAI

    set_tracing_disabled(True)
    minutes_set = []

    @function_tool
    def set_timer(minutes: int) -> str:
        """Start a timer"""
        minutes_set.append(minutes)
        return '{"status": "started"}'

    async def main() -> str:
        async with AsyncOpenAI(base_url=base_url, api_key="none") as client:
            agent = Agent(
                name="assistant",
                model=OpenAIChatCompletionsModel("demo.gguf", client),
                model_settings=ModelSettings(temperature=0),
                tools=[set_timer],
            )
            result = await Runner.run(agent, "please set a timer for 12 minutes")
            return str(result.final_output)

    answer = asyncio.run(main())
    # end
    assert minutes_set == [12]
    assert answer


def test_a_streamed_run(base_url: str) -> None:
    from agents import Agent, ModelSettings, OpenAIChatCompletionsModel, Runner
    from openai import AsyncOpenAI

    async def run() -> tuple[list[str], str]:
        async with AsyncOpenAI(base_url=base_url, api_key="none") as client:
            model = OpenAIChatCompletionsModel("demo.gguf", client)
            settings = ModelSettings(temperature=0)
            agent = Agent(name="assistant", model=model, model_settings=settings)
            result = Runner.run_streamed(agent, "Where do I put my models?")
            types = []
            async for event in result.stream_events():
                if event.type == "raw_response_event":
                    types.append(event.data.type)
            return types, str(result.final_output)

    types, answer = asyncio.run(run())
    assert types[0] == "response.created" and types[-1] == "response.completed"
    assert "GGUF" in answer


def test_an_agent_over_the_responses_api(base_url: str) -> None:
    from agents import Agent, ModelSettings, OpenAIResponsesModel, Runner, function_tool
    from openai import AsyncOpenAI

    minutes_set = []

    @function_tool
    def set_timer(minutes: int) -> str:
        """Start a timer"""
        minutes_set.append(minutes)
        return '{"status": "started"}'

    async def run() -> list[str]:
        async with AsyncOpenAI(base_url=base_url, api_key="none") as client:
            agent = Agent(
                name="assistant",
                model=OpenAIResponsesModel("demo.gguf", client),
                model_settings=ModelSettings(temperature=0),
                tools=[set_timer],
            )
            whole = await Runner.run(agent, "please set a timer for 12 minutes")
            streamed = Runner.run_streamed(agent, "please set a timer for 7 minutes")
            async for _ in streamed.stream_events():
                pass
            return [str(whole.final_output), str(streamed.final_output)]

    assert all(asyncio.run(run()))
    assert minutes_set == [12, 7]
