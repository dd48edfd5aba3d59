"""The chat template that ships: every shape of conversation that clients send."""

from __future__ import annotations

import pytest

from training.conversation import Conversation
from training.render import render
from training.words import Json

TOOL: Json = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def test_a_chat_has_nothing_hidden() -> None:
    chat = Conversation([{"role": "user", "content": "Hi"}])
    expected = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert render(chat, add_generation_prompt=True) == expected


def test_system_text_and_tools_share_a_turn() -> None:
    chat = Conversation([{"role": "system", "content": "Be kind."}], [TOOL])
    text = render(chat)
    assert text.startswith("<|im_start|>system\nBe kind.\n\nYou can call these tools:\n<tools>\n{")
    assert text.count("<|im_start|>") == 1


@pytest.mark.parametrize("arguments", [{"a": 1}, '{"a": 1}'])
def test_calls_are_the_same_from_an_object_and_from_text(arguments: Json) -> None:
    call: Json = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    chat = Conversation([{"role": "assistant", "content": None, "tool_calls": [call, call]}])
    one = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
    assert render(chat) == f"<|im_start|>assistant\n{one}\n{one}<|im_end|>\n"


def test_results_that_follow_each_other_share_a_turn() -> None:
    results: list[dict[str, Json]] = [
        {"role": "tool", "content": "1"},
        {"role": "tool", "content": [{"type": "text", "text": "2"}]},
    ]
    one = "<tool_response>\n1\n</tool_response>"
    two = "<tool_response>\n2\n</tool_response>"
    assert render(Conversation(results)) == f"<|im_start|>user\n{one}\n{two}<|im_end|>\n"
