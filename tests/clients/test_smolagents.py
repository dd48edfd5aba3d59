"""smolagents: an agent that calls tools."""

from __future__ import annotations


def test_a_tool_calling_agent(base_url: str) -> None:
    # docs: smolagents
    from smolagents import OpenAIModel, ToolCallingAgent, tool

    @tool
    def set_timer(minutes: int) -> str:
        """Start a timer

        Args:
            minutes: how long
        """
        minutes_set.append(minutes)
        return "started"

    minutes_set: list[int] = []
    model = OpenAIModel("demo.gguf", api_base=base_url, api_key="none", temperature=0)
    agent = ToolCallingAgent(tools=[set_timer], model=model, max_steps=2)
    answer = agent.run("please set a timer for 12 minutes")
    print(answer)
    # end
    # The demo model goes on calling until its steps are used up: it knows no final_answer.
    assert set(minutes_set) == {12} and answer
