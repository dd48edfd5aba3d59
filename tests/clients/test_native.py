"""The native API as an assistant on a small board drives it: warmed once, then streamed turns."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.live import LiveServer

LOAD = {"n_ctx": 32768}
INFERENCE = {
    "temperature": 0.1,
    "top_p": 0.9,
    "top_k": 40,
    "min_p": 0.05,
    "repetition_penalty": 1.05,
    "max_tokens": 256,
    "stop": ["user:"],
}
SYSTEM = {"role": "system", "content": "You are a helpful assistant with tools."}
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


class Assistant:
    """The loop of such a program: every request carries the whole conversation."""

    def __init__(self, client: httpx.Client) -> None:
        self.client = client
        self.messages: list[dict[str, Any]] = [SYSTEM]
        self.usage: dict[str, Any] = {}

    def body(self) -> dict[str, Any]:
        return {"messages": self.messages, "tools": [TIMER], "inference_configs": INFERENCE}

    def prepare(self) -> dict[str, Any]:
        """Load the model, and have the head of every prompt computed before the first question."""
        load = {"model_name": "demo.gguf", "load_model_configs": LOAD}
        self.client.post("/setModel", json=load).raise_for_status()
        answer = self.client.post("/restore_cache", json=self.body())
        restored: dict[str, Any] = answer.raise_for_status().json()
        return restored

    def say(self, message: dict[str, Any]) -> dict[str, Any]:
        """The assistant's next message, put together from the deltas of a stream."""
        self.messages.append(message)
        answer: dict[str, Any] = {"role": "assistant", "content": ""}
        calls: dict[int, dict[str, Any]] = {}
        for chunk in self._chunks():
            for choice in chunk["choices"]:
                delta = choice["delta"]
                answer["content"] += delta.get("content") or ""
                for part in delta.get("tool_calls", []):
                    _add(calls, part)
            self.usage = chunk.get("usage") or self.usage
        if calls:
            answer["tool_calls"] = [calls[index] for index in sorted(calls)]
        self.messages.append(answer)
        return answer

    def _chunks(self) -> Iterator[dict[str, Any]]:
        options = {"stream": True, "stream_options": {"include_usage": True}}
        body = self.body() | options | {"load_model_configs": LOAD}
        with self.client.stream("POST", "/chat/completions", json=body) as response:
            assert response.status_code == 200, response.read()
            for line in response.iter_lines():
                if line.startswith("data: ") and line != "data: [DONE]":
                    yield json.loads(line.removeprefix("data: "))


def _add(calls: dict[int, dict[str, Any]], part: dict[str, Any]) -> None:
    call = calls.setdefault(
        part["index"], {"type": "function", "function": {"name": "", "arguments": ""}}
    )
    if "id" in part:
        call["id"] = part["id"]
    call["function"]["name"] += part["function"].get("name", "")
    call["function"]["arguments"] += part["function"].get("arguments", "")


@pytest.fixture
def assistant(live: LiveServer) -> Assistant:
    assert live.client.get("/health").json()["status"] == "ok"
    return Assistant(live.client)


def test_a_turn_with_a_tool_goes_on_with_its_result(assistant: Assistant) -> None:
    restored = assistant.prepare()
    assert restored["status"] == "ok" and restored["prompt_tokens"] > 20

    asked = assistant.say({"role": "user", "content": "please set a timer for 12 minutes"})
    (call,) = asked["tool_calls"]
    assert call["function"]["name"] == "set_timer"
    assert json.loads(call["function"]["arguments"]) == {"minutes": 12}
    # What was warmed is not computed again, however the conversation goes on.
    cached = assistant.usage["prompt_tokens_details"]["cached_tokens"]
    assert cached >= restored["prompt_tokens"] - 8

    result = {"role": "tool", "tool_call_id": call["id"], "content": '{"status": "started"}'}
    told = assistant.say(result)
    assert told["content"] and "tool_calls" not in told
    again = assistant.say({"role": "user", "content": "who are you?"})
    assert again["content"]


def test_the_same_configuration_never_loads_the_model_again(
    live: LiveServer, assistant: Assistant
) -> None:
    assistant.prepare()
    assert live.client.get("/").json()["n_ctx"] == LOAD["n_ctx"]
    workers = [worker.pid for worker in live.workers()]
    for question in ("hi there!", "who are you?"):
        assistant.say({"role": "user", "content": question})
    assistant.prepare()
    assert [worker.pid for worker in live.workers()] == workers
